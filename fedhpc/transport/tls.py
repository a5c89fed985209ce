"""A TLS 1.3 session over any byte pipe: bytes in, bytes out; no socket and no MPI (`ssl.MemoryBIO`).

Both ends show a certificate of the federation's own CA (`fedhpc.transport.pki`), and each checks that the other's is in
date, not revoked, made for its role, and that its subject is the name of whoever should be there. Certificates of
public CAs are not accepted, older versions of TLS are not spoken, sessions are not resumed.

A message is a kind, a length and a payload, as one run of TLS records. TLS numbers its records, so a message that was
changed, repeated, left out or moved fails its check; the length tells where one was cut short between two records.
"""

import ssl
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.errors import InputError, PayloadError
from fedhpc.transport.egress_log import KINDS, Kind

AGGREGATOR_NAME = "aggregator"
"""The subject of rank 0's certificate; no site may have this name."""
HEADER = struct.Struct("<BQ")
RECORD = struct.Struct(">3sH")
CHUNK_BYTES = 2**16
"""What OpenSSL gets at a time. A session keeps buffers of that size to its end, and rank 0 has one for every site."""
RECORD_BYTES = 2**14
"""The most plaintext of one record (RFC 8446, section 5.1)."""


class TlsError(InputError):
    """A peer that must not be spoken to, or a certificate or key of one's own that cannot be used."""

    code = "tls"


@dataclass(frozen=True)
class Credentials:
    """Where one end's files lie: the CA's certificate and revocation list, its own certificate and its own key."""

    ca: Path
    crl: Path
    certificate: Path
    key: Path

    def context(self, *, server: bool) -> ssl.SSLContext:
        """Return what a session of this end is made by.

        Raises:
            TlsError: files that are missing or do not fit each other.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server else ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        context.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF | ssl.VERIFY_X509_STRICT
        if server:
            context.num_tickets = 0
        try:
            for path in (self.ca, self.crl):
                context.load_verify_locations(path)
            context.load_cert_chain(self.certificate, self.key)
        except (OSError, ssl.SSLError) as error:
            files = ", ".join(map(str, (self.ca, self.crl, self.certificate, self.key)))
            raise TlsError(f"TLS cannot use one of {files}: {error}", code="tls.unreadable") from None
        return context


class TlsSession:
    """One end of a session.

    Attributes:
        peer: the name that the other end's certificate must have.
        established: whether the handshake is done and the peer is who it should be.
    """

    def __init__(self, context: ssl.SSLContext, peer: str, *, server: bool) -> None:
        self.peer = peer
        self.established = False
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        name = None if server else peer
        self._tls = context.wrap_bio(self._in, self._out, server_side=server, server_hostname=name)

    def handshake(self, received: bytes = b"") -> bytes:
        """Take what the other end said, and give what is to be said to it; the client begins with nothing received.

        Raises:
            TlsError: naming the peer, where it is not who it should be or does not speak TLS 1.3.
        """
        self._in.write(received)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return self._out.read()
        except ssl.SSLError as error:
            raise TlsError(f"TLS with {self.peer} refused: {_cause(error)}", code="tls.refused") from None
        self._admit()
        return self._out.read()

    def _admit(self) -> None:
        certificate: Any = self._tls.getpeercert() or {}
        names = [value for part in certificate.get("subject", ()) for key, value in part if key == "commonName"]
        if names != [self.peer]:
            shown = ", ".join(names) or "nobody"
            raise TlsError(
                f"TLS with {self.peer} refused: the certificate shown is that of {shown}", code="tls.refused"
            )
        self.established = True

    def seal(self, payload: bytes, kind: Kind) -> bytes:
        """Return the records to send for a payload.

        Raises:
            ValueError: before the handshake is done.
            ssl.SSLError: after `open` has refused a message: the session is over.
        """
        if not self.established:
            raise ValueError(f"session with {self.peer}: no handshake yet")
        self._tls.write(HEADER.pack(KINDS.index(kind), len(payload)))
        records, view = [self._out.read()], memoryview(payload)
        for at in range(0, len(view), CHUNK_BYTES):
            self._tls.write(view[at : at + CHUNK_BYTES])
            records.append(self._out.read())
        return b"".join(records)

    def open(self, sealed: bytes, kind: Kind) -> bytes:
        """Return the payload of the next message, of which `sealed` must be all records.

        Raises:
            PayloadError: naming the peer, where it is not that peer's next message, whole, unchanged and of this kind.
        """
        if not self.established:
            raise ValueError(f"session with {self.peer}: no handshake yet")
        if not _whole_records(sealed):
            raise PayloadError(
                f"{self.peer}: its {kind} message is cut: {len(sealed)} bytes are not whole TLS records",
                code="payload.tampered",
            )
        try:
            header, *parts = self._records(memoryview(sealed))
        except (ssl.SSLError, ValueError) as error:
            raise PayloadError(
                f"{self.peer}: its {kind} message was changed, moved or sent again: {error}", code="payload.tampered"
            ) from None
        payload = b"".join(parts)
        if header != HEADER.pack(KINDS.index(kind), len(payload)):
            raise PayloadError(
                f"{self.peer}: {len(payload)} bytes came, which are not one whole {kind} message",
                code="payload.tampered",
            )
        return payload

    def _records(self, sealed: memoryview) -> list[bytes]:
        """Return the plaintext of each record."""
        found = []
        for at in range(0, len(sealed), CHUNK_BYTES):
            self._in.write(sealed[at : at + CHUNK_BYTES])
            while plain := self._next():
                found.append(plain)
        return found

    def _next(self) -> bytes:
        """Return the plaintext of the next record; empty where no whole one is there."""
        try:
            return self._tls.read(RECORD_BYTES)
        except ssl.SSLWantReadError:
            return b""


def _whole_records(sealed: bytes) -> bool:
    """Return whether the bytes end where a record ends: OpenSSL would keep the beginning of another one to itself."""
    at = 0
    while at + RECORD.size <= len(sealed):
        at += RECORD.size + RECORD.unpack_from(sealed, at)[1]
    return at == len(sealed) > 0


def _cause(error: ssl.SSLError) -> str:
    """OpenSSL's own words, without its line numbers."""
    verify = getattr(error, "verify_message", "")
    return verify or (error.reason or str(error)).lower().replace("_", " ")
