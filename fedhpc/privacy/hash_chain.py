"""An append-only file of JSON lines, each sealed by a hash that covers the line before.

A line is `{"previous": <seal of the line before>, ..., "seal": <hash of this line without its seal>}`. The hash is
SHA-256, or HMAC-SHA256 where the chain has a key. A line that was edited, inserted or taken from the middle breaks the
chain. With a key, nobody without it can write a line or seal an edited one anew. A chain alone cannot show that lines
are missing at its *end*: `fedhpc.privacy.anchored_chain` keeps the last seal in a second file.

Every write is complete or refused: a short write is continued, and a failed one is taken back.

`fedhpc.util.files` does not write these files. It appends for one process; here several append to one file, so a line
is written under a lock, at the offset up to which the file was read and checked, over what a crash has left of another.
Errors are `PrivacyError`s: what a charge that could not be written means is another matter than a disk that is full.
"""

import errno
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedhpc.errors import PrivacyError
from fedhpc.util.files import keep_from_others

FIRST = "0" * 64
REMEDY = (
    "restore it from a backup. Without one, what these patients have spent is not known: no run may be charged to them"
)


class Chain:
    """One file; its whole lines, checked.

    Attributes:
        path: the file; it need not exist.
        entries: what the lines say, without `previous` and `seal`.
        seals: of each line, 64 hex digits.
        torn: what stands after the last whole line.
        key: of the HMAC (private); empty for a plain SHA-256.
    """

    def __init__(self, path: Path, key: bytes = b"") -> None:
        self.path, self.key = path, key
        self.entries: list[dict[str, Any]] = []
        self.seals: list[str] = []
        self.torn = b""
        self._read_bytes = 0
        self._held = False
        self.refresh()

    @property
    def head(self) -> str:
        """The last seal; it stands for the whole file."""
        return self.seals[-1] if self.seals else FIRST

    def refresh(self) -> None:
        """Read and check what others have appended.

        A last line without its end is left aside: a crash cut it while it was being written, so it was never on disk
        when `append` returned.

        Raises:
            PrivacyError: a line that is not what was written, or a file that became shorter.
        """
        if not self.path.exists():
            if self.entries:
                raise PrivacyError(f"{self.path}: is gone; {REMEDY}", code="privacy.ledger-damaged")
            return
        with self.path.open("rb") as file:
            if file.seek(0, os.SEEK_END) < self._read_bytes:
                raise PrivacyError(f"{self.path}: has become shorter; {REMEDY}", code="privacy.ledger-damaged")
            file.seek(self._read_bytes)
            whole, end, self.torn = file.read().rpartition(b"\n")
        for line in whole.split(b"\n") if end else []:
            self._take(line)

    def _take(self, line: bytes) -> None:
        number = len(self.entries) + 1
        try:
            entry = json.loads(line)
            seal, previous = entry.pop("seal"), entry["previous"]
            intact = hmac.compare_digest(str(seal), sealed(entry, self.key))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PrivacyError(
                f"{self.path} line {number}: is no line of a ledger; {REMEDY}", code="privacy.ledger-damaged"
            ) from None
        if not intact:
            raise PrivacyError(
                f"{self.path} line {number}: was changed after it was written; {REMEDY}", code="privacy.ledger-damaged"
            )
        if previous != self.head:
            raise PrivacyError(
                f"{self.path} line {number}: does not follow the line before it; {REMEDY}",
                code="privacy.ledger-damaged",
            )
        del entry["previous"]
        self.entries.append(entry)
        self.seals.append(seal)
        self._read_bytes += len(line) + 1

    def append(self, entry: Mapping[str, Any]) -> None:
        """Put one line to the end, within `locked`; on disk when this returns.

        What a crash left of an unfinished line is replaced: its `append` never returned.

        Raises:
            OSError: the disk is full or fails. Nothing of the line is left.
        """
        if not self._held:
            raise ValueError(f"{self.path}: append without `locked`, which keeps other processes' lines")
        new = not self.path.exists()
        whole = {"previous": self.head, **entry}
        line = json.dumps({**whole, "seal": sealed(whole, self.key)}).encode()
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600 if self.key else 0o644)
        try:
            os.ftruncate(descriptor, self._read_bytes)
            write_whole(descriptor, line + b"\n", self._read_bytes)
        finally:
            os.close(descriptor)
        if new:
            sync(self.path.parent)
        self._take(line)
        self.torn = b""

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes that append to this file, and up to date.

        Raises:
            PrivacyError: where the file cannot be opened for writing, or its file system knows no locks.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # Who may open it may hold it for ever, and with it every charge.
            descriptor = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise PrivacyError(
                f"{self.path}: cannot be written ({error.strerror}); a private run must charge it: make its folder "
                "writable for the account that trains",
                code="privacy.ledger-unwritable",
            ) from None
        try:
            keep_from_others(descriptor)  # one that an earlier version has made
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            self.refresh()
            self._held = True
            yield
        except OSError as error:
            raise PrivacyError(
                f"{self.path}: cannot be locked or written ({error.strerror}); free the disk, or put it on a file "
                "system with locks (Lustre: mount with flock)",
                code="privacy.ledger-unwritable",
            ) from None
        finally:
            self._held = False
            os.close(descriptor)


def sealed(entry: Mapping[str, Any], key: bytes = b"") -> str:
    """Return the seal of a line, 64 hex digits: SHA-256 of its canonical JSON, or HMAC-SHA256 with a `key`."""
    text = json.dumps(entry, sort_keys=True, separators=(",", ":")).encode()
    return hmac.new(key, text, hashlib.sha256).hexdigest() if key else hashlib.sha256(text).hexdigest()


def write_whole(descriptor: int, content: bytes, offset: int) -> None:
    """Write all of `content` at `offset`, the end of the file, and bring it to the disk; or leave the file as it was.

    Raises:
        OSError: the disk is full or fails.
    """
    try:
        written = 0
        while written < len(content):
            count = os.pwrite(descriptor, content[written:], offset + written)
            if count == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += count
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, offset)
        raise


def sync(path: Path) -> None:
    """Bring a file, or a folder's list of names, to the disk: a new file is safe only when both are."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
