"""Attacks of a malicious aggregator, with a colluding site, on secure aggregation.

Each is first carried out on the protocol with the defence taken out, where it must succeed: a refusal of an attack that
does not work would show nothing.
"""

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedhpc.config.loader import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.errors import ConfigError, PayloadError
from fedhpc.run.evaluation.questions import sum_terms
from fedhpc.run.start.sum_identities import check_identities
from fedhpc.secagg import shamir
from fedhpc.secagg.masks import MaskKey, PublicKeys, SumTerms, X25519PrivateKey, pair_seed
from fedhpc.secagg.messages import (
    CONFIRMED,
    HEADER,
    KEYS,
    MASKED,
    SHARES,
    broadcast_of,
    split_broadcast,
)
from fedhpc.secagg.protocol import ADVERTISED_BYTES, MaskedSite, SumAggregator
from fedhpc.secagg.signatures import (
    Introduction,
    OwnIdentity,
    SignedMessage,
    SigningSite,
    certified,
    signatories_of,
    uncertified,
)
from fedhpc.secagg.vectors import signed
from fedhpc.transport import pki
from fedhpc.transport.tls import AGGREGATOR_NAME, Credentials, TlsError
from fedhpc.util.arrays import I64
from tests.secagg.test_protocol import Rehearsal, drawn_vectors, expand, signing_sites, unpacked

ROUND = 7
Lists = Mapping[int, Sequence[int]]


class NoChecks(MaskedSite):
    """A site without the defence: it takes any signature."""

    def _check_signed(self, site: int, message: SignedMessage) -> None:
        return


def unchecked_terms(sites: int, threshold: int) -> SumTerms:
    """Terms that break 2 threshold > sites + colluding, which the class refuses to make."""
    terms = SumTerms(sites, sites, 16, 8, colluding=1)
    object.__setattr__(terms, "threshold", threshold)
    return terms


class Round:
    """A round up to the masked vectors, as the aggregator sees it. The last site colludes with it."""

    def __init__(self, terms: SumTerms, kind: type[MaskedSite]) -> None:
        self.terms, self.aggregator = terms, SumAggregator(terms, ROUND)
        self.vectors = drawn_vectors(terms.sites, terms.size)
        self.sites = [kind(terms, identity, ROUND) for identity in signing_sites(terms.sites)]
        self.roster = self.aggregator.answer(KEYS, [site.advertise() for site in self.sites])
        shares = self.aggregator.answer(SHARES, [site.share(self.roster) for site in self.sites])
        masked = [site.mask(shares, vector) for site, vector in zip(self.sites, self.vectors, strict=True)]
        self.masked = {i: unpacked(payload, terms) for i, payload in enumerate(masked)}
        self.colluding = terms.sites - 1
        # What the colluding site gives away: both of its shares of every other site's secrets.
        self.shares: dict[tuple[int, int], dict[int, bytes]] = {
            (owner, which): {self.colluding + 1: held[which]}
            for owner, held in self.sites[self.colluding]._held.items()
            for which in (0, 1)
        }

    def confirmed(self, lists: Lists) -> dict[int, bytes]:
        """Every honest site's signature of the list of survivors that it was shown."""
        shown = {i: broadcast_of(MASKED, ROUND, dict.fromkeys(stayed, b"")) for i, stayed in lists.items()}
        return {i: self.sites[i].confirm(shown[i])[HEADER.size :] for i in lists}

    def colluding_signature(self, stayed: Sequence[int]) -> bytes:
        """The colluding site signs whatever it is asked to."""
        site = self.sites[self.colluding]
        site._stayed = tuple(sorted(stayed))
        return site._identity.sign(ROUND, CONFIRMED, site._view())

    def reveal(self, index: int, stayed: Sequence[int], signatures: Mapping[int, bytes]) -> None:
        """Have a site reveal its shares for its list of survivors, and keep them."""
        body = self.sites[index].reveal(broadcast_of(CONFIRMED, ROUND, signatures))[HEADER.size :]
        for owner in range(self.terms.sites):
            share = body[owner * shamir.SHARE_BYTES : (owner + 1) * shamir.SHARE_BYTES]
            self.shares[owner, 1 if owner in stayed else 0][index + 1] = share

    def sum_of(self, chosen: Collection[int]) -> I64:
        """The sum of the vectors of `chosen`, from the shares that have come so far."""
        bodies = split_broadcast(KEYS, ROUND, self.roster, ADVERTISED_BYTES)
        roster = {site: PublicKeys.parse(body) for site, body in bodies.items()}
        total = np.zeros(self.terms.size, np.uint64)
        for site in chosen:
            total = total + self.masked[site] - expand(self._secret(site, 1), self.terms)
        for site in set(roster) - set(chosen):
            own = X25519PrivateKey.from_private_bytes(self._secret(site, 0))
            for peer in chosen:
                pair = expand(pair_seed(MaskKey(site, own), peer, roster, ROUND), self.terms)
                total = total - pair if peer < site else total + pair
        return signed(total, self.terms.width_bytes)

    def vector_of(self, victim: int) -> I64:
        """The vector of one site, from enough shares of both of its secrets."""
        bodies = split_broadcast(KEYS, ROUND, self.roster, ADVERTISED_BYTES)
        roster = {site: PublicKeys.parse(body) for site, body in bodies.items()}
        own = X25519PrivateKey.from_private_bytes(self._secret(victim, 0))
        left = self.masked[victim] - expand(self._secret(victim, 1), self.terms)
        for peer in set(roster) - {victim}:
            pair = expand(pair_seed(MaskKey(victim, own), peer, roster, ROUND), self.terms)
            left = left - pair if victim < peer else left + pair
        return signed(left, self.terms.width_bytes)

    def _secret(self, site: int, which: int) -> bytes:
        if site == self.colluding:
            held = self.sites[site]
            return held._seed if which else held._masking.private_bytes_raw()
        shares = self.shares[site, which]
        assert len(shares) >= self.terms.threshold, (site, which, len(shares))
        return shamir.combine(shares)


