"""Look at shards before a run does: a table and a contact sheet, `run.py prepare check SHARD... [--png FILE]`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from data_prep.shard_writer import UNLABELLED
from fedhpc.errors import ShardError, inside
from fedhpc.site.data.shard import Shard
from fedhpc.site.data.shard_format import SPLITS
from fedhpc.util.arrays import middle_slice
from fedhpc.util.files import PRIVATE, write_atomically
from fedhpc.util.progress import at_work
from fedhpc.util.text import fitted

COLUMNS = 12
THUMB, GAP, CAPTION, HEADER = 128, 8, 34, 34
BACKGROUND, PANEL, TEXT, FAINT = (18, 20, 24), (36, 41, 49), (236, 239, 244), (150, 158, 170)
# Okabe and Ito's colours, which the colour-blind can tell apart.
CLASS_COLOURS = ((86, 180, 233), (230, 159, 0), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167))

Opened = Shard | ShardError


def check(paths: Sequence[Path], png: Path | None = None) -> bool:
    """Print a table of the shards at `paths`, and tell whether every one is good.

    Args:
        paths: of the shards.
        png: where to write a contact sheet: images of every good shard, spread over its classes. It is as private as
            the shards. Equal shards give equal bytes.

    Raises:
        ShardError: a sheet is asked for, and not one shard is good.
    """
    with ExitStack() as stack:
        with at_work("prepare check") as begins:
            shards = _open(paths, stack, begins)
            text = _table(paths, shards)
        print(text)
        if png is not None:
            _sheet(shards, png)
        return not any(isinstance(shard, ShardError) for shard in shards)


def _open(paths: Sequence[Path], stack: ExitStack, begins: Callable[[str], None]) -> list[Opened]:
    shards: list[Opened] = []
    for path in paths:
        begins(str(path))
        try:
            shards.append(stack.enter_context(Shard.open(path, None, in_memory=False, need_train=False)))
        except ShardError as error:
            shards.append(error)
    return shards


def _table(paths: Sequence[Path], shards: Sequence[Opened]) -> str:
    good = [shard for shard in shards if isinstance(shard, Shard)]
    labelled = [shard for shard in good if shard.classes != UNLABELLED]
    classes = list(dict.fromkeys(name for shard in labelled for name in shard.classes))
    head = ["shard", "verdict", "site", "images", "patients", *SPLITS, *classes]
    head += ["modality", "early", "size", "dtype", "digest"]
    rows = [head] + [
        _row(path, shard, classes) if isinstance(shard, Shard) else [str(path), "BAD"] + ["-"] * (len(head) - 2)
        for path, shard in zip(paths, shards, strict=True)
    ]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = [fitted([list(map(_pad, row, widths, range(len(head)))) for row in rows])]
    for what, values in (("classes", {s.classes for s in labelled}), ("image sizes", {s.image_shape for s in good})):
        if len(values) > 1:
            lines.append(f"note: these shards have different {what} and cannot train together")
    return "\n".join(lines + [f"\n{inside(shard)}" for shard in shards if isinstance(shard, ShardError)])


def _pad(text: str, width: int, column: int) -> str:
    is_number = text.isdecimal() or text == "-"
    return text.rjust(width) if column > 2 and is_number else text


def _row(path: Path, shard: Shard, classes: list[str]) -> list[str]:
    several = shard.kind == "multilabel"
    counts = shard.labels.sum(axis=0) if several else np.bincount(shard.labels, minlength=len(shard.classes))
    per_class = dict(zip(shard.classes, counts.tolist(), strict=True))
    modalities = zip(*np.unique(shard.modality, return_counts=True), strict=True)
    return [
        str(path), "ok", shard.site, str(shard.n), str(len(np.unique(shard.patient))),
        *(str(len(shard.indices(split))) for split in SPLITS),
        *(str(per_class.get(name, "-")) for name in classes),
        ", ".join(f"{name.decode()} {count}" for name, count in modalities),
        str(int(shard.stage.sum())) if shard.has_stage else "-",
        "x".join(map(str, shard.image_shape)), str(shard.dtype), shard.digest[:8],
    ]  # fmt: skip


def _sheet(shards: Sequence[Opened], png: Path) -> None:
    strips = [_strip(shard) for shard in shards if isinstance(shard, Shard)]
    if not strips:
        raise ShardError(
            f"no contact sheet {png}: not one shard is good; allowed: at least one. Remedy: see the errors",
            code="prepare",
        )
    width = GAP + COLUMNS * (THUMB + GAP)
    sheet = Image.new("RGB", (width, GAP + sum(strip.height for strip in strips)), BACKGROUND)
    top = GAP
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    write_atomically(png, lambda file: sheet.save(file, format="PNG"), mode=PRIVATE)


def _strip(shard: Shard) -> Image.Image:
    rows = _samples(shard)
    lines = -(-len(rows) // COLUMNS)
    cell = THUMB + CAPTION
    strip = Image.new("RGB", (GAP + COLUMNS * (THUMB + GAP), HEADER + GAP + lines * (cell + GAP) + GAP), BACKGROUND)
    draw = ImageDraw.Draw(strip)
    draw.rounded_rectangle((GAP, 0, strip.width - GAP - 1, HEADER - 4), 5, fill=PANEL)
    size = "x".join(map(str, shard.image_shape))
    draw.text((2 * GAP, 5), shard.site, fill=TEXT, font=ImageFont.load_default(16))
    draw.text((strip.width - 2 * GAP, 7), f"{shard.n} images, {size} {shard.dtype}, digest {shard.digest[:8]}",
              fill=FAINT, font=ImageFont.load_default(13), anchor="ra")  # fmt: skip
    for place, row in enumerate(rows):
        left = GAP + place % COLUMNS * (THUMB + GAP)
        top = HEADER + GAP + place // COLUMNS * (cell + GAP)
        strip.paste(_thumbnail(shard, row), (left, top))
        _caption(draw, shard, row, left, top + THUMB)
    return strip


def _samples(shard: Shard) -> list[int]:
    """Rows that stand for the shard: evenly spaced within each class, classes in order, at most two lines."""
    first = _first_labels(shard)
    present = np.unique(first)[: 2 * COLUMNS]
    each = max(1, COLUMNS // len(present))
    chosen: list[int] = []
    for label in present:
        rows = np.flatnonzero(first == label)
        places = np.linspace(0, len(rows) - 1, min(each, len(rows)))
        chosen += rows[np.rint(places).astype(np.int64)].tolist()
    return chosen


def _first_labels(shard: Shard) -> npt.NDArray[np.int64]:
    """The class of each image; of several findings the first, and -1 of an image with none."""
    if shard.kind == "multiclass":
        return shard.labels
    first: npt.NDArray[np.int64] = np.where(shard.labels.any(axis=1), shard.labels.argmax(axis=1), -1)
    return first


def _named(shard: Shard, row: int) -> str:
    if shard.kind == "multiclass":
        return shard.classes[int(shard.labels[row])]
    found = [name for name, there in zip(shard.classes, shard.labels[row], strict=True) if there]
    return ", ".join(found) or "no finding"


def _thumbnail(shard: Shard, row: int) -> Image.Image:
    low, high = shard.pixel_range
    pixels: npt.NDArray[Any] = middle_slice(shard.read([row])[0]).astype(np.float32)
    grey = Image.fromarray(((pixels - low) * (255 / (high - low))).astype(np.uint8))
    scale = THUMB / max(grey.size)
    smaller = grey.resize(
        (max(1, round(grey.width * scale)), max(1, round(grey.height * scale))), Image.Resampling.BICUBIC
    )
    square = Image.new("RGB", (THUMB, THUMB))
    square.paste(smaller, ((THUMB - smaller.width) // 2, (THUMB - smaller.height) // 2))
    return square


def _caption(draw: ImageDraw.ImageDraw, shard: Shard, row: int, left: int, top: int) -> None:
    label = int(_first_labels(shard)[row])
    # The label of an unlabelled image means nothing: no class, and no class's colour.
    unlabelled = shard.classes == UNLABELLED
    colour = FAINT if unlabelled else CLASS_COLOURS[label % len(CLASS_COLOURS)]
    draw.rectangle((left, top, left + THUMB - 1, top + 2), fill=colour)
    words = [shard.modality[row].decode(), *([] if unlabelled else [SPLITS[shard.split[row]]])] + ["early"] * int(
        shard.stage[row] == 1
    )
    name, words_font = ImageFont.load_default(13), ImageFont.load_default(11)
    text = UNLABELLED[0] if unlabelled else _named(shard, row)
    draw.text((left, top + 5), _shortened(draw, text, name), fill=colour, font=name)
    draw.text((left, top + 20), ", ".join(words), fill=FAINT, font=words_font)


def _shortened(draw: ImageDraw.ImageDraw, text: str, font: Any) -> str:
    return next(_fitting(draw, text, font), "")


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Any) -> Iterator[str]:
    for length in range(len(text), 0, -1):
        shown = text if length == len(text) else text[:length] + "..."
        if draw.textlength(shown, font=font) <= THUMB:
            yield shown
