"""What rank 0 makes of released counts: the noise in them, fitted curves, thresholds, metrics and their interval.

No message is sent here: the same functions measure how far private metrics are from exact ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fedhpc.config.schema import RunConfig
from fedhpc.privacy.evaluation_plan import EvaluationPlan
from fedhpc.records.metrics import Metrics, unknown
from fedhpc.run.evaluation.binormal_roc import Counts, Curve, fit, shares
from fedhpc.site.release import WHOLE, Question, Weights
from fedhpc.util.arrays import F64, I64
from fedhpc.util.normal import ndtr, ndtri
from fedhpc.util.rng import generator

EDGES = (-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0)
"""Of the bins of a validation split of which nothing is known, in log odds."""
LATENT = np.linspace(-4.0, 8.0, 601)
LEAST_SIGNAL = 2.0
"""A class whose number is below so many standard deviations of the noise in a bin is not measured."""
CUTS = ((0.004, 1), (0.001, 3), (0.0003, 7), (0.0, 31))
"""How many thresholds of the test split are released, by the noise in a bin over the number of the rarer class."""
CUT_SPACING = 0.5
SOFT_WIDTH = 0.8
"""On the latent scale, of a threshold that is released alone. The area from it has a tenth less noise than from one
without a width, and depends less on where the noise of the validation split has put it. From 1 on, the difference
between the spreads of the scores on the validation and the test split costs more."""


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

    def counts(self, released: I64, task: int, noises: float, width: float = 0.0) -> Counts:
        """Task `task` of R releases int64[R, tasks, groups, bins], in images; `width` is that of the edges."""
        negative, positive = self.deviations(noises)
        images = released[:, task] / WHOLE
        found = images[:, 1:] / self.weights.positive
        groups = found.shape[1]
        deviations = (negative, positive * groups**0.5, positive)
        return Counts(images[:, 0], found.sum(axis=1), found[:, -1] * (groups == 2), deviations, width)


def law_of(config: RunConfig, plan: EvaluationPlan, tasks: int, stage: int) -> Law:
    """Return the noise of a stage of a run."""
    weights = Weights(tasks, plan.counted, config.task)
    sites = 1 if config.mode == "centralised" else len(config.data.sites)
    share = config.honest_sites if config.privacy.trust == "sites" else 1
    return Law(weights, weights.l1 / plan.stage_epsilon(stage), sites / share)


def latent_width(question: Question) -> float:
    """Of the edges that a question has, where rank 0 asked for them by `final_question`."""
    return SOFT_WIDTH if question.widths else 0.0


def curves_of(law: Law, released: I64, noises: float, width: float = 0.0) -> list[Curve] | None:
    """Return the curves of R releases int64[R, tasks, groups, bins], one a task; None where a class has too few."""
    counts = [law.counts(released, task, noises, width) for task in range(released.shape[1])]
    for one in counts:
        few = one.negative.sum(axis=1) < LEAST_SIGNAL * one.deviations[0]
        few |= one.positive.sum(axis=1) < LEAST_SIGNAL * one.deviations[1]
        if few.any():
            return None
    return [fit(one) for one in counts]


def macro(values: Sequence[F64]) -> float:
    """Return the mean over the tasks of the first release's values; of each task f64[R]."""
    return float(np.mean([value[0] for value in values]))


