"""The certificates as files: who may read them, what is in them, what is refused before TLS sees them."""

import os
import stat
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from fedhpc.errors import InputError
from fedhpc.transport import pki
from fedhpc.transport.tls import AGGREGATOR_NAME, TlsError

SITES = ("site1", "st_mary-2")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pki.init(tmp_path / "pki", SITES)
    return tmp_path / "pki"


def test_what_init_makes(folder: Path) -> None:
    names = [AGGREGATOR_NAME, *SITES]
    assert {path.name for path in folder.iterdir()} == {
        "ca.pem", "ca.key", "crl.pem", *(f"{name}{end}" for name in names for end in (".pem", ".key"))
    }  # fmt: skip
    assert [path.name for path in folder.parent.iterdir()] == ["pki"]
    for path in folder.glob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    ca = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    for name in names:
        one = x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
        one.verify_directly_issued_by(ca)
        assert one.subject.rfc4514_string() == f"CN={name}"
        usage = one.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        aggregator = name == AGGREGATOR_NAME
        assert list(usage) == [ExtendedKeyUsageOID.SERVER_AUTH if aggregator else ExtendedKeyUsageOID.CLIENT_AUTH]
        assert not one.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    assert ca.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length == 0


def test_keys_are_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        pki.init(tmp_path / "pki", SITES)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "pki").glob("*.key")} == {0o600}


def test_init_never_touches_a_ca_that_is_there(folder: Path) -> None:
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(InputError, match="holds a CA already"):
        pki.init(folder, SITES)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_init_into_a_folder_of_other_things_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    (tmp_path / "pki" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="name an empty folder"):
        pki.init(tmp_path / "pki", SITES)
    assert [path.name for path in tmp_path.rglob("*")] == ["pki", "notes.txt"]


@pytest.mark.parametrize("name", ["ca.pem", "crl.pem", "."])
def test_ca_that_others_can_exchange_is_refused(folder: Path, name: str) -> None:
    """With an umask of 002, as many clusters have it, a group could put a CA of its own in its place."""
    (folder / name).chmod(0o775)
    with pytest.raises(TlsError, match=r"site1: others can write to .*chmod go-w"):
        pki.credentials(folder, "site1")


def test_credentials_need_every_file_and_a_key_for_its_owner_alone(folder: Path) -> None:
    assert pki.credentials(folder, "site1").key == folder / "site1.key"
    (folder / "site1.key").chmod(0o640)
    with pytest.raises(TlsError, match=r"site1: .*site1\.key has mode 0640: others can read the key; `chmod 600"):
        pki.credentials(folder, "site1")
    for name in ("crl.pem", "st_mary-2.key"):
        (folder / name).unlink()
    with pytest.raises(TlsError, match=r"st_mary-2: exchange\.tls is on and .*crl\.pem, .*st_mary-2\.key are missing"):
        pki.credentials(folder, "st_mary-2")


@pytest.mark.parametrize("name", ["ca.pem", "crl.pem", "site1.pem", "site1.key"])
def test_a_damaged_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"-----BEGIN NOTHING-----\n")
    with pytest.raises(TlsError, match=name.replace(".", r"\.")):
        pki.credentials(folder, "site1").context(server=False)


def test_a_key_of_another_certificate_is_refused(folder: Path) -> None:
    (folder / "st_mary-2.key").rename(folder / "site1.key")
    with pytest.raises(TlsError, match="TLS cannot use one of"):
        pki.credentials(folder, "site1").context(server=False)


def test_without_the_key_of_the_ca_nothing_is_signed(folder: Path) -> None:
    (folder / "ca.key").unlink()
    for work in (pki.issue, pki.revoke):
        with pytest.raises(InputError, match="only where the CA's key lies can it sign"):
            work(folder, "site1")


def test_revoked_stays_revoked_through_the_next_one(folder: Path) -> None:
    pki.revoke(folder, "site1")
    pki.revoke(folder, "st_mary-2")
    pki.revoke(folder, "st_mary-2")
    assert {one.name: one.state for one in pki.show(folder)} == {
        "fedhpc CA": "3649 days left",
        AGGREGATOR_NAME: "364 days left",
        "site1": "revoked",
        "st_mary-2": "revoked",
    }


def test_replaced_certificate_can_be_revoked(folder: Path) -> None:
    """Of a stolen key: `issue` took the serial number away, and `revoke` refused the new certificate alone."""
    stolen = x509.load_pem_x509_certificate((folder / "site1.pem").read_bytes()).serial_number
    pki.issue(folder, "site1")
    assert [one.state for one in pki.show(folder) if one.name == "site1"] == ["364 days left"] * 2
    (folder / "site1.old.pem").write_text("a copy that somebody has kept\n", encoding="utf-8")
    assert f"{stolen:x}" in pki.revoke(folder, "site1")
    (folder / "site1.old.pem").unlink()
    crl = x509.load_pem_x509_crl((folder / "crl.pem").read_bytes())
    assert crl.get_revoked_certificate_by_serial_number(stolen) is not None
    pki.issue(folder, "site1")
    assert [one.state for one in pki.show(folder) if one.name == "site1"] == ["revoked"] * 2 + ["364 days left"]


def test_where_each_site_keeps_its_own(tmp_path: Path) -> None:
    from fedhpc.config.schema import RunConfig

    data = {"shards": f"{tmp_path}/{{site}}/shard.h5", "sites": [{"name": "a"}]}
    beside = RunConfig.model_validate({"name": "x", "data": data})
    assert beside.exchange.pki_folder(beside.data, "a") == tmp_path / "a" / "pki"
    other = RunConfig.model_validate({"name": "x", "data": data, "exchange": {"pki": "keys/{site}"}})
    assert other.exchange.pki_folder(other.data, "aggregator") == Path("keys/aggregator")
