"""Secure aggregation: the sum of the survivors and nothing else, whoever drops out; what an honest site refuses."""

from collections.abc import Collection

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.errors import PayloadError
from fedhpc.secagg import shamir
from fedhpc.secagg.masks import SumTerms, most_dropouts
from fedhpc.secagg.messages import (
    CONFIRMED,
    HEADER,
    KEYS,
    MASKED,
    REVEALED,
    SHARES,
    broadcast_of,
)
from fedhpc.secagg.protocol import MaskedSite, SumAggregator, round_bytes
from fedhpc.secagg.signatures import SigningSite, bare_key, signatories_of, uncertified
from fedhpc.secagg.vectors import Mask, packed, signed, summed
from fedhpc.util.arrays import I64, U64


def signing_sites(count: int, run: bytes = b"run") -> list[SigningSite]:
    """A session of `count` sites, with keys that nobody vouches for."""
    made = [uncertified(f"site{index}") for index in range(count)]
    introductions = [identity.introduction for identity in made]
    signatories = signatories_of(run, introductions, [bare_key(one) for one in introductions])
    return [SigningSite(index, identity.key, signatories) for index, identity in enumerate(made)]


def expand(seed: bytes, terms: SumTerms) -> U64:
    """PRG(seed), uint64[size] modulo 2^(8 width_bytes)."""
    return summed([], [Mask(seed, added=True)], terms).view(np.uint64)


def unpacked(payload: bytes, terms: SumTerms) -> U64:
    """The vector of a `masked` message, uint64[size] modulo 2^(8 width_bytes)."""
    return summed([payload[HEADER.size :]], [], terms).view(np.uint64)


class Rehearsal:
    """A whole round in memory, with all that the aggregator sees.

    `absent` sites send nothing; `late` ones their keys only; `lost` ones all but their masked vector; `mute` ones do
    not confirm the survivors; `silent` ones do, and do not reveal.
    """

    def __init__(
        self,
        terms: SumTerms,
        vectors: list[I64],
        absent: Collection[int] = (),
        late: Collection[int] = (),
        lost: Collection[int] = (),
        mute: Collection[int] = (),
        silent: Collection[int] = (),
    ) -> None:
        self.sites = [MaskedSite(terms, identity, 7) for identity in signing_sites(terms.sites)]
        self.aggregator = SumAggregator(terms, 7)
        gone = set(absent)
        self.keys = [b"" if i in gone else site.advertise() for i, site in enumerate(self.sites)]
        self.roster = self.aggregator.answer(KEYS, self.keys)
        gone |= set(late)
        self.sealed = [b"" if i in gone else site.share(self.roster) for i, site in enumerate(self.sites)]
        self.shares = self.aggregator.answer(SHARES, self.sealed)
        gone |= set(lost)
        self.masked = [b"" if i in gone else site.mask(self.shares, vectors[i]) for i, site in enumerate(self.sites)]
        self.survivors = self.aggregator.answer(MASKED, self.masked)
        gone |= set(mute)
        self.signed = [b"" if i in gone else site.confirm(self.survivors) for i, site in enumerate(self.sites)]
        self.confirmed = self.aggregator.answer(CONFIRMED, self.signed)
        gone |= set(silent)
        self.held = [dict(site._held) for site in self.sites]
        self.revealed = [b"" if i in gone else site.reveal(self.confirmed) for i, site in enumerate(self.sites)]
        self.aggregator.answer(REVEALED, self.revealed)

    @property
    def seen_by_the_aggregator(self) -> list[bytes]:
        return [*self.keys, *self.sealed, *self.masked, *self.signed, *self.revealed]


def drawn_vectors(sites: int, size: int, seed: int = 0) -> list[I64]:
    rng = np.random.default_rng(seed)
    return list(rng.integers(-(2**62), 2**62, (sites, size)))


@settings(max_examples=60)
@given(st.integers(2, 7), st.integers(1, 40), st.integers(1, 8), st.data())
def test_sum_of_masked_is_sum_of_plain_for_every_set_of_survivors(
    sites: int, size: int, width: int, data: st.DataObject
) -> None:
    """Sites missing before and during the round, as long as `threshold` of them are left."""
    threshold = data.draw(st.integers(max(2, sites - most_dropouts(sites, 0)), sites))
    order = data.draw(st.permutations(range(sites)))
    stages = sorted(data.draw(st.integers(threshold, sites)) for _ in range(5))
    ends = [*stages, sites]
    gone = [order[ends[stage] : ends[stage + 1]] for stage in reversed(range(5))]
    terms = SumTerms(sites, threshold, size, width)
    vectors = drawn_vectors(sites, size, seed=sites)
    total = Rehearsal(terms, vectors, *gone).aggregator.total()
    plain = np.sum([vectors[i].view(np.uint64) for i in order[: stages[2]]], axis=0, dtype=np.uint64)
    np.testing.assert_array_equal(total, signed(plain, width))
    if width < 8:
        assert np.abs(total).max() <= 2 ** (8 * width - 1)


