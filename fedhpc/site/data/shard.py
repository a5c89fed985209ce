"""The shard: one hospital's images and labels in one HDF5 file, opened and checked by its own rank only.

| dataset     | dtype                    | shape        | meaning                                        |
|-------------|--------------------------|--------------|------------------------------------------------|
| `/images`   | uint8, uint16 or float32 | [n, C, H, W] | one HDF5 chunk an image, no compression        |
| `/labels`   | int64                    | [n]          | index into the attribute `classes`             |
|             | or uint8, int64          | [n, K]       | of K classes: 1 for each finding that is there |
| `/patient`  | S16                      | [n]          | pseudonym, never a name                        |
| `/split`    | uint8                    | [n]          | 0 train, 1 val, 2 test; a patient is in one    |
| `/modality` | S2                       | [n]          | as DICOM says it: MR, CT, ..., OT for any other |
| `/stage`    | uint8                    | [n]          | optional: 1 early (small lesion), 0 otherwise  |

Root attributes: `format_version`, `site`, `classes`, `pixel_range`, `created_by`. Whatever else a file holds is
refused: a shard must not smuggle names or dates. Columns and images are private, attributes and image shape public.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import h5py
import numpy as np
import numpy.typing as npt

from fedhpc.config.schema import TaskKind
from fedhpc.errors import ShardError
from fedhpc.site.data.shard_checks import storage_problems
from fedhpc.util.arrays import I64, U8, Images

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
MODALITIES = ("MR", "CT", "OT", "CR", "DX", "MG", "NM", "OP", "PT", "RF", "SM", "US", "XA")
IMAGE_DTYPES = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<f4"))
COLUMNS = {
    name: np.dtype(code)
    for name, code in (("labels", "<i8"), ("patient", "S16"), ("split", "u1"), ("modality", "S2"), ("stage", "u1"))
}
FINDINGS = (np.dtype("u1"), np.dtype("<i8"))
"""Of labels [n, K], one column a finding."""
OPTIONAL = frozenset({"stage"})
BLOCK_BYTES = 16 * 2**20


class PixelRange(NamedTuple):
    """The two ends of a pixel scale (public)."""

    low: float
    high: float


@dataclass(frozen=True)
class _Identity:
    site: str
    classes: tuple[str, ...]
    pixel_range: PixelRange


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a shard: its kind is public, its text is private."""

    kind: str
    text: str


@dataclass(frozen=True)
class _Scan:
    """What one pass over the images found: a sha256 of each, problems, and the images themselves where loaded."""

    hashes: list[bytes]
    problems: list[Problem]
    loaded: Images | None


