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
    """What turns stored pixels into inputs: location and scale f32[n, C, 1, ...] (private)."""

    location: Tensor
    scale: Tensor

    @classmethod
    def of(cls, samples: ImageSamples, device: torch.device) -> "_Scaled":
        """Computed by the host, once."""
        found = [
            location_and_scale(torch.from_numpy(samples.stored(rows).astype(np.float32))) for rows in _blocks(samples)
        ]
        location, scale = (torch.cat(parts).to(device) for parts in zip(*found, strict=True))
        return cls(location, scale)

    def inputs(self, pixels: Tensor, at: Tensor) -> Tensor:
        """Return stored pixels [k, ...] of the rows int64[k] ready for the network, both on the device."""
        return pixels.to(torch.float32).sub_(self.location[at]).div_(self.scale[at])


class _Delegating:
    """What samples on a device have of those that they are made of (private)."""

    def __init__(self, samples: Samples) -> None:
        self._samples = samples
        self.labels, self.patient, self.early = samples.labels, samples.patient, samples.early

    def indices(self, split: str) -> I64:
        """See `Samples`."""
        return self._samples.indices(split)


class ResidentSamples(_Delegating):
    """All inputs of other samples, on a device (private). See `fedhpc.site.data.samples.Samples`."""

    def __init__(self, samples: Samples, device: torch.device) -> None:
        super().__init__(samples)
        self._scaled: _Scaled | None = None
        if isinstance(samples, ImageSamples) and _as_stored(samples):
            self._rows = torch.cat([torch.from_numpy(samples.stored(rows)).to(device) for rows in _blocks(samples)])
            self._scaled = _Scaled.of(samples, device)
        else:
            self._rows = torch.cat([samples.inputs(rows).to(device) for rows in _blocks(samples)])

    @property
    def size_bytes(self) -> int:
        """What the rows take on the device."""
        return self._rows.numel() * self._rows.element_size()

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`; on the device."""
        at = torch.from_numpy(rows).to(self._rows.device, non_blocking=True)
        chosen = self._rows[at]
        return chosen if self._scaled is None else self._scaled.inputs(chosen, at)


class ShippedSamples(_Delegating):
    """8-bit images that go to a device as they are stored, and are harmonised there (private)."""

    def __init__(self, samples: ImageSamples, device: torch.device) -> None:
        super().__init__(samples)
        self._images, self._device, self._scaled = samples, device, _Scaled.of(samples, device)

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`; on the device."""
        pixels, at = torch.from_numpy(self._images.stored(rows)), torch.from_numpy(rows)
        if self._device.type == "cuda":
            pixels = pixels.pin_memory()
        there = (part.to(self._device, non_blocking=True) for part in (pixels, at))
        return self._scaled.inputs(*there)


def resident(samples: Samples, device: torch.device, free_bytes: int) -> Samples:
    """Return the samples on the device if they fit there, and 8-bit images as ones that go there as they are stored.

    What is neither stays as it is. On a CPU 8-bit images in memory stay where they are; only their mean and scale are
    computed beforehand.

    Args:
        samples: of one site (private).
        device: that trains on them.
        free_bytes: of its memory, the part that these samples may count on; SHARE says how much of it they may fill.
    """
    n = len(samples.labels)
    if not n:
        return samples
    if not free_bytes:
        if device.type == "cpu" and isinstance(samples, ImageSamples) and _as_stored(samples) and not samples.streamed:
            return ShippedSamples(samples, device)
        return samples
    one = samples.inputs(np.zeros(1, np.int64))
    entry_bytes = 1 if _as_stored(samples) else one.element_size()
    if n * math.prod(one.shape[1:]) * entry_bytes <= free_bytes // SHARE:
        return ResidentSamples(samples, device)
    if isinstance(samples, ImageSamples) and _as_stored(samples) and device.type != "cpu":
        return ShippedSamples(samples, device)
    return samples


def free_bytes(device: torch.device, ranks: int) -> int:
    """Return what one of so many ranks of a node may count on of a device's free memory; 0 of a CPU's.

    Ranks may share the device. A CPU reads what it trains on where it lies: a copy would gain nothing.
    """
    return torch.cuda.mem_get_info(device)[0] // ranks if device.type == "cuda" else 0


def _as_stored(samples: Samples) -> bool:
    return type(samples) is ImageSamples and samples.chain == DEFAULT and samples.stored_dtype == np.uint8


def _blocks(samples: Samples) -> list[I64]:
    n = len(samples.labels)
    return [np.arange(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK)]
