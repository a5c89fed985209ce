"""Top-k by magnitude with error feedback (Stich et al. 2018, "Sparsified SGD with Memory", Algorithm 1)."""

import math

import numpy as np

from fedhpc.exchange.update import F32, I64, SparseVector


def count_to_send(size: int, density: float) -> int:
    """How many of `size` entries a density in (0, 1] stands for: at least one.

    >>> count_to_send(1000, 0.1), count_to_send(5, 0.01), count_to_send(7, 1)
    (100, 1, 7)
    """
    return max(1, math.ceil(round(size * density, 6)))


def top_k(vector: F32, k: int) -> SparseVector:
    """The k entries of largest magnitude; of equal ones those with the lowest index, so that it is reproducible.

    Args:
        vector: f32[d], finite.
        k: 1 <= k <= d.

    >>> top_k(np.array([1, -3, 3, 0, 3], np.float32), 2).indices.tolist()
    [1, 2]
    """
    if k >= vector.size:
        return SparseVector(vector.size, np.arange(vector.size, dtype=np.int64), vector.copy())
    indices = _largest(np.abs(vector), k)
    return SparseVector(vector.size, indices, vector[indices])


def _largest(magnitude: F32, k: int) -> I64:
    threshold = np.partition(magnitude, magnitude.size - k)[magnitude.size - k]
    above = np.flatnonzero(magnitude > threshold)
    ties = np.flatnonzero(magnitude == threshold)[: k - above.size]
    return np.union1d(above, ties).astype(np.int64)


def with_feedback(update: F32, residual: F32, density: float) -> tuple[SparseVector, F32]:
    """One step of error feedback.

    Args:
        update: f32[d], what this round would send.
        residual: f32[d], what earlier rounds kept.
        density: share of the entries to send.

    Returns:
        (sent, new residual). Guarantee: sent.dense() + new residual == update + residual, bit for bit, since the two
        have no entry in common.
    """
    corrected = update + residual
    sent = top_k(corrected, count_to_send(corrected.size, density))
    corrected[sent.indices] = 0
    return sent, corrected
