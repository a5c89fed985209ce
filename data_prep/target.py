"""Where an import writes: a folder beside its shards until all of them are whole, then their names, all at once.

Which import a shard is of stands in its `created_by`. So a folder tells by itself whether it holds shards of another
import, which would count patients twice and mix training with test images.
"""

import errno
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from data_prep.names import shown
from fedhpc.errors import ShardError
from fedhpc.site.data.shard import created_by
from fedhpc.util.files import PRIVATE
from fedhpc.util.text import first_names

CREATED_BY = "fedhpc prepare images"
CANNOT_WRITE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG,
    errno.EIO, errno.EEXIST,
)  # fmt: skip
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass(frozen=True)
class Target:
    """The output of one import.

    Attributes:
        folder: where the shards go.
        files: names of the shards.
        stamp: `created_by` of these shards: the importer, and 16 hex digits for options and files.
        replace: whether shards of another import may be removed.
        shares_folder: whether other shards in the folder are none of this import's business, as for a single file.
    """

    folder: Path
    files: tuple[str, ...]
    stamp: str
    replace: bool = False
    shares_folder: bool = False

    def strangers(self) -> list[Path]:
        """Return the shards of other imports that this one replaces.

        Raises:
            ShardError: there are some and they may not be removed, or are not this importer's to remove.
        """
        others = {path: created_by(path) for path in self._shards()}
        old = sorted(path for path, stamp in others.items() if stamp != self.stamp)
        mine = [path for path in old if others[path].startswith(self._importer)]
        taken = [path.name for path in old if path not in mine and path.name in self.files]
        if taken:
            importer = self._importer.removeprefix("fedhpc ")
            raise ShardError(
                f"out={shown(self.folder)}: {first_names(taken)} was not written by {importer}, which never "
                "replaces it. Move it away, or choose another folder",
                code="prepare.out-taken",
            )
        if mine and not self.replace:
            raise ShardError(
                f"out={shown(self.folder)}: holds {len(mine)} shards of another import ({first_names(_named(mine))}), "
                "from other images or with other options. Together they would count patients twice and mix training "
                "with test images. Choose another folder, or remove the old shards with --replace; the ledgers beside "
                "them stay",
                code="prepare.out-taken",
            )
        return mine

    @property
    def _importer(self) -> str:
        """As a shard's `created_by` begins."""
        return self.stamp.partition(",")[0]

    def _shards(self) -> list[Path]:
        if self.shares_folder:
            return [path for name in self.files if (path := self.folder / name).exists()]
        return sorted(path for path in self.folder.glob("*.h5") if not path.name.startswith("."))


class Staging:
    """A temporary folder beside the shards: what is written there appears under its name at `publish`, or never."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.folder = target.folder / f".import-{os.uname().nodename}-{os.getpid()}.tmp"

    def publish(self, extra: Sequence[Path] = ()) -> list[Path]:
        """Give the finished files their names; remove what another import left, but never a ledger.

        Args:
            extra: more files of this folder, beside the target's own.
        """
        with _signals_wait():
            old = self.target.strangers()
            names = [*self.target.files, *(path.name for path in extra)]
            for path in [*old, *_stale_caches(old)]:
                path.unlink(missing_ok=True)
            for name in names:
                # Before it appears: shards and what lies beside them are as private as the images.
                (self.folder / name).chmod(PRIVATE)
                (self.folder / name).replace(self.target.folder / name)
        return [self.target.folder / name for name in names]


@contextmanager
def staging(target: Target, needed_bytes: int) -> Iterator[Staging]:
    """Make the folder and a temporary one in it, and remove the latter whatever happens.

    Args:
        target: where to write.
        needed_bytes: what will be written; refused at once where the file system has less.

    Raises:
        ShardError: a folder that cannot be written to, too little room, another import at work in it.
    """
    made = [folder for folder in (target.folder, *target.folder.parents) if not folder.exists()]
    stage = Staging(target)
    done = False
    try:
        with writing(target.folder, needed_bytes), ended_by_sigterm():
            target.folder.mkdir(parents=True, exist_ok=True)
            _clear_abandoned(target.folder)
            _check_room(target.folder, needed_bytes)
            stage.folder.mkdir(mode=0o700)
            yield stage
            done = True
    finally:
        shutil.rmtree(stage.folder, ignore_errors=True)
        for folder in [] if done else made:
            with suppress(OSError):  # not empty: somebody else's by now
                folder.rmdir()


@contextmanager
def writing(path: Path, needed_bytes: int) -> Iterator[None]:
    """Turn what a file system refuses into a ShardError with the path, the bytes needed and a remedy."""
    try:
        yield
    except OSError as error:
        number = error.errno or 0
        if number not in CANNOT_WRITE:
            raise
        where = shown(error.filename) if isinstance(error.filename, str) else shown(path)
        raise ShardError(_refusal(path, where, number, needed_bytes), code="prepare.no-space") from error


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end the process as an exception does, so that temporary files are removed; exit status 143."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def human(count: float) -> str:
    """Bytes with a unit.

    >>> human(809e6), human(1500), human(12)
    ('809.0 MB', '1.5 kB', '12 B')
    """
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} B"


def _refusal(path: Path, where: str, number: int, needed_bytes: int) -> str:
    cause = os.strerror(number)
    if number in NO_ROOM:
        return (
            f"out={shown(path)}: {cause}; {human(needed_bytes)} are needed there. What was unfinished is removed. Free "
            "so much, or choose another folder"
        )
    return f"out={shown(path)}: cannot be written to ({where}: {cause}). Choose a folder that you may write to"


def _check_room(folder: Path, needed_bytes: int) -> None:
    """Refuse before any work what cannot end well; quotas are only noticed when they are met."""
    room = os.statvfs(folder)
    free_bytes = room.f_bavail * room.f_frsize
    if free_bytes < needed_bytes:
        raise ShardError(
            f"out={shown(folder)}: {human(free_bytes)} free, {human(needed_bytes)} are needed there while the import "
            "runs. Free so much, or choose another folder",
            code="prepare.no-space",
        )


def _clear_abandoned(folder: Path) -> None:
    """Remove what a killed import of this machine left; refuse to work beside one that still runs."""
    for path in folder.glob(".import-*.tmp"):
        match = re.fullmatch(r"\.import-(.+)-(\d+)\.tmp", path.name)
        if match is None:
            continue
        host, process = match[1], int(match[2])
        if host == os.uname().nodename and not _alive(process):
            shutil.rmtree(path, ignore_errors=True)
            continue
        raise ShardError(
            f"out={shown(folder)}: another import, process {process} on {host}, is at work there. Wait for its end; if "
            f"it is dead, remove {shown(path)}",
            code="prepare.out-taken",
        )


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stale_caches(shards: Iterable[Path]) -> list[Path]:
    return [cache for shard in shards for cache in sorted(shard.parent.glob(f"{shard.stem}.features-*.npy"))]


def _named(paths: Sequence[Path]) -> list[str]:
    return [shown(path.name) for path in paths]


@contextmanager
def _signals_wait() -> Iterator[None]:
    """Hold back the signals that end a process, so that renaming is not cut in the middle."""
    held = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, held)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