def interpolated(x: F64, known: F64, values: F64) -> F64:
    """Interpolate linearly at x f64[...] between known f64[k] -> values f64[k]; beyond them by the slope at the end.

    With one point the slope is 1.

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
        """Return what the first release of a curve says, whose bins have these `edges`, in log odds."""
        best = LATENT[curve.f1(np.broadcast_to(LATENT, (len(curve.a), len(LATENT))))[0].argmax()]
        equal = curve.a[0] / (1 + curve.b[0])
        return cls(float(best), float(equal), np.array(edges), curve.edges[0])

    def score(self, latent: F64) -> F64:
        """Return scores, in log odds, at latent positions f64[...], in their shape."""
        return interpolated(latent, self.latent, self.edges)

    def cuts(self, count: int) -> tuple[float, ...]:
        """Return `count` rising scores, in log odds, about the point of equal error rates."""
        spread = CUT_SPACING * 6 / max(count, 6) * (np.arange(count) - (count - 1) / 2)
        latent = np.asarray(self.equal + spread, np.float64)
        scores = np.clip(self.score(latent), -1e5, 1e5)
        return tuple(float(score) for score in np.maximum.accumulate(scores) + 1e-6 * np.arange(count))

    def soft_cut(self) -> tuple[float, float]:
        """Return middle and width, in log odds, of the threshold at the point of equal error rates."""
        low, high = np.clip(self.score(self.equal + SOFT_WIDTH * np.array([-0.5, 0.5])), -1e5, 1e5)
        return float(low + high) / 2, max(0.0, float(high - low))

    def f1_latent(self, curve: Curve, edges: Sequence[float]) -> F64:
        """Where the F1 threshold lies on the latent scale of another release with its own edges, f64[R, 1]."""
        known = np.array(edges)
        score = self.score(np.array([self.f1]))
        near = int(np.abs(known - score).argmin())
        own = interpolated(np.array([known[near]]), self.edges, self.latent)
        return curve.edges[:, near : near + 1] + (self.f1 - own)


def cut_count(law: Law, counts: Sequence[Curve]) -> int:
    """Return how many thresholds of the test split are asked for: see CUTS."""
    rarer = min(min(curve.negatives[0], curve.positives[0]) for curve in counts)
    noise = law.deviations(law.noises)[1] / max(rarer, 1.0)
    return next(number for least, number in CUTS if noise >= least)


def final_question(stage: int, thresholds: Sequence[Thresholds], count: int) -> Question:
    """Return what is asked of the test split: `count` thresholds; one alone has a width."""
    if count > 1:
        return Question(stage=stage, split="test", groups=2, edges=tuple(one.cuts(count) for one in thresholds))
    middles, widths = zip(*(one.soft_cut() for one in thresholds), strict=True)
    return Question(stage=stage, split="test", groups=2, edges=tuple((middle,) for middle in middles), widths=widths)


@dataclass(frozen=True)
class Release:
    """The counts that answer a question, int64[tasks, groups, bins], and how many whole noises they carry (public)."""

    question: Question
    counts: I64
    noises: float


@dataclass(frozen=True)
class OperatingPoints:
    """Where test releases are measured: the thresholds of each task, and a specificity."""

    thresholds: Sequence[Thresholds]
    specificity: float


def metrics_of(law: Law, release: Release, points: OperatingPoints) -> Metrics | None:
    """Return the metrics of one test release; None where a class has too few."""
    curves = curves_of(law, release.counts[None], release.noises, latent_width(release.question))
    if curves is None:
        return None
    placed = zip(curves, points.thresholds, release.question.edges, strict=True)
    f1s = [curve.f1(one.f1_latent(curve, edges))[:, 0] for curve, one, edges in placed]
    sensitivities = [curve.sensitivity(points.specificity) for curve in curves]
    images = curves[0].negatives[0] + curves[0].positives[0]
    values = {
        "auc": macro([curve.auc for curve in curves]),
        "f1": macro(f1s),
        "sensitivity": macro(sensitivities),
    }
    by_class = [
        {**unknown().values, "auc": float(curve.auc[0]), "f1": float(f1[0]), "sensitivity": float(found[0])}
        for curve, f1, found in zip(curves, f1s, sensitivities, strict=True)
    ]
    return Metrics({**unknown().values, **values}, round(float(images)), tuple(by_class))


def interval_of(law: Law, test: Answer, config: RunConfig) -> tuple[float, float] | None:
    """The 95 % interval of the AUC: resampled patients and noise on the fitted curves, normal on the probit scale.

    Patients are drawn as if each had `counted` images with equal scores, which makes the interval rather too wide; so
    does that each lies on one side of a threshold, also of one with a width.
    """
    width = latent_width(test.question)
    curves = curves_of(law, test.total[None], law.noises, width)
    if curves is None:
        return None
    rng, resamples = generator(config.seed, "interval"), config.evaluation.bootstrap
    areas = np.mean([fit(_resampled(curve, law, resamples, rng, width)).auc for curve in curves], axis=0)
    middle = ndtri(np.clip(macro([curve.auc for curve in curves]), 1e-6, 1 - 1e-6))
    deviation = float(np.std(ndtri(np.clip(areas, 1e-6, 1 - 1e-6))))
    low, high = ndtr(middle + 1.96 * deviation * np.array([-1, 1]))
    return float(low), float(high)


def _resampled(curve: Curve, law: Law, resamples: int, rng: np.random.Generator, width: float) -> Counts:
    deviations, counted, blocks = law.deviations(law.noises), law.weights.counted, []
    b = curve.b[:, None]
    shared = (shares(curve.edges, width)[0], shares(b * curve.edges - curve.a[:, None], b * width)[0])
    numbers, factors = (curve.negatives, curve.positives), (1, law.weights.positive)
    for number, share, factor in zip(numbers, shared, factors, strict=True):
        patients = max(1, round(float(number[0]) / counted))
        drawn = counted * rng.multinomial(patients, share, resamples)
        noise = np.diff(rng.gamma(law.noises, law.scale / WHOLE / factor, (2, *drawn.shape)), axis=0)[0]
        blocks.append(drawn + noise)
    return Counts(blocks[0], blocks[1], np.zeros_like(blocks[1]), (*deviations, deviations[1]), width)
