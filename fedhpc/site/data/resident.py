"""Samples that lie on the device that trains on them: no batch is read, harmonised or copied by the host.

8-bit images lie there as they are in the shard and are harmonised batch by batch; mean and scale of each image are
computed once, by the host, so that an image gives the same bits in every batch and on every device: what is left is one
subtraction and one division an entry, which IEEE 754 rounds in one way. All else (wider pixels, other chains, features)
lies there as float32, ready for the network.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhpc.config.harmonise import DEFAULT
from fedhpc.site.data.harmonise.intensity import location_and_scale
from fedhpc.site.data.samples import ImageSamples, Samples
from fedhpc.util.arrays import I64

BLOCK = 64
SHARE = 4
"""One part in so many of the free memory of a device may hold samples, as of the host's."""


@dataclass(frozen=True)
class _Scaled:
    """What turns stored pixels into inputs: location and scale f32[n, C, 1, 1] (private)."""

    location: Tensor
    scale: Tensor


class ResidentSamples:
    """All inputs of other samples, on a device (private). See `fedhpc.site.data.samples.Samples`."""

    def __init__(self, samples: Samples, device: torch.device) -> None:
        self._samples = samples
        self.labels, self.patient, self.early = samples.labels, samples.patient, samples.early
        self._scaled: _Scaled | None = None
        if _as_stored(samples):
            self._rows, self._scaled = _stored(samples, device)
        else:
            self._rows = _inputs(samples, device)

    @property
    def size_bytes(self) -> int:
        """What the rows take on the device."""
        return self._rows.numel() * self._rows.element_size()

    def indices(self, split: str) -> I64:
        """See `Samples`."""
        return self._samples.indices(split)

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`; on the device."""
        at = torch.from_numpy(rows).to(self._rows.device, non_blocking=True)
        if self._scaled is None:
            return self._rows[at]
        pixels = self._rows[at].to(torch.float32)
        return pixels.sub_(self._scaled.location[at]).div_(self._scaled.scale[at])


def resident(samples: Samples, device: torch.device, free_bytes: int) -> Samples:
    """Return the samples on the device if they fit there; else as they are.

    Args:
        samples: of one site (private).
        device: that trains on them.
        free_bytes: of its memory, the part that these samples may count on; SHARE says how much of it they may fill.
    """
    n = len(samples.labels)
    if not n:
        return samples
    one = samples.inputs(np.zeros(1, np.int64))
    entry_bytes = 1 if _as_stored(samples) else one.element_size()
    if n * math.prod(one.shape[1:]) * entry_bytes > free_bytes // SHARE:
        return samples
    return ResidentSamples(samples, device)


def free_bytes(device: torch.device, ranks: int) -> int:
    """Return what one of so many ranks of a node may count on of a device's free memory; 0 of a CPU's.

    Ranks may share the device. A CPU reads what it trains on where it lies: a copy would gain nothing.
    """
    return torch.cuda.mem_get_info(device)[0] // ranks if device.type == "cuda" else 0


def _as_stored(samples: Samples) -> bool:
    return type(samples) is ImageSamples and samples.chain == DEFAULT and samples.stored_dtype == np.uint8


def _stored(samples: Samples, device: torch.device) -> tuple[Tensor, _Scaled]:
    assert isinstance(samples, ImageSamples)
    parts, locations, scales = [], list[Tensor](), list[Tensor]()
    for rows in _blocks(len(samples.labels)):
        pixels: NDArray[np.uint8] = samples.stored(rows)
        location, scale = location_and_scale(torch.from_numpy(pixels.astype(np.float32)))
        parts.append(torch.from_numpy(pixels).to(device))
        locations.append(location)
        scales.append(scale)
    return torch.cat(parts), _Scaled(torch.cat(locations).to(device), torch.cat(scales).to(device))


def _inputs(samples: Samples, device: torch.device) -> Tensor:
    return torch.cat([samples.inputs(rows).to(device) for rows in _blocks(len(samples.labels))])


def _blocks(n: int) -> list[I64]:
    return [np.arange(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
