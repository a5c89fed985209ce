"""The folder of a site ledger: its key, and how a ledger is made in it by one process at a time."""

import fcntl
import hmac
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from fedhpc.errors import PrivacyError
from fedhpc.privacy.anchored_chain import AnchoredChain, replace_whole
from fedhpc.privacy.hash_chain import REMEDY
from fedhpc.privacy.site_terms import Terms
from fedhpc.util.clock import now
from fedhpc.util.files import make_own_folder

SEAL_DIGITS = 16
"""How much of a seal goes into a round's record."""
KEY_BYTES = 32
CONTENT = ("ledger.jsonl", "anchor.json", "sets")


def exists(folder: Path) -> bool:
    """Return whether there is an account, or what is left of one."""
    return any((folder / name).exists() for name in ("key", *CONTENT))


def derived(key: bytes, purpose: str) -> bytes:
    """Return the key for one purpose, 32 bytes (secret)."""
    return hmac.digest(key, purpose.encode(), "sha256")


def account_id(key: bytes) -> str:
    """Return what the ledger is called in records (public)."""
    return derived(key, "id").hex()[:SEAL_DIGITS]


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """Keep all other processes from making an account in `folder` meanwhile.

    Raises:
        PrivacyError: the folder cannot be written, or others than its owner may write to it.
    """
    try:
        make_own_folder(folder)
        _refuse_open(folder)
        descriptor = os.open(folder / "making.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise PrivacyError(
            f"site ledger {folder}: cannot be written ({error.strerror}); a private run must charge it: make the "
            "folder writable for the account that trains, or set FEDHPC_SITE_LEDGER",
            code="privacy.ledger-unwritable",
        ) from None


def make(folder: Path, terms: Terms) -> None:
    """Write the key and the first line of a ledger, each where it is missing."""
    if not (folder / "key").exists():
        replace_whole(folder / "key", secrets.token_hex(KEY_BYTES).encode() + b"\n")
    chain = AnchoredChain(folder, derived(read_key(folder), "chain"))
    with chain.locked():
        if not chain.entries:
            chain.append({"kind": "terms", **asdict(terms), "salt": secrets.token_hex(16), "time": now()})


def read_key(folder: Path) -> bytes:
    """Return the ledger's key, KEY_BYTES bytes (secret).

    Raises:
        PrivacyError: it cannot be read, others than its owner may read it or write to the folder, or it is no key.
    """
    path = folder / "key"
    try:
        mode, text = path.stat().st_mode, path.read_text(encoding="ascii").strip()
        key = bytes.fromhex(text)
    except OSError as error:
        raise PrivacyError(f"{path}: cannot be read ({error.strerror}); {REMEDY}", code="privacy.ledger-key") from None
    except ValueError:
        raise PrivacyError(f"{path}: is no key of a site ledger; {REMEDY}", code="privacy.ledger-key") from None
    if stat.S_IMODE(mode) & 0o077:
        raise PrivacyError(
            f"{path}: others than its owner may read it, and so forge the ledger; chmod 600 {path}",
            code="privacy.ledger-key",
        )
    _refuse_open(folder)
    if len(key) != KEY_BYTES:
        raise PrivacyError(f"{path}: has {len(key)} bytes; allowed: {KEY_BYTES}; {REMEDY}", code="privacy.ledger-key")
    return key


def _refuse_open(folder: Path) -> None:
    if folder.stat().st_mode & 0o022:
        raise PrivacyError(
            f"{folder}: others than its owner may write to it, and so remove the account and its cap; chmod go-w "
            f"{folder}",
            code="privacy.ledger-key",
        )
