"""What a finished model's scores mean: probabilities and the operating point, from released validation counts alone.

A network's log odds are those of its training, mostly too sure of themselves. A run releases counts of the validation
split: exact histograms (`evaluation.epsilon: null`, or without privacy), or a few bins with noise. From these rank 0
makes a map to calibrated log odds, and the score from which on the declared specificity is kept. Both go into
`model.pt` and cost no privacy beyond the release.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedhpc.records.metrics import BINS, EARLY, LATE, LOGIT_RANGE, NEGATIVE, lower_edge
from fedhpc.util.arrays import F64, I64

GRID = np.linspace(-LOGIT_RANGE, LOGIT_RANGE, 65)
STEPS, LEAST_SLOPE, LARGEST_SLOPE = 50, 0.02, 50.0


@dataclass(frozen=True)
class Calibration:
    """Of one class against all others, or one finding.

    Attributes:
        log_odds: scores of the network, rising.
        calibrated: the log odds that they stand for, at the share of positives among the validation patients; linear
            between, and constant beyond the ends.
        threshold: the score from which on an image is called positive, so that the specificity is kept.
        specificity: on the validation patients.
    """

    log_odds: tuple[float, ...]
    calibrated: tuple[float, ...]
    threshold: float
    specificity: float

    def probability(self, scores: F64) -> F64:
        """Return the probability of being positive of scores in log odds, f64 of their shape."""
        return sigmoid(np.interp(scores, self.log_odds, self.calibrated))

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> "Calibration":
        """Return what `asdict` has made plain values of.

        Raises:
            LookupError, TypeError, ValueError: it is none.
        """
        x, y = (tuple(float(value) for value in facts[name]) for name in ("log_odds", "calibrated"))
        if len(x) != len(y) or len(x) < 2 or not np.isfinite([*x, *y]).all() or (np.diff(x) <= 0).any():
            raise ValueError("a calibration of the model cannot be read")
        return cls(x, y, float(facts["threshold"]), float(facts["specificity"]))


def plain(calibrations: Sequence[Calibration]) -> list[dict[str, Any]]:
    """Return the facts that `model.pt` keeps."""
    return [asdict(one) for one in calibrations]


def sigmoid(log_odds: F64) -> F64:
    """1 / (1 + exp(-log_odds)) of any finite number."""
    out: F64 = 1 / (1 + np.exp(-np.clip(log_odds, -700, 700)))
    return out


def exact_calibrations(histogram: I64, specificity: float) -> tuple[Calibration, ...]:
    """Return a calibration for each task of exact validation counts int64[T, 3, BINS]; empty where a class is missing.

    By logistic regression of the label on the score (Platt 1999, "Probabilistic outputs for support vector machines",
    with his targets, so that separable counts give finite probabilities).
    """
    negative = histogram[:, NEGATIVE].astype(np.float64)
    positive = histogram[:, [LATE, EARLY]].sum(axis=1).astype(np.float64)
    if not (negative.sum(axis=1).all() and positive.sum(axis=1).all()):
        return ()
    return tuple(_platt(*counts, specificity) for counts in zip(negative, positive, strict=True))


def _platt(negative: F64, positive: F64, specificity: float) -> Calibration:
    scores = lower_edge(0) + (np.arange(BINS) + 0.5) * 2 * LOGIT_RANGE / BINS
    n0, n1 = negative.sum(), positive.sum()
    # Platt's targets: as if one more image of each class had been seen.
    ones = positive * (n1 + 1) / (n1 + 2) + negative / (n0 + 2)
    slope, offset = _logistic(scores, ones, negative + positive)
    false_positive = negative[::-1].cumsum()[::-1]
    allowed = np.flatnonzero(false_positive <= np.floor((1 - specificity) * n0 + 1e-9))
    threshold = lower_edge(int(allowed[0])) if len(allowed) else LOGIT_RANGE
    ends = np.array([-LOGIT_RANGE, LOGIT_RANGE])
    return Calibration(tuple(ends.tolist()), tuple((slope * ends + offset).tolist()), threshold, specificity)


def _logistic(scores: F64, ones: F64, images: F64) -> tuple[float, float]:
    """Slope and offset by Newton's steps; the slope stays positive, so that no order of scores is turned round."""
    used = images > 0
    x, y, n = scores[used], ones[used], images[used]
    theta = np.array([1.0, 0.0])
    design = np.column_stack([x, np.ones_like(x)])
    for _ in range(STEPS):
        p = sigmoid(design @ theta)
        slope = design.T @ (n * p - y)
        curvature = (design * (n * p * (1 - p))[:, None]).T @ design + 1e-9 * np.eye(2)
        step = np.linalg.solve(curvature, slope)
        theta = theta - step * min(1.0, 2.0 / max(float(np.abs(step).max()), 1e-12))
    if not np.isfinite(theta).all() or not LEAST_SLOPE <= theta[0] <= LARGEST_SLOPE:
        share = ones.sum() / images.sum()
        mean = float((x * n).sum() / n.sum())
        return LEAST_SLOPE, float(np.log(share / (1 - share))) - LEAST_SLOPE * mean
    return float(theta[0]), float(theta[1])
