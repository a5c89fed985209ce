"""One broadcast, one encryption: the payload under a fresh AES-256-GCM key, the key to each site by its TLS session.

    tickets   of each site, in site order: its TLS records of (key, SHA-256 of the payload)
    sealed    the payload in AES-256-GCM

The key is drawn for one broadcast and never used again, so its nonce has nothing to tell apart. All sites know it, and
a site could make another payload under it: what it cannot change is the SHA-256 in the others' tickets.
"""

import hashlib
import hmac
import os
import struct
from collections.abc import Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import GCM

from fedhpc.errors import PayloadError
from fedhpc.transport.egress_log import Kind
from fedhpc.transport.tls import TlsSession

KEY_BYTES, TAG_BYTES = 32, 16
NONCE = bytes(12)
CHUNK_BYTES = 2**26
LENGTH = struct.Struct("<Q")


def seal(payload: bytes, kind: Kind, sessions: Mapping[str, TlsSession]) -> bytes:
    """What rank 0 broadcasts to the sites of `sessions`, which are all that are at other ranks, in site order."""
    key = os.urandom(KEY_BYTES)
    ticket = key + hashlib.sha256(payload).digest()
    tickets = [session.seal(ticket, kind) for session in sessions.values()]
    lengths = struct.pack(f"<{1 + len(tickets)}Q", len(tickets), *map(len, tickets))
    cipher, view = Cipher(AES(key), GCM(NONCE)).encryptor(), memoryview(payload)
    sealed = [cipher.update(view[at : at + CHUNK_BYTES]) for at in range(0, len(view), CHUNK_BYTES)]
    return b"".join([lengths, *tickets, *sealed, cipher.finalize(), cipher.tag])


def open_sealed(message: bytes, kind: Kind, sessions: Mapping[int, TlsSession]) -> bytes:
    """Return the payload that rank 0 has sealed.

    `sessions` are those of this rank's sites, by their place among all that it was sealed for.

    Raises:
        PayloadError: where the message, or a ticket in it, is not the aggregator's next one of this kind, unchanged.
    """
    tickets, sealed = _split(message)
    if not sessions or max(sessions) >= len(tickets):
        raise PayloadError(
            f"the aggregator's {kind} message has {len(tickets)} tickets, none for {sorted(sessions)}",
            code="payload.tampered",
        )
    mine = {session.open(bytes(tickets[place]), kind) for place, session in sessions.items()}
    ticket = mine.pop()
    if mine or len(ticket) != KEY_BYTES + hashlib.sha256().digest_size:
        raise PayloadError(
            f"the aggregator's {kind} message has tickets that differ, or are none", code="payload.tampered"
        )
    payload = _decrypted(sealed, ticket[:KEY_BYTES], kind)
    if not hmac.compare_digest(hashlib.sha256(payload).digest(), ticket[KEY_BYTES:]):
        raise PayloadError(
            f"the aggregator's {kind} message is not the one whose SHA-256 it gave", code="payload.tampered"
        )
    return payload


def _split(message: bytes) -> tuple[list[memoryview], memoryview]:
    """(the tickets, the sealed payload)."""
    view = memoryview(message)
    try:
        (count,) = LENGTH.unpack_from(view)
        lengths = struct.unpack_from(f"<{min(count, len(message))}Q", view, LENGTH.size)
    except struct.error:
        raise PayloadError(f"{len(message)} bytes are not a sealed broadcast", code="payload.tampered") from None
    at, tickets = LENGTH.size * (1 + count), []
    for length in lengths:
        tickets.append(view[at : at + length])
        at += length
    if at + TAG_BYTES > len(message):
        raise PayloadError(f"a sealed broadcast was cut to {len(message)} bytes", code="payload.tampered")
    return tickets, view[at:]


def _decrypted(sealed: memoryview, key: bytes, kind: Kind) -> bytes:
    """Nothing of it is given out before its tag has been checked."""
    body, tag = sealed[:-TAG_BYTES], bytes(sealed[-TAG_BYTES:])
    cipher = Cipher(AES(key), GCM(NONCE, tag)).decryptor()
    parts = [cipher.update(body[at : at + CHUNK_BYTES]) for at in range(0, len(body), CHUNK_BYTES)]
    try:
        parts.append(cipher.finalize())
    except InvalidTag:
        raise PayloadError(f"the aggregator's {kind} message was changed on the way", code="payload.tampered") from None
    return b"".join(parts)
