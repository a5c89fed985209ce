"""Checks of a shard's attributes and layout, before any column or image of it is read."""

import re
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

from fedhpc.site.data.shard_checks import storage_problems
from fedhpc.site.data.shard_format import (
    COLUMNS,
    FINDINGS,
    FORMAT_VERSION,
    IMAGE_DTYPES,
    OPTIONAL,
    Identity,
    PixelRange,
    Problem,
)

COMMENT_BIT = 1 << 13
"""Of the messages in an object's header (HDF5 File Format Specification, IV.A.2): an object comment."""
METHOD = re.compile(r"1131\d\d(,1131\d\d)*; PS3\.15 20\d\d[a-e]")


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise ValueError
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, np.ndarray) or value.ndim != 1:
        raise ValueError
    return tuple(_text(item) for item in value.tolist())


def _site_name(value: Any) -> str:
    name = _text(value)
    # The site's name becomes a folder of the run directory.
    if not name or name.startswith(".") or "/" in name or not name.isprintable():
        raise ValueError
    return name


def _classes(value: Any) -> tuple[str, ...]:
    names = _texts(value)
    if len(names) < 2 or not all(names) or len(set(names)) < len(names):
        raise ValueError
    return names


def _range(value: Any) -> PixelRange:
    low, high = (float(end) for end in value)
    if not (np.isfinite(low) and np.isfinite(high) and low < high):
        raise ValueError
    return PixelRange(low, high)


def _method(value: Any) -> str:
    text = _text(value)
    # Nothing but codes: an attribute of free text could hold a name.
    if METHOD.fullmatch(text) is None:
        raise ValueError
    return text


def _version(value: Any) -> int:
    if isinstance(value, np.integer) and int(value) == FORMAT_VERSION:
        return FORMAT_VERSION
    raise ValueError


_ATTRIBUTE_RULES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "format_version": (_version, f"{FORMAT_VERSION}, the only version that this fedhpc reads"),
    "site": (_site_name, "a printable name without '/' that does not start with '.'"),
    "classes": (_classes, "at least two different, non-empty class names"),
    "pixel_range": (_range, "two finite numbers, the smaller one first"),
    "created_by": (_text, "the importer's name and version, one text"),
    "deidentification": (
        _method,
        "codes of DICOM's CID 7050 and an edition of PS3.15, for example 113100; PS3.15 2024c",
    ),
}
OPTIONAL_ATTRIBUTES = frozenset({"deidentification"})


def read_attributes(file: h5py.File, site: str | None) -> tuple[Identity | None, list[Problem]]:
    known = ", ".join(_ATTRIBUTE_RULES)
    unknown = sorted(set(file.attrs) - set(_ATTRIBUTE_RULES))
    problems = [Problem("attributes", f"attribute {name!r} is unknown; allowed: {known}") for name in unknown]
    values: dict[str, Any] = {}
    for name, (parse, allowed) in _ATTRIBUTE_RULES.items():
        if name not in file.attrs and name in OPTIONAL_ATTRIBUTES:
            continue
        if name not in file.attrs:
            problems.append(Problem("attributes", f"attribute {name!r} is missing; allowed: {allowed}"))
            continue
        stored = file.attrs[name]
        try:
            values[name] = parse(stored)
        except (ValueError, TypeError):
            problems.append(Problem("attributes", f"attribute {name}={stored!r}; allowed: {allowed}"))
    if site is not None and values.get("site", site) != site:
        text = f"wrong site: the file belongs to {values['site']!r}; allowed here: {site!r} only"
        problems.append(Problem("wrong site", text))
    if problems:
        return None, problems
    return Identity(values["site"], values["classes"], values["pixel_range"]), []


def layout_problems(file: h5py.File) -> list[str]:
    allowed = {"images", *COLUMNS}
    problems = [f"/{name} is unknown; allowed: {', '.join(sorted(allowed))}" for name in sorted(set(file) - allowed)]
    problems += [f"/{name} is missing" for name in sorted(allowed - OPTIONAL - set(file))]
    if file.userblock_size:
        problems.append(f"a user block of {file.userblock_size} bytes; allowed: none")
    if _has_comment(file):
        problems.append("a comment on the file; allowed: none")
    present = sorted(allowed & set(file))
    for name in present:
        if not _is_plain_dataset(file, name):
            problems.append(
                f"/{name} is not a plain dataset; allowed: one stored in this very file, without attributes, comment, "
                "fill value or a type with a name"
            )
        else:
            problems += _image_layout(file["images"]) if name == "images" else _column_layout(file[name], name)
    if problems:
        return problems
    n, lengths = len(file["images"]), {name: len(file[name]) for name in present}
    return [f"/{name} has length {k}; allowed: {n}, as many as /images" for name, k in lengths.items() if k != n]


def _is_plain_dataset(file: h5py.File, name: str) -> bool:
    if not isinstance(file.get(name, getlink=True), h5py.HardLink) or not isinstance(file[name], h5py.Dataset):
        return False
    dataset = file[name]
    if dataset.is_virtual or dataset.external or len(dataset.attrs) or _has_comment(dataset):
        return False
    # A type with a name has attributes of its own; a fill value is shown and stands for no image.
    filled = dataset.id.get_create_plist().fill_value_defined() == h5py.h5d.FILL_VALUE_USER_DEFINED
    return not (filled or dataset.id.get_type().committed())


def _has_comment(thing: h5py.File | h5py.Dataset) -> bool:
    return bool(h5py.h5o.get_info(thing.id).hdr.mesg.present & COMMENT_BIT)


def _column_layout(dataset: h5py.Dataset, name: str) -> list[str]:
    problems = []
    findings = name == "labels" and dataset.shape is not None and len(dataset.shape) == 2
    allowed = FINDINGS if findings else (COLUMNS[name],)
    if dataset.dtype not in allowed:
        problems.append(f"/{name} has dtype {dataset.dtype}; allowed: {' or '.join(map(str, allowed))}")
    if dataset.shape is None or (len(dataset.shape) != 1 and not findings):
        problems.append(f"/{name} has shape {dataset.shape}; allowed: [n]{' or [n, K]' * (name == 'labels')}")
    return problems + storage_problems(dataset, name)


def _image_layout(images: h5py.Dataset) -> list[str]:
    problems = []
    if images.dtype not in IMAGE_DTYPES:
        problems.append(f"/images has dtype {images.dtype}; allowed: {', '.join(map(str, IMAGE_DTYPES))}")
    if images.shape is None or len(images.shape) not in (4, 5) or 0 in images.shape:
        problems.append(f"/images has shape {images.shape}; allowed: [n, C, H, W] or [n, C, D, H, W], none of them 0")
    elif images.chunks != (1, *images.shape[1:]) or images.id.get_create_plist().get_nfilters():
        problems.append(f"/images has chunks {images.chunks}; allowed: one uncompressed chunk an image")
    elif images.id.get_num_chunks() != images.shape[0]:
        problems.append(f"/images holds {images.id.get_num_chunks()} images of {images.shape[0]}; allowed: all written")
    return problems
