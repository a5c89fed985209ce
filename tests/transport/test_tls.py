"""TLS over bytes, with real certificates: what goes in comes out, and nobody else gets in."""

import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.errors import PayloadError
from fedhpc.transport import pki
from fedhpc.transport.sealed_broadcast import open_sealed, seal
from fedhpc.transport.tls import AGGREGATOR_NAME, Credentials, TlsError, TlsSession

NAMES = ("site1", "site2")


class Ends(NamedTuple):
    """Both ends of one session."""

    site: TlsSession
    aggregator: TlsSession


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("pki") / "pki"
    pki.init(made, NAMES)
    return made


def files(folder: Path, name: str) -> Credentials:
    return Credentials(folder / "ca.pem", folder / "crl.pem", folder / f"{name}.pem", folder / f"{name}.key")


def shaken(site: ssl.SSLContext, aggregator: ssl.SSLContext, expected: str = "site1") -> Ends:
    ends = Ends(TlsSession(site, AGGREGATOR_NAME, server=False), TlsSession(aggregator, expected, server=True))
    ends.aggregator.handshake(ends.site.handshake(ends.aggregator.handshake(ends.site.handshake())))
    return ends


def connected(folder: Path, name: str = "site1") -> Ends:
    return shaken(files(folder, name).context(server=False), files(folder, AGGREGATOR_NAME).context(server=True), name)


@pytest.mark.parametrize("size", [0, 1, 16384, 3 * 2**20 + 5])
def test_payloads_come_out_as_they_went_in_both_ways(folder: Path, size: int) -> None:
    ends, payload = connected(folder), bytes(range(256)) * (size // 256) + bytes(size % 256)
    for _ in range(2):
        sealed = ends.site.seal(payload, "update")
        assert payload[:100] not in sealed or size < 8
        assert len(sealed) < 100 + 1.003 * size
        assert ends.aggregator.open(sealed, "update") == payload
        assert ends.site.open(ends.aggregator.seal(payload, "control"), "control") == payload


def test_sessions_keep_no_memory_of_what_passed(folder: Path) -> None:
    """Rank 0 has one for every site: a megabyte each would be a gigabyte in a round of a thousand."""
    many, payload = [connected(folder) for _ in range(24)], bytes(2**21)
    process = psutil.Process()
    before_bytes = process.memory_info().rss
    for ends in many:
        assert ends.aggregator.open(ends.site.seal(payload, "update"), "update") == payload
    assert process.memory_info().rss - before_bytes < len(many) * 2**19


def flipped(sealed: bytes, at: int) -> bytes:
    at %= len(sealed)
    return sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]


DAMAGES: dict[str, Callable[[bytes, int], bytes]] = {
    "flip": flipped,
    "cut": lambda sealed, at: sealed[: at % len(sealed)],
    "without its first record": lambda sealed, at: sealed[5 + int.from_bytes(sealed[3:5], "big") :],
    "without its last record": lambda sealed, at: sealed[: 5 + int.from_bytes(sealed[3:5], "big")],
    "more": lambda sealed, at: sealed + sealed[: 1 + at % len(sealed)],
    "twice": lambda sealed, at: sealed + sealed,
}


@given(damage=st.sampled_from(sorted(DAMAGES)), at=st.integers(0, 10**6), size=st.sampled_from([10, 40_000]))
@settings(max_examples=60)
def test_no_change_on_the_way_gets_through(folder: Path, damage: str, at: int, size: int) -> None:
    ends = connected(folder)
    sealed = DAMAGES[damage](ends.site.seal(bytes(size), "update"), at)
    with pytest.raises(PayloadError, match="site1: "):
        ends.aggregator.open(sealed, "update")


