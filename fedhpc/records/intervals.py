"""Confidence intervals of the AUC over patients.

In a run by DeLong's components, summed by patient at each site (`squared_influence`); of one shard inside its hospital
by the bootstrap, whose resamples of patients never leave it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhpc.records.metrics import EARLY, LATE, NEGATIVE, Predictions, auc, cell_of, one_vs_rest, score_histogram
from fedhpc.util.arrays import F64, I64


@dataclass(frozen=True)
class Placements:
    """What a site needs of all sites' counts to tell how its patients move the AUC; coarse, so that no image shows.

    Attributes:
        beaten, beats: uint16[T, BINS], in thousandths: the share of the negatives below a bin, of the positives above.
        area: f64[T].
        totals: f64[T, 2], how many negatives and positives there are.
    """

    beaten: NDArray[np.uint16]
    beats: NDArray[np.uint16]
    area: F64
    totals: F64

    @classmethod
    def of(cls, pooled: I64) -> "Placements":
        """From all sites' counts int64[T, 3, BINS]."""
        negatives, positives = pooled[:, NEGATIVE], pooled[:, LATE] + pooled[:, EARLY]
        totals = np.maximum(np.stack([negatives.sum(axis=1), positives.sum(axis=1)], axis=1), 1).astype(np.float64)
        beaten = (np.cumsum(negatives, axis=1) - negatives / 2) / totals[:, :1]
        beats = 1 - (np.cumsum(positives, axis=1) - positives / 2) / totals[:, 1:]
        area = (positives * beaten).sum(axis=1) / totals[:, 1]
        return cls(_thousandths(beaten), _thousandths(beats), area, totals)


def _thousandths(shares: F64) -> NDArray[np.uint16]:
    return np.rint(1000 * shares).astype(np.uint16)


def squared_influence(predictions: Predictions, placed: Placements) -> float:
    """Return the sum over this site's patients of their squared influence on the macro AUC of all sites.

    An image's influence is the share of the other class that it beats or that beats it, less its mean, over the number
    of its class (DeLong, DeLong and Clarke-Pearson 1988); a patient's is the sum over the images (Obuchowski 1997,
    "Nonparametric analysis of clustered ROC curve data"). The sum over all sites estimates the AUC's variance.
    """
    scores, positive = one_vs_rest(predictions.logits, predictions.labels)
    cells, tasks = cell_of(scores), np.arange(scores.shape[1])
    share = np.where(positive, placed.beaten[tasks, cells], placed.beats[tasks, cells]) / 1000
    influence = (share - placed.area) / np.where(positive, placed.totals[:, 1], placed.totals[:, 0])
    _, owner = np.unique(predictions.patient, return_inverse=True)
    return float((np.bincount(owner, weights=influence.mean(axis=1)) ** 2).sum())


def delong_interval(area: float | None, variance: float) -> tuple[float, float] | None:
    """The 95 % interval of an AUC of this variance, normal on the scale of its log odds (Pepe 2003, section 5.2.4).

    >>> delong_interval(0.9, 0.0004), delong_interval(1.0, 0.0), delong_interval(None, 0.1)
    ((0.8534, 0.9329), (1.0, 1.0), None)
    """
    if area is None:
        return None
    if not 0 < area < 1 or not variance > 0:
        return (area, area)
    middle, deviation = np.log(area / (1 - area)), np.sqrt(variance) / (area * (1 - area))
    low, high = (1 / (1 + np.exp(-(middle + side * 1.96 * deviation))) for side in (-1, 1))
    return round(float(low), 4), round(float(high), 4)


def bootstrap_histograms(predictions: Predictions, resamples: int, rng: np.random.Generator) -> NDArray[np.uint16]:
    """uint16[resamples, T, 3, BINS]: score histograms of patients drawn with replacement, for use inside one hospital.

    They must not leave it: with the generator's seed every patient's score, class and stage can be read off them.

    Patients are drawn, not images: a patient's images are not independent (cluster bootstrap, Field & Welsh 2007).
    """
    patients, owner = np.unique(predictions.patient, return_inverse=True)
    stack = np.empty((resamples, *score_histogram(predictions).shape), np.uint16)
    for b in range(resamples):
        times = np.bincount(rng.integers(len(patients), size=len(patients)), minlength=len(patients))
        rows = np.repeat(np.arange(len(owner)), times[owner])
        stack[b] = score_histogram(_rows(predictions, rows))
    return stack


def _rows(predictions: Predictions, rows: I64) -> Predictions:
    p = predictions
    return Predictions(p.logits[rows], p.labels[rows], p.early[rows], p.patient[rows])


def bootstrap_aucs(stacks: Iterable[NDArray[np.uint16]]) -> F64:
    """f64[resamples]: the pooled AUC of each resample of every site's `bootstrap_histograms`; NaN where undefined."""
    pooled: NDArray[np.int32] | None = None
    for stack in stacks:
        pooled = stack.astype(np.int32) if pooled is None else pooled + stack
    if pooled is None:
        raise ValueError("no bootstrap histograms; give those of at least one site")
    values = [auc(counts.astype(np.int64)) for counts in pooled]
    return np.array([np.nan if value is None else value for value in values])


def interval95(values: F64) -> tuple[float, float] | None:
    """The 95 % percentile interval (Efron & Tibshirani 1993, ch. 13) of the defined values; None if there are none."""
    defined = values[~np.isnan(values)]
    if not defined.size:
        return None
    low, high = np.quantile(defined, (0.025, 0.975))
    return float(low), float(high)
