"""The shard: one hospital's images and labels in one HDF5 file, opened and checked by its own rank only.

| dataset     | dtype                    | shape        | meaning                                        |
|-------------|--------------------------|--------------|------------------------------------------------|
| `/images`   | uint8, uint16 or float32 | [n, C, H, W] | one HDF5 chunk an image, no compression        |
|             |                          | [n, C, D, H, W] | the same of 3-D patches                     |
| `/labels`   | int64                    | [n]          | index into the attribute `classes`             |
|             | or uint8, int64          | [n, K]       | of K classes: 1 for each finding that is there |
| `/patient`  | S16                      | [n]          | pseudonym, never a name                        |
| `/split`    | uint8                    | [n]          | 0 train, 1 val, 2 test; a patient is in one    |
| `/modality` | S2                       | [n]          | as DICOM says it: MR, CT, ..., OT for any other |
| `/stage`    | uint8                    | [n]          | optional: 1 early (small lesion), 0 otherwise  |

Root attributes: `format_version`, `site`, `classes`, `pixel_range`, `created_by`, and optionally `deidentification`:
codes of DICOM's Context Group 7050 and the edition of PS3.15, which say how the importer removed identities. Whatever
else HDF5 shows in a file is refused, comments and named types too: a shard must not smuggle names or dates. Not looked
at: what importer and classes are called, when an object was changed, and bytes that HDF5 keeps of deleted objects; the
importer writes each shard as a new file, without times, and deletes nothing in it. Columns and images are private,
attributes and image shape public.
"""

import hashlib
from collections import Counter
from collections.abc import Set
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import h5py
import numpy as np
import numpy.typing as npt

from fedhpc.config.model import TaskKind
from fedhpc.errors import ShardError
from fedhpc.site.data.shard_format import COLUMNS, SPLITS, Identity, Problem
from fedhpc.site.data.shard_layout import layout_problems, read_attributes
from fedhpc.site.data.shard_scan import Scan, column_problems, digest_of, leaks, read_chunks, rows_text, scan_images
from fedhpc.util.arrays import I64, U8, Images
from fedhpc.util.memory import fits_in_memory

NO_FILE = "no such file"


class Shard:
    """One site's shard, checked and open for reading. A context manager; close it or use `with`.

    Attributes (private unless said otherwise):
        site: the hospital's name (public). classes: the label names in order (public).
        image_shape: (C, H, W), or (C, D, H, W) of 3-D patches (public). n: number of images.
        pixel_range: the two ends of the pixel scale (public).
        digest: sha256 hex over site, classes, pixel_range, the columns and every image.
        labels: int64[n]; of several findings int64[n, K] of 0 and 1. kind: "multiclass" or "multilabel" (public).
        patient: S16[n]. split: uint8[n]. modality: S2[n].
        stage: uint8[n], zeros where the file has none; `has_stage` tells the two apart.
        in_memory: whether the images were loaded at opening.
        image_hashes: the sha256 of each image. row_hashes: the same, by row.
        created_by: which importer made the file (public).
    """

    def __init__(self, file: h5py.File, identity: Identity, columns: dict[str, Images], scan: Scan) -> None:
        self.site, self.classes, self.pixel_range = identity.site, identity.classes, identity.pixel_range
        self._file = file
        self._dataset: h5py.Dataset = file["images"]
        self._loaded = scan.loaded
        self.dtype: np.dtype[Any] = self._dataset.dtype
        self.n: int = self._dataset.shape[0]
        self.image_shape: tuple[int, ...] = self._dataset.shape[1:]
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
        self.digest = digest_of(identity, columns, scan.hashes, self._dataset)
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
        """The images of `rows` (int[k], may repeat, may be empty) in that order, as stored: [k, *shape] (private).

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
            images = read_chunks(self._dataset, rows)
        except (OSError, RuntimeError) as error:
            raise self._changed(f"cannot be read any more ({error})") from error
        flat = images.reshape(len(rows), -1) if len(rows) else images
        wrong = [
            int(row)
            for row, image in zip(rows, flat, strict=True)
            if hashlib.sha256(image.data).digest() != self._hashes[row]
        ]
        if wrong:
            raise self._changed(f"{rows_text(wrong)} differ from what was checked when the shard was opened")
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
) -> tuple[Identity, dict[str, Images], Scan]:
    # In two steps: pixels and labels mean nothing in a file whose layout is wrong.
    identity, problems = read_attributes(file, site)
    problems += [Problem("layout", text) for text in layout_problems(file)]
    if identity is None or problems:
        raise _Problems(problems)
    columns = {name: file[name][:] for name in COLUMNS if name in file}
    load = _fits_in_memory(file["images"]) if in_memory == "auto" else in_memory
    scan = scan_images(file["images"], identity.pixel_range, load)
    problems = [*column_problems(columns, identity, need_train), *scan.problems]
    problems += leaks(columns["split"], columns["patient"], scan.hashes)
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
    if unreadable := _unreadable(path):
        text = f"{unreadable}; allowed: an existing HDF5 shard that this account may read"
        raise _refusal(path, site, [Problem(unreadable, text)])
    try:
        # Locks are broken on many parallel file systems, and nobody writes to a finished shard.
        return h5py.File(path, "r", locking=False)
    except OSError as error:
        text = f"not a whole HDF5 file, truncated or of another kind ({error}); allowed: an HDF5 shard"
        raise _refusal(path, site, [Problem("not a whole HDF5 file", text)]) from error


def _unreadable(path: Path) -> str:
    """Return why this account cannot read a file (public), empty where it can: importers write for their own alone."""
    try:
        if not path.is_file():
            return NO_FILE
    except OSError as error:  # a folder that this account may not enter, or a name that is too long
        return f"cannot be looked at ({error.strerror})"
    try:
        path.open("rb").close()
    except OSError as error:
        return f"cannot be read by this account ({error.strerror})"
    return ""


def shard_problem(path: Path) -> str:
    """Return why a shard cannot even be opened on this node (public), empty where it can. It is not looked into."""
    if unreadable := _unreadable(path):
        return unreadable
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


def _fits_in_memory(dataset: h5py.Dataset) -> bool:
    return fits_in_memory(int(dataset.size) * dataset.dtype.itemsize)