class Shard:
    """One site's shard, checked and open for reading. A context manager; close it or use `with`.

    Attributes (private unless said otherwise):
        site: the hospital's name (public). classes: the label names in order (public).
        image_shape: (C, H, W) (public). pixel_range: the two ends of the pixel scale (public). n: number of images.
        digest: sha256 hex over site, classes, pixel_range, the columns and every image.
        labels: int64[n]; of several findings int64[n, K] of 0 and 1. kind: "multiclass" or "multilabel" (public).
        patient: S16[n]. split: uint8[n]. modality: S2[n].
        stage: uint8[n], zeros where the file has none; `has_stage` tells the two apart.
        in_memory: whether the images were loaded at opening.
        image_hashes: the sha256 of each image. row_hashes: the same, by row.
        created_by: which importer made the file (public).
    """

    def __init__(self, file: h5py.File, identity: _Identity, columns: dict[str, Images], scan: _Scan) -> None:
        self.site, self.classes, self.pixel_range = identity.site, identity.classes, identity.pixel_range
        self._file = file
        self._dataset: h5py.Dataset = file["images"]
        self._loaded = scan.loaded
        self.dtype: np.dtype[Any] = self._dataset.dtype
        self.n: int = self._dataset.shape[0]
        self.image_shape: tuple[int, int, int] = self._dataset.shape[1:]
        self.labels: I64 = columns["labels"].astype(np.int64)
        self.kind: TaskKind = "multiclass" if self.labels.ndim == 1 else "multilabel"
        self.patient, self.split = columns["patient"], columns["split"]
        self.modality = columns["modality"]
        self.has_stage = "stage" in columns
        self.stage: U8 = columns["stage"] if self.has_stage else np.zeros(self.n, np.uint8)
        self.in_memory = self._loaded is not None
        self._hashes = scan.hashes
        self.image_hashes = frozenset(scan.hashes)
        self.row_hashes, self.created_by = tuple(scan.hashes), str(file.attrs["created_by"])
        self.digest = _digest(identity, columns, scan.hashes, self._dataset)
        self._left_out = np.zeros(self.n, np.bool_)

    @classmethod
    def open(
        cls, path: Path, site: str | None, *, in_memory: bool | Literal["auto"] = "auto", need_train: bool = True
    ) -> Self:
        """Open `path` and check all of it before anything is trained: every image is read once, a block at a time.

        Args:
            path: the `.h5` file.
            site: the rank's own site; None takes the file's own, for tools that look at shards of any site.
            in_memory: True loads the images, False reads them from the file at each `read`, "auto" loads them if they
                fill less than a quarter of the available memory. `read` gives the same bytes either way.
            need_train: False also accepts a shard without a training split, for evaluation.

        Raises:
            ShardError: the file is missing, damaged, of another site, or breaks the format; lists every problem found.
        """
        path = Path(path)
        file = _open_file(path, site)
        try:
            return cls(file, *_check(file, site, in_memory, need_train))
        except _Problems as found:
            file.close()
            raise _refusal(path, site, found.args[0]) from None
        except (OSError, RuntimeError, KeyError, ValueError, TypeError) as error:
            file.close()
            text = f"damaged HDF5 content ({error}); allowed: a file that can be read to its end"
            raise _refusal(path, site, [Problem("damaged content", text)]) from error
        except BaseException:
            file.close()
            raise

    def indices(self, split: str) -> I64:
        """Row numbers of one split ("train", "val" or "test"), ascending, int64 (private)."""
        if split not in SPLITS:
            raise ValueError(f"split={split!r}; allowed: {', '.join(SPLITS)}")
        return np.flatnonzero((self.split == SPLITS.index(split)) & ~self._left_out).astype(np.int64)

    def leave_out(self, public: Set[bytes]) -> int:
        """Leave the images with these SHA-256 (public) out of every split; return how many they are (private)."""
        self._left_out |= np.array([digest in public for digest in self._hashes], np.bool_)
        return int(self._left_out.sum())

    def read(self, rows: npt.ArrayLike) -> Images:
        """The images of `rows` (int[k], may repeat, may be empty) in that order, private: [k, C, H, W], stored dtype.

        Streaming, it touches only the chunks of these rows, in file order, and compares each with the sha256 that the
        scan at opening took: HDF5 reads zeros where a file was cut meanwhile.

        Raises:
            ShardError: where an image is not the one that was checked at opening, or cannot be read any more.
        """
        if not self._file:
            raise ValueError(f"shard of site {self.site!r} is closed")
        wanted = np.asarray(rows, dtype=np.int64).reshape(-1)
        if wanted.size and (wanted.min() < 0 or wanted.max() >= self.n):
            raise IndexError(f"rows {wanted.min()} to {wanted.max()}, site {self.site!r}; allowed: 0 to {self.n - 1}")
        return self._streamed(wanted) if self._loaded is None else self._loaded[wanted]

    def _streamed(self, rows: I64) -> Images:
        try:
            images = _read_chunks(self._dataset, rows)
        except (OSError, RuntimeError) as error:
            raise self._changed(f"cannot be read any more ({error})") from error
        flat = images.reshape(len(rows), -1) if len(rows) else images
        wrong = [
            int(row)
            for row, image in zip(rows, flat, strict=True)
            if hashlib.sha256(image.data).digest() != self._hashes[row]
        ]
        if wrong:
            raise self._changed(f"{_rows(wrong)} differ from what was checked when the shard was opened")
        return images

    def _changed(self, what: str) -> ShardError:
        return ShardError(
            f"shard of site {self.site!r}: its images changed on disk while the run was reading them; it was "
            "truncated, replaced or overwritten. Restore the file, then start the same command again",
            private=f"shard {self._file.filename} of site {self.site!r}: /images {what}",
            code="shard.changed",
        )

    def close(self) -> None:
        """Close the file and let go of the images. Closing twice is harmless."""
        self._loaded = None
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Problems(Exception):
    """Carries a list of problems from a check to the place that knows the file's name."""