def test_a_sum_that_fits_the_ring_is_exact() -> None:
    vectors = [np.array([-5, 100, -3]), np.array([1, -228, 3]), np.array([1, 1, 0])]
    assert Rehearsal(SumTerms(3, 2, 3, 1), vectors).aggregator.total().tolist() == [-3, -127, 0]


@pytest.mark.parametrize("lost", [(), (1,)])
def test_what_the_aggregator_sees_of_a_site_is_uniform(lost: tuple[int, ...]) -> None:
    """Chi-square over the bytes of one masked vector of zeros, and of what is left of it with its self-mask off."""
    terms = SumTerms(4, 3, 20_000, 5)
    round = Rehearsal(terms, [np.zeros(20_000, np.int64)] * 4, lost=lost)
    for index in set(range(4)) - set(lost):
        masked = unpacked(round.masked[index], terms)
        peeled = masked - expand(round.aggregator._secret(index, index), terms)
        for vector in (masked, peeled):
            counts = np.bincount(np.frombuffer(packed(vector, [], terms), np.uint8), minlength=256)
            # 255 degrees of freedom: 400 has a chance of 1e-8.
            assert ((counts - 100_000 / 256) ** 2 / (100_000 / 256)).sum() < 400, index
    assert not round.aggregator.total().any()


def test_two_rounds_of_the_same_vector_share_nothing() -> None:
    vectors = [np.zeros(1000, np.int64)] * 3
    one, two = (Rehearsal(SumTerms(3, 2, 1000, 4), vectors).masked[0][HEADER.size :] for _ in range(2))
    equal = (np.frombuffer(one, np.uint8) == np.frombuffer(two, np.uint8)).mean()
    assert equal < 0.02


def test_plain_vectors_and_secrets_are_not_in_what_the_aggregator_sees() -> None:
    terms = SumTerms(4, 3, 64, 8)
    vectors = drawn_vectors(4, 64)
    round = Rehearsal(terms, vectors, lost=[2])
    everything = b"".join(round.seen_by_the_aggregator)
    for index, vector in enumerate(vectors):
        assert all(vector[k : k + 1].tobytes() not in everything for k in range(64)), index
    # Of the shares that travel sealed, those that nobody was asked for are not there in the clear either.
    for holder, held in enumerate(round.held):
        for owner, (mask_key, seed) in held.items():
            asked_for, kept_back = (mask_key, seed) if owner == 2 else (seed, mask_key)
            assert kept_back not in everything
            assert (asked_for in everything) == (holder != 2)


def test_both_shares_of_one_site_are_never_revealed() -> None:
    """And no site answers a second list of survivors, which could ask for the other one."""
    round = Rehearsal(SumTerms(5, 3, 4, 4), drawn_vectors(5, 4), lost=[0])
    for index, site in enumerate(round.sites[1:], 1):
        body = round.revealed[index][HEADER.size :]
        for place in range(5):
            share = body[place * shamir.SHARE_BYTES : (place + 1) * shamir.SHARE_BYTES]
            assert share == round.held[index][place][0 if place == 0 else 1]
        with pytest.raises(ValueError, match="asked for"):
            site.confirm(broadcast_of(MASKED, 7, dict.fromkeys(range(5), b"")))
        assert not hasattr(site, "_held")


def with_site_0_before(kind: int) -> Rehearsal:
    """A round of four sites, three needed, in which site 0 has not answered the last two calls, or the last one."""
    gone = {"mute": [0]} if kind == CONFIRMED else {"silent": [0]}
    return Rehearsal(SumTerms(4, 3, 4, 4), drawn_vectors(4, 4), **gone)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("survivors", "why"),
    [([0, 1], "below the threshold"), ([1, 2, 3], "without the site itself"), ([0, 1, 2, 9], "of a stranger")],
)
def test_a_site_refuses_a_list_of_survivors(survivors: list[int], why: str) -> None:
    site = with_site_0_before(CONFIRMED).sites[0]
    with pytest.raises(PayloadError, match=r"site site0, round 8: refuses a list of masked vectors of sites \["):
        site.confirm(broadcast_of(MASKED, 7, dict.fromkeys(survivors, b"")))


@pytest.mark.parametrize("signers", [[0, 1], [1, 2, 3]])
def test_a_site_refuses_too_few_signatures_of_the_survivors(signers: list[int]) -> None:
    round = with_site_0_before(REVEALED)
    signatures = {index: round.signed[index][HEADER.size :] for index in signers}
    with pytest.raises(PayloadError, match=r"site site0, round 8: refuses a list of signatures of the survivors"):
        round.sites[0].reveal(broadcast_of(CONFIRMED, 7, signatures))


