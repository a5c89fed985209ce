"""How a run is measured: what rank 0 asks of the sites, what it makes of their answers, with and without privacy.

    after a round (`validate`):  the validation split, if the config asks for it then
    at the end (`measure`):      the validation split: threshold of F1; then the test split, once

Without privacy, or with `evaluation.epsilon: null`, a site's answers are exact score histograms (`fedhpc.metrics`), and
the interval comes from DeLong's components. With it they are a few counts with noise (`fedhpc.site.release`): wide bins
of the validation split, then of the test split the two sides of one threshold where the validation split has both
error rates equal, or more bins where the noise is small beside the counts. Rank 0 fits binormal ROC curves to them
(`fedhpc.roc`); its interval is from its own resamples of the fitted curves, patients and noise drawn anew. Early-stage
sensitivity is then that of the *validation* patients: a third group would cost the test AUC a fifth of its precision.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.special import ndtr, ndtri

from fedhpc.agreement import together
from fedhpc.config import RunConfig
from fedhpc.errors import PayloadError
from fedhpc.exchange.masks import SumTerms
from fedhpc.exchange.messages import of_each, parsed
from fedhpc.exchange.update import F32, ArraySpec, pack_arrays, unpack_arrays
from fedhpc.metrics import BINS, F64, I64, Metrics, Placements, auc, bin_of, delong_interval
from fedhpc.privacy.evaluation_plan import EvaluationPlan, plan_evaluation
from fedhpc.records import Measured, Validation, mean_of, measure_counts
from fedhpc.rng import generator
from fedhpc.roc import Counts, Curve, fit, shares
from fedhpc.secure_round import masked_sum
from fedhpc.session import Session
from fedhpc.site.hospital import Hospital
from fedhpc.site.release import QUESTION, WHOLE, Question, Weights
from fedhpc.votes import agreed

EDGES = (-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0)
"""Of the bins of a validation split of which nothing is known, in log odds."""
LATENT = np.linspace(-4.0, 8.0, 601)
LEAST_SIGNAL = 2.0
"""A class whose number is below so many standard deviations of the noise in a bin is not measured."""
CUTS = ((0.004, 1), (0.001, 3), (0.0003, 7), (0.0, 31))
"""How many thresholds of the test split are released, by the noise in a bin over the number of the rarer class."""
CUT_SPACING = 0.5
LARGEST_COUNT, LARGEST_RELEASE = 2**40, 2**55
SUM_WIDTH_BYTES = 8
FIRST_SUM = 2**31
"""Secure sums of evaluation are numbered from here on; those of rounds lie below."""
SPENT = "evaluation.epsilon is spent: this split was released before for another model or question"
TOO_FEW = "too few patients of a class beside the noise of evaluation.epsilon"
SUM_ONLY = "privacy.trust=sites: only the sum over the sites is seen"
POOLED_ONLY = "mode=centralised: the pooled patients are released as one site"


@dataclass(frozen=True)
class Answer:
    """What rank 0 has of one question: the sum over the sites, each site's own where it may be seen."""

    question: Question
    total: I64
    by_site: Mapping[str, I64]


@dataclass(frozen=True)
class Law:
    """The noise in the counts of images that rank 0 has (public).

    Attributes:
        weights: how images count.
        scale: of each whole discrete Laplace noise, in the integers of a release.
        noises: how many of them are in a sum over the sites.
    """

    weights: Weights
    scale: float
    noises: float

    def deviations(self, noises: float) -> tuple[float, float]:
        """Of a bin of negatives and of positives, in images."""
        one = self.scale / WHOLE * float(np.sqrt(2 * noises))
        return one, one / self.weights.positive

    def counts(self, released: I64, task: int, noises: float) -> Counts:
        """Task `task` of R releases int64[R, tasks, groups, bins], in images."""
        negative, positive = self.deviations(noises)
        images = released[:, task] / WHOLE
        found = images[:, 1:] / self.weights.positive
        groups = found.shape[1]
        deviations = (negative, positive * groups**0.5, positive)
        return Counts(images[:, 0], found.sum(axis=1), found[:, -1] * (groups == 2), deviations)


def law_of(config: RunConfig, plan: EvaluationPlan, tasks: int, stage: int) -> Law:
    """The noise of a stage of a run."""
    weights = Weights(tasks, plan.counted)
    sites = 1 if config.mode == "centralised" else len(config.data.sites)
    share = config.honest_sites if config.privacy.trust == "sites" else 1
    return Law(weights, weights.l1 / plan.stage_epsilon(stage), sites / share)