def _check(
    file: h5py.File, site: str | None, in_memory: bool | Literal["auto"], need_train: bool
) -> tuple[_Identity, dict[str, Images], _Scan]:
    # In two steps: pixels and labels mean nothing in a file whose layout is wrong.
    identity, problems = _read_attributes(file, site)
    problems += [Problem("layout", text) for text in _layout_problems(file)]
    if identity is None or problems:
        raise _Problems(problems)
    columns = {name: file[name][:] for name in COLUMNS if name in file}
    load = _fits_in_memory(file["images"]) if in_memory == "auto" else in_memory
    scan = _scan(file["images"], identity.pixel_range, load)
    problems = [*_column_problems(columns, identity, need_train), *scan.problems]
    problems += _leaks(columns["split"], columns["patient"], scan.hashes)
    if problems:
        raise _Problems(problems)
    return identity, columns, scan


def _refusal(path: Path, site: str | None, problems: list[Problem]) -> ShardError:
    owner = f" of site {site!r}" if site else ""
    lines = "".join(f"\n  - {problem.text}" for problem in problems)
    kinds = ", ".join(f"{kind} ({count})" for kind, count in Counter(problem.kind for problem in problems).items())
    return ShardError(
        f"shard{owner} cannot be used: {len(problems)} problem(s): {kinds}. `python run.py prepare check` at the site "
        "tells which, and so does the site's own log.txt; `python run.py prepare ...` makes a shard",
        private=f"shard {path}{owner} cannot be used:{lines}\nRemedy: make it with `python run.py prepare ...` and "
        f"look at it with `python run.py prepare check {path}`.",
    )


def _open_file(path: Path, site: str | None) -> h5py.File:
    if not path.is_file():
        text = "no such file; allowed: an existing HDF5 shard"
        raise _refusal(path, site, [Problem("no such file", text)])
    try:
        # Locks are broken on many parallel file systems, and nobody writes to a finished shard.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        text = f"not a whole HDF5 file, truncated or of another kind ({error}); allowed: an HDF5 shard"
        raise _refusal(path, site, [Problem("not a whole HDF5 file", text)]) from error


def shard_problem(path: Path) -> str:
    """Return why a shard cannot even be opened on this node (public), empty where it can. It is not looked into."""
    if not path.is_file():
        return "no such file"
    try:
        h5py.File(path, "r", locking=False).close()
    except OSError:
        return "not a whole HDF5 file: truncated, or of another kind"
    return ""


def created_by(path: Path) -> str:
    """Which importer made the shard at `path` (public), without looking into it; empty where that cannot be read."""
    try:
        with h5py.File(path, "r", locking=False) as file:
            return str(file.attrs.get("created_by", ""))
    except OSError:
        return ""


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
}


def _read_attributes(file: h5py.File, site: str | None) -> tuple[_Identity | None, list[Problem]]:
    known = ", ".join(_ATTRIBUTE_RULES)
    unknown = sorted(set(file.attrs) - set(_ATTRIBUTE_RULES))
    problems = [Problem("attributes", f"attribute {name!r} is unknown; allowed: {known}") for name in unknown]
    values: dict[str, Any] = {}
    for name, (parse, allowed) in _ATTRIBUTE_RULES.items():
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
    return _Identity(values["site"], values["classes"], values["pixel_range"]), []


