"""A contact sheet of the images that were refused since they may show who the patient is, for a person to look at.

It shows what the import protects from. So it is written on request only, readable by its owner, outside of the folder
of the shards.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pydicom
from PIL import Image, ImageDraw, ImageFont
from pydicom.pixels.utils import pixel_array

from data_prep.importers.dicom_header import quiet
from data_prep.importers.parallel import each
from data_prep.importers.secret import Pseudonyms
from data_prep.importers.volume import Reject
from data_prep.names import shown
from fedhpc.errors import ShardError
from fedhpc.util.arrays import F32, U8
from fedhpc.util.files import PRIVATE, write_atomically

COLUMNS, THUMB, GAP, CAPTION = 6, 260, 10, 38
MOST = 400
BACKGROUND, PANEL, TEXT, FAINT = (18, 20, 24), (34, 37, 43), (236, 239, 244), (160, 168, 180)
UNSEEN = "cannot be decoded"


class Corner(NamedTuple):
    """The upper left corner of something on the sheet, in pixels."""

    left: int
    top: int


def write_quarantine(path: Path, root: Path, rejects: Sequence[Reject], codes: Pseudonyms) -> int:
    """Write a PNG of the suspected images below `root`, each with its code; return how many it shows.

    Args:
        path: of the PNG.
        root: the source.
        rejects: of an import; those that are suspected are shown, the first 400 of them.
        codes: of the site.

    Raises:
        FileError: it cannot be written.
    """
    # Files of several frames are one image each here.
    suspected = list({reject.file: reject for reject in rejects if reject.suspected}.values())[:MOST]
    thumbs = each(_Thumb(root), [reject.file for reject in suspected], "quarantine", "image")
    columns, lines = max(1, min(COLUMNS, len(suspected))), max(1, -(-len(suspected) // COLUMNS))
    sheet = Image.new("RGB", (GAP + columns * (THUMB + GAP), GAP + lines * (THUMB + CAPTION + GAP)), BACKGROUND)
    for place, (reject, thumb) in enumerate(zip(suspected, thumbs, strict=True)):
        left, top = GAP + place % COLUMNS * (THUMB + GAP), GAP + place // COLUMNS * (THUMB + CAPTION + GAP)
        _cell(sheet, thumb, Corner(left, top))
        _caption(sheet, codes.file(reject.file), reject.why, Corner(left, top + THUMB))
    write_atomically(path, lambda file: sheet.save(file, format="PNG"), mode=PRIVATE)
    return len(suspected)


def _cell(sheet: Image.Image, thumb: U8 | None, corner: Corner) -> None:
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((left, top, left + THUMB - 1, top + THUMB - 1), fill=PANEL)
    middle = left + THUMB // 2, top + THUMB // 2
    if thumb is None:
        draw.text(middle, UNSEEN, fill=FAINT, font=ImageFont.load_default(14), anchor="mm")
    else:
        picture = Image.fromarray(thumb)
        sheet.paste(picture, (middle[0] - picture.width // 2, middle[1] - picture.height // 2))


def _caption(sheet: Image.Image, code: str, why: str, corner: Corner) -> None:
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    while draw.textlength(why, font) > THUMB:
        why = why.removesuffix("...")[:-1] + "..."
    draw.text((corner[0], corner[1] + 4), code, fill=TEXT, font=ImageFont.load_default(13))
    draw.text((corner[0], corner[1] + 21), why, fill=FAINT, font=font)


def refuse_inside(path: Path, out: Path) -> None:
    """Refuse a contact sheet in the folder of the shards, which are copied.

    Raises:
        ShardError: it lies there.
    """
    if path.resolve().is_relative_to(out.resolve()):
        raise ShardError(
            f"quarantine={shown(path)}: lies in the folder of the shards. It shows what may name patients: keep it "
            "where shards are never copied from",
            code="prepare",
        )


class _Thumb:
    """Reads the first frame of a file as grey or colour [h, w] or [h, w, 3]; None where it cannot be decoded."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def __call__(self, file: str) -> U8 | None:
        try:
            with quiet():
                dataset = pydicom.dcmread(self._root / file, force=True)
                pixels = np.asarray(pixel_array(dataset, index=0), np.float32)
        except MemoryError:
            raise
        except Exception:  # decoders raise whatever they like, and quote the file
            return None
        return _small(pixels)


def _small(pixels: F32) -> U8:
    low, high = float(pixels.min()), float(pixels.max())
    grey = np.asarray((pixels - low) * (255 / max(high - low, 1e-6)), np.uint8)
    picture = Image.fromarray(grey).convert("RGB")
    factor = THUMB / max(picture.size)
    size = (max(1, round(picture.width * factor)), max(1, round(picture.height * factor)))
    return np.asarray(picture.resize(size, Image.Resampling.LANCZOS), np.uint8)
