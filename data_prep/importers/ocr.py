"""Text in pixels, found by the program tesseract: `run.py prepare dicom --ocr`.

Headers tell the usual cases of burned-in text, not all. Here an OCR program at the site reads each image that would be
taken. One in which it finds a word is left out and shown in the quarantine, where a person decides. The words are never
kept. OCR misses handwriting, faint, tiny and rotated text: it adds to the headers and proves nothing.
"""

import csv
import io
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from data_prep.importers.dicom_series import DicomSeries
from data_prep.importers.orientation import CANONICAL
from data_prep.importers.parallel import each
from data_prep.importers.volume import Reject
from fedhpc.errors import ShardError
from fedhpc.util.arrays import F32, U8

PROGRAM = "tesseract"
TEXT = "with text in its pixels, as --ocr has found"
LEAST_LETTERS, LEAST_CONFIDENCE = 3, 60.0
"""Of a word: noise gives single letters, and words that the program itself is unsure of."""
SIDE = 1024
"""Pixels that the longer side is enlarged to at least: letters of some 8 pixels are too small to read."""
SECONDS = 120
FEW = 4


def require_ocr() -> None:
    """Refuse to go on without the program.

    Raises:
        ShardError: it is not installed.
    """
    if shutil.which(PROGRAM) is None:
        raise ShardError(
            f"ocr: the program {PROGRAM} is not installed. Install it, for example with `apt install tesseract-ocr` or "
            "`conda install -c conda-forge tesseract`, or leave --ocr away",
            code="prepare.library",
        )


def without_text(root: Path, series: Sequence[DicomSeries]) -> tuple[list[DicomSeries], list[Reject]]:
    """Return the series without the images that show text, and these as rejects.

    Raises:
        ShardError: the program is not installed, or fails.
    """
    require_ocr()
    kept, rejects = [], []
    found = each(_Look(root), series, "looking for text", "series", few=FEW)
    for one, rows in zip(series, found, strict=True):
        rejects += [Reject(one.frames[row].file, TEXT, suspected=True) for row in rows]
        if len(rows) < len(one.frames):
            kept.append(one.without(frozenset(rows)) if rows else one)
    return kept, rejects


@dataclass(frozen=True)
class _Look:
    """Finds the frames of a series that show text; it goes to other processes."""

    root: Path

    def __call__(self, series: DicomSeries) -> tuple[int, ...]:
        # As the file has them: turned into the radiologist's view, letters may be mirrored.
        reader = replace(series, turn=CANONICAL).open(self.root)
        found = []
        for row in range(len(series.frames)):
            try:
                pixels = reader.plane(row).pixels
            except MemoryError:
                raise
            except Exception:  # a file that cannot be decoded is rejected where it is converted
                continue
            if shows_text(pixels):
                found.append(row)
        return tuple(found)


def shows_text(pixels: F32) -> bool:
    """Return whether the program finds a word, black on white or white on black.

    Raises:
        ShardError: the program fails.
    """
    grey = _grey(pixels)
    return any(map(_has_word, (255 - grey, grey)))


def _grey(pixels: F32) -> U8:
    finite = np.nan_to_num(pixels, posinf=0, neginf=0)
    low, high = np.percentile(finite, (0.5, 99.9))
    scaled = np.clip((finite - low) * (255 / max(float(high - low), 1e-6)), 0, 255).astype(np.uint8)
    factor = max(1, -(-SIDE // max(scaled.shape)))
    picture = Image.fromarray(scaled)
    return np.asarray(picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.BICUBIC))


def _has_word(grey: U8) -> bool:
    out = io.BytesIO()
    Image.fromarray(grey).save(out, format="BMP")
    command = [PROGRAM, "stdin", "stdout", "--psm", "11", "tsv"]
    environment = os.environ | {"OMP_THREAD_LIMIT": "1"}
    try:
        done = subprocess.run(command, input=out.getvalue(), capture_output=True, timeout=SECONDS, env=environment)
    except subprocess.TimeoutExpired:
        return True  # unread: for a person to look at
    if done.returncode:
        raise ShardError(
            f"ocr: {PROGRAM} ended with status {done.returncode}. Try `{PROGRAM} --list-langs`; it needs the language "
            "eng",
            code="prepare.library",
        )
    lines = csv.DictReader(io.StringIO(done.stdout.decode("utf-8", "replace")), delimiter="\t", quoting=csv.QUOTE_NONE)
    return any(_is_word(line.get("text") or "", line.get("conf") or "-1") for line in lines)


def _is_word(text: str, confidence: str) -> bool:
    return sum(sign.isalnum() for sign in text) >= LEAST_LETTERS and float(confidence) >= LEAST_CONFIDENCE
