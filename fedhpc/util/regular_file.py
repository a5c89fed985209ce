"""Read a file that somebody else may have put there: a regular one, of bounded size, and never waited for."""

import contextlib
import io
import os
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from fedhpc.errors import InputError

LARGEST_TEXT, LARGEST_LINES = 2**26, 2**30
"""The most bytes that are read of a text or JSON document, and of a file of lines. fedhpc writes far less, and whoever
may write beside a run could fill the memory of those who read it."""


@contextlib.contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """Open a file for reading. A pipe or a device in its place could be waited for without end, or have none.

    Raises:
        OSError: where it is missing or cannot be read.
        InputError: where it is a pipe or a device.
    """
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise InputError(
                f"{path}: is a pipe or a device, and nothing was read. Put a file there", code="file.unfit"
            )
        yield file


def content_of(path: Path, limit_bytes: int | None) -> bytes:
    """Return what a file holds; at most `limit_bytes`, if that is not None.

    Raises:
        OSError: as `opened`.
        InputError: where it is larger, or as `opened`.
    """
    with opened(path) as file:
        content = file.read() if limit_bytes is None else file.read(limit_bytes + 1)
    if limit_bytes is not None and len(content) > limit_bytes:
        raise _too_large(path, limit_bytes)
    return content


def each_line(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file one by one, with their ends: it need not fit in memory.

    Raises:
        OSError: as `opened`.
        InputError: where a line is longer than LARGEST_TEXT or the file than LARGEST_LINES, or as `opened`.
    """
    with opened(path) as file:
        while line := file.readline(LARGEST_TEXT + 1):
            if len(line) > LARGEST_TEXT or file.tell() > LARGEST_LINES:
                raise _too_large(path, LARGEST_LINES)
            yield line


def check_stored(content: bytes) -> None:
    """See that a zip archive takes no more memory unpacked than it does itself, as those that fedhpc writes.

    Raises:
        ValueError: it is none, or unpacks to more.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = archive.infolist()
    except zipfile.BadZipFile as error:
        raise ValueError(str(error)) from None
    packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if packed or sum(part.file_size for part in parts) > len(content):
        raise ValueError("it unpacks to more than itself")


def _too_large(path: Path, limit_bytes: int) -> InputError:
    return InputError(
        f"{path}: is larger than {limit_bytes:,} bytes, or a line of it than {LARGEST_TEXT:,}; fedhpc writes no such "
        "file. Remove it, or restore it from a backup",
        code="file.unfit",
    )