def sum_terms(config: RunConfig, size: int) -> SumTerms:
    """Of the secure sum of an answer: all sites or none.

    A kept answer is sent again, with the same noise, when a run is started again. A second sum without one site would
    then differ from the first by exactly that site's vector, which has but a share of the noise.
    """
    sites, colluding = len(config.data.sites), config.privacy.colluding_sites or 0
    return SumTerms(sites, threshold=sites, size=size, width_bytes=SUM_WIDTH_BYTES, colluding=colluding)


def tasks_of(session: Session) -> int:
    """How many one-vs-rest tasks there are."""
    classes = len(session.task.classes)
    return 1 if classes == 2 else classes


def evaluated(session: Session) -> tuple[Hospital, ...]:
    """Who answers at this rank: the sites; with private evaluation of a centralised run the pooled patients as one."""
    pooled = session.config.private_evaluation and session.config.mode == "centralised"
    return session.learners if pooled else session.sites


# --- exact -----------------------------------------------------------------------------------------------------------


def exact_counts(session: Session, params_of: Callable[[str], F32], split: str, round: int | None) -> list[I64]:
    """Every site's exact histogram of a split, in site order, at rank 0; empty elsewhere.

    Raises:
        PayloadError: at rank 0, naming a site whose histogram is none.
    """
    mine = [pack_arrays({"counts": site.exact_counts(params_of(site.name), split)}) for site in session.sites]
    payloads = session.transport.gather(mine, "metrics", round)
    if session.transport.rank:
        return []
    shape = (tasks_of(session), 3, BINS)
    return of_each(payloads, session.config.site_names, "metrics", lambda site, got: read_counts(site, got, shape))


def read_counts(site: str, payload: bytes, shape: tuple[int, ...]) -> I64:
    """Return the exact histogram int64[T, 3, BINS] that a site's payload must be.

    Raises:
        PayloadError: another shape or type, a negative or impossible count, or tasks with different numbers of images.
    """
    counts = _array(site, payload, shape, LARGEST_COUNT)
    if (counts < 0).any() or len(set(counts.sum(axis=(1, 2)).tolist())) > 1:
        raise PayloadError(f"site {site}, metrics: counts below zero, or other numbers of images in other tasks")
    return counts


def _array(site: str, payload: bytes, shape: tuple[int, ...], largest: int) -> I64:
    expected = {"counts": ArraySpec("<i8", shape)}
    try:
        counts: I64 = unpack_arrays(payload, expected, 8 * int(np.prod(shape)))["counts"].astype(np.int64)
    except PayloadError as error:
        raise PayloadError(f"site {site}, metrics: {error}") from None
    if (np.abs(counts.astype(np.float64)) > largest).any():
        raise PayloadError(f"site {site}, metrics: counts beyond {largest}")
    return counts


def read_influence(site: str, payload: bytes) -> float:
    """Return the one number that a site's payload must be: finite and not negative.

    Raises:
        PayloadError: where it is not.
    """
    value = np.frombuffer(payload, "<f8") if len(payload) == 8 else np.array([np.nan])
    if not (np.isfinite(value[0]) and 0 <= value[0] <= 1e6):
        raise PayloadError(f"site {site}, metrics: its part of the variance is no number from 0 to 1e6")
    return float(value[0])


def _variance(session: Session, params: F32, pooled: I64 | None) -> float:
    """Of the pooled AUC, at rank 0, from each site's sum over its patients."""
    transport = session.transport
    told = None if pooled is None else pack_arrays(vars(Placements.of(pooled)))
    arrays: dict[str, Any] = unpack_arrays(transport.broadcast(told, "metrics"))
    placed = Placements(**arrays)
    mine = [np.array([site.squared_influence(params, placed)], "<f8").tobytes() for site in session.sites]
    payloads = transport.gather(mine, "metrics")
    return sum(of_each(payloads, session.config.site_names, "metrics", read_influence)) if payloads else 0.0


def _measure_exactly(session: Session, params: F32) -> Measured | None:
    val, test = (exact_counts(session, lambda _: params, split, None) for split in ("val", "test"))
    pooled = np.sum(test, axis=0) if test else None
    variance = _variance(session, params, pooled)
    if not test:
        return None
    measured = measure_counts(session.config.site_names, val, test, session.config.evaluation.specificity)
    return replace(measured, interval=delong_interval(measured.overall.auc, variance))


