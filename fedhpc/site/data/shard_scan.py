"""Checks of a shard's content: one pass over the images, the values of the columns, and what two splits share."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import h5py
import numpy as np
import numpy.typing as npt

from fedhpc.site.data.shard_format import MODALITIES, SPLITS, Identity, PixelRange, Problem
from fedhpc.util.arrays import I64, U8, Images

BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Scan:
    """What one pass over the images found: a sha256 of each, problems, and the images themselves where loaded."""

    hashes: list[bytes]
    problems: list[Problem]
    loaded: Images | None


def read_chunks(dataset: h5py.Dataset, rows: I64) -> Images:
    # One image is one raw chunk: reading it whole skips HDF5's selection machinery, some 10 times cheaper an image.
    images = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
    first = (0,) * (len(dataset.shape) - 1)
    raw = images.reshape(len(rows), -1).view(np.uint8) if len(rows) else images
    for position in np.argsort(rows, kind="stable"):
        dataset.id.read_direct_chunk((int(rows[position]), *first), out=raw[position])
    return images


def _blocks(dataset: h5py.Dataset) -> Iterator[tuple[int, Images]]:
    step = max(1, BLOCK_BYTES // (dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))))
    for first in range(0, dataset.shape[0], step):
        yield first, read_chunks(dataset, np.arange(first, min(first + step, dataset.shape[0])))


def scan_images(dataset: h5py.Dataset, pixel_range: PixelRange, load: bool) -> Scan:
    loaded: Images | None = np.empty(dataset.shape, dataset.dtype) if load else None
    hashes: list[bytes] = []
    not_finite: list[int] = []
    outside: list[int] = []
    for first, block in _blocks(dataset):
        flat = block.reshape(len(block), -1)
        hashes += [hashlib.sha256(image.data).digest() for image in flat]
        smallest, largest = flat.min(axis=1), flat.max(axis=1)  # a NaN in the row makes both NaN
        finite = np.isfinite(smallest) & np.isfinite(largest)
        beyond = finite & ((smallest < pixel_range.low) | (largest > pixel_range.high))
        not_finite += (first + np.flatnonzero(~finite)).tolist()
        outside += (first + np.flatnonzero(beyond)).tolist()
        if loaded is not None:
            loaded[first : first + len(block)] = block
    problems = []
    if not_finite:
        text = f"/images has NaN or Inf in {rows_text(not_finite)}; allowed: finite pixels"
        problems.append(Problem("pixels that are not finite", text))
    if outside:
        text = f"/images has pixels outside pixel_range in {rows_text(outside)}; allowed: {{:g}} to {{:g}}"
        problems.append(Problem("pixels outside pixel_range", text.format(*pixel_range)))
    return Scan(hashes, problems, loaded)


def rows_text(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:3]))
    return f"row {shown}" + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def _good_labels(labels: Images, classes: int) -> tuple[npt.NDArray[np.bool_], str]:
    """(which rows are fine, what is allowed)."""
    if labels.ndim == 1:
        return (labels >= 0) & (labels < classes), f"0 to {classes - 1}, for {classes} classes"
    if labels.shape[1] != classes:
        return np.zeros(len(labels), np.bool_), f"[n, {classes}], a column for each of {classes} classes"
    return ((labels == 0) | (labels == 1)).all(axis=1), "0 and 1, for each finding"


def column_problems(columns: dict[str, Images], identity: Identity, need_train: bool) -> list[Problem]:
    good = {
        "labels": _good_labels(columns["labels"], len(identity.classes)),
        "split": (columns["split"] < len(SPLITS), "0 (train), 1 (val), 2 (test)"),
        "patient": (columns["patient"] != b"", "a pseudonym of 1 to 16 bytes"),
        "modality": (np.isin(columns["modality"], np.array(MODALITIES, "S2")), ", ".join(MODALITIES)),
    }
    if "stage" in columns:
        good["stage"] = (columns["stage"] <= 1, "0, or 1 for early")
    problems = []
    for name, (fine, allowed) in good.items():
        rows = np.flatnonzero(~fine).tolist()
        if rows:
            text = f"/{name} has {columns[name][rows[0]].tolist()!r} in {rows_text(rows)}; allowed: {allowed}"
            problems.append(Problem(f"values of /{name}", text))
    if need_train and not (columns["split"] == 0).any():
        text = "/split has an empty train split; allowed: at least one training image, except for evaluation"
        problems.append(Problem("empty train split", text))
    return problems


def leaks(split: U8, patient: Images, hashes: list[bytes]) -> list[Problem]:
    """Return what is shared by two splits: patients, and images with the same bytes."""
    problems = []
    for what, keys in (("/patient: patient", patient.tolist()), ("/images: duplicate image", hashes)):
        first_row: dict[bytes, int] = {}
        crossing = {
            key: (first, row)
            for row, key in enumerate(keys)
            if split[first := first_row.setdefault(key, row)] != split[row]
        }
        if crossing:
            shown = "; ".join(_crossing(patient, split, *rows) for rows in list(crossing.values())[:3])
            text = f"{what} in two splits, {len(crossing)} found ({shown}); allowed: each in one split only"
            problems.append(Problem(f"{what.partition(': ')[2]} in two splits", text))
    return problems


def _crossing(patient: Images, split: U8, *rows: int) -> str:
    return " and ".join(
        f"row {row} {patient[row].decode(errors='replace')} {SPLITS[split[row]] if split[row] < 3 else '?'}"
        for row in rows
    )


def digest_of(identity: Identity, columns: dict[str, Images], hashes: list[bytes], dataset: h5py.Dataset) -> str:
    # Written out, so that no rename changes it: caches and the preflight compare digests of earlier versions.
    ends = tuple(identity.pixel_range)
    named = f"_Identity(site={identity.site!r}, classes={identity.classes!r}, pixel_range={ends!r})"
    sha = hashlib.sha256(f"({named}, {dataset.dtype.str!r}, {dataset.shape!r})".encode())
    for name in sorted(columns):
        values = columns[name]
        # Of labels [n, K] the shape is hashed too: the same bytes may be other findings.
        sha.update(name.encode() + (repr((values.dtype.str, values.shape)).encode() if values.ndim > 1 else b""))
        sha.update(values.tobytes())
    sha.update(b"".join(hashes))
    return sha.hexdigest()
