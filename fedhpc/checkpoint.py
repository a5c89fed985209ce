"""Checkpoints: what a run must have on disk to go on. Each file is whole or not there, and checked when it is read.

`<kind>-0007.npz` holds what there was after 7 rounds: `round` in `state/` (the global parameters, rank 0's), `residual`
or `model` in `sites/<site>/` (that site's own). A file is written to a temporary name, fsynced and renamed, so a crash
leaves no half of one; and it holds a digest of its arrays, so a disk or a copy that changed it is noticed. The last
KEPT rounds stay: a round whose files are not all whole is not lost, only done again.
"""

import hashlib
import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fedhpc.errors import InputError
from fedhpc.rundir import write_atomically

KEPT = 3
DIGEST = "sha256"
Arrays = Mapping[str, np.ndarray]


def save_state(folder: Path, kind: str, round: int, arrays: Arrays) -> None:
    """Write `<kind>-<round>.npz` and remove the oldest beyond the last KEPT."""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **{**arrays, DIGEST: digest_of(arrays)})
    write_atomically(_path(folder, kind, round), lambda file: _dump(buffer, file))
    for old in saved_rounds(folder, kind)[:-KEPT]:
        _path(folder, kind, old).unlink()


def _dump(buffer: io.BytesIO, file: BinaryIO) -> None:
    file.write(buffer.getbuffer())


def _path(folder: Path, kind: str, round: int) -> Path:
    return folder / f"{kind}-{round:04d}.npz"


def digest_of(arrays: Arrays) -> np.ndarray:
    """SHA-256 over names, types, shapes and values, uint8[32]."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        array = np.ascontiguousarray(value)
        digest.update(f"{name} {array.dtype.str} {np.shape(value)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)


def saved_rounds(folder: Path, kind: str) -> list[int]:
    """The rounds of which a state of this kind is there, whole or not, ascending."""
    pattern = re.compile(rf"{kind}-(\d+)\.npz")
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := pattern.fullmatch(name)))


def load_state(folder: Path, kind: str, round: int) -> dict[str, np.ndarray]:
    """Read a saved state.

    Raises:
        InputError: where it is missing or not what was written.
    """
    path = _path(folder, kind, round)
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, str(error)) from None
    written = arrays.pop(DIGEST, None)
    if written is None or written.tobytes() != digest_of(arrays).tobytes():
        raise _damaged(path, "it is not what was written: its digest differs")
    return arrays


def _damaged(path: Path, why: str) -> InputError:
    return InputError(f"{path}: cannot be read ({why}); restore it, or start in a new --run-dir")


def intact_rounds(folder: Path, kind: str) -> tuple[list[int], list[str]]:
    """(the rounds whose state is whole, ascending; what is wrong with each of the others)."""
    whole, problems = [], []
    for round in saved_rounds(folder, kind):
        try:
            load_state(folder, kind, round)
            whole.append(round)
        except InputError as error:
            problems.append(str(error).partition(";")[0])
    return whole, problems


def forget_after(folder: Path, kind: str, round: int) -> None:
    """Remove what is of later rounds: those are done again, with other noise, and the two must not be mixed."""
    for later in saved_rounds(folder, kind):
        if later > round:
            _path(folder, kind, later).unlink()