def test_a_message_counts_once_in_its_place_as_its_kind_in_its_session(folder: Path) -> None:
    ends, others = connected(folder), connected(folder, "site2")
    first, second = ends.site.seal(b"one", "update"), ends.site.seal(b"two", "update")
    with pytest.raises(PayloadError, match="site2: its update message was changed, moved or sent again"):
        others.aggregator.open(first, "update")
    assert ends.aggregator.open(first, "update") == b"one"
    with pytest.raises(PayloadError, match="sent again"):
        ends.aggregator.open(first, "update")
    ends = connected(folder)
    first, second = ends.site.seal(b"one", "update"), ends.site.seal(b"two", "update")
    with pytest.raises(PayloadError, match="moved"):
        ends.aggregator.open(second, "update")
    ends = connected(folder)
    with pytest.raises(PayloadError, match="not one whole metrics message"):
        ends.aggregator.open(ends.site.seal(b"one", "update"), "metrics")


def test_nothing_is_said_before_the_handshake(folder: Path) -> None:
    session = TlsSession(files(folder, "site1").context(server=False), AGGREGATOR_NAME, server=False)
    for work in (session.seal, session.open):
        with pytest.raises(ValueError, match="no handshake yet"):
            work(b"x", "update")


def test_a_certificate_of_another_site_is_refused(folder: Path) -> None:
    with pytest.raises(TlsError, match="TLS with site1 refused: the certificate shown is that of site2"):
        shaken(files(folder, "site2").context(server=False), files(folder, AGGREGATOR_NAME).context(server=True))


def test_a_site_cannot_play_the_aggregator(folder: Path) -> None:
    with pytest.raises(TlsError, match="TLS with aggregator refused: unsuitable certificate purpose"):
        shaken(files(folder, "site1").context(server=False), files(folder, "site2").context(server=True))


def test_the_aggregator_cannot_play_a_site(folder: Path) -> None:
    with pytest.raises(TlsError, match="refused: unsuitable certificate purpose"):
        shaken(
            files(folder, AGGREGATOR_NAME).context(server=False),
            files(folder, AGGREGATOR_NAME).context(server=True),
            AGGREGATOR_NAME,
        )


def test_another_ca_is_refused_by_either_end(folder: Path, tmp_path: Path) -> None:
    pki.init(tmp_path / "pki", NAMES)
    foreign = tmp_path / "pki"
    trusting = Credentials(folder / "ca.pem", folder / "crl.pem", foreign / "site1.pem", foreign / "site1.key")
    with pytest.raises(TlsError, match=r"TLS with site1 refused: (unable to get local issuer|self-signed) certificate"):
        shaken(trusting.context(server=False), files(folder, AGGREGATOR_NAME).context(server=True))
    with pytest.raises(TlsError, match="TLS with aggregator refused"):
        shaken(files(foreign, "site1").context(server=False), files(folder, AGGREGATOR_NAME).context(server=True))


