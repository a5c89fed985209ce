"""The screened mean: its null distribution by simulation, whom it leaves out, and when it stops."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pytest

from fedhpc.aggregation.base import Aggregated, Arrays, RuleRound, UpdateScale
from fedhpc.aggregation.screened_mean import ALPHA, ScreenedMean, least_alignment
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError, SiteError
from fedhpc.util.arrays import F64

D, SITES = 54, ("site1", "site2", "site3", "legacy")
WEIGHTS = (170, 130, 70, 50)
SCALES = tuple(UpdateScale(noise=100 / weight, longest=30.0) for weight in WEIGHTS)
RULE = ScreenedMean()


def apply(updates: Mapping[int, F64], kept: Arrays, scales: tuple[UpdateScale, ...] | None = SCALES) -> Aggregated:
    """One round of those sites that sent an update; the others sent none."""
    aggregator = RULE.aggregator(RuleRound(D, 0, SITES, kept, scales))
    for site in range(len(SITES)):
        if site in updates:
            aggregator.add(site, SparseVector(D, np.arange(D), updates[site].astype(np.float32)), WEIGHTS[site])
        else:
            aggregator.refused(site, PayloadError("no update"))
    return aggregator.aggregated()


def noisy(signals: F64, rng: np.random.Generator) -> F64:
    noise = np.array([scale.noise for scale in SCALES])[:, None]
    return signals + noise * rng.normal(size=(len(SITES), D))


def rounds_of(
    signal: F64, rng: np.random.Generator, hostile: Mapping[int, float] = MappingProxyType({}), rounds: int = 10
) -> list[Aggregated]:
    """Rounds with signals that get shorter; a hostile site sends its update times a factor."""
    kept, out = RULE.initial(D, len(SITES)), []
    for t in range(rounds):
        updates = noisy(np.tile(signal / (1 + t), (len(SITES), 1)), rng)
        for site, factor in hostile.items():
            updates[site] *= factor
        out.append(apply(dict(enumerate(updates)), kept))
        kept = out[-1].kept
    return out


def test_threshold_keeps_its_level_over_all_rounds() -> None:
    """At the edge of the null, mean 0, a site is left out in a run of 50 rounds with a chance of at most ALPHA."""
    runs = 100_000
    totals = np.random.default_rng(0).normal(size=(runs, 50)).cumsum(axis=1)
    left_out = (totals < [least_alignment(t) for t in range(1, 51)]).any(axis=1).mean()
    assert ALPHA / 5 < left_out < ALPHA + 5 * np.sqrt(ALPHA / runs)


def test_honest_legacy_site_is_hardly_ever_left_out() -> None:
    """The others agree in each round, and the site's own signal is at the edge of the null: across theirs."""
    rng, runs = np.random.default_rng(1), 400
    out = np.zeros(len(SITES))
    along, across = np.zeros(D), np.zeros(D)
    along[0], across[1] = 12, 12
    for _ in range(runs):
        kept, flags = RULE.initial(D, 4), []
        for _ in range(10):
            found = apply(dict(enumerate(noisy(np.array([along, along, along, across]), rng))), kept)
            kept, flags = found.kept, [*flags, *(flag for flag in found.flags if flag.excluded)]
        assert kept["rounds_tested"][3] >= 5
        out += [any(flag.site == site for flag in flags) for site in SITES]
    # More than 13 of 400 runs at a chance of 0.5 %: below 1e-6.
    assert (out <= 13).all()


@pytest.mark.parametrize("known", [True, False])
def test_equal_updates_give_the_weighted_mean(known: bool) -> None:
    rng = np.random.default_rng(2)
    updates = 3 * np.ones(D) + rng.normal(size=(4, D)) / 10
    found = apply(dict(enumerate(updates)), RULE.initial(D, 4), SCALES if known else None)
    np.testing.assert_allclose(found.update, np.average(updates, axis=0, weights=WEIGHTS), rtol=1e-5)
    assert found.flags == ()


