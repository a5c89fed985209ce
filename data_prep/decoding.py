"""One image file to one square of uint8, by itself, so that nothing about the cohort leaks into it (private).

Grey at its full depth (8, 16 or 32 bit), the window from the 0.5th to the 99.5th percentile of its own intensities
stretched to 0..255, padded to a square with its aspect ratio kept, resized, and only then rounded to uint8.
"""

import os
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from data_prep.discovery import FORMATS
from fedhpc.util.arrays import F32, U8
from fedhpc.util.memory import available_bytes

WINDOW = (0.5, 99.5)
GREY_MODES = ("L", "I", "F", "I;16", "I;16B", "I;16L")
# Pillow's picture in its own mode and upright, then float32 and what the percentiles copy.
BYTES_PER_PIXEL = 24
LARGE_PIXELS = 32 * 2**20
LARGEST_FLOAT = 1e30

UNREADABLE = "unreadable"
POINTER = "a pointer of git-lfs or git-annex instead of the image (fetch it)"
NOT_FINITE = "with NaN or infinite pixels"
TOO_LARGE = "too large for this machine's memory (shrink it first)"
CONSTANT = "of one grey value throughout"
REPAIRED = "with NaN or infinite pixels repaired"
MULTI_PICTURE = "a phone's multi-picture JPEG, the first picture taken"

Item = TypeVar("Item")
Result = TypeVar("Result")
_one_large_at_a_time = threading.Lock()


@dataclass(frozen=True)
class Decoded:
    """What became of one file.

    Attributes:
        pixels: uint8 [size, size]; None where the image cannot be taken.
        reason: why not, or what is worth knowing of an image that is taken.
        detail: of this very file.
    """

    pixels: U8 | None
    reason: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Decoder:
    """How to decode: pixels a side of the result, and whether NaN and infinite pixels are repaired."""

    size: int
    repair_nan: bool = False

    def inspect(self, path: Path) -> Decoded | None:
        """Return why a file cannot be taken as far as its header tells; None where nothing speaks against it."""
        try:
            with _opened(path) as image:
                return self._too_large(image)
        except Exception as error:  # image decoders raise whatever they like
            return Decoded(None, POINTER) if _is_pointer(path) else Decoded(None, UNREADABLE, _words(error))

    def decode(self, path: Path) -> Decoded:
        """Return the harmonised image, or why it cannot be taken. Raises nothing that an image can cause."""
        try:
            with _opened(path) as image:
                if refused := self._too_large(image):
                    return refused
                several = image.format == "MPO"
                large = image.width * image.height > LARGE_PIXELS
                with _one_large_at_a_time if large else nullcontext():
                    return self._harmonised(_grey(image), MULTI_PICTURE if several else "")
        except Exception as error:  # image decoders raise whatever they like
            return Decoded(None, UNREADABLE, _words(error))

    def _too_large(self, image: Image.Image) -> Decoded | None:
        pixels = image.width * image.height
        if pixels > LARGE_PIXELS and pixels * BYTES_PER_PIXEL > available_bytes() / 2:
            return Decoded(None, TOO_LARGE, f"{image.width} x {image.height} pixels")
        return None

    def _harmonised(self, grey: F32, note: str) -> Decoded:
        finite = np.isfinite(grey)
        wrong = grey.size - int(np.count_nonzero(finite))
        if wrong:
            if not self.repair_nan or wrong == grey.size:
                return Decoded(None, NOT_FINITE, f"{wrong:,} of {grey.size:,} pixels")
            grey, note = repaired(grey, finite), REPAIRED
        if grey.min() == grey.max():
            return Decoded(None, CONSTANT)
        return Decoded(harmonise(grey, self.size), note)


def read_grey(path: Path) -> F32:
    """The image at `path` as float32 [h, w] in its own units, colours turned to luminance, upright (private).

    Raises:
        ValueError, OSError and whatever else the decoder raises: an unreadable file, or one with several frames.
    """
    with _opened(path) as image:
        return _grey(image)


def repaired(grey: F32, finite: npt.NDArray[np.bool_]) -> F32:
    """Return `grey` with NaN and -inf as its smallest finite value, the ground of most images, and inf as its largest.

    >>> repaired(np.array([[1, np.nan, 3, np.inf]], np.float32), np.array([[True, False, True, False]]))
    array([[1., 1., 3., 3.]], dtype=float32)
    """
    low, high = grey[finite].min(), grey[finite].max()
    return np.asarray(np.nan_to_num(grey, nan=low, posinf=high, neginf=low), dtype=np.float32)


def harmonise(grey: F32, size: int) -> U8:
    """One image, finite float [h, w] of any unit, windowed by itself and padded to uint8 [size, size] (private)."""
    peak = np.abs(grey).max()
    if peak > LARGEST_FLOAT:  # the differences of such numbers overflow
        grey = grey / peak
    low, high = np.percentile(grey, WINDOW)
    if high <= low:  # a small object on an even ground: all intensities count
        low, high = grey.min(), grey.max()
    stretched = (grey - low) * (255 / max(high - low, 1e-12))
    clipped = Image.fromarray(np.clip(stretched, 0, 255).astype(np.float32))
    square = ImageOps.pad(clipped, (size, size), Image.Resampling.LANCZOS, color=0)
    return np.asarray(np.rint(np.clip(np.asarray(square), 0, 255)), dtype=np.uint8)


@contextmanager
def any_size() -> Iterator[None]:
    """Let Pillow open images of any size, since `Decoder` bounds them by memory, and keep its warnings to itself."""
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"PIL\.")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def in_order(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Yield `work(item)` for each item in order, computed by a thread a core, a few items ahead of what is taken."""
    cores = len(os.sched_getaffinity(0))
    if cores == 1:
        yield from map(work, items)
        return
    with ThreadPoolExecutor(cores) as pool:
        try:
            for block in _blocks(items, 8 * cores):
                yield from pool.map(work, block)
        finally:
            pool.shutdown(cancel_futures=True)


def _blocks(items: Sequence[Item], size: int) -> Iterable[Sequence[Item]]:
    return (items[first : first + size] for first in range(0, len(items), size))


def _opened(path: Path) -> Image.Image:
    image = Image.open(path, formats=FORMATS)
    # A phone's MPO is one photograph with a preview or a second lens behind it; other stacks are volumes or films.
    frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        image.close()
        raise ValueError(f"{frames} frames; allowed: one")
    return image


def _is_pointer(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return False
    return head.startswith((b"version https://git-lfs", b"/annex/objects/", b"../.git/annex/"))


def _grey(image: Image.Image) -> F32:
    upright = ImageOps.exif_transpose(image)
    if upright.mode in ("P", "PA"):
        upright = upright.convert("RGBA")
    return np.array(upright if upright.mode in GREY_MODES else upright.convert("L"), dtype=np.float32)


def _words(error: Exception) -> str:
    """The error in a line: a decoder's message may name the whole path, or be empty."""
    text = str(error).partition("'")[0] if "cannot identify image file" in str(error) else str(error)
    return " ".join(text.split())[:120] or type(error).__name__
