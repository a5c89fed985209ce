"""Top-k by magnitude with error feedback (Stich et al. 2018, "Sparsified SGD with Memory", Algorithm 1)."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np

from fedhpc.compression.float_bits import blocks
from fedhpc.compression.quantization import grid_for, rounded
from fedhpc.compression.top_k import Layers, refusal, top_k
from fedhpc.compression.update import DenseVector, SparseVector
from fedhpc.errors import PayloadError
from fedhpc.util.arrays import F32


@dataclass(frozen=True)
class CompressionConfig:
    """How an update is made small; all of it is public.

    Attributes:
        density: the share of the entries to send, in (0, 1].
        value_bits: 32 (as they are), 16 (as exact as fp16), or 8 to 3 (log-scaled): see `compression.quantization`.
        layers: the split of the vector, to name an entry and for `per_tensor`; empty where neither matters.
        per_tensor: send the density of every tensor by itself, not of the whole.
        warm_up_rounds: in how many rounds at the beginning more is sent: see `of_round`.
    """

    density: float
    value_bits: int = 32
    layers: Layers = ()
    per_tensor: bool = False
    warm_up_rounds: int = 0

    def of_round(self, round: int) -> "CompressionConfig":
        """Return what holds in a round, counted from 0.

        In warm-up the density falls by the same factor from round to round, from near 1 to its own (Lin et al. 2018,
        "Deep Gradient Compression", section 3.3): the first updates are the largest, and what is not sent of them comes
        when the model is elsewhere.

        >>> [round(CompressionConfig(0.01, warm_up_rounds=3).of_round(t).density, 3) for t in range(5)]
        [0.316, 0.1, 0.032, 0.01, 0.01]
        """
        if round >= self.warm_up_rounds:
            return self
        return replace(self, density=self.density ** ((round + 1) / (self.warm_up_rounds + 1)))

    @property
    def sends_all(self) -> bool:
        """Whether every entry is sent as it is, so that error feedback has nothing to keep."""
        return self.density == 1 and self.value_bits == 32


def count_to_send(size: int, density: float) -> int:
    """Return how many of `size` entries a density in (0, 1] stands for: at least one.

    >>> count_to_send(1000, 0.1), count_to_send(5, 0.01), count_to_send(7, 1)
    (100, 1, 7)
    """
    return max(1, math.ceil(round(size * density, 6)))


def select(vector: F32, coding: CompressionConfig) -> SparseVector:
    """Return what `coding` chooses of f32[d], the values as they are: `top_k` of the whole, or of each tensor.

    Raises:
        PayloadError: as `top_k`.
        ValueError: where the layers do not make up the vector.
    """
    if not coding.per_tensor:
        return top_k(vector, count_to_send(vector.size, coding.density), coding.layers)
    ends = list(itertools.accumulate((size for _, size in coding.layers), initial=0))
    if ends[-1] != vector.size:
        raise ValueError(f"layers of {ends[-1]} entries for a vector of {vector.size}")
    parts = [
        top_k(vector[start:end], count_to_send(end - start, coding.density), [layer])
        for layer, (start, end) in zip(coding.layers, itertools.pairwise(ends), strict=True)
    ]
    indices = np.concatenate([part.indices + start for part, start in zip(parts, ends, strict=False)])
    return SparseVector(vector.size, indices, np.concatenate([part.values for part in parts]))


def quantised(entries: SparseVector, value_bits: int, draws: np.random.Generator | None) -> SparseVector:
    """Return the entries with their values rounded to a grid for `value_bits`, by `quantization.rounded`."""
    grid = grid_for(entries.values, value_bits)
    return SparseVector(entries.size, entries.indices, rounded(entries.values, grid, draws), grid)


def with_feedback(
    update: F32, residual: F32, coding: CompressionConfig, draws: np.random.Generator | None = None
) -> tuple[SparseVector, F32]:
    """One step of error feedback.

    Args:
        update: f32[d], what this round would send.
        residual: f32[d], what earlier rounds kept.
        coding: how much to send, and how exactly.
        draws: for stochastic rounding; None rounds to nearest.

    Returns:
        (sent, new residual). Guarantee: sent.dense() + new residual == update + residual, bit for bit (if the residual
        holds no -0.0, and none that is made here does): an entry that is not sent is kept as it is; of one that is sent
        `fedhpc.compression.quantization` proves it.

    Raises:
        PayloadError: as `top_k`.
    """
    if coding.sends_all and not residual.any():
        return _whole(update, coding), residual
    with np.errstate(over="ignore", invalid="ignore"):
        corrected = update + residual
    if coding.sends_all:
        return _whole(corrected, coding), np.zeros(update.size, np.float32)
    sent = quantised(select(corrected, coding), coding.value_bits, draws)
    for block in blocks(sent.indices.size):
        corrected[sent.indices[block]] -= sent.values[block]
    return sent, corrected


def _whole(vector: F32, coding: CompressionConfig) -> DenseVector:
    """All of f32[d], not copied; raises PayloadError as `top_k`."""
    refused = refusal(vector, coding.layers)
    if refused is not None:
        raise PayloadError(refused, code="payload.not-finite")
    return DenseVector(vector)