@pytest.mark.parametrize("site", range(4))
def test_site_that_pulls_against_is_left_out(site: int) -> None:
    """Whichever site flips its sign, it and nobody else is named, and the mean is of the others."""
    rng = np.random.default_rng(3)
    signal = rng.normal(size=D) * 3
    done = rounds_of(signal, rng, {site: -1.0})
    assert {flag.site for one in done for flag in one.flags} == {SITES[site]}
    assert all(flag.reason == "direction" and flag.excluded for one in done for flag in one.flags)
    assert done[0].update @ signal > 0.5 * signal @ signal


def test_long_update_is_shortened_and_kept() -> None:
    rng = np.random.default_rng(4)
    done = rounds_of(rng.normal(size=D) * 3, rng, {1: 50.0}, rounds=1)[0]
    assert [(flag.site, flag.reason, flag.excluded) for flag in done.flags] == [("site2", "norm", False)]
    share = WEIGHTS[1] / sum(WEIGHTS)
    # Chi-square of 54 degrees: 104 at a chance of 1e-4.
    assert np.linalg.norm(done.update) < share * (30 + 11 * SCALES[1].noise) + 40


def test_site_without_an_update_is_left_out() -> None:
    updates = dict(enumerate(np.ones((4, D))))
    del updates[2]
    found = apply(updates, RULE.initial(D, 4))
    np.testing.assert_allclose(found.update, np.ones(D), rtol=1e-6)
    assert [(flag.site, flag.reason) for flag in found.flags] == [("site3", "payload")]


def test_two_of_four_far_out_stop_the_run() -> None:
    rng = np.random.default_rng(5)
    with pytest.raises(SiteError, match="2 of 4 sites are far out") as caught:
        apply({0: rng.normal(size=D), 3: rng.normal(size=D)}, RULE.initial(D, 4))
    assert caught.value.code == "aggregation.no-majority"
    with pytest.raises(SiteError, match="which half is honest"):
        apply({0: np.ones(D), 3: np.ones(D)}, RULE.initial(D, 4))


def test_nobody_is_tested_once_too_few_are_left() -> None:
    """With one site out, three are left: two of them against the third may be hospitals that differ."""
    signal = np.full(D, 3.0)
    before = apply({0: signal, 1: -signal, 2: signal, 3: signal}, RULE.initial(D, 4))
    after = apply({0: signal, 1: signal, 2: signal, 3: -signal}, before.kept)
    for found in (before, after):
        assert [(flag.site, flag.reason) for flag in found.flags] == [("site2", "direction")]


def test_evidence_of_earlier_rounds_counts() -> None:
    """A site that pulled with the others is not left out for one round against them, as comes near the optimum."""
    rng = np.random.default_rng(6)
    signal = rng.normal(size=D) * 3
    before = rounds_of(signal, rng, rounds=3)[-1].kept
    updates = dict(enumerate(noisy(np.tile(signal / 3, (4, 1)), rng)))
    updates[3] = -updates[3]
    assert apply(updates, before).flags == ()


def test_honest_site_that_differs_stays_where_noise_is_small() -> None:
    """Without privacy, after the first round: three sites agree, and the fourth pulls the other way for good reason."""
    updates = dict(enumerate(np.array([np.ones(D), np.ones(D), np.ones(D), -np.ones(D)])))
    kept = RULE.initial(D, 4)
    for round in range(1, 6):
        aggregator = RULE.aggregator(RuleRound(D, round, SITES, kept, None))
        for site, update in updates.items():
            aggregator.add(site, SparseVector(D, np.arange(D), update.astype(np.float32)), WEIGHTS[site])
        found = aggregator.aggregated()
        assert found.flags == ()
        kept = found.kept


def test_three_sites_are_too_few() -> None:
    assert "too few" in RULE.problem(3, 1.0)
    assert RULE.problem(4, 0.1) == ""
