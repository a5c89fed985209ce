"""A keyed hash chain with an anchor: a second file that holds the number of lines and the last seal.

The anchor shows that lines are missing at the end of the chain, which the chain alone cannot. It also holds the line
that is being appended, so that a crash can not lose it:

    1. the anchor is replaced: {count: n, head: seal of line n, pending: the line n + 1}
    2. the line is appended to the chain
    3. the anchor is replaced: {count: n + 1, head: seal of line n + 1, pending: none}

Each step is on disk before the next begins. A crash after step 1, or in step 2 with a torn line, is completed by the
next process that appends: what was pending counts as charged. A torn line that no anchor tells of was made by nobody's
crash, and is refused. The anchor is authenticated with the same key.

Not detectable here: somebody who puts an older copy of *both* files in place, or who has the key. Heads that were
recorded outside show that (`fedhpc.privacy.site_ledger`).
"""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fedhpc.errors import PrivacyError
from fedhpc.privacy.hash_chain import FIRST, REMEDY, Chain, sealed, sync, write_whole


@dataclass(frozen=True)
class Anchor:
    """What the second file says: how many lines there are, the seal of the last, and the line that is under way."""

    count: int = 0
    head: str = FIRST
    pending: dict[str, Any] | None = None


class AnchoredChain(Chain):
    """A chain in `folder`/ledger.jsonl and its anchor in `folder`/anchor.json.

    Raises:
        PrivacyError: a line or an anchor that was not written with `key`; lines missing at the end; a torn line that
            no append left behind.
    """

    def __init__(self, folder: Path, key: bytes) -> None:
        if not key:
            raise ValueError(f"{folder}: an anchored chain needs a key")
        self.anchor_file = folder / "anchor.json"
        self._anchor = Anchor()
        super().__init__(folder / "ledger.jsonl", key)

    def refresh(self) -> None:
        """Read and check what others have appended, and the anchor.

        The anchor is read first: a reader without the lock may then see a longer chain than the anchor tells of, never
        a shorter one.
        """
        self._anchor = self._read_anchor()
        super().refresh()
        count, head = self._anchor.count, self._anchor.head
        if len(self.seals) < count:
            raise PrivacyError(
                f"{self.path}: has {len(self.seals)} lines of {count}: it was shortened; {REMEDY}",
                code="privacy.ledger-damaged",
            )
        if count and self.seals[count - 1] != head:
            raise PrivacyError(
                f"{self.anchor_file}: is the anchor of another ledger; {REMEDY}", code="privacy.ledger-damaged"
            )

    @property
    def pending(self) -> dict[str, Any] | None:
        """The line whose append has begun and is not in the chain yet; it counts."""
        begun = self._anchor.pending
        return begun if begun is not None and len(self.seals) == self._anchor.count else None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """See `Chain.locked`; first completes what a crash left unfinished.

        Raises:
            PrivacyError: also where the file has a second name.
        """
        with super().locked():
            self._refuse_other_names()
            self._recover()
            yield

    def _refuse_other_names(self) -> None:
        """Each folder has a lock of its own, so that of two charges to one file at once one would be lost."""
        links = self.path.stat().st_nlink if self.path.exists() else 1
        if links > 1:
            raise PrivacyError(
                f"{self.path}: has {links} names (hard links), and a second folder with the same file another lock. "
                "Keep one account: copy the file, and move the copy over it",
                code="privacy.ledger-other",
            )

    def append(self, entry: Mapping[str, Any]) -> None:
        """See `Chain.append`; where it raises after step 1, the entry counts nevertheless."""
        self._write_anchor(Anchor(len(self.seals), self.head, dict(entry)))
        super().append(entry)
        self._write_anchor(Anchor(len(self.seals), self.head))

    def _recover(self) -> None:
        unfinished = self.pending
        if self.torn and unfinished is None:
            raise PrivacyError(
                f"{self.path}: line {len(self.seals) + 1} is not whole, and no append had begun: the file was edited "
                f"or damaged; {REMEDY}",
                code="privacy.ledger-damaged",
            )
        if unfinished is not None:
            super().append(unfinished)
        if self._anchor != Anchor(len(self.seals), self.head):
            self._write_anchor(Anchor(len(self.seals), self.head))

    def _read_anchor(self) -> Anchor:
        if not self.anchor_file.exists():
            if self.path.exists():
                raise PrivacyError(
                    f"{self.anchor_file}: is gone: whether lines are missing is not known; {REMEDY}",
                    code="privacy.ledger-damaged",
                )
            return Anchor()
        try:
            content = json.loads(self.anchor_file.read_bytes())
            mac = content.pop("mac")
            if mac != sealed({"anchor": content}, self.key):
                raise PrivacyError(
                    f"{self.anchor_file}: was changed after it was written; {REMEDY}", code="privacy.ledger-damaged"
                )
            return Anchor(**content)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise PrivacyError(
                f"{self.anchor_file}: is no anchor of a ledger; {REMEDY}", code="privacy.ledger-damaged"
            ) from None

    def _write_anchor(self, anchor: Anchor) -> None:
        content = asdict(anchor)
        text = json.dumps({**content, "mac": sealed({"anchor": content}, self.key)})
        replace_whole(self.anchor_file, text.encode())
        self._anchor = anchor


def replace_whole(path: Path, content: bytes) -> None:
    """Put a file of mode 0600 in place in one step, on disk when this returns; or leave what was there.

    Raises:
        OSError: the disk is full or fails.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            write_whole(descriptor, content, 0)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)
