"""Signatures of the sites of a secure sum: who signs, what a signature is about, and how it is checked.

A site signs with the key of its certificate (ECDSA on P-256 with SHA-256). What is signed:

    DOMAIN  session  round  site  kind  body          all but `body` of fixed length

`session` is SHA-256 over the digest of the run's config, the noise that the site was told to share and, of every site,
its name, its certificate and 32 bytes that it has drawn for this session. So a signature from another run, another
session of the same run, another round, another site or another message does not fit; and two sites that were shown
different certificates, or different noise, accept nothing of each other. `SigningSite.about` adds a subject, as the
question that a sum answers: sites that were asked different ones accept nothing of each other either.
DOMAIN is no beginning of what TLS 1.3 signs with the same key (64 spaces, RFC 8446, section 4.4.3).
"""

import hashlib
import os
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError

from fedhpc.errors import PayloadError
from fedhpc.secagg.messages import KIND_NAMES
from fedhpc.transport.tls import Credentials, TlsError

DOMAIN = b"fedhpc secure sum, signature of a site, version 1\0"
STATEMENT = struct.Struct("<32sIHB")
LENGTH = struct.Struct("<I")
NONCE_BYTES, HALF_BYTES = 32, 32
SIGNATURE_BYTES = 2 * HALF_BYTES
PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey


@dataclass(frozen=True)
class Introduction:
    """What a site says of itself to all others before the first round (public).

    Attributes:
        name: of the site.
        certificate: in DER; without certificates the public key alone (SubjectPublicKeyInfo in DER).
        nonce: 32 bytes drawn for this session.
    """

    name: str
    certificate: bytes
    nonce: bytes = field(default_factory=lambda: os.urandom(NONCE_BYTES))

    def pack(self) -> bytes:
        """Return it as bytes, without the name: that follows from its place."""
        return self.nonce + self.certificate

    @classmethod
    def parse(cls, name: str, payload: bytes) -> "Introduction":
        """Read the introduction of the site `name`."""
        return cls(name, payload[NONCE_BYTES:], payload[:NONCE_BYTES])


@dataclass(frozen=True)
class SignedMessage:
    """A message of one kind and the signature of its body (public)."""

    kind: int
    body: bytes
    signature: bytes


@dataclass(frozen=True)
class Signatories:
    """The sites' public keys in one session, as one site has checked them (public).

    Attributes:
        session: SHA-256 of what the signatures belong to; see the module.
        names: of all sites, by index.
        keys: of all sites, by index.
    """

    session: bytes
    names: tuple[str, ...]
    keys: tuple[PublicKey, ...]

    def statement(self, site: int, round: int, kind: int, body: bytes) -> bytes:
        """Return what `site` signs for its message of this kind and round."""
        return DOMAIN + STATEMENT.pack(self.session, round, site, kind) + body

    def check(self, site: int, round: int, message: SignedMessage) -> None:
        """Check that `message` was signed by `site` for its kind and this round of this session.

        Raises:
            PayloadError: naming the site, where it was not.
        """
        kind, signature = message.kind, message.signature
        r, s = (int.from_bytes(half) for half in (signature[:HALF_BYTES], signature[HALF_BYTES:]))
        try:
            statement = self.statement(site, round, kind, message.body)
            self.keys[site].verify(encode_dss_signature(r, s), statement, ec.ECDSA(SHA256()))
        except InvalidSignature:
            raise PayloadError(
                f"site {self.names[site]}, round {round + 1}: the signature of its message {KIND_NAMES[kind]} "
                "does not fit its key, this run, this round and what was received here: the aggregator or the site has "
                "changed or repeated something. The round was refused before anything was revealed",
                code="secagg",
            ) from None


@dataclass(frozen=True)
class SigningSite:
    """One site that can sign (private: it holds the key), and whose signatures it accepts."""

    site: int
    key: PrivateKey = field(repr=False)
    signatories: Signatories

    def about(self, subject: bytes) -> "SigningSite":
        """Return the same site in the same session, whose signatures fit those about the same `subject` alone."""
        session = hashlib.sha256(b"fedhpc secure sum, subject, version 1\0" + self.signatories.session + subject)
        return replace(self, signatories=replace(self.signatories, session=session.digest()))

    def sign(self, round: int, kind: int, body: bytes) -> bytes:
        """Return the signature of a message: SIGNATURE_BYTES bytes, r and s."""
        statement = self.signatories.statement(self.site, round, kind, body)
        r, s = decode_dss_signature(self.key.sign(statement, ec.ECDSA(SHA256())))
        return r.to_bytes(HALF_BYTES) + s.to_bytes(HALF_BYTES)


