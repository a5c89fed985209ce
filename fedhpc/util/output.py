"""Standard output and standard error where they cannot be written: the reader has gone, or their disk is full.

A reader that is gone (`| head`) has seen enough: commands end quietly, and a run goes on. Other failures of standard
output are raised once as a FileError, by which they are told from those of other files. Nothing can be reported where
standard error fails; what is written to it is lost, and that ends no work. Libraries in C++ write past `sys.stdout`.
"""

import ctypes
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Buffer

STDOUT = 1


def stop_printing() -> None:
    """Send all further standard output nowhere: its reader has gone, and the flush at exit must not fail either."""
    _to_nowhere(sys.stdout.fileno())


@contextmanager
def nothing_printed() -> Iterator[None]:
    """Drop what is written to standard output, also by C++ code, which does not go through `sys.stdout`."""
    sys.stdout.flush()
    kept, nowhere = os.dup(STDOUT), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDOUT)
    try:
        yield
    finally:
        sys.stdout.flush()
        ctypes.CDLL(None).fflush(None)
        os.dup2(kept, STDOUT)
        for fd in (kept, nowhere):
            os.close(fd)


def guard_output() -> None:
    """Let failures of standard output raise FileError, and those of standard error pass; for a whole program."""
    # A stream is None where the process was started without it.
    if isinstance(sys.stdout, io.TextIOWrapper | None):
        sys.stdout = output_to(_number(sys.stdout), sys.stdout)
    if isinstance(sys.stderr, io.TextIOWrapper | None):
        sys.stderr = _over(_Errors(_number(sys.stderr), "w", closefd=False), sys.stderr)


def output_to(number: int, like: io.TextIOWrapper | None = None) -> io.TextIOWrapper:
    """Return a standard output that writes to a file descriptor; its failures raise FileError, once."""
    return _over(_Output(number, "w", closefd=False), like)


def _number(stream: io.TextIOWrapper | None) -> int:
    return os.open(os.devnull, os.O_WRONLY) if stream is None else stream.fileno()


class _Output(io.FileIO):
    def write(self, data: "Buffer") -> int:
        """Write, as FileIO.

        Raises:
            BrokenPipeError: the reader has gone.
            FileError: it cannot be written for another reason; from then on it goes nowhere.
        """
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            from fedhpc.util.files import file_error

            _to_nowhere(self.fileno())
            raise file_error(Path("standard output"), "written", error) from None


class _Errors(io.FileIO):
    def write(self, data: "Buffer") -> int:
        """Write, as FileIO; what cannot be written counts as written."""
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _over(raw: io.FileIO, old: io.TextIOWrapper | None) -> io.TextIOWrapper:
    """A text stream over the raw one, like the old one, but a letter that it cannot encode is shown by its number."""
    if old is None:
        return io.TextIOWrapper(io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace")
    old.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(raw),
        encoding=old.encoding,
        errors="backslashreplace" if old.errors == "strict" else old.errors,
        line_buffering=old.line_buffering,
        write_through=old.write_through,
    )


def _to_nowhere(number: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)