def test_an_expired_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Made three days ago for two days."""
    made = tmp_path / "pki"
    pki.init(made, NAMES)

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: object = None) -> "Earlier":
            return datetime.now(UTC) - timedelta(days=3)  # type: ignore[return-value]

    with monkeypatch.context() as patched:
        patched.setattr(pki, "datetime", Earlier)
        pki.issue(made, "site1", days=2)
    with pytest.raises(TlsError, match="TLS with site1 refused: certificate has expired"):
        shaken(files(made, "site1").context(server=False), files(made, AGGREGATOR_NAME).context(server=True))
    with pytest.raises(TlsError, match=r"site1: .*site1\.pem expired on 20"):
        pki.credentials(made, "site1")


def test_a_revoked_certificate_is_refused_and_a_new_one_is_not(tmp_path: Path) -> None:
    made = tmp_path / "pki"
    pki.init(made, NAMES)
    pki.revoke(made, "site1")
    with pytest.raises(TlsError, match="TLS with site1 refused: certificate revoked"):
        connected(made)
    assert connected(made, "site2").aggregator.established
    pki.issue(made, "site1")
    assert connected(made).aggregator.established
    pki.revoke(made, AGGREGATOR_NAME)
    with pytest.raises(TlsError, match="TLS with aggregator refused: certificate revoked"):
        connected(made)


@pytest.mark.parametrize("old", ["site", "aggregator"])
def test_tls_1_2_is_refused(folder: Path, old: str) -> None:
    site, aggregator = files(folder, "site1").context(server=False), files(folder, AGGREGATOR_NAME).context(server=True)
    context = site if old == "site" else aggregator
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(TlsError, match=r"TLS with \w+ refused: .*protocol"):
        shaken(site, aggregator)


def test_a_peer_without_a_certificate_is_refused(folder: Path) -> None:
    bare = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    bare.load_verify_locations(folder / "ca.pem")
    with pytest.raises(TlsError, match="TLS with site1 refused: peer did not return a certificate"):
        shaken(bare, files(folder, AGGREGATOR_NAME).context(server=True))


def test_garbage_is_refused(folder: Path) -> None:
    with pytest.raises(TlsError, match="TLS with site1 refused"):
        TlsSession(files(folder, AGGREGATOR_NAME).context(server=True), "site1", server=True).handshake(b"GET / HTTP")


@pytest.fixture(scope="module")
def two(folder: Path) -> dict[str, Ends]:
    return {name: connected(folder, name) for name in NAMES}


def broadcast(two: dict[str, Ends], payload: bytes) -> bytes:
    return seal(payload, "update", {name: ends.aggregator for name, ends in two.items()})


@pytest.mark.parametrize("size", [0, 5, 10**6])
def test_one_broadcast_opens_at_every_site_and_at_a_rank_that_plays_both(folder: Path, size: int) -> None:
    two, payload = {name: connected(folder, name) for name in NAMES}, bytes(size)
    for _ in range(2):
        message = broadcast(two, payload)
        assert size < len(message) < size + 300, "one encryption, and a ticket for each site"
        assert open_sealed(message, "update", {0: two["site1"].site}) == payload
        assert open_sealed(message, "update", {1: two["site2"].site}) == payload
    message = broadcast(two, payload)
    assert open_sealed(message, "update", {i: two[name].site for i, name in enumerate(NAMES)}) == payload


def test_equal_payloads_look_different(two: dict[str, Ends]) -> None:
    one, other = broadcast(two, bytes(1000)), broadcast(two, bytes(1000))
    assert one[-1000:] != other[-1000:]


@given(at=st.integers(0, 10**6), cut=st.booleans())
@settings(max_examples=60)
def test_no_change_of_a_broadcast_gets_through(folder: Path, at: int, cut: bool) -> None:
    ends = connected(folder)
    message = seal(bytes(200), "update", {"site1": ends.aggregator})
    changed = message[: at % len(message)] if cut else flipped(message, at)
    with pytest.raises(PayloadError):
        open_sealed(changed, "update", {0: ends.site})


def test_a_broadcast_sent_again_or_for_others_is_refused(folder: Path) -> None:
    ends = connected(folder)
    first = seal(b"round 1", "update", {"site1": ends.aggregator})
    assert open_sealed(first, "update", {0: ends.site}) == b"round 1"
    with pytest.raises(PayloadError, match="sent again"):
        open_sealed(first, "update", {0: ends.site})
    with pytest.raises(PayloadError, match="has 1 tickets, none for"):
        open_sealed(seal(b"x", "update", {"site1": ends.aggregator}), "update", {1: ends.site})


def test_a_site_that_knows_the_key_cannot_change_what_the_others_get(folder: Path) -> None:
    """It opens the broadcast with its own ticket, seals another payload under the same key, and keeps the tickets."""
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    from fedhpc.transport.sealed_broadcast import KEY_BYTES, NONCE

    insider, victim = connected(folder, "site2"), connected(folder, "site1")
    message = seal(b"the model", "update", {"site1": victim.aggregator, "site2": insider.aggregator})
    lengths = [int.from_bytes(message[8 * i : 8 * i + 8], "little") for i in range(3)]
    end = 24 + lengths[1] + lengths[2]
    key = insider.site.open(message[24 + lengths[1] : end], "update")[:KEY_BYTES]
    assert AESGCM(key).decrypt(NONCE, message[end:], None) == b"the model"
    forged = message[:end] + AESGCM(key).encrypt(NONCE, b"my  model", None)
    with pytest.raises(PayloadError, match="not the one whose SHA-256"):
        open_sealed(forged, "update", {0: victim.site})
