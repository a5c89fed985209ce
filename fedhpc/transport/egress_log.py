"""The egress log: every payload that leaves a site is written down before it is sent, and no other kind may leave.

One JSON object a line, appended, never rewritten:

    {"time": "2026-11-24T09:12:44.125Z", "round": 3, "kind": "update", "bytes": 58231, "sha256": "...",
     "to": "aggregator", "via": "tls", "searched": 1}

`round` is numbered as in rounds.jsonl and null outside the rounds; `bytes` and `sha256` are of the payload before
encryption; `via` is `tls`, `clear`, or `process` where sender and receiver are one process; `searched` is 1 where the
payload was searched for blocks of the site's images (`fedhpc.transport.pixel_scan`), null where it was not. It does not
say for how many, as earlier logs did rounded to a power of two: one image more could be seen in it.

A line is with the operating system before its payload is with MPI, so the death of the process loses none. It is not
fsynced: on a disk that is 5 ms a line, and only the machine's own crash would show the difference. A line that a crash
has cut was never sent; it is removed when the log is opened again. A log that is deleted in mid-run stops the run.
"""

import errno
import hashlib
import json
import logging
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal, get_args

from pydantic import ConfigDict, TypeAdapter

from fedhpc.errors import InputError, PayloadError
from fedhpc.util.files import append_whole, cut_torn_line, make_folder, read_lines, reported

LOG = logging.getLogger(__name__)

Kind = Literal["update", "metrics", "hello", "control", "features"]
Via = Literal["tls", "clear", "process"]
KINDS: tuple[Kind, ...] = get_args(Kind)
"""All that may leave a site:

- update: what becomes the mean of a round (a coded update, a message of the secure sum), or a baseline's own model.
- metrics: score histograms.
- hello: what a site says of itself before the first round: the TLS handshake, names, shapes, weight, device, whether
  its patients are synthetic, what its ledger has spent.
- features: the sum of whitened features with its noise, once before the first round (model.feature_mean=sites; in a
  secure sum it is of kind update).
- control: votes, digests of the global state, and what went wrong. One payload a rank, for all its sites.
"""


@dataclass(frozen=True)
class Entry:
    """One line of the log; see the module's docstring."""

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")
    """When a log is read: these fields alone."""

    time: str
    round: int | None
    kind: str
    bytes: int
    sha256: str
    to: str
    via: str
    searched: int | None


ENTRY = TypeAdapter(Entry)


def checked_kind(kind: str) -> Kind:
    """`kind`, if it is on the whitelist.

    >>> checked_kind("update")
    'update'

    Raises:
        PayloadError: where it is not: such a payload must not leave.
    """
    for allowed in KINDS:
        if kind == allowed:
            return allowed
    raise PayloadError(f"kind={kind!r} must not leave a site; allowed: {', '.join(KINDS)}", code="payload.kind")


class EgressLog:
    """The log of one sender, open for appending."""

    def __init__(self, path: Path, to: str) -> None:
        """Open the log at `path`; all payloads of this sender go to `to`.

        Raises:
            FileError: where it cannot be written, or a link lies there.
        """
        make_folder(path.parent)
        if cut_torn_line(path):
            LOG.warning("%s: an incomplete last line was removed; its payload never left", path)
        self.path, self._to = path, to
        with reported(path, "written"):
            self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o644)

    def write_down(
        self, payload: bytes, kind: str, round: int | None, *, via: Via = "process", searched: int | None = None
    ) -> Entry:
        """Append the entry of a payload that is about to leave.

        Raises:
            PayloadError: a kind that is not on the whitelist.
            FileError: the log cannot be written or was removed, so the payload must not leave.
        """
        allowed = checked_kind(kind)
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        digest = hashlib.sha256(payload).hexdigest()
        entry = Entry(now, round, allowed, len(payload), digest, self._to, via, searched)
        with reported(self.path, "written"):
            self._check_there()
            append_whole(self._file, json.dumps(asdict(entry)).encode() + b"\n")
        return entry

    def _check_there(self) -> None:
        """Raises OSError where the path is no longer the open file: what is appended would be lost."""
        mine, there = os.fstat(self._file), os.stat(self.path)
        if (mine.st_dev, mine.st_ino) != (there.st_dev, there.st_ino):
            raise FileNotFoundError(errno.ENOENT, "it was removed or replaced during the run")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def read_log(path: Path) -> list[Entry]:
    """Return all entries of a log. A last line that a crash has cut is left out with a warning: it was never sent.

    Raises:
        InputError: where it is missing, or a line is not an entry.
    """
    lines, torn = read_lines(path, "What left this sender is not known: restore it from a backup")
    if torn:
        LOG.warning("%s: its last line is incomplete and is left out; its payload never left", path)
    return [parsed(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def parsed(line: str, place: str) -> Entry:
    """Return the entry in a line.

    Raises:
        InputError: naming `place`, where it is none.
    """
    try:
        entry = ENTRY.validate_json(line, strict=True)
        datetime.fromisoformat(entry.time)
    except ValueError:
        raise InputError(
            f"{place}: is not an entry of an egress log; it was cut or changed", code="file.damaged"
        ) from None
    return entry
