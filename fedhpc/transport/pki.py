"""The federation's own small certificate authority: `run.py pki`.

    <folder>/
        ca.pem  crl.pem                the CA's certificate and its list of revoked ones: public, needed by all
        ca.key                         the CA's key: whoever runs the federation keeps it, and offline
        aggregator.pem  aggregator.key rank 0's
        <site>.pem  <site>.key         the site's, whose name is the certificate's subject
        <name>.<serial>.pem            what `issue` has replaced, which `revoke` must know

With privacy.trust=sites the sites also sign the messages of the secure sum with these keys, also the hospital whose
rank the aggregator shares. Whoever holds ca.key can sign as any site, so it must not lie with the aggregator: a run
that finds it there says that it protects from an honest-but-curious aggregator only.

A hospital needs ca.pem, crl.pem and its own two files, nothing else. Keys are ECDSA on P-256, readable by their owner
alone. A site's certificate is good for a TLS client and the aggregator's for a server, so neither can play the other.
"""

import re
import stat
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedhpc.errors import InputError
from fedhpc.transport.tls import AGGREGATOR_NAME, Credentials, TlsError
from fedhpc.util.files import PRIVATE, make_folder, reported, write_bytes

CA_NAME = "fedhpc CA"
CA_DAYS, SITE_DAYS = 3650, 365
CLOCKS_DIFFER = timedelta(minutes=5)


@dataclass(frozen=True)
class Issued:
    """A certificate as `show` tells it (public). `days_left` is below 0 where it has expired."""

    name: str
    serial: str
    expires: str
    days_left: int
    revoked: bool

    @property
    def state(self) -> str:
        """For a person."""
        if self.revoked:
            return "revoked"
        return "expired" if self.days_left < 0 else f"{self.days_left} days left"


def init(folder: Path, names: Sequence[str], days: int = SITE_DAYS) -> None:
    """Make the CA, an empty revocation list, and a certificate with its key for the aggregator and each of `names`.

    Either all of it is at `folder` afterwards or nothing.

    Raises:
        InputError: where `folder` holds a CA already.
    """
    if (folder / "ca.pem").exists():
        raise InputError(
            f"{folder}: holds a CA already; `run.py pki issue` adds or renews a certificate; to start anew move it "
            "away",
            code="pki.exists",
        )
    make_folder(folder.parent)
    with reported(folder, "made"), tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / "pki"
        made.mkdir(0o755)
        _make_ca(made)
        for name in (AGGREGATOR_NAME, *names):
            issue(made, name, days)
        try:
            made.rename(folder)
        except OSError as error:
            raise InputError(f"{folder}: cannot be made ({error}); name an empty folder", code="file") from None