# --- private ---------------------------------------------------------------------------------------------------------


def ask(session: Session, params_of: Callable[[str], F32], question: Question, round: int | None) -> Answer | None:
    """Ask all sites; at rank 0 the answer, else None. None everywhere where a site's budget does not allow it.

    Raises:
        PayloadError: at rank 0, naming a site whose answer is none.
    """
    plan = plan_evaluation(session.config)
    if plan is None:
        raise ValueError("evaluation.epsilon=null: a run whose evaluation is not private asks no such question")
    config, transport, sites = session.config, session.transport, evaluated(session)
    willing = all(site.may_answer(params_of(site.name), question) for site in sites)
    if not agreed(transport, willing, round):
        return None
    weights = Weights(question.shape[0], plan.counted)
    vectors = together(transport, lambda: [site.answer(params_of(site.name), question, weights) for site in sites])
    if config.privacy.trust == "sites":
        number = FIRST_SUM + 2 * question.stage + (question.split == "test")
        terms = sum_terms(config, int(np.prod(question.shape)))
        mine = {site.index: vector.ravel() for site, vector in zip(sites, vectors, strict=True)}
        total = masked_sum(session, terms, number, mine)
        return None if total is None else Answer(question, total.reshape(question.shape), {})
    payloads = transport.gather([pack_arrays({"counts": vector}) for vector in vectors], "metrics", round)
    if transport.rank:
        return None
    names = config.site_names if config.mode != "centralised" else [site.name for site in sites]
    got = of_each(payloads, names, "metrics", lambda site, one: _array(site, one, question.shape, LARGEST_RELEASE))
    return Answer(question, np.sum(got, axis=0), dict(zip(names, got, strict=True)) if len(got) > 1 else {})


def first_question(session: Session, stage: int) -> Question:
    """Of a validation split: wide bins that fit any model."""
    return Question(stage=stage, split="val", groups=3, edges=(EDGES,) * tasks_of(session))


def _told(session: Session, question: Question | None) -> Question | None:
    """Rank 0's question, or that there is none, at every rank."""
    text = None
    if session.transport.rank == 0:
        text = b"" if question is None else QUESTION.dump_json(question)
    got = session.transport.broadcast(text, "metrics")
    return parsed(got, QUESTION, "aggregator, metrics") if got else None


def curves_of(law: Law, released: I64, noises: float) -> list[Curve] | None:
    """The curves of R releases int64[R, tasks, groups, bins], one a task; None where a class has too few."""
    counts = [law.counts(released, task, noises) for task in range(released.shape[1])]
    for one in counts:
        few = one.negative.sum(axis=1) < LEAST_SIGNAL * one.deviations[0]
        few |= one.positive.sum(axis=1) < LEAST_SIGNAL * one.deviations[1]
        if few.any():
            return None
    return [fit(one) for one in counts]


def macro(values: Sequence[F64]) -> float:
    """The mean over the tasks of the first release's values."""
    return float(np.mean([value[0] for value in values]))


def interpolated(x: F64, known: F64, values: F64) -> F64:
    """Linear between the points, and beyond them by the slope at the end; one point: slope 1.

    >>> interpolated(np.array([-1.0, 1.5, 3.0]), np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 3.0])).tolist()
    [-2.0, 2.5, 4.0]
    """
    if len(known) == 1:
        alone: F64 = x - known[0] + values[0]
        return alone
    slopes = np.diff(values) / np.maximum(np.diff(known), 1e-9)
    place = np.clip(np.searchsorted(known, x, side="right") - 1, 0, len(slopes) - 1)
    out: F64 = values[place] + slopes[place] * (x - known[place])
    return out


