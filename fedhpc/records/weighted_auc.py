"""The area under the ROC curve with a weight for each image: of many resamples of patients at once."""

import numpy as np
from numpy.typing import NDArray

from fedhpc.util.arrays import F64


def weighted_aucs(scores: F64, positive: NDArray[np.bool_], times: F64) -> F64:
    """Return the AUC f64[draws] of scores under each of several weightings; equal scores count half.

    Args:
        scores: f64[n].
        positive: bool[n].
        times: f64[draws, n], how often each image was drawn; NaN comes out where a class was not drawn.

    >>> weighted_aucs(np.array([1.0, 2.0, 2.0]), np.array([False, False, True]), np.ones((1, 3))).tolist()
    [0.75]
    """
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    starts = np.flatnonzero(np.concatenate(([True], ordered[1:] != ordered[:-1])))
    drawn, is_positive = times[:, order], positive[order]
    above = np.add.reduceat(drawn * is_positive, starts, axis=1)
    below = np.add.reduceat(drawn * ~is_positive, starts, axis=1)
    wins = (above * (np.cumsum(below, axis=1) - below / 2)).sum(axis=1)
    pairs = above.sum(axis=1) * below.sum(axis=1)
    areas: F64 = np.divide(wins, pairs, out=np.full(len(times), np.nan), where=pairs > 0)
    return areas


def patient_resamples(patient: NDArray[np.bytes_], draws: int, rng: np.random.Generator) -> F64:
    """Return how often each image is in each of several resamples of patients, f64[draws, n].

    Patients are drawn, not images: a patient's images are not independent (cluster bootstrap, Field & Welsh 2007).
    """
    patients, owner = np.unique(patient, return_inverse=True)
    counts = rng.multinomial(len(patients), np.full(len(patients), 1 / len(patients)), draws)
    return counts[:, owner].astype(np.float64)