def test_a_site_refuses_a_roster_below_the_threshold() -> None:
    terms = SumTerms(4, 3, 4, 4)
    sites = [MaskedSite(terms, identity, 7) for identity in signing_sites(4)]
    keys = {index: site.advertise()[HEADER.size :] for index, site in enumerate(sites)}
    with pytest.raises(PayloadError, match="refuses a list of keys"):
        sites[0].share(broadcast_of(KEYS, 7, {0: keys[0], 1: keys[1]}))


def test_messages_come_once_and_in_order() -> None:
    site = MaskedSite(SumTerms(2, 2, 4, 4), signing_sites(2)[0], 7)
    with pytest.raises(ValueError, match="message 1 asked for, 0 is next"):
        site.share(b"")
    site.advertise()
    with pytest.raises(ValueError, match="message 0 asked for, 1 is next"):
        site.advertise()


@pytest.mark.parametrize("kind", [KEYS, SHARES, MASKED, CONFIRMED, REVEALED])
def test_the_aggregator_refuses_too_few_messages_before_any_mask_is_off(kind: int) -> None:
    missing: list[Collection[int]] = [(), (), (), (), ()]
    missing[kind] = [1, 2]
    with pytest.raises(PayloadError, match=rf"round 8: messages {kind} of sites \[0, 3\]; at least 3"):
        Rehearsal(SumTerms(4, 3, 4, 4), drawn_vectors(4, 4), *missing)


@given(st.integers(0, 4), st.integers(0, 10**6), st.integers(1, 255))
def test_one_flipped_byte_is_refused(stage: int, at: int, flip: int) -> None:
    round = ROUND
    messages = [round.keys, round.sealed, round.masked, round.signed, round.revealed]
    payloads = messages[stage]
    broken = bytearray(payloads[1])
    broken[at % len(broken)] ^= flip
    aggregator = SumAggregator(SumTerms(3, 2, 8, 4), 7)
    for kind in range(stage):
        aggregator.answer(kind, messages[kind])
    with pytest.raises(PayloadError, match="sender 1 in round 8"):
        aggregator.answer(stage, [payloads[0], bytes(broken), payloads[2]])


ROUND = Rehearsal(SumTerms(3, 2, 8, 4), drawn_vectors(3, 8))


def test_shares_that_were_sealed_for_another_are_refused() -> None:
    """What the aggregator cannot do: give a site other shares than those its peers have made for it."""
    terms = SumTerms(3, 2, 4, 4)
    sites = [MaskedSite(terms, identity, 7) for identity in signing_sites(3)]
    aggregator = SumAggregator(terms, 7)
    roster = aggregator.answer(KEYS, [site.advertise() for site in sites])
    bodies = {index: site.share(roster)[HEADER.size :] for index, site in enumerate(sites)}
    half = len(bodies[1]) // 2
    swapped = {**bodies, 1: bodies[1][half:] + bodies[1][:half]}
    with pytest.raises(PayloadError, match="shares of site 1 for site 0 were changed"):
        sites[0].mask(broadcast_of(SHARES, 7, swapped), np.zeros(4, np.int64))


def test_wrong_shares_of_a_mask_key_are_noticed() -> None:
    round = Rehearsal(SumTerms(4, 3, 4, 4), drawn_vectors(4, 4), lost=[1])
    held = round.held[0]
    forged = b"".join(held[owner][1] for owner in sorted(held))
    round.aggregator._got[REVEALED] |= {0: forged}
    with pytest.raises(PayloadError, match=r"secret of site 1|mask key of site 1"):
        round.aggregator.total()


def test_round_bytes_are_those_of_the_messages() -> None:
    for sites, size, width in ((2, 1, 1), (4, 260, 4), (5, 33, 7)):
        terms = SumTerms(sites, sites - most_dropouts(sites, 0), size, width)
        round = Rehearsal(terms, drawn_vectors(sites, size))
        up = {
            sum(len(stage[index]) for stage in (round.keys, round.sealed, round.masked, round.signed, round.revealed))
            for index in range(sites)
        }
        down = len(round.roster) + len(round.shares) + len(round.survivors) + len(round.confirmed)
        assert (up, down) == ({round_bytes(terms)[0]}, round_bytes(terms)[1])


@pytest.mark.parametrize("bad", [(3, 1, 1, 1), (3, 4, 1, 1), (3, 2, 0, 1), (3, 2, 1, 9), (70_000, 2, 1, 1)])
def test_terms_that_cannot_be(bad: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="allowed are"):
        SumTerms(*bad)
