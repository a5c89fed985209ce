"""What the models of a run score: the metrics over all sites and of each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedhpc.records.calibration import Calibration, exact_calibrations
from fedhpc.records.curves import ALL_SITES, ModelCurves, exact_curves
from fedhpc.records.metrics import Metrics, auc, f1_thresholds, metrics
from fedhpc.util.arrays import I64


@dataclass(frozen=True)
class Measured:
    """The metrics over all sites and of each, at F1 thresholds chosen on the pooled validation splits.

    `auc_val` is on the validation splits: what to choose hyperparameters by. `thresholds` are bins of
    `fedhpc.records.metrics.score_histogram`, `interval` is that of the AUC, `reasons` say why a metric is None or what
    else must be known of it, `curves` are those of each site and of all (`fedhpc.records.curves.ALL_SITES`),
    `calibrations` say what the scores of each task mean; none where the validation release does not tell.
    """

    overall: Metrics
    auc_val: float | None
    per_site: dict[str, Metrics]
    thresholds: I64
    interval: tuple[float, float] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, ModelCurves] = field(default_factory=dict)
    calibrations: tuple[Calibration, ...] = ()


def measure_counts(sites: Sequence[str], val: Sequence[I64], test: Sequence[I64], specificity: float) -> Measured:
    """Pool the sites' exact histograms and measure."""
    pooled, thresholds = _total(test), f1_thresholds(_total(val))
    overall = metrics(pooled, thresholds, specificity)
    per_site = {site: metrics(one, thresholds, specificity) for site, one in zip(sites, test, strict=True)}
    curves = {site: exact_curves(one, specificity) for site, one in zip(sites, test, strict=True)}
    curves[ALL_SITES] = exact_curves(pooled, specificity)
    calibrations = exact_calibrations(_total(val), specificity)
    return Measured(overall, auc(_total(val)), per_site, thresholds, curves=curves, calibrations=calibrations)


def _total(histograms: Sequence[I64]) -> I64:
    total: I64 = np.sum(histograms, axis=0)
    return total


def mean_of(values: Sequence[float | None]) -> float | None:
    """Return the mean; None as soon as one value is, or there is none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined and len(defined) == len(values) else None
