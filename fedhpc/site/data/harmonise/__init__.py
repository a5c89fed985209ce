"""The edge-processing layer: harmonise each image by itself, so that no statistic over patients is needed or leaves.

A chain of steps is part of the config, so it is the same at every site, and public. What a step takes from other images
(landmarks, amplitudes) stands in the config as numbers, from a public reference.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhpc.config.harmonise import DEFAULT, N4, Chain, Clip, Fourier, Nyul, Smooth, Step, Window, ZScore
from fedhpc.site.data.harmonise.bias_field import corrected
from fedhpc.site.data.harmonise.foreground import foreground
from fedhpc.site.data.harmonise.intensity import clipped, onto_landmarks, windowed, zscore, zscore_inside
from fedhpc.site.data.harmonise.smoothing import smoothed
from fedhpc.site.data.harmonise.spectrum import with_amplitude
from fedhpc.util.arrays import F32

VERSION = 1
"""Of the steps' code: raise it where a step gives other numbers, so that features cached by the old code are left."""


def harmonise(images: NDArray[np.generic], chain: Chain = DEFAULT) -> Tensor:
    """Return images after each step of a chain; each channel of each image by itself.

    Args:
        images: [b, C, H, W], or [b, C, D, H, W] of 3-D patches, of a shard's dtype (private). Poisson sampling may
            draw no image: b is 0 then.
        chain: the config's `harmonise` (public).

    Returns:
        float32 of the same shape (private).
    """
    if chain == DEFAULT:
        return zscore(torch.from_numpy(images.astype(np.float32)))
    x: F32 = images.astype(np.float32)
    for step in chain if len(x) else ():
        x = np.ascontiguousarray(_APPLY[type(step)](x, step), np.float32)
    return torch.from_numpy(x)


def chain_key(chain: Chain) -> str:
    """Return what tells a chain from others in the name of cached features; empty for the default."""
    if chain == DEFAULT:
        return ""
    steps = "\n".join(step.model_dump_json() for step in chain)
    return hashlib.sha256(f"{VERSION}\n{steps}".encode()).hexdigest()[:16]


def _zscore(x: F32, step: ZScore) -> F32:
    if step.mask == "image":
        return zscore(torch.from_numpy(x)).numpy()
    return zscore_inside(x, foreground(x))


def _slice_by_slice(step: Callable[[F32], F32], x: F32) -> F32:
    """Apply a step of two dimensions to each slice: a depth [b, C, D, H, W] counts as so many channels."""
    return step(x.reshape(len(x), -1, *x.shape[-2:])).reshape(x.shape)


_APPLY: dict[type[Step], Callable[[F32, Any], F32]] = {
    ZScore: _zscore,
    Window: lambda x, step: windowed(x, step.centre, step.width),
    Clip: lambda x, step: clipped(x, step.low, step.high),
    Smooth: lambda x, step: _slice_by_slice(lambda y: smoothed(y, step.size, step.strength), x),
    Nyul: lambda x, step: onto_landmarks(x, foreground(x), step.landmarks),
    Fourier: lambda x, step: _slice_by_slice(lambda y: with_amplitude(y, np.array(step.amplitude)), x),
    N4: lambda x, step: corrected(x, foreground(x), step.iterations),
}