@dataclass(frozen=True)
class Thresholds:
    """What the validation split says about one task, as scores in log odds and on its latent scale.

    Attributes:
        f1, equal: the latent positions with the largest F1, and with both error rates equal.
        edges, latent: scores of the validation bins' edges, and where they lie on the latent scale.
    """

    f1: float
    equal: float
    edges: F64
    latent: F64

    @classmethod
    def of(cls, curve: Curve, edges: Sequence[float]) -> "Thresholds":
        """From the first release of a curve."""
        best = LATENT[curve.f1(np.broadcast_to(LATENT, (len(curve.a), len(LATENT))))[0].argmax()]
        equal = curve.a[0] / (1 + curve.b[0])
        return cls(float(best), float(equal), np.array(edges), curve.edges[0])

    def score(self, latent: F64) -> F64:
        """Log odds at latent positions."""
        return interpolated(latent, self.latent, self.edges)

    def cuts(self, count: int) -> tuple[float, ...]:
        """Rising scores about the point of equal error rates, `count` of them."""
        spread = CUT_SPACING * 6 / max(count, 6) * (np.arange(count) - (count - 1) / 2)
        latent = np.asarray(self.equal + spread, np.float64)
        scores = np.clip(self.score(latent), -1e5, 1e5)
        return tuple(float(score) for score in np.maximum.accumulate(scores) + 1e-6 * np.arange(count))

    def f1_latent(self, curve: Curve, edges: Sequence[float]) -> F64:
        """Where the F1 threshold lies on the latent scale of another release with its own edges, f64[R, 1]."""
        known = np.array(edges)
        score = self.score(np.array([self.f1]))
        near = int(np.abs(known - score).argmin())
        own = interpolated(np.array([known[near]]), self.edges, self.latent)
        return curve.edges[:, near : near + 1] + (self.f1 - own)


def _cut_count(law: Law, counts: Sequence[Curve]) -> int:
    rarer = min(min(curve.negatives[0], curve.positives[0]) for curve in counts)
    noise = law.deviations(law.noises)[1] / max(rarer, 1.0)
    return next(number for least, number in CUTS if noise >= least)


def _measure_privately(session: Session, params: F32, stage: int) -> Measured | None:
    """One final model: validation release, thresholds, test release, metrics; at rank 0."""
    config, plan = session.config, plan_evaluation(session.config)
    if plan is None:
        raise ValueError("evaluation.epsilon=null")
    law = law_of(config, plan, tasks_of(session), stage)
    val = ask(session, lambda _: params, first_question(session, stage), None)
    curves = None if val is None else curves_of(law, val.total[None], law.noises)
    question, thresholds = None, None
    if val is not None and curves is not None:
        thresholds = [Thresholds.of(curve, edges) for curve, edges in zip(curves, val.question.edges, strict=True)]
        count = _cut_count(law, curves)
        question = Question(stage=stage, split="test", groups=2, edges=tuple(one.cuts(count) for one in thresholds))
    asked = _told(session, question)
    test = None if asked is None else ask(session, lambda _: params, asked, None)
    if session.transport.rank:
        return None
    if val is None:
        return unmeasured(config, SPENT)
    if curves is None or thresholds is None:
        return unmeasured(config, TOO_FEW)
    specificity = config.evaluation.specificity
    known = Measured(
        overall=Metrics(None, None, None, macro([one.sensitivity_early(specificity) for one in curves]), 0),
        auc_val=macro([curve.auc for curve in curves]),
        per_site=dict.fromkeys(config.site_names, Metrics(None, None, None, None, 0)),
        thresholds=np.array([bin_of(float(one.score(np.array([one.f1]))[0])) for one in thresholds]),
    )
    if test is None:
        return replace(known, reasons={"auc": SPENT})
    return _with_test(known, test, (law, thresholds, config))


