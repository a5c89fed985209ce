"""Checkpoints: what a run must have on disk to go on. Each file is whole or not there, and checked when it is read.

`<kind>-0007.npz` holds what there was after 7 rounds: `round` in `state/` (the global parameters, rank 0's), `residual`
or `model` in `sites/<site>/` (that site's own). It holds a digest of its arrays and of what it belongs to: kind, round,
site, config and shard (`Owner`). A file that a disk changed is damaged: its round is done again, from one of the last
KEPT rounds. A whole file of another round, site, config or shard was put there by a person: it is refused.
"""

import contextlib
import hashlib
import io
import json
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fedhpc.errors import InputError
from fedhpc.util.files import PRIVATE, READABLE, make_folder, read_bytes, replacing, reported
from fedhpc.util.regular_file import check_stored

KEPT = 3
DIGEST, OWNER = "sha256", "owner"
Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Owner:
    """What a checkpoint belongs to, beside its kind and round; an empty field is not compared when it is read.

    Attributes:
        site: the learner's name (public); `aggregator` of the global state.
        config: digest of the config without what may change at a resume (public).
        shard: the site's keyed digest of its shard (private to the site; see `fedhpc.site.data.shard_record`).
    """

    site: str = ""
    config: str = ""
    shard: str = ""


class ForeignCheckpointError(InputError):
    """A whole checkpoint of another kind, round, site, config or shard."""

    code = "resume.other-checkpoint"


def save_state(folder: Path, kind: str, round: int, arrays: Arrays, owner: Owner | None = None) -> None:
    """Write `<kind>-<round>.npz` and remove the oldest beyond the last KEPT. What a site keeps is of mode 0600.

    Raises:
        FileError: where it cannot be written.
    """
    state, mode = State(kind, round, arrays, owner or Owner()), READABLE if kind == "round" else PRIVATE
    keep_state(folder, state, mode=mode)
    for old in saved_rounds(folder, kind)[:-KEPT]:
        _remove(_path(folder, kind, old))


@dataclass(frozen=True)
class State:
    """What a checkpoint holds, and what it is stated to be of."""

    kind: str
    round: int
    arrays: Arrays
    owner: Owner = Owner()


def keep_state(folder: Path, state: State, *, mode: int = READABLE) -> None:
    """Write `<kind>-<round>.npz` beside those of other rounds, which are all kept.

    Raises:
        FileError: where it cannot be written.
    """
    stated = np.array(json.dumps(_stated(state.kind, state.round, state.owner)))
    whole = {**state.arrays, OWNER: stated}
    make_folder(folder, parents=False)
    with replacing(_path(folder, state.kind, state.round), mode=mode) as write:
        _write_npz({**whole, DIGEST: digest_of(whole)}, write)


class _Sink:
    """What zipfile writes to: a stream without positions."""

    def __init__(self, write: Callable[[bytes | memoryview], None]) -> None:
        self._write = write

    def write(self, content: bytes | memoryview) -> int:
        """Pass all of it on."""
        self._write(content)
        return len(content)

    def flush(self) -> None:
        """Nothing is held back."""


def _write_npz(arrays: Arrays, write: Callable[[bytes | memoryview], None]) -> None:
    """Write what `np.savez` would, array by array and without a copy: a state is as large as its rank's updates."""
    with zipfile.ZipFile(_Sink(write), "w") as archive:  # type: ignore[call-overload]
        for name, value in arrays.items():
            array = np.ascontiguousarray(value)
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                stated = {"descr": array.dtype.str, "fortran_order": False, "shape": np.shape(value)}
                np.lib.format.write_array_header_1_0(file, stated)
                file.write(array.reshape(-1).view(np.uint8).data)


def _stated(kind: str, round: int, owner: Owner) -> dict[str, str | int]:
    return {"kind": kind, "round": round, **asdict(owner)}


def _path(folder: Path, kind: str, round: int) -> Path:
    return folder / f"{kind}-{round:04d}.npz"


def _remove(path: Path) -> None:
    with reported(path, "removed"), contextlib.suppress(FileNotFoundError):
        path.unlink()


def digest_of(arrays: Arrays) -> np.ndarray:
    """SHA-256 over names, types, shapes and values, uint8[32]."""
    digest = hashlib.sha256()
    for name, value in sorted(arrays.items()):
        array = np.ascontiguousarray(value)
        digest.update(f"{name} {array.dtype.str} {np.shape(value)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return np.frombuffer(digest.digest(), np.uint8)


def saved_rounds(folder: Path, kind: str) -> list[int]:
    """Return the rounds of which a state of this kind is there, whole or not, ascending."""
    pattern = re.compile(rf"{kind}-(\d+)\.npz")
    with reported(folder, "read"):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return sorted(int(found[1]) for name in names if (found := pattern.fullmatch(name)))


def load_state(folder: Path, kind: str, round: int, owner: Owner | None = None) -> dict[str, np.ndarray]:
    """Read a saved state.

    Raises:
        InputError: where it is missing or not what was written.
        ForeignCheckpointError: where it is whole, and not of this kind, round or `owner`; names what differs.
    """
    path = _path(folder, kind, round)
    try:
        content = read_bytes(path)
        check_stored(content)
        with np.load(io.BytesIO(content), allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, KeyError, MemoryError, zipfile.BadZipFile, zlib.error) as error:
        raise _damaged(path, type(error).__name__) from None
    written = arrays.pop(DIGEST, None)
    if written is None or written.tobytes() != digest_of(arrays).tobytes():
        raise _damaged(path, "it is not what was written: its digest differs")
    stated = arrays.pop(OWNER, None)
    if stated is None:
        raise _damaged(path, "it does not say what it belongs to: an older version of fedhpc wrote it")
    _refuse_foreign(path, json.loads(str(stated)), _stated(kind, round, owner or Owner()))
    return arrays


def _refuse_foreign(path: Path, found: Mapping[str, str | int], wanted: Mapping[str, str | int]) -> None:
    differing = [key for key, value in wanted.items() if value != "" and found.get(key) != value]
    if differing:
        # Digests say nothing to a reader, and that of a shard is private.
        shown = [f"{key} {found.get(key)!r}" if key in ("kind", "round", "site") else key for key in differing]
        older = ", or an earlier version of fedhpc wrote it: go on with that version" if differing == ["config"] else ""
        raise ForeignCheckpointError(
            f"{path}: is the checkpoint of another {', '.join(shown)}{older}. Put the right file back; without it, "
            "remove this one, and the round before is gone on from"
        )


def _damaged(path: Path, why: str) -> InputError:
    return InputError(
        f"{path}: cannot be read ({why}); restore it, or start in a new --run-dir", code="resume.damaged-checkpoint"
    )


def intact_rounds(folder: Path, kind: str, owner: Owner | None = None) -> tuple[list[int], list[str]]:
    """(the rounds whose state is whole, ascending; what is wrong with each of the others).

    Raises:
        ForeignCheckpointError: see `load_state`.
    """
    whole, problems = [], []
    for round in saved_rounds(folder, kind):
        try:
            load_state(folder, kind, round, owner)
            whole.append(round)
        except ForeignCheckpointError:
            raise
        except InputError as error:
            problems.append(str(error).partition(";")[0])
    return whole, problems


def forget_after(folder: Path, kind: str, round: int) -> None:
    """Remove what is of later rounds: those are done again, with other noise, and the two must not be mixed."""
    for later in saved_rounds(folder, kind):
        if later > round:
            _remove(_path(folder, kind, later))
