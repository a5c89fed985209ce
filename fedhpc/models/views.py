"""Other views of an image, made of itself alone: what a frozen network sees beside the image as it is."""

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from fedhpc.util.arrays import F32

MARGIN = 1.06
"""Side of a cropped view over the larger side of what the image shows."""
LEAST_SHARE = 0.05
"""Of the pixels of a row or column that shows something, how many are bright: a thin frame has fewer."""


def standardised(images: Tensor) -> Tensor:
    """Each channel of each image [b, C, H, W] with mean 0 and deviation 1; a constant one is 0."""
    x = images - images.mean(dim=(2, 3), keepdim=True)
    scale = x.square().mean(dim=(2, 3), keepdim=True).sqrt()
    return x / torch.where(scale > 0, scale, 1.0)


def resized(images: Tensor, pixels: int) -> Tensor:
    """Images [b, C, H, W] at [b, C, pixels, pixels], by the antialiased triangle filter.

    ONNX gets it as two matrix products: PyTorch's exporter has no such operator, and few runtimes have the antialiasing
    of ONNX's own.
    """
    if torch.onnx.is_in_onnx_export():
        rows, columns = (torch.from_numpy(triangle_weights(int(side), pixels)) for side in images.shape[2:])
        return rows @ images @ columns.T
    return interpolate(images, size=pixels, mode="bilinear", antialias=True)


def triangle_weights(before: int, after: int) -> F32:
    """Return f32[after, before]: what each new pixel of a line takes of each old one, as PyTorch's filter takes it.

    >>> triangle_weights(2, 4)
    array([[1.  , 0.  ],
           [0.75, 0.25],
           [0.25, 0.75],
           [0.  , 1.  ]], dtype=float32)
    """
    # In float32 as there: near the end of a long line the places themselves are rounded.
    one, scale = np.float32(1), np.float32(before) / np.float32(after)
    centres = (np.arange(after, dtype=np.float32)[:, None] + one / 2) * scale
    distances = np.abs(np.arange(before, dtype=np.float32) - centres + one / 2)
    weights: F32 = np.maximum(one - distances * (one / max(scale, one)), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def cropped(images: Tensor) -> Tensor:
    """Each image [b, C, H, W] cut to a square around what it shows, at the same size, standardised again.

    What it shows is where rows and columns have bright pixels: brighter than the image's mean. A wide field of view
    leaves much dark around the patient, a narrow one none: after this both look alike. Where the square reaches beyond
    the image it is as dark as the darkest pixel. An image of one colour is left as it is.
    """
    height, width = images.shape[2:]
    grey = images.mean(dim=1)
    bright = (grey > grey.mean(dim=(1, 2), keepdim=True)).to(images.dtype)
    top, bottom = _ends(bright.mean(dim=2))
    left, right = _ends(bright.mean(dim=1))
    side = torch.maximum(bottom - top, right - left) * MARGIN
    rows = _positions(top, bottom, side, height)[:, :, None].expand(-1, -1, width)
    columns = _positions(left, right, side, width)[:, None, :].expand(-1, height, -1)
    dark = images.amin(dim=(2, 3), keepdim=True)
    grid = torch.stack([columns, rows], dim=3)
    return standardised(grid_sample(images - dark, grid, mode="bilinear", padding_mode="zeros", align_corners=False))


def _ends(share: Tensor) -> tuple[Tensor, Tensor]:
    """The first row that shows something, and the one after the last: [b] both, of shares [b, n]; all, where none."""
    n = share.shape[1]
    shows = share > LEAST_SHARE
    shows = shows | ~shows.any(dim=1, keepdim=True)
    rows = torch.arange(n, dtype=share.dtype, device=share.device)
    return torch.where(shows, rows, float(n)).amin(dim=1), torch.where(shows, rows + 1, 0.0).amax(dim=1)


def _positions(first: Tensor, last: Tensor, side: Tensor, n: int) -> Tensor:
    """Where the n pixels of the new side lie on the old one, which is -1 to 1: [b, n]."""
    pixels = (torch.arange(n, dtype=side.dtype, device=side.device) * 2 + 1) / n - 1
    return ((first + last) / n - 1)[:, None] + pixels * (side / n)[:, None]