def two_halves() -> tuple[dict[int, list[int]], int]:
    """Of ten sites, the last colluding: four are shown all as survivors, five all but the victim."""
    victim = 0
    first = {i: list(range(10)) for i in range(4)}
    return first | {i: list(range(1, 10)) for i in range(4, 9)}, victim


def signatures_for(round: Round, index: int, lists: Lists, signed_by: Mapping[int, bytes]) -> dict[int, bytes]:
    """Those that fit the list which `index` was shown: of all that were shown the same, and of the colluding site."""
    fitting = {i: signature for i, signature in signed_by.items() if lists[i] == lists[index]}
    return fitting | {round.colluding: round.colluding_signature(lists[index])}


def test_two_survivor_lists_reveal_one_site_where_the_threshold_is_too_low() -> None:
    """10 sites, 1 colluding, 6 dropouts tolerated: every signature is checked and fits, and the victim is read off."""
    round = Round(unchecked_terms(10, threshold=4), MaskedSite)
    lists, victim = two_halves()
    signatures = round.confirmed(lists)
    for index in lists:
        round.reveal(index, lists[index], signatures_for(round, index, lists, signatures))
    np.testing.assert_array_equal(round.vector_of(victim), round.vectors[victim])


def test_that_threshold_is_refused_by_protocol_and_config(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 x threshold must be above sites \+ colluding.*smallest .* allowed is 6"):
        SumTerms(10, 4, 16, 8, colluding=1)
    names = [f"s{index}" for index in range(10)]
    with pytest.raises(
        ConfigError, match=r"tolerated_dropouts=6, privacy.colluding_sites=1.*set tolerated_dropouts to 4"
    ):
        config_of(tmp_path, names, "privacy.tolerated_dropouts=6")


def test_two_survivor_lists_get_one_answer_at_an_allowed_threshold() -> None:
    """Only the larger group finds enough signatures: as if the victim had dropped out, which reveals nothing of it."""
    round = Round(SumTerms(10, 6, 16, 8, colluding=1), MaskedSite)
    lists, victim = two_halves()
    signatures = round.confirmed(lists)
    for index, stayed in lists.items():
        fitting = signatures_for(round, index, lists, signatures)
        if victim in stayed:
            with pytest.raises(PayloadError, match=f"site site{index}, round 8: refuses a list of signatures of the"):
                round.reveal(index, stayed, fitting)
        else:
            round.reveal(index, stayed, fitting)
    assert len(round.shares[victim, 1]) == 1
    np.testing.assert_array_equal(round.sum_of(range(1, 10)), np.sum(round.vectors[1:], axis=0))


def test_signatures_of_the_other_list_are_refused_with_the_site_named() -> None:
    round = Round(SumTerms(10, 6, 16, 8, colluding=1), MaskedSite)
    lists, _ = two_halves()
    signatures = round.confirmed(lists)
    for index, stayed in lists.items():
        sent = signatures | signatures_for(round, index, lists, signatures)
        with pytest.raises(PayloadError, match=r"site site\d, round 8: the signature of its message confirmed does"):
            round.reveal(index, stayed, {i: signature for i, signature in sent.items() if i in stayed})
    assert all(len(shares) == 1 for shares in round.shares.values())


def lists_for_a_sum_of_two() -> dict[int, list[int]]:
    """Of ten sites, the last colluding, six needed: each honest one is shown itself, sites 0 and 1, and few others."""
    others = [2, 3, 4, 5, 6, 7, 8]
    lists = {0: [0, 1, *others[:3], 9], 1: [0, 1, *others[3:6], 9]}
    for place, index in enumerate(others):
        near = [others[(place + step) % 7] for step in range(3)]
        lists[index] = [0, 1, *near, 9]
    return {index: sorted(stayed) for index, stayed in lists.items()}


def test_differing_lists_reveal_the_sum_of_two_where_signatures_are_not_checked() -> None:
    """Below the threshold of six, and with the noise of two: what the message `confirmed` is for."""
    round = Round(SumTerms(10, 6, 16, 8, colluding=1), NoChecks)
    lists = lists_for_a_sum_of_two()
    signatures = round.confirmed(lists)
    for index, stayed in lists.items():
        sent = {i: signatures.get(i, bytes(64)) for i in stayed}
        round.reveal(index, stayed, sent)
    total = round.sum_of([0, 1])
    np.testing.assert_array_equal(total, round.vectors[0] + round.vectors[1])


def test_differing_lists_are_refused_by_every_site() -> None:
    round = Round(SumTerms(10, 6, 16, 8, colluding=1), MaskedSite)
    lists = lists_for_a_sum_of_two()
    signatures = round.confirmed(lists)
    for index, stayed in lists.items():
        sent = {i: signatures[i] for i in stayed if i != 9} | {9: round.colluding_signature(stayed)}
        with pytest.raises(PayloadError, match="the signature of its message confirmed does not fit"):
            round.reveal(index, stayed, sent)


def played_by_the_aggregator(kind: type[MaskedSite], signs: bool) -> tuple[MaskedSite, list[MaskedSite], bytes]:
    """Site 3 of four, three others that the aggregator plays, and the roster that it sends to site 3."""
    terms = SumTerms(4, 3, 16, 8)
    real, made_up = signing_sites(4), signing_sites(4)
    victim = kind(terms, real[3], ROUND)
    signatories = real[3].signatories
    fakes = [SigningSite(i, made_up[i].key, signatories if signs else made_up[i].signatories) for i in range(3)]
    others = [NoChecks(terms, fake, ROUND) for fake in fakes]
    bodies = {i: site.advertise()[HEADER.size :] for i, site in enumerate([*others, victim])}
    return victim, others, broadcast_of(KEYS, ROUND, bodies)


def test_round_keys_of_the_aggregator_reveal_a_site_that_does_not_check_signatures() -> None:
    victim, others, roster = played_by_the_aggregator(NoChecks, signs=False)
    aggregator, vector = SumAggregator(SumTerms(4, 3, 16, 8), ROUND), drawn_vectors(1, 16)[0]
    everybody = [*others, victim]
    aggregator._got[KEYS] = split_broadcast(KEYS, ROUND, roster, ADVERTISED_BYTES)
    shares = aggregator.answer(SHARES, [site.share(roster) for site in everybody])
    nothing = np.zeros(16, np.int64)
    masked = [site.mask(shares, vector if site is victim else nothing) for site in everybody]
    survivors = aggregator.answer(MASKED, masked)
    confirmed = aggregator.answer(CONFIRMED, [site.confirm(survivors) for site in everybody])
    aggregator.answer(CONFIRMED + 1, [site.reveal(confirmed) for site in everybody])
    np.testing.assert_array_equal(aggregator.total(), vector)


@pytest.mark.parametrize("signs", [True, False])
def test_round_keys_of_the_aggregator_are_refused(signs: bool) -> None:
    """Signed with keys of its own, for this session or for one of its own."""
    victim, _, roster = played_by_the_aggregator(MaskedSite, signs)
    with pytest.raises(PayloadError, match="site site0, round 8: the signature of its message keys does not fit"):
        victim.share(roster)


def test_own_keys_that_were_replaced_by_older_ones_are_refused() -> None:
    terms, identities = SumTerms(3, 2, 16, 8), signing_sites(3)
    sites = [MaskedSite(terms, identity, ROUND) for identity in identities]
    twin = MaskedSite(terms, identities[0], ROUND)
    bodies = {i: site.advertise()[HEADER.size :] for i, site in enumerate(sites)}
    with pytest.raises(PayloadError, match="site site0, round 8: the aggregator lists other keys for this site"):
        sites[0].share(broadcast_of(KEYS, ROUND, bodies | {0: twin.advertise()[HEADER.size :]}))


def keys_of(identity: SigningSite, round: int) -> bytes:
    return MaskedSite(SumTerms(3, 2, 16, 8), identity, round).advertise()[HEADER.size :]


def again(run: bytes, before: Sequence[SigningSite]) -> list[SigningSite]:
    """Another session of the same sites with the same signing keys."""
    names, keys = before[0].signatories.names, [one.key for one in before]
    introductions = [Introduction(name, b"the same certificate") for name in names]
    signatories = signatories_of(run, introductions, [key.public_key() for key in keys])
    return [SigningSite(index, key, signatories) for index, key in enumerate(keys)]


REPLAYS: dict[str, Callable[[list[SigningSite]], bytes]] = {
    "of another round": lambda now: keys_of(now[1], ROUND - 1),
    "of another session of the same run": lambda now: keys_of(again(b"run", now)[1], ROUND),
    "of another run": lambda now: keys_of(again(b"another run", now)[1], ROUND),
    "of another site": lambda now: keys_of(now[2], ROUND),
    "by another site in its name": lambda now: keys_of(SigningSite(1, now[2].key, now[2].signatories), ROUND),
    "of another message": lambda now: (
        keys_of(now[1], ROUND)[:64] + now[1].sign(ROUND, CONFIRMED, keys_of(now[1], ROUND)[:64])
    ),
}


@pytest.mark.parametrize("replay", REPLAYS)
def test_a_signature_from_elsewhere_is_refused(replay: str) -> None:
    identities = again(b"run", signing_sites(3))
    sites = [MaskedSite(SumTerms(3, 2, 16, 8), identity, ROUND) for identity in identities]
    bodies = {i: site.advertise()[HEADER.size :] for i, site in enumerate(sites)}
    assert sites[2].share(broadcast_of(KEYS, ROUND, bodies))
    with pytest.raises(PayloadError, match="site site1, round 8: the signature of its message keys does not fit"):
        sites[0].share(broadcast_of(KEYS, ROUND, bodies | {1: REPLAYS[replay](identities)}))


def test_a_site_that_signs_the_survivors_for_another_is_refused() -> None:
    """The colluding site signs in the name of one that the aggregator has left out."""
    round = Round(SumTerms(10, 6, 16, 8, colluding=1), MaskedSite)
    lists = {i: list(range(10)) for i in range(9)}
    signatures = round.confirmed(lists)
    site = round.sites[9]
    site._stayed = tuple(range(10))
    forged = SigningSite(4, site._identity.key, site._identity.signatories).sign(ROUND, CONFIRMED, site._view())
    with pytest.raises(PayloadError, match="site site4, round 8: the signature of its message confirmed does not fit"):
        round.reveal(0, lists[0], signatures | {4: forged})


SITES = ("a", "b", "c")


def sums_without(terms: SumTerms, left_out: int) -> tuple[I64, I64]:
    """(sum of all, sum without one site) of the same vectors, as an aggregator gets that says a message was lost."""
    vectors = drawn_vectors(terms.sites, terms.size)
    whole, part = Rehearsal(terms, vectors), Rehearsal(terms, vectors, lost=(left_out,))
    return whole.aggregator.total(), part.aggregator.total()


def test_a_kept_answer_that_is_summed_twice_reveals_a_site_that_may_be_left_out() -> None:
    terms = SumTerms(4, 3, 16, 8, colluding=1)
    whole, part = sums_without(terms, 2)
    np.testing.assert_array_equal(whole - part, drawn_vectors(4, 16)[2])


def test_the_sum_of_an_evaluation_leaves_no_site_out(tmp_path: Path) -> None:
    names = ("a", "b", "c", "d")
    terms = sum_terms(config_of(tmp_path, names, "privacy.tolerated_dropouts=1"), 16)
    vectors = drawn_vectors(terms.sites, terms.size)
    np.testing.assert_array_equal(Rehearsal(terms, vectors).aggregator.total(), sum(vectors))
    masks = Rehearsal(terms, vectors)
    with pytest.raises(PayloadError, match="at least 4"):
        sums_without(terms, 2)
    sites = [MaskedSite(terms, identity, 7) for identity in signing_sites(4)]
    roster = masks.aggregator.answer(KEYS, [site.advertise() for site in sites])
    shares = masks.aggregator.answer(SHARES, [site.share(roster) for site in sites])
    for site, vector in zip(sites, vectors, strict=True):
        site.mask(shares, vector)
    with pytest.raises(PayloadError, match="refuses a list of masked vectors"):
        sites[0].confirm(broadcast_of(MASKED, 7, dict.fromkeys((0, 1, 3), b"")))


def config_of(folder: Path, names: Sequence[str], *sets: str) -> RunConfig:
    tree = {
        "name": "x",
        "data": {"shards": str(folder / "{site}.h5"), "sites": [{"name": name, "weight": 3} for name in names]},
        "training": {"local_epochs": 1},
        "exchange": {"density": 1, "pki": str(folder / "pki")},
        "privacy": {"epsilon": 1, "sample_rate": 1, "trust": "sites", "colluding_sites": 1},
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_config(path, list(sets))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`pki` with the certificates of a, b and c; `other` with those of another CA; `old` with expired ones."""
    folder = tmp_path_factory.mktemp("certificates")
    pki.init(folder / "pki", SITES)
    pki.init(folder / "other", SITES)
    return folder


def introduced(config: RunConfig, folder: Path) -> dict[int, OwnIdentity]:
    names = enumerate(config.site_names)
    return {index: certified(name, pki.credentials(folder, name)) for index, name in names}


def expired(folder: Path) -> bytes:
    """A certificate of b by the same CA that was good until yesterday."""

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) - timedelta(days=3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pki, "datetime", Earlier)
        pki.issue(folder / "pki", "b", days=2)
    made = Credentials(*(folder / "pki" / name for name in ("ca.pem", "crl.pem", "b.pem", "b.key")))
    certificate = certified("b", made).introduction.certificate
    pki.issue(folder / "pki", "b")
    return certificate


def der_of(folder: Path, name: str) -> bytes:
    return certified(name, pki.credentials(folder, name)).introduction.certificate


LIES: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "a bare key": (lambda folder: uncertified("b").introduction.certificate, "site a refuses a signing key: site b: "),
    "another CA": (lambda folder: der_of(folder / "other", "b"), "site b: its certificate is refused by"),
    "another site's": (lambda folder: der_of(folder / "pki", "c"), "site b: the certificate shown is that of c"),
    "the aggregator's": (lambda folder: der_of(folder / "pki", AGGREGATOR_NAME), "site b: its certificate is refused"),
    "expired": (expired, "site b: its certificate is refused by"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_site_refuses_a_certificate_that_is_not_in_order(certificates: Path, lie: str) -> None:
    """Whatever the aggregator relays as that of site b, where TLS is on and hospitals are at other ranks."""
    make, refusal = LIES[lie]
    relayed_by_it = make(certificates)
    config = config_of(certificates, SITES)
    own = introduced(config, certificates / "pki")
    honest = [one.introduction.pack() for one in own.values()]
    assert len(check_identities(config, {0: own[0]}, honest, ranks=3, noise=b"")) == 1
    relayed = [honest[0], Introduction("b", relayed_by_it).pack(), honest[2]]
    with pytest.raises(TlsError, match=refusal):
        check_identities(config, {0: own[0]}, relayed, ranks=3, noise=b"")


def test_a_site_refuses_a_revoked_certificate(tmp_path: Path) -> None:
    pki.init(tmp_path / "pki", SITES)
    config = config_of(tmp_path, SITES)
    own = introduced(config, tmp_path / "pki")
    relayed = [one.introduction.pack() for one in own.values()]
    pki.revoke(tmp_path / "pki", "b")
    with pytest.raises(TlsError, match="site a refuses a signing key: site b: its certificate is revoked"):
        check_identities(config, {0: own[0]}, relayed, ranks=3, noise=b"")


def test_sites_that_were_shown_different_nonces_accept_nothing_of_each_other(certificates: Path) -> None:
    config = config_of(certificates, SITES)
    own = introduced(config, certificates / "pki")
    honest = [one.introduction.pack() for one in own.values()]
    other = [honest[0], Introduction("b", own[1].introduction.certificate).pack(), honest[2]]
    shown = {0: other, 1: honest, 2: honest}
    identities = [check_identities(config, {i: own[i]}, shown[i], ranks=3, noise=b"")[i] for i in range(3)]
    sites = [MaskedSite(SumTerms(3, 2, 16, 8), identity, ROUND) for identity in identities]
    roster = broadcast_of(KEYS, ROUND, {i: site.advertise()[HEADER.size :] for i, site in enumerate(sites)})
    for site, refused in itertools.zip_longest(sites, ("b", "a", "a")):
        with pytest.raises(PayloadError, match=f"site {refused}, round 8: the signature of its message keys"):
            site.share(roster)