def _layout_problems(file: h5py.File) -> list[str]:
    allowed = {"images", *COLUMNS}
    problems = [f"/{name} is unknown; allowed: {', '.join(sorted(allowed))}" for name in sorted(set(file) - allowed)]
    problems += [f"/{name} is missing" for name in sorted(allowed - OPTIONAL - set(file))]
    if file.userblock_size:
        problems.append(f"a user block of {file.userblock_size} bytes; allowed: none")
    present = sorted(allowed & set(file))
    for name in present:
        if not _is_plain_dataset(file, name):
            problems.append(
                f"/{name} is not a plain dataset; allowed: one stored in this very file, without attributes"
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
    return not (dataset.is_virtual or dataset.external or len(dataset.attrs))


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
    if images.shape is None or len(images.shape) != 4 or 0 in images.shape:
        problems.append(f"/images has shape {images.shape}; allowed: [n, C, H, W], none of them 0")
    elif images.chunks != (1, *images.shape[1:]) or images.id.get_create_plist().get_nfilters():
        problems.append(f"/images has chunks {images.chunks}; allowed: one uncompressed chunk an image")
    elif images.id.get_num_chunks() != images.shape[0]:
        problems.append(f"/images holds {images.id.get_num_chunks()} images of {images.shape[0]}; allowed: all written")
    return problems


def _read_chunks(dataset: h5py.Dataset, rows: I64) -> Images:
    # One image is one raw chunk: reading it whole skips HDF5's selection machinery, some 10 times cheaper an image.
    images = np.empty((len(rows), *dataset.shape[1:]), dataset.dtype)
    raw = images.reshape(len(rows), -1).view(np.uint8) if len(rows) else images
    for position in np.argsort(rows, kind="stable"):
        dataset.id.read_direct_chunk((int(rows[position]), 0, 0, 0), out=raw[position])
    return images


def _blocks(dataset: h5py.Dataset) -> Iterator[tuple[int, Images]]:
    step = max(1, BLOCK_BYTES // (dataset.dtype.itemsize * int(np.prod(dataset.shape[1:]))))
    for first in range(0, dataset.shape[0], step):
        yield first, _read_chunks(dataset, np.arange(first, min(first + step, dataset.shape[0])))


def _scan(dataset: h5py.Dataset, pixel_range: PixelRange, load: bool) -> _Scan:
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
        text = f"/images has NaN or Inf in {_rows(not_finite)}; allowed: finite pixels"
        problems.append(Problem("pixels that are not finite", text))
    if outside:
        text = f"/images has pixels outside pixel_range in {_rows(outside)}; allowed: {{:g}} to {{:g}}"
        problems.append(Problem("pixels outside pixel_range", text.format(*pixel_range)))
    return _Scan(hashes, problems, loaded)


def _rows(rows: list[int]) -> str:
    shown = ", ".join(map(str, rows[:3]))
    return f"row {shown}" + (f" and {len(rows) - 3} more" if len(rows) > 3 else "")


def _good_labels(labels: Images, classes: int) -> tuple[npt.NDArray[np.bool_], str]:
    """(which rows are fine, what is allowed)."""
    if labels.ndim == 1:
        return (labels >= 0) & (labels < classes), f"0 to {classes - 1}, for {classes} classes"
    if labels.shape[1] != classes:
        return np.zeros(len(labels), np.bool_), f"[n, {classes}], a column for each of {classes} classes"
    return ((labels == 0) | (labels == 1)).all(axis=1), "0 and 1, for each finding"


def _column_problems(columns: dict[str, Images], identity: _Identity, need_train: bool) -> list[Problem]:
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
            text = f"/{name} has {columns[name][rows[0]].tolist()!r} in {_rows(rows)}; allowed: {allowed}"
            problems.append(Problem(f"values of /{name}", text))
    if need_train and not (columns["split"] == 0).any():
        text = "/split has an empty train split; allowed: at least one training image, except for evaluation"
        problems.append(Problem("empty train split", text))
    return problems


def _leaks(split: U8, patient: Images, hashes: list[bytes]) -> list[Problem]:
    """What is shared by two splits: patients, and images with the same bytes."""
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


def _digest(identity: _Identity, columns: dict[str, Images], hashes: list[bytes], dataset: h5py.Dataset) -> str:
    # Written out, so that no rename changes it: caches and the preflight compare digests of earlier versions.
    ends = tuple(identity.pixel_range)
    named = f"_Identity(site={identity.site!r}, classes={identity.classes!r}, pixel_range={ends!r})"
    sha = hashlib.sha256(f"({named}, {dataset.dtype.str!r}, {dataset.shape!r})".encode())
    for name in sorted(columns):
        values = columns[name]
        # Of labels [n, K] the shape is told too: the same bytes may be other findings.
        sha.update(name.encode() + (repr((values.dtype.str, values.shape)).encode() if values.ndim > 1 else b""))
        sha.update(values.tobytes())
    sha.update(b"".join(hashes))
    return sha.hexdigest()


def _fits_in_memory(dataset: h5py.Dataset) -> bool:
    return fits_in_memory(int(dataset.size) * dataset.dtype.itemsize)


def fits_in_memory(size_bytes: int) -> bool:
    """Whether so much fills less than a quarter of the memory that this process may still take."""
    return size_bytes < _available_bytes() / 4


def _available_bytes() -> int:
    """Memory that this process may still take: the machine's, or its batch job's where that is less."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines(Path("/proc/meminfo")):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    for line in _lines(Path("/proc/self/cgroup")):
        if line.startswith("0::/"):
            own = Path("/sys/fs/cgroup") / line[4:]
            limits = [text for group in (own, *own.parents) for text in _lines(group / "memory.max")]
            free = min([free, *(int(text) for text in limits if text.isdecimal())])
    return free


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
