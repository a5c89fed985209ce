"""How alike two images are, and the contact sheet of originals and reconstructions."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics.regression import PSNRMetric, SSIMMetric
from monai.utils.enums import MetricReduction
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

TILE, GAP, LABEL_WIDTH = 176, 12, 210
HEADER, CAPTION = 34, 42
NOTE_CHARACTERS = 28
HIGHEST_PSNR_DB = 99.0
WINDOW = 11
INK, PAPER, GREY = (20, 20, 20), (255, 255, 255), (110, 110, 110)


@dataclass(frozen=True)
class Likeness:
    """How near a reconstruction is to an original: structural similarity (1: the same), and dB of PSNR."""

    ssim: float
    psnr_db: float


def likeness(guess: Tensor, originals: Tensor) -> list[Likeness]:
    """One reconstruction [C, H, W], or [C, D, H, W] of a 3-D patch, beside each of n originals.

    Sites harmonise their images, and an adversary cannot know the scale they had. So each original is scaled to [0, 1],
    and the reconstruction to that by the best affine fit, in every setting alike.
    """
    wanted = unit_scaled(originals)
    flat, guessed = wanted.flatten(1), guess.flatten()
    centred = guessed - guessed.mean()
    spread = centred.square().mean()
    slope = (flat @ centred) / len(guessed) / torch.where(spread > 0, spread, 1.0)
    fitted = (slope[:, None] * centred + flat.mean(dim=1, keepdim=True)).clamp(0, 1).view_as(wanted)
    ssim, psnr = _ssim(fitted, wanted), PSNRMetric(1.0, reduction=MetricReduction.NONE)(fitted, wanted)
    pairs = zip(ssim.flatten().tolist(), torch.as_tensor(psnr).flatten().tolist(), strict=True)
    return [Likeness(s, min(p, HIGHEST_PSNR_DB)) for s, p in pairs]


def _ssim(fitted: Tensor, wanted: Tensor) -> Tensor:
    side = min(WINDOW, *wanted.shape[2:])
    metric = SSIMMetric(wanted.ndim - 2, data_range=1.0, win_size=side - (side + 1) % 2, reduction=MetricReduction.NONE)
    return torch.as_tensor(metric(fitted, wanted))


def unit_scaled(images: Tensor) -> Tensor:
    """Each image [n, C, ...] by itself to [0, 1]; a constant one to 0."""
    pixels = tuple(range(1, images.ndim))
    low = images.amin(dim=pixels, keepdim=True)
    extent = images.amax(dim=pixels, keepdim=True) - low
    return (images - low) / torch.where(extent > 0, extent, 1.0)


def grey(image: NDArray[np.generic] | Tensor) -> Image.Image:
    """An image [C, H, W] or [H, W], or the middle plane of [C, D, H, W], as a tile from its 1st to 99th percentile."""
    values = np.asarray(image, np.float64)
    values = values[:, values.shape[1] // 2] if values.ndim == 4 else values
    values = values.mean(axis=0) if values.ndim == 3 else values
    low, high = np.percentile(values, (1, 99))
    scaled = (values - low) / (high - low) if high > low else np.zeros_like(values)
    tile = Image.fromarray((255 * scaled.clip(0, 1)).round().astype(np.uint8), "L")
    return tile.resize((TILE, TILE), Image.Resampling.NEAREST)


@dataclass(frozen=True)
class Strip:
    """One row of the contact sheet: its title and a note, and (image, caption lines) for each column."""

    title: str
    note: str
    cells: Sequence[tuple[NDArray[np.generic] | Tensor, Sequence[str]]]


def contact_sheet(columns: Sequence[str], strips: Sequence[Strip]) -> Image.Image:
    """Rows of tiles under column names, with captions beneath each.

    >>> sheet = contact_sheet(["original"], [Strip("row", "note", [(np.zeros((8, 8)), ["SSIM 1.00"])])])
    >>> sheet.size == (LABEL_WIDTH + TILE + GAP, HEADER + TILE + CAPTION + GAP)
    True
    """
    height = TILE + CAPTION + GAP
    size = (LABEL_WIDTH + len(columns) * (TILE + GAP), HEADER + len(strips) * height)
    sheet = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    plain, small = ImageFont.load_default(15), ImageFont.load_default(13)
    for c, name in enumerate(columns):
        draw.text((LABEL_WIDTH + c * (TILE + GAP), 9), name, INK, plain)
    for r, strip in enumerate(strips):
        top = HEADER + r * height
        draw.text((GAP, top), strip.title, INK, small)
        note = "\n".join(textwrap.wrap(strip.note, NOTE_CHARACTERS))
        draw.multiline_text((GAP, top + 22), note, GREY, small, spacing=4)
        for c, (image, caption) in enumerate(strip.cells):
            left = LABEL_WIDTH + c * (TILE + GAP)
            sheet.paste(grey(image).convert("RGB"), (left, top))
            draw.multiline_text((left, top + TILE + 4), "\n".join(caption), GREY, small, spacing=3)
    return sheet
