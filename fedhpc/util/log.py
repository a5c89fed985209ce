"""Logging: one configuration of the standard `logging` for all of fedhpc, and the logs of a run.

A module writes to `logging.getLogger(__name__)`. Such a record is public: warnings and errors go to stderr in a short
form, and in a run all of level INFO and above to the logs of this rank's sites and, at rank 0, to that of the
aggregator. A record with `extra={"site": name}` goes to that site's log only, and to rank 0's.

What concerns a site's data never becomes a record, since any program may add a handler that sees all records. It is
written by `LogFile.write` to the site's own log, and so are Python's warnings while a hospital works (`warnings_kept`).
"""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.errors import FedhpcError, FileError, printed, public_cause
from fedhpc.util.clock import now
from fedhpc.util.files import PRIVATE, append_line, make_folder
from fedhpc.util.masking import masked
from fedhpc.util.text import for_stderr, printable

PACKAGES = ("fedhpc", "data_prep")
AGGREGATOR = "aggregator"
PREFIXES = {logging.WARNING: "WARNING: ", logging.ERROR: "error: "}


@dataclass(frozen=True)
class LogFile:
    """A log that only its owner may read (mode 0600); each entry has time, level, rank and site.

    Attributes:
        path: of the file.
        rank: that writes.
        site: whose log it is; `aggregator` of rank 0's own.
    """

    path: Path
    rank: int
    site: str

    def write(self, level: str, text: str) -> None:
        """Append an entry, on disk when this returns; make the folder. For what concerns the site's data, too.

        Raises:
            FileError: where it cannot be written.
        """
        make_folder(self.path.parent)
        self.append(level, text, durable=True)

    def append(self, level: str, text: str, *, durable: bool = False) -> None:
        """Append an entry in a folder that is there; lines after the first are indented. See `write`.

        What another rank has said may be in it: on the terminal of who reads the log it moves nothing.
        """
        entry = f"{now()} {level} rank {self.rank} {self.site}: " + printable(text).strip().replace("\n", "\n    ")
        append_line(self.path, entry, mode=PRIVATE, durable=durable)


class _ToStderr(logging.Handler):
    """Warnings and errors in the form that a user reads: no time, and the rank only where it is not rank 0."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.rank = 0

    def emit(self, record: logging.LogRecord) -> None:
        rank = f"rank {self.rank}: " if self.rank and record.levelno == logging.WARNING else ""
        # Not `StreamHandler`: sys.stderr may be another one than at the start.
        # The console is rank 0's, and so is what every rank prints there.
        message = masked(record.getMessage()) if self.rank else record.getMessage()
        text = for_stderr(printable(f"{PREFIXES.get(record.levelno, '')}{rank}{message}"))
        # A reader that is gone (`| head`, a lost launcher) must not end a run, nor hide the failure that is reported.
        with suppress(BrokenPipeError):
            print(text, file=sys.stderr, flush=True)


class _ToFile(logging.Handler):
    """Public records in a log of the run. A log that cannot be written is reported once and does not end the run."""

    def __init__(self, file: LogFile) -> None:
        super().__init__(logging.INFO)
        self._file, self._failed = file, False

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "site", None) in (None, self._file.site) or self._file.site == AGGREGATOR:
            self.append(record.levelname, record.getMessage())

    def append(self, level: str, text: str) -> None:
        """Append an entry, unless one has failed before."""
        if self._failed:
            return
        try:
            self._file.append(level, text)
        except FileError as error:
            self._failed = True
            print(f"WARNING: {error}", file=sys.stderr, flush=True)


def configure() -> None:
    """Show warnings and errors of fedhpc on stderr, and nothing of libraries. Doing it twice is harmless."""
    for name in PACKAGES:
        package = logging.getLogger(name)
        package.setLevel(logging.INFO)
        if not _stderr_of(package):
            package.addHandler(_ToStderr())
    root = logging.getLogger()
    if not root.handlers:
        # Without any, Python shows the warnings of libraries on stderr, in which they may quote a site's data.
        root.addHandler(logging.NullHandler())


def _stderr_of(package: logging.Logger) -> list[_ToStderr]:
    return [handler for handler in package.handlers if isinstance(handler, _ToStderr)]


@contextmanager
def logged(files: Sequence[LogFile], rank: int) -> Iterator[None]:
    """Keep public records in `files` until the block ends, and how it ended where it raises.

    Raises:
        FileError: where a file's folder cannot be made.
    """
    configure()
    for file in files:
        make_folder(file.path.parent)
    handlers = [_ToFile(file) for file in files]
    packages = [logging.getLogger(name) for name in PACKAGES]
    _attach(packages, handlers, rank)
    try:
        yield
    except BaseException as error:
        text = printed(error) if isinstance(error, FedhpcError) else f"ended by {public_cause(error)}"
        for handler in handlers:
            handler.append("ERROR", text)
        raise
    finally:
        for package in packages:
            for handler in handlers:
                package.removeHandler(handler)
        _attach(packages, [], 0)


@contextmanager
def warnings_kept(files: Sequence[LogFile]) -> Iterator[None]:
    """Write Python's warnings to the logs of this rank's sites, not to stderr, which ends at rank 0's console.

    Whether NumPy or PyTorch warns may depend on one patient's image, and no noise covers that. Without `files`, at a
    rank without hospitals, they stay on stderr.
    """
    before = warnings.showwarning

    def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
        filename, line, *_ = place
        for log in files:
            # What cannot be kept is dropped: a warning must not end training.
            with suppress(FileError):
                log.append("WARNING", f"{category.__name__} at {filename}:{line}: {message}")

    if files:
        warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


def _attach(packages: Sequence[logging.Logger], handlers: Sequence[_ToFile], rank: int) -> None:
    for package in packages:
        for shown in _stderr_of(package):
            shown.rank = rank
        for handler in handlers:
            package.addHandler(handler)
