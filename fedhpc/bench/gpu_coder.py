"""Top-k and quantisation of an update on the device that made it, so that only what is sent is copied to the host.

The same bits as `compression.error_feedback.with_feedback`, by other means: the k-th largest magnitude by PyTorch's
radix select, then all entries above it and the first of those at it. It is measured by `run.py bench gpu` and not used
by a run: see docs/benchmarks.md for what it would gain.
"""

import numpy as np
import torch
from torch import Tensor

from fedhpc.compression.error_feedback import CompressionConfig, count_to_send
from fedhpc.compression.float_bits import LIMIT_BITS, LOWER
from fedhpc.compression.quantization import EXACT, FP16_STEP, QuantizationGrid, log_grid
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError

MAGNITUDE, SIGN = 0x7FFF_FFFF, -0x8000_0000


def with_feedback_on_device(update: Tensor, residual: Tensor, coding: CompressionConfig) -> tuple[SparseVector, Tensor]:
    """One step of error feedback by nearest rounding, of float32 [d] on any device.

    Returns:
        (what is sent, on the host; the new residual, on the device).

    Raises:
        PayloadError: where an entry is not below 2**127 in magnitude.
        ValueError: for a selection tensor by tensor.
    """
    if coding.per_tensor:
        raise ValueError("per_tensor: only the largest of the whole vector are chosen on a device")
    corrected = update + residual
    indices = _largest(corrected, count_to_send(len(corrected), coding.density))
    values = corrected[indices]
    grid = _grid(values, coding.value_bits)
    sent = _rounded(values, grid)
    corrected[indices] -= sent
    return SparseVector(len(corrected), indices.cpu().numpy(), sent.cpu().numpy(), grid), corrected


def _bits(values: Tensor) -> Tensor:
    """Return the bits of |values|, int32, which grow with them."""
    return values.view(torch.int32) & MAGNITUDE


def _largest(vector: Tensor, k: int) -> Tensor:
    """Return the indices of the k largest magnitudes that are not zero, int64, ascending; of equal ones the first."""
    bits = _bits(vector)
    if int(bits.max()) >= LIMIT_BITS:
        raise PayloadError("an entry is not finite or not below 2**127 in magnitude", code="payload.not-finite")
    threshold = torch.topk(bits, k, sorted=False).values.min()
    chosen = bits > threshold
    left = k - int(chosen.sum())
    ties = (bits == threshold).logical_and_(bits > 0).nonzero()[:left, 0]
    chosen[ties] = True
    return chosen.nonzero()[:, 0]


def _grid(values: Tensor, value_bits: int) -> QuantizationGrid:
    """As `compression.quantization.grid_for`; counts are made on the device, and looked at by the host."""
    if value_bits == 32 or not len(values):
        return EXACT
    bits = _bits(values)
    smallest = int(bits.min())
    if value_bits == 16:
        return QuantizationGrid(smallest // FP16_STEP * FP16_STEP or smallest, FP16_STEP)
    counts = torch.bincount(bits >> LOWER, minlength=1 << 31 - LOWER).cpu().numpy()
    return log_grid(counts.astype(np.int64), smallest, value_bits)


def _rounded(values: Tensor, grid: QuantizationGrid) -> Tensor:
    """To the nearer neighbour on the grid, the smaller where both are equally near."""
    if grid == EXACT:
        return values
    bits = _bits(values)
    below = torch.div(bits - grid.lowest, grid.step, rounding_mode="floor") * grid.step + grid.lowest
    value, low, high = (t.view(torch.float32) for t in (bits, below, below + grid.step))
    rises = (value - low > high - value).to(torch.int32)
    return (below + rises * grid.step | values.view(torch.int32) & SIGN).view(torch.float32)
