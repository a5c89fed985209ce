"""Write and read files: the one place of the program that does either for what a run leaves on disk.

A file is written to a temporary name beside its target, until every byte is with the operating system, fsynced, renamed
to its target, and its folder fsynced: a reader sees the old file or the new one, also after a power failure. A failed
write removes its temporary file. A line is appended whole or not at all. Every error is a `FileError` that names the
path, the cause and what to do; an `OSError` never leaves this module.

No function makes a folder that its caller has not asked for: a run directory that was deleted during a run must not
come back half empty.
"""

import contextlib
import errno
import io
import json
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from fedhpc.errors import FileError, InputError
from fedhpc.util.regular_file import LARGEST_LINES, LARGEST_TEXT, content_of

READABLE, PRIVATE = 0o644, 0o600
REMEDIES = {
    errno.ENOSPC: "Free space on that disk, then start the same command again",
    errno.EDQUOT: "Free space within the quota of this account, then start the same command again",
    errno.EFBIG: "Raise the limit on file sizes (ulimit -f), then start the same command again",
    errno.EROFS: "Give a folder on a file system that can be written",
    errno.EACCES: "Give a folder that this account may use, or change its permissions",
    errno.EPERM: "Give a folder that this account may use, or change its permissions",
    errno.ENOENT: "It or its folder does not exist, or was removed: restore it, or give another folder",
    errno.ENOTDIR: "A file is in the place of a folder: give another folder",
    errno.EISDIR: "A folder is in the place of a file: remove it, or give another folder",
    errno.EEXIST: "A file is in the place of a folder: give another folder",
    errno.ELOOP: "Nothing is written through a link: put what it leads to in its place, or link a folder above it",
    errno.EIO: "The disk or its network reports a fault: ask the administrators, or give a folder on another disk",
    errno.ESTALE: "It was removed or moved on its server: restore it, or give another folder",
}
_CODES = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), "file.no-space"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "file.not-permitted"),
    **dict.fromkeys((errno.ENOENT, errno.ESTALE), "file.missing"),
    **dict.fromkeys((errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ELOOP), "file.in-the-way"),
}
OTHERWISE = "See that the disk is there and can be written, then start the same command again"


def file_error(path: Path, doing: str, error: OSError) -> FileError:
    """Return the error to raise: path, what was being done (`written`, `read`, ...), the cause, the remedy."""
    cause = error.strerror or type(error).__name__
    remedy = REMEDIES.get(error.errno or 0, OTHERWISE)
    return FileError(f"{path}: cannot be {doing}: {cause}. {remedy}.", code=_CODES.get(error.errno or 0, "file"))


@contextlib.contextmanager
def reported(path: Path, doing: str) -> Iterator[None]:
    """Turn every OSError raised inside into a `FileError` about `path`."""
    try:
        yield
    except OSError as error:
        raise file_error(path, doing, error) from error


def make_folder(path: Path, *, parents: bool = True) -> None:
    """Make a folder that may exist already; without `parents` the one above it must.

    Raises:
        FileError: where that is impossible.
    """
    with reported(path, "made"):
        path.mkdir(parents=parents, exist_ok=True)


def make_own_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing, for this account alone, whatever its umask. Raises OSError.

    Whoever may write to a folder above may exchange what is below.
    """
    for missing in [one for one in (path, *path.parents) if not one.exists()][::-1]:
        missing.mkdir(mode=0o700, exist_ok=True)


@contextlib.contextmanager
def replacing(path: Path, *, mode: int = READABLE) -> Iterator[Callable[[bytes | memoryview], None]]:
    """Give a function that writes to the file that is at `path`, on disk, when the block ends; the folder must exist.

    Where the block raises, what was at `path` before is still there. For content that need not fit in memory.

    Raises:
        FileError: where it cannot be written. Other errors of the block are not touched.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")

    def write(content: bytes | memoryview) -> None:
        with reported(path, "written"):
            write_all(descriptor, content)

    try:
        with reported(path, "written"):
            # Never into a file that is there: it has a mode of its own, or is a link.
            temporary.unlink(missing_ok=True)
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        try:
            yield write
            with reported(path, "written"):
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        with reported(path, "written"):
            os.replace(temporary, path)
            sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def write_bytes(path: Path, content: bytes | memoryview, *, mode: int = READABLE) -> None:
    """Put `content` at `path` in one step, on disk when this returns; the folder must exist.

    Raises:
        FileError: where it cannot be written; what was at `path` before is still there.
    """
    with replacing(path, mode=mode) as write:
        write(content)


def write_atomically(path: Path, write: Callable[[BinaryIO], None], *, mode: int = READABLE) -> None:
    """`write_bytes` of all that `write` puts into the file that it is given (in memory)."""
    buffer = io.BytesIO()
    write(buffer)
    write_bytes(path, buffer.getbuffer(), mode=mode)


def write_text(path: Path, text: str, *, mode: int = READABLE) -> None:
    """`write_bytes` of a text in UTF-8."""
    write_bytes(path, text.encode(), mode=mode)