def signatories_of(run: bytes, introductions: Sequence[Introduction], keys: Sequence[PublicKey]) -> Signatories:
    """Return the signatories of a session of `run` (its config and its noise) from all introductions, in site order."""
    digest = hashlib.sha256(b"fedhpc secure sum, session, version 1\0" + LENGTH.pack(len(run)) + run)
    for one in introductions:
        for part in (one.name.encode(), one.certificate, one.nonce):
            digest.update(LENGTH.pack(len(part)) + part)
    return Signatories(digest.digest(), tuple(one.name for one in introductions), tuple(keys))


def bare_key(introduction: Introduction) -> PublicKey:
    """Return the key of an introduction without a certificate. Nobody vouches for it.

    Raises:
        TlsError: naming the site, where it is no key on P-256.
    """
    try:
        key = serialization.load_der_public_key(introduction.certificate)
    except ValueError:
        key = None
    return _on_p256(key, introduction.name)


def certified_key(introduction: Introduction, own: Credentials) -> PublicKey:
    """Return the key of an introduction whose certificate is in order by the files of the site that checks it.

    In order: issued by its CA, in date, for a TLS client, not on its revocation list, and in the name of the site.

    Raises:
        TlsError: naming the site and what is wrong.
    """
    name = introduction.name
    try:
        certificate = x509.load_der_x509_certificate(introduction.certificate)
        ca = x509.load_pem_x509_certificate(own.ca.read_bytes())
        crl = x509.load_pem_x509_crl(own.crl.read_bytes())
        PolicyBuilder().store(Store([ca])).build_client_verifier().verify(certificate, [])
    except VerificationError as error:
        raise TlsError(f"site {name}: its certificate is refused by {own.ca}: {error}", code="tls.refused") from None
    except (OSError, ValueError) as error:
        raise TlsError(f"site {name}: its certificate cannot be checked: {error}", code="tls.unreadable") from None
    shown = [attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if shown != [name]:
        raise TlsError(
            f"site {name}: the certificate shown is that of {', '.join(map(str, shown)) or 'nobody'}",
            code="tls.refused",
        )
    if not crl.is_signature_valid(ca.public_key()):  # type: ignore[arg-type]
        raise TlsError(f"{own.crl}: was not signed by {own.ca}; get the CA's current list", code="tls.refused")
    if crl.next_update_utc is not None and crl.next_update_utc < datetime.now(UTC):
        raise TlsError(
            f"{own.crl}: was good until {crl.next_update_utc:%Y-%m-%d}; get the CA's current list", code="tls.expired"
        )
    if crl.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None:
        raise TlsError(
            f"site {name}: its certificate is revoked by {own.crl}; `run.py pki issue` makes a new one",
            code="tls.revoked",
        )
    return _on_p256(certificate.public_key(), name)


@dataclass(frozen=True)
class OwnIdentity:
    """How a site introduces itself (public), and the key that it signs with (secret)."""

    introduction: Introduction
    key: PrivateKey = field(repr=False)


def certified(site: str, own: Credentials) -> OwnIdentity:
    """Return how `site` introduces itself by the certificate in its own files, and the key that it signs with.

    Raises:
        TlsError: naming the site, where the files cannot be read or do not fit each other.
    """
    try:
        certificate = x509.load_pem_x509_certificate(own.certificate.read_bytes())
        key = serialization.load_pem_private_key(own.key.read_bytes(), None)
    except (OSError, ValueError, TypeError) as error:
        raise TlsError(
            f"site {site}: {own.certificate} or {own.key} cannot be read: {error}", code="tls.unreadable"
        ) from None
    if not isinstance(key, PrivateKey) or key.public_key() != certificate.public_key():
        raise TlsError(
            f"site {site}: {own.key} is not the key of {own.certificate}, on P-256; `run.py pki issue CONFIG {site}`",
            code="tls.key",
        )
    _on_p256(key.public_key(), site)
    return OwnIdentity(Introduction(site, certificate.public_bytes(serialization.Encoding.DER)), key)


def uncertified(site: str) -> OwnIdentity:
    """Return how `site` introduces itself by a key of this session alone: for one process, or without TLS."""
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key().public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return OwnIdentity(Introduction(site, public), key)


def _on_p256(key: object, site: str) -> PublicKey:
    if isinstance(key, PublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise TlsError(
        f"site {site}: its key is not an ECDSA key on P-256, which the secure sum needs; see `run.py pki`",
        code="tls.key",
    )
