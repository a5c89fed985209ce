"""ROC curves and calibration of a final model, for `curves.json`: at fixed false-positive rates, in a few bins.

What is written is coarser than what the sites have released to rank 0: no curve and no calibration of fewer than
`LEAST_IMAGES` images of either kind, and no bin of fewer than so many images. With `evaluation.epsilon` set both are
functions of the released counts with their noise alone (`fedhpc.run.evaluation.noisy_curves`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from fedhpc.records.metrics import BINS, EARLY, LATE, NEGATIVE, lower_edge, sensitivity_at
from fedhpc.util.arrays import F64, I64

FORMAT_VERSION = 1
LEAST_IMAGES = 10
CALIBRATION_BINS = 10
ALL_SITES = "all"


@dataclass(frozen=True)
class CalibrationBin:
    """Images whose score lies between two probabilities.

    Attributes:
        low, high: the probabilities.
        predicted: the mean probability; None where only the bin is known.
        observed: the share of positives.
        images: how many; with noise, as released.
        deviation: the standard deviation of `observed`, of its images and of the noise.
    """

    low: float
    high: float
    predicted: float | None
    observed: float
    images: float
    deviation: float


@dataclass(frozen=True)
class ModelCurves:
    """Of one model on the test images of one site, or of all.

    Attributes:
        sensitivities: at `false_positive_rates`, macro average over the tasks; None where a class has too few.
        calibration: over all tasks, in rising order; empty where there are too few images.
    """

    sensitivities: tuple[float, ...] | None = None
    calibration: tuple[CalibrationBin, ...] = ()


def false_positive_rates(specificity: float) -> F64:
    """Return the rates at which ROC curves are written, f64[51 or 52] from 0 to 1; that of `specificity` is among them.

    >>> bool(0.07 in false_positive_rates(0.93)), len(false_positive_rates(0.9))
    (True, 51)
    """
    # By a set: np.unique imports numpy.ma, which a rank has no other use for.
    return np.array(sorted({*np.round([*np.linspace(0, 1, 51), 1 - specificity], 6).tolist()}))


def exact_curves(histogram: I64, specificity: float) -> ModelCurves:
    """Return the curves of exact counts int64[T, 3, BINS] (`fedhpc.records.metrics.score_histogram`)."""
    negatives, positives = histogram[:, NEGATIVE].sum(axis=1), histogram[:, [LATE, EARLY]].sum(axis=(1, 2))
    if min(negatives.min(), positives.min()) < LEAST_IMAGES:
        return ModelCurves()
    found = [sensitivity_at(histogram, 1 - rate) for rate in false_positive_rates(specificity)]
    return ModelCurves(tuple(value for value in found if value is not None), _calibration(histogram))


def _calibration(histogram: I64) -> tuple[CalibrationBin, ...]:
    scores = np.array([lower_edge(bin) + lower_edge(1) / 2 - lower_edge(0) / 2 for bin in range(BINS)])
    probability = 1 / (1 + np.exp(-scores))
    positive = histogram[:, [LATE, EARLY]].sum(axis=(0, 1)).astype(np.float64)
    images = positive + histogram[:, NEGATIVE].sum(axis=0)
    place = np.minimum((probability * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    groups = _large_enough([np.flatnonzero(place == k) for k in range(CALIBRATION_BINS)], images)
    return tuple(_bin(cells, probability, images, positive) for cells in groups)


def _large_enough(groups: Sequence[I64], images: F64) -> list[I64]:
    """Return the groups of score bins, those with too few images joined to the next, the last to the one before."""
    joined: list[I64] = []
    rest: I64 = np.empty(0, np.int64)
    for group in groups:
        rest = np.concatenate([rest, group])
        if images[rest].sum() >= LEAST_IMAGES:
            joined.append(rest)
            rest = np.empty(0, np.int64)
    if len(rest) and joined:
        joined[-1] = np.concatenate([joined[-1], rest])
    return joined


def _bin(cells: I64, probability: F64, images: F64, positive: F64) -> CalibrationBin:
    n, found = float(images[cells].sum()), float(positive[cells].sum())
    share = found / n
    # Agresti and Coull 1998: an interval that does not vanish at 0 and 1.
    middle = (found + 2) / (n + 4)
    return CalibrationBin(
        low=float(probability[cells[0]]),
        high=float(probability[cells[-1]]),
        predicted=float((probability[cells] * images[cells]).sum() / n),
        observed=share,
        images=n,
        deviation=float(np.sqrt(middle * (1 - middle) / (n + 4))),
    )


@dataclass(frozen=True)
class CurvesFile:
    """curves.json.

    Attributes:
        specificity: of the operating point.
        evaluation_epsilon: what the counts were released with; None: they are exact.
        curves: {site or `all`: of the model that is used there}.
    """

    specificity: float
    evaluation_epsilon: float | None
    curves: Mapping[str, ModelCurves] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "format_version": FORMAT_VERSION,
            "specificity": self.specificity,
            "evaluation_epsilon": self.evaluation_epsilon,
            "false_positive_rates": false_positive_rates(self.specificity).tolist(),
            "curves": {name: asdict(one) for name, one in self.curves.items()},
        }