def write_json(path: Path, content: object, *, mode: int = READABLE) -> None:
    """`write_bytes` of one JSON document; ValueError for NaN and infinities."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n", mode=mode)


def write_all(descriptor: int, content: bytes | memoryview) -> None:
    """Write every byte: `os.write` may write fewer than it was given, on a full disk or after a signal."""
    rest = memoryview(content).cast("B")
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def sync_folder(path: Path) -> None:
    """Bring a folder's list of names to the disk; without effect where the file system does not know that."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str, *, mode: int = READABLE, durable: bool = True) -> None:
    """Append one line, all of it or nothing; where it must be `durable`, it is on disk when this returns.

    With `mode` PRIVATE also a file that was there before has that mode from here on. It is not written through a link:
    somebody else's file may be at its other end.

    Raises:
        FileError: where it cannot be written; the file is then as it was.
    """
    with reported(path, "written"):
        new = not path.exists()
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, mode)
        try:
            if mode == PRIVATE and os.fstat(descriptor).st_mode & 0o077:
                os.fchmod(descriptor, PRIVATE)
            append_whole(descriptor, line.encode() + b"\n")
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if new and durable:
            sync_folder(path.parent)


def keep_from_others(descriptor: int) -> None:
    """Take an open file from all other accounts; it stays as it is where it is another's."""
    if os.fstat(descriptor).st_mode & 0o077:
        with contextlib.suppress(PermissionError):
            os.fchmod(descriptor, PRIVATE)


def refuse_link(path: Path) -> None:
    """Refuse a link in the place of a folder in which files are replaced or removed: they may be somebody else's.

    Raises:
        FileError: there is one.
    """
    if path.is_symlink():
        raise file_error(path, "written", OSError(errno.ELOOP, os.strerror(errno.ELOOP)))


def open_to_append(path: Path) -> BinaryIO:
    """Open a file that others of this account's processes append to as well; not through a link.

    Raises:
        FileError: it cannot be opened.
    """
    with reported(path, "written"):
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, READABLE), "ab")


def is_own(folder: Path) -> bool:
    """Return whether no other account but root can put anything into a folder, or another one in its place."""
    whole = folder.resolve()
    for place in (whole, *whole.parents):
        found = place.stat()
        # In a folder with the sticky bit nobody can remove or rename what is another's.
        shared = found.st_mode & 0o022 and not (place != whole and found.st_mode & stat.S_ISVTX)
        if shared or found.st_uid not in (0, os.geteuid()):
            return False
    return True


def append_whole(descriptor: int, content: bytes) -> None:
    """Append to a file that only this process appends to; cut off what a failed write has left. Raises OSError."""
    size = os.fstat(descriptor).st_size
    try:
        write_all(descriptor, content)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def read_bytes(path: Path, limit_bytes: int | None = None) -> bytes:
    """Return the content of a file, at most `limit_bytes` (None: what there is).

    Raises:
        FileError: where it is missing or cannot be read. InputError: where it is larger, or a pipe or a device.
    """
    with reported(path, "read"):
        return content_of(path, limit_bytes)


def read_text(path: Path, remedy: str, limit_bytes: int = LARGEST_TEXT) -> str:
    """Return the content of a file in UTF-8. `remedy` says what to do where it is something else.

    Raises:
        FileError: where it cannot be read. InputError: where it is no text, or larger than `limit_bytes`.
    """
    try:
        return read_bytes(path, limit_bytes).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not a text in UTF-8 ({error.reason} at byte {error.start}). {remedy}.", code="file.damaged"
        ) from None


def read_json(path: Path, remedy: str) -> dict[str, Any]:
    """Return the JSON object in a file. `remedy` says what to do where there is none.

    Raises:
        FileError: where it cannot be read. InputError: where it is no JSON object.
    """
    try:
        content = json.loads(read_text(path, remedy))
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{path}: is not a JSON object; it was cut or changed. {remedy}.", code="file.damaged")
    return content


def read_lines(path: Path, remedy: str) -> tuple[list[str], bool]:
    """Return the whole lines of a file, and whether a last one without its end was left out.

    A crash may cut the line that was being appended; all before it are whole.

    Raises:
        FileError: where it cannot be read. InputError: where a whole line is no text, or there is too much.
    """
    whole, _, torn = read_bytes(path, LARGEST_LINES).rpartition(b"\n")
    try:
        text = whole.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}: is not a text in UTF-8 ({error.reason} at byte {error.start}). {remedy}.", code="file.damaged"
        ) from None
    return text.split("\n") if whole else [], bool(torn)


def cut_torn_line(path: Path) -> int:
    """Remove a last line without its end, if there is one, and return its length in bytes; not through a link.

    Raises:
        FileError: where the file cannot be read or written.
    """
    if not path.exists():
        return 0
    torn = read_bytes(path).rpartition(b"\n")[2]
    if torn:
        with reported(path, "written"):
            descriptor = os.open(path, os.O_WRONLY | os.O_NOFOLLOW)
            try:
                os.ftruncate(descriptor, os.fstat(descriptor).st_size - len(torn))
            finally:
                os.close(descriptor)
    return len(torn)