def issue(folder: Path, name: str, days: int = SITE_DAYS) -> None:
    """A new key and a certificate for `name`, in place of those that it had.

    The old certificate is not revoked, so that it can be used until all have the new one. It is kept for `revoke`.

    Raises:
        InputError: where the CA's key is not in `folder`.
    """
    if days < 1:
        raise InputError(f"days={days}: a certificate is good for at least 1", code="command-line")
    ca, ca_key = _ca(folder)
    key = ec.generate_private_key(ec.SECP256R1())
    role = ExtendedKeyUsageOID.SERVER_AUTH if name == AGGREGATOR_NAME else ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = (
        _builder(name, ca.subject, key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([role]), critical=False)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    _keep_replaced(folder, name)
    _write_key(folder / f"{name}.key", key)
    write_bytes(folder / f"{name}.pem", certificate.public_bytes(serialization.Encoding.PEM))


def revoke(folder: Path, name: str) -> str:
    """Put the certificate of `name`, and all that it replaced, on the revocation list; every end needs the new crl.pem.

    Returns:
        the serial numbers, that of the certificate in use first.

    Raises:
        InputError: where the CA's key or the certificate is not in `folder`.
    """
    ca, ca_key = _ca(folder)
    serials = [_certificate(folder / f"{name}.pem").serial_number, *_replaced(folder, name)]
    revoked = {one.serial_number: one.revocation_date_utc for one in _crl(folder)}
    for serial in serials:
        revoked.setdefault(serial, datetime.now(UTC))
    _write_crl(folder, ca, ca_key, revoked)
    return ", ".join(f"{serial:x}" for serial in serials)


def _replaced(folder: Path, name: str) -> list[int]:
    """Return the serial numbers of what `issue` has replaced, by the names of the files, whatever is in them.

    What else a person keeps there, such as site1.old.pem, must not keep anybody from revoking.
    """
    stems = (path.name.removeprefix(f"{name}.").removesuffix(".pem") for path in sorted(folder.glob(f"{name}.*.pem")))
    return [int(stem, 16) for stem in stems if re.fullmatch("[0-9a-f]{1,40}", stem) and int(stem, 16)]


def _keep_replaced(folder: Path, name: str) -> None:
    """Keep the certificate that `name` has: without its serial number it could never be revoked."""
    path = folder / f"{name}.pem"
    if not path.exists():
        return
    with suppress(TlsError):  # damaged: its number is lost already
        write_bytes(folder / f"{name}.{_certificate(path).serial_number:x}.pem", path.read_bytes())


def show(folder: Path) -> list[Issued]:
    """All certificates in `folder`, the CA's first."""
    ca = folder / "ca.pem"
    revoked = {one.serial_number for one in _crl(folder)}
    others = sorted(path for path in folder.glob("*.pem") if path.name not in ("ca.pem", "crl.pem"))
    return [_told(_certificate(path), revoked) for path in (ca, *others)]


def credentials(folder: Path, name: str) -> Credentials:
    """Return the files of `name`, after a look at what TLS would not tell clearly.

    Raises:
        TlsError: naming `name`: a file is missing, others can read the key or exchange the CA, the certificate has
            expired.
    """
    found = Credentials(folder / "ca.pem", folder / "crl.pem", folder / f"{name}.pem", folder / f"{name}.key")
    missing = [str(path) for path in (found.ca, found.crl, found.certificate, found.key) if not path.is_file()]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise TlsError(f"{name}: exchange.tls is on and {', '.join(missing)} {verb} missing", code="tls.missing")
    mode = stat.S_IMODE(found.key.stat().st_mode)
    if mode & 0o077:
        raise TlsError(
            f"{name}: {found.key} has mode {mode:04o}: others can read the key; `chmod 600 {found.key}`", code="tls.key"
        )
    for path in (folder, found.ca, found.crl):
        if path.stat().st_mode & 0o022:
            raise TlsError(
                f"{name}: others can write to {path}, and so name a CA of their own; `chmod go-w {path}`",
                code="tls.writable",
            )
    told = _told(_certificate(found.certificate), set())
    if told.days_left < 0:
        raise TlsError(
            f"{name}: {found.certificate} expired on {told.expires}; `run.py pki issue CONFIG {name}`",
            code="tls.expired",
        )
    return found


def _make_ca(folder: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, CA_NAME)])
    certificate = (
        _builder(CA_NAME, name, key.public_key(), CA_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    _write_key(folder / "ca.key", key)
    write_bytes(folder / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM))
    _write_crl(folder, certificate, key, {})


def _builder(name: str, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCKS_DIFFER)
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _write_crl(
    folder: Path, ca: x509.Certificate, key: ec.EllipticCurvePrivateKey, revoked: dict[int, datetime]
) -> None:
    """A list that is good for as long as the CA: nobody has to renew one that has not changed."""
    now = datetime.now(UTC)
    builder = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(ca.subject)
        .last_update(now - CLOCKS_DIFFER)
        .next_update(ca.not_valid_after_utc)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.CRLNumber(int(now.timestamp())), critical=False)
    )
    for serial, date in revoked.items():
        entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(date).build()
        builder = builder.add_revoked_certificate(entry)
    write_bytes(folder / "crl.pem", builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


def _ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    path = folder / "ca.key"
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), None)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read ({error}); only where the CA's key lies can it sign", code="pki.ca-key"
        ) from None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise InputError(f"{path}: is not a key that `run.py pki init` makes", code="pki.ca-key")
    return _certificate(folder / "ca.pem"), key


def _certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TlsError(
            f"{path}: is not a certificate that can be read ({error}); see `run.py pki`", code="tls.unreadable"
        ) from None


def _crl(folder: Path) -> x509.CertificateRevocationList:
    path = folder / "crl.pem"
    try:
        return x509.load_pem_x509_crl(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TlsError(
            f"{path}: is not a revocation list that can be read ({error}); see `run.py pki`", code="tls.unreadable"
        ) from None


def _told(certificate: x509.Certificate, revoked: set[int]) -> Issued:
    (name,) = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    end = certificate.not_valid_after_utc
    days_left = (end - datetime.now(UTC)).days
    serial = certificate.serial_number
    return Issued(str(name.value), f"{serial:x}", end.date().isoformat(), days_left, serial in revoked)


def _write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """With its mode from the start: no key is ever readable by others, nor half written."""
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    write_bytes(path, pem, mode=PRIVATE)