def unmeasured(config: RunConfig, reason: str) -> Measured:
    """No metrics, and why; the threshold of F1 is then at even odds."""
    nothing = Metrics(None, None, None, None, 0)
    even = np.array([BINS // 2])
    return Measured(nothing, None, dict.fromkeys(config.site_names, nothing), even, None, {"auc": reason})


def _with_test(known: Measured, test: Answer, by: tuple[Law, Sequence[Thresholds], RunConfig]) -> Measured:
    law, thresholds, config = by
    overall = metrics_of(law, test.question, (test.total, law.noises), (thresholds, config))
    if overall is None:
        return replace(known, reasons={"auc": TOO_FEW})
    early = known.overall.sensitivity_early
    reasons = {"sensitivity_early": "measured on the validation patients"}
    if not test.by_site:
        reasons["per_site"] = SUM_ONLY if config.privacy.trust == "sites" else POOLED_ONLY
    per_site = dict(known.per_site)
    for site, released in test.by_site.items():
        alone = metrics_of(law, test.question, (released, 1.0), (thresholds, config))
        per_site[site] = alone or per_site[site]
        if alone is None:
            reasons[f"per_site.{site}"] = TOO_FEW
    return replace(
        known,
        overall=replace(overall, sensitivity_early=early),
        per_site=per_site,
        interval=interval_of(law, test, config),
        reasons=reasons,
    )


def metrics_of(
    law: Law, question: Question, released: tuple[I64, float], by: tuple[Sequence[Thresholds], RunConfig]
) -> Metrics | None:
    """Of one test release and the number of noises in it; None where a class has too few."""
    curves = curves_of(law, released[0][None], released[1])
    if curves is None:
        return None
    placed = zip(curves, by[0], question.edges, strict=True)
    images = curves[0].negatives[0] + curves[0].positives[0]
    return Metrics(
        auc=macro([curve.auc for curve in curves]),
        f1=macro([curve.f1(one.f1_latent(curve, edges))[:, 0] for curve, one, edges in placed]),
        sensitivity=macro([curve.sensitivity(by[1].evaluation.specificity) for curve in curves]),
        sensitivity_early=None,
        n_images=round(float(images)),
    )


def interval_of(law: Law, test: Answer, config: RunConfig) -> tuple[float, float] | None:
    """The 95 % interval of the AUC: resampled patients and noise on the fitted curves, normal on the probit scale.

    Patients are drawn as if each had `counted` images with equal scores, which makes the interval rather too wide.
    """
    curves = curves_of(law, test.total[None], law.noises)
    if curves is None:
        return None
    rng, resamples = generator(config.seed, "interval"), config.evaluation.bootstrap
    areas = np.mean([fit(_resampled(curve, law, resamples, rng)).auc for curve in curves], axis=0)
    middle = ndtri(np.clip(macro([curve.auc for curve in curves]), 1e-6, 1 - 1e-6))
    deviation = float(np.std(ndtri(np.clip(areas, 1e-6, 1 - 1e-6))))
    low, high = ndtr(middle + 1.96 * deviation * np.array([-1, 1]))
    return float(low), float(high)


def _resampled(curve: Curve, law: Law, resamples: int, rng: np.random.Generator) -> Counts:
    deviations, counted, blocks = law.deviations(law.noises), law.weights.counted, []
    latent = (curve.edges, curve.b[:, None] * curve.edges - curve.a[:, None])
    numbers, factors = (curve.negatives, curve.positives), (1, law.weights.positive)
    for number, edges, factor in zip(numbers, latent, factors, strict=True):
        patients = max(1, round(float(number[0]) / counted))
        drawn = counted * rng.multinomial(patients, shares(edges)[0], resamples)
        noise = np.diff(rng.gamma(law.noises, law.scale / WHOLE / factor, (2, *drawn.shape)), axis=0)[0]
        blocks.append(drawn + noise)
    return Counts(blocks[0], blocks[1], np.zeros_like(blocks[1]), (*deviations, deviations[1]))


# --- both ------------------------------------------------------------------------------------------------------------


def validate(session: Session, params_of: Callable[[str], F32], round: int) -> Validation:
    """The AUC on the validation splits, at rank 0; nothing elsewhere and in rounds that release nothing.

    Several models (mode=local): the mean over the sites, each with its own.
    """
    config = session.config
    if not config.validates(round):
        return Validation()
    names, one_model = config.site_names, config.mode != "local"
    if not config.private_evaluation:
        val = exact_counts(session, params_of, "val", round)
        if not val:
            return Validation()
        alone = {name: auc(one) for name, one in zip(names, val, strict=True)}
        return Validation(auc(np.sum(val, axis=0)) if one_model else mean_of(list(alone.values())), alone)
    answer = ask(session, params_of, first_question(session, round), round)
    plan = plan_evaluation(config)
    if answer is None or plan is None:
        return Validation()
    law = law_of(config, plan, tasks_of(session), round)
    alone = {name: _val_auc(law, released, 1.0) for name, released in answer.by_site.items()}
    pooled = _val_auc(law, answer.total, law.noises)
    return Validation(pooled if one_model else mean_of(list(alone.values())), alone)


def _val_auc(law: Law, released: I64, noises: float) -> float | None:
    curves = curves_of(law, released[None], noises)
    return None if curves is None else macro([curve.auc for curve in curves])


def measure(session: Session, params: F32, model: int) -> Measured | None:
    """Measure one final model (the number `model` of the run's) on all sites; at rank 0, None elsewhere."""
    plan = plan_evaluation(session.config)
    if plan is None:
        return _measure_exactly(session, params)
    return _measure_privately(session, params, plan.final_stage(model))
