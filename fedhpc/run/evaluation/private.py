"""With privacy: validation release, thresholds, test release, metrics; each is charged before its noise is drawn."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedhpc.config.schema import RunConfig
from fedhpc.privacy.evaluation_plan import plan_evaluation
from fedhpc.records.curves import ALL_SITES
from fedhpc.records.measured import Measured
from fedhpc.records.metrics import BINS, METRICS, Metrics, bin_of, unknown
from fedhpc.run.evaluation.answers import tasks_of
from fedhpc.run.evaluation.curves import (
    Answer,
    Law,
    OperatingPoints,
    Release,
    Thresholds,
    curves_of,
    cut_count,
    final_question,
    interval_of,
    law_of,
    macro,
    metrics_of,
)
from fedhpc.run.evaluation.noisy_curves import noisy_calibration, noisy_curves
from fedhpc.run.evaluation.questions import ask, first_question, question_from_rank_0
from fedhpc.run.session import Session
from fedhpc.util.arrays import F32, I64

SPENT = (
    "evaluation.epsilon is spent, since this split was released before for another model or question, or the site "
    "ledger of a hospital allows no release"
)
TOO_FEW = "too few patients of a class beside the noise of evaluation.epsilon: raise it, or pool more patients"
SUM_ONLY = "privacy.trust=sites: only the sum over the sites is seen"
EARLY_KEY = "sensitivity_early"
NOT_PRIVATE = "no private release of it exists; evaluation.epsilon=null measures it, without privacy"
POOLED_ONLY = "mode=centralised: the pooled patients are released as one site"


def measure_privately(session: Session, params_of: Callable[[str], F32], stage: int) -> Measured | None:
    """Measure one final model: validation release, thresholds, test release, metrics; at rank 0, None elsewhere.

    Args:
        session: this rank's.
        params_of: gives each site's model by its name, f32[d].
        stage: of the evaluation plan, that of this model.

    Raises:
        PayloadError: at rank 0, naming a site whose answer is none.
        ValueError: the evaluation is not private.
    """
    config, plan = session.config, plan_evaluation(session.config)
    if plan is None:
        raise ValueError("evaluation.epsilon=null")
    law = law_of(config, plan, tasks_of(session), stage)
    val = ask(session, params_of, first_question(session, stage), None)
    curves = None if val is None else curves_of(law, val.total[None], law.noises)
    question, thresholds = None, None
    if val is not None and curves is not None:
        thresholds = [Thresholds.of(curve, edges) for curve, edges in zip(curves, val.question.edges, strict=True)]
        question = final_question(stage, thresholds, cut_count(law, curves))
    asked = question_from_rank_0(session, question)
    test = None if asked is None else ask(session, params_of, asked, None)
    if session.transport.rank:
        return None
    if val is None:
        return unmeasured(config, SPENT, tasks_of(session))
    if curves is None or thresholds is None:
        return unmeasured(config, TOO_FEW, tasks_of(session))
    specificity = config.evaluation.specificity
    known = Measured(
        overall=early_alone(macro([one.sensitivity_early(specificity) for one in curves])),
        auc_val=macro([curve.auc for curve in curves]),
        per_site=dict.fromkeys(config.site_names, unknown()),
        thresholds=np.array([bin_of(float(one.score(np.array([one.f1]))[0])) for one in thresholds]),
        calibrations=tuple(
            noisy_calibration(curve, one, specificity) for curve, one in zip(curves, thresholds, strict=True)
        ),
    )
    if test is None:
        return replace(known, reasons={"auc": SPENT})
    return _with_test(known, test, law, OperatingPoints(thresholds, specificity), config)


def early_alone(early: float | None) -> Metrics:
    """Return the one metric that the validation release gives."""
    nothing = unknown()
    return replace(nothing, values={**nothing.values, EARLY_KEY: early})


def unmeasured(config: RunConfig, reason: str, tasks: int) -> Measured:
    """No metrics, and why; the threshold of F1 is then at even odds."""
    nothing = unknown()
    even = np.full(tasks, BINS // 2)
    return Measured(nothing, None, dict.fromkeys(config.site_names, nothing), even, None, {"auc": reason})


def _with_test(known: Measured, test: Answer, law: Law, points: OperatingPoints, config: RunConfig) -> Measured:
    overall = metrics_of(law, Release(test.question, test.total, law.noises), points)
    if overall is None:
        return replace(known, reasons={"auc": TOO_FEW})
    values = {**overall.values, EARLY_KEY: known.overall[EARLY_KEY]}
    reasons = {EARLY_KEY: "measured on the validation patients"}
    reasons |= {metric.key: NOT_PRIVATE for metric in METRICS if not metric.private}
    if not test.by_site:
        reasons["per_site"] = SUM_ONLY if config.privacy.trust == "sites" else POOLED_ONLY
    per_site = dict(known.per_site)
    curves = {ALL_SITES: noisy_curves(law, Release(test.question, test.total, law.noises), points.specificity)}
    for site, released in test.by_site.items():
        release = Release(test.question, released, 1.0)
        alone = metrics_of(law, release, points)
        curves[site] = noisy_curves(law, release, points.specificity)
        per_site[site] = alone or per_site[site]
        if alone is None:
            reasons[f"per_site.{site}"] = TOO_FEW
    return replace(
        known,
        overall=replace(overall, values=values),
        per_site=per_site,
        interval=interval_of(law, test, config),
        reasons=reasons,
        curves=curves,
    )


def validation_auc(law: Law, released: I64, noises: float) -> float | None:
    """Return the AUC of one release int64[tasks, groups, bins] of a validation split; None where one class has few."""
    curves = curves_of(law, released[None], noises)
    return None if curves is None else macro([curve.auc for curve in curves])
