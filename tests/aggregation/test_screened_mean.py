"""The screened mean: its null distribution by simulation, whom it leaves out, and when it stops."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from fedhpc.aggregation.base import Aggregated, Arrays, RuleRound, UpdateScale
from fedhpc.aggregation.pull_test import Sums
from fedhpc.aggregation.screened_mean import (
    ALPHA,
    AS_SENT,
    EARLY_ROUNDS,
    LATE,
    OUT,
    STRENGTHS,
    VARIANCE,
    ScreenedMean,
    least_alignment,
)
from fedhpc.compression.error_feedback import CompressionConfig, with_feedback
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError, SiteError
from fedhpc.util.arrays import F32, F64

D, SITES = 54, ("site1", "site2", "site3", "legacy")
WEIGHTS = (170, 130, 70, 50)
SCALES = tuple(UpdateScale(noise=100 / weight, longest=30.0) for weight in WEIGHTS)
RULE = ScreenedMean()
CODINGS = {
    "whole": CompressionConfig(1.0),
    "4 bits": CompressionConfig(1.0, 4),
    "4 bits of a tenth": CompressionConfig(0.1, 4),
}
Attack = Callable[[F64], F64]
EDGE = np.zeros((4, D))
EDGE[:3, 0], EDGE[3, 1] = 24, 24


def apply(
    updates: Mapping[int, F64], kept: Arrays, scales: tuple[UpdateScale, ...] | None = SCALES, round: int = 0
) -> Aggregated:
    """One round of those sites that sent an update; the others sent none."""
    aggregator = RULE.aggregator(RuleRound(D, round, SITES, kept, scales))
    for site in range(len(SITES)):
        if site in updates:
            aggregator.add(site, SparseVector(D, np.arange(D), updates[site].astype(np.float32)), WEIGHTS[site])
        else:
            aggregator.refused(site, PayloadError("no update"))
    return aggregator.aggregated()


def noisy(signals: F64, rng: np.random.Generator) -> F64:
    noise = np.array([scale.noise for scale in SCALES])[:, None]
    return signals + noise * rng.normal(size=(len(SITES), D))


@dataclass
class Federation:
    """Four sites that each pull the model to an optimum of their own, half of the way a round, with public noise.

    Attributes:
        optima: float64[4, d].
        rng: of the noise.
        coding: how updates are made small; the rest is kept, by error feedback.
        hostile: what a site sends in the place of its update.
        private: whether there is noise.
        shortens: the pulls are to the optima from the initial model, half as long in each round, whatever was sent.
    """

    optima: F64
    rng: np.random.Generator
    coding: CompressionConfig = CODINGS["whole"]
    hostile: Mapping[int, Attack] = field(default_factory=dict)
    private: bool = True
    shortens: bool = False
    model: F64 = field(default_factory=lambda: np.zeros(D))
    done: list[Aggregated] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.kept: Arrays = RULE.initial(D, len(SITES))
        self.residuals: list[F32] = [np.zeros(D, np.float32) for _ in SITES]
        exact = self.coding.sends_all
        self.scales = tuple(replace(scale, exact=exact) for scale in SCALES) if self.private else None

    def run(self, rounds: int) -> "Federation":
        for _ in range(rounds):
            pulls = self.optima / 2 ** (1 + len(self.done)) if self.shortens else (self.optima - self.model) / 2
            updates = noisy(pulls, self.rng) if self.private else pulls
            for site, attack in self.hostile.items():
                updates[site] = attack(updates[site])
            found = apply(dict(enumerate(map(self.sent, range(4), updates))), self.kept, self.scales, len(self.done))
            self.kept, self.model = found.kept, self.model + found.update
            self.done.append(found)
        return self

    def sent(self, site: int, update: F64) -> F64:
        sent, self.residuals[site] = with_feedback(update.astype(np.float32), self.residuals[site], self.coding)
        return sent.dense().astype(np.float64)

    def out(self) -> set[str]:
        return {flag.site for one in self.done for flag in one.flags if flag.excluded}


def alike(length: float, rng: np.random.Generator) -> F64:
    """Optima at one place, so far from the initial model."""
    place = rng.normal(size=D)
    return np.tile(length * place / np.linalg.norm(place), (len(SITES), 1))


def test_threshold_keeps_its_level_over_all_rounds() -> None:
    """At the edge of the null, mean 0, each test leaves a site out in 50 rounds with a chance of at most ALPHA."""
    runs = 100_000
    totals = np.random.default_rng(0).normal(size=(runs, 50)).cumsum(axis=1) / np.sqrt(np.arange(1, 51))
    left_out = (totals < [least_alignment(t) for t in range(1, 51)]).any(axis=1).mean()
    assert ALPHA / 5 < left_out < ALPHA + 5 * np.sqrt(ALPHA / runs)


def left_out_at_the_edge(coding: str, runs: int) -> dict[str, float]:
    """The share of runs of honest sites in which each is left out, where the legacy site is at the edge of the null.

    Three sites agree, and the pulls of the legacy site, whose noise is largest, lie across.
    """
    rng = np.random.default_rng(1)
    out = [Federation(EDGE, rng, CODINGS[coding], shortens=True).run(EARLY_ROUNDS).out() for _ in range(runs)]
    return {site: sum(site in one for one in out) / runs for site in SITES}


@pytest.mark.parametrize("coding", CODINGS)
def test_honest_legacy_site_is_hardly_ever_left_out(coding: str) -> None:
    # More than 5 of 30 runs at a chance of 0.9 %: below 1e-6.
    assert max(left_out_at_the_edge(coding, 30).values()) <= 5 / 30


@pytest.mark.parametrize("known", [True, False])
def test_equal_updates_give_the_weighted_mean(known: bool) -> None:
    rng = np.random.default_rng(2)
    updates = 3 * np.ones(D) + rng.normal(size=(4, D)) / 10
    found = apply(dict(enumerate(updates)), RULE.initial(D, 4), SCALES if known else None)
    np.testing.assert_allclose(found.update, np.average(updates, axis=0, weights=WEIGHTS), rtol=1e-5)
    assert found.flags == ()


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("site", [0, 1, 3])
def test_site_that_pulls_against_is_left_out(site: int, private: bool, coding: str) -> None:
    """Whichever site flips its sign, at any density, it and nobody else is named; the model gets to the others'."""
    rng = np.random.default_rng(3)
    optima = alike(44, rng)
    done = Federation(optima, rng, CODINGS[coding], {site: lambda update: -update}, private).run(EARLY_ROUNDS)
    assert done.out() == {SITES[site]}
    assert done.model @ optima[0] > 0.5 * optima[0] @ optima[0]


def test_wrong_target_is_left_out_by_the_sums() -> None:
    """A site that pulls back to the initial model, as random labels do: no single round shows it, their sum does."""
    rng = np.random.default_rng(4)
    optima = alike(12, rng)
    optima[1] = 0
    done = Federation(optima, rng).run(EARLY_ROUNDS)
    assert done.out() == {"site2"}
    assert done.kept[OUT].tolist()[0] == 0 and not any(flag.excluded for flag in done.done[0].flags)


def test_site_that_turns_late_is_left_out() -> None:
    rng = np.random.default_rng(5)
    federation = Federation(alike(12, rng), rng).run(EARLY_ROUNDS + 3)
    assert federation.out() == set()
    federation.optima[0] *= -0.5
    assert federation.run(EARLY_ROUNDS).out() == {"site1"}


def test_sign_flip_among_noise_is_left_out() -> None:
    """It comes once updates are mostly noise, and pulls the longer the farther it has moved the model."""
    rng = np.random.default_rng(11)
    optima = alike(12, rng) + 4 * rng.normal(size=(4, D)) / np.sqrt(D)
    federation = Federation(optima, rng).run(EARLY_ROUNDS)
    federation.hostile = {0: lambda update: -2.5 * update}
    assert federation.out() == set()
    assert federation.run(12).out() == {"site1"}


def test_net_pull_of_honest_sites_that_differ_is_noise() -> None:
    """Near the optimum of the mean each pulls against the others for good (S); none moves the model (T)."""
    rng, net, aligned = np.random.default_rng(12), [], []
    for _ in range(5):
        optima = alike(24, rng) + 4 * rng.normal(size=(4, D)) / np.sqrt(D)
        federation = Federation(optima, rng)
        for round in range(25):
            kept = federation.run(1).kept
            sums = Sums(kept[LATE].astype(float), kept[LATE + VARIANCE], WEIGHTS * kept[STRENGTHS])
            for site in range(4 * (round > 8)):
                others = [other for other in range(4) if other != site]
                net.append(sums.net_pull(site, others, kept[AS_SENT][site].astype(float)))
                aligned.append(sums.alignment(site, others) / sums.deviation(site, others))
        assert federation.out() == set()
    assert np.mean(aligned) < -1
    # A standard normal number is below -6 with a chance of 1e-9.
    assert min(net) > -6 and np.mean(net) > -1


def test_honest_site_that_differs_stays_late() -> None:
    """Hospitals whose optima lie apart pull apart for good once the model lies between them."""
    rng = np.random.default_rng(6)
    optima = alike(24, rng) + 4 * rng.normal(size=(4, D)) / np.sqrt(D)
    assert all(Federation(optima, rng).run(4 * EARLY_ROUNDS).out() == set() for _ in range(3))


@pytest.mark.parametrize("coding", ["whole", "4 bits"])
def test_long_update_is_shortened_and_kept(coding: str) -> None:
    rng = np.random.default_rng(7)
    optima = alike(44, rng)
    done = Federation(optima, rng, CODINGS[coding], {1: lambda update: 50 * update}).run(1).done[0]
    assert [(flag.site, flag.reason, flag.excluded) for flag in done.flags] == [("site2", "norm", False)]
    # Of its usual length, the signal of 22 and noise of 5.7, and with the others.
    assert np.linalg.norm(done.update) < 30


@pytest.mark.parametrize(("along", "strength"), [(10.0, 1.0), (0.0, 0.25), (-1.2, 0.06)])
def test_site_without_strength_counts_less(along: float, strength: float) -> None:
    """Without noise one round shows a site that hardly pulls with the others; one that does keeps its weight."""
    updates = np.zeros((4, D))
    updates[:, 0] = 10
    updates[2, :2] = along, 3.0
    found = apply(dict(enumerate(updates)), RULE.initial(D, 4), None)
    assert found.kept[STRENGTHS][2] == pytest.approx(strength, abs=0.06)
    named = [(flag.site, flag.reason, flag.excluded) for flag in found.flags if flag.reason == "strength"]
    assert named == ([] if strength == 1 else [("site3", "strength", False)])


def pulling(deviations: float) -> F64:
    """Updates of which that of site 3 pulls against the others by so many standard deviations of its noise, or with."""
    updates = np.zeros((4, D))
    updates[:, 0] = 20
    found = Sums(updates, np.square([scale.noise for scale in SCALES]), np.array(WEIGHTS, float))
    others = [0, 1, 3]
    # Its own signal is in V, and is as long as its pull.
    for _ in range(50):
        updates[2, 0] = deviations * found.deviation(2, others) / found.mean(others)[0]
    assert found.alignment(2, others) / found.deviation(2, others) == pytest.approx(deviations, rel=1e-3)
    return updates


@pytest.mark.parametrize(("deviations", "least", "most"), [(-0.5, 0.24, 1), (-2, 0.12, 0.13), (-2.7, 0.0, 0.02)])
def test_pull_that_is_just_not_left_out_hardly_counts(deviations: float, least: float, most: float) -> None:
    """In one of ten draws at epsilon 1 flipped signs stayed, at a quarter of their weight, and cost 0.03 to 0.06."""
    found = apply(dict(enumerate(pulling(deviations))), RULE.initial(D, 4))
    assert not found.kept[OUT].any()
    assert least < found.kept[STRENGTHS][2] < most


def test_site_that_pulled_against_gets_no_weight_back_by_pulling_nowhere() -> None:
    """A site that flips signs pulls less in the next rounds, since the others go on without it."""
    kept = apply(dict(enumerate(pulling(-2.5))), RULE.initial(D, 4)).kept
    for round in (1, 2):
        later = apply(dict(enumerate(pulling(0.0))), kept, round=round).kept
        assert later[STRENGTHS][2] <= kept[STRENGTHS][2] < 0.05
        kept = later


def test_site_that_pulls_with_the_others_after_all_gets_its_weight_back() -> None:
    """One round of bad luck with its noise must not cost an honest site the run."""
    updates = pulling(-2.0)
    kept = apply(dict(enumerate(updates)), RULE.initial(D, 4)).kept
    assert kept[STRENGTHS][2] < 0.2
    updates[2] = updates[0]
    for round in (1, 2):
        kept = apply(dict(enumerate(updates)), kept, round=round).kept
    assert kept[STRENGTHS][2] == 1


def test_site_that_turns_against_the_others_in_little_noise_does_not_end_the_run() -> None:
    """There only its net pull is tested, which is that of the model: hundreds of deviations against, it stays."""
    little = tuple(replace(scale, noise=scale.noise / 1000) for scale in SCALES)
    updates = np.zeros((4, D))
    updates[:, 0] = 20
    kept = apply(dict(enumerate(updates)), RULE.initial(D, 4), little).kept
    updates[2] *= -2
    for round in (1, 2, 3):
        found = apply(dict(enumerate(updates)), kept, little, round=round)
        kept = found.kept
    assert 0 < kept[STRENGTHS][2] < 1e-6
    assert found.update[0] == pytest.approx(20, abs=1e-3)


def test_site_without_an_update_is_left_out() -> None:
    updates = dict(enumerate(np.ones((4, D))))
    del updates[2]
    found = apply(updates, RULE.initial(D, 4))
    np.testing.assert_allclose(found.update, np.ones(D), rtol=1e-6)
    assert [(flag.site, flag.reason) for flag in found.flags] == [("site3", "payload")]


def test_two_of_four_far_out_stop_the_run() -> None:
    rng = np.random.default_rng(9)
    with pytest.raises(SiteError, match="2 of 4 sites are far out") as caught:
        apply({0: rng.normal(size=D), 3: rng.normal(size=D)}, RULE.initial(D, 4))
    assert caught.value.code == "aggregation.no-majority"
    with pytest.raises(SiteError, match="which half is honest"):
        apply({0: np.ones(D), 3: np.ones(D)}, RULE.initial(D, 4))


def test_nobody_is_tested_once_too_few_are_left() -> None:
    """With one site out, three are left: two of them against the third may be hospitals that differ."""
    signal = np.full(D, 3.0)
    before = apply({0: signal, 1: -signal, 2: signal, 3: signal}, RULE.initial(D, 4))
    after = apply({0: signal, 1: signal, 2: signal, 3: -signal}, before.kept, round=1)
    for found in (before, after):
        assert [(flag.site, flag.reason) for flag in found.flags] == [("site2", "direction")]


def test_honest_site_that_differs_stays_where_noise_is_small() -> None:
    """Without privacy, after the first round: three sites agree, and the fourth pulls the other way for good reason."""
    updates = np.array([np.ones(D), np.ones(D), np.ones(D), -np.ones(D)])
    kept = apply(dict(enumerate(np.ones((4, D)))), RULE.initial(D, 4), None).kept
    for round in range(1, 6):
        found = apply(dict(enumerate(updates)), kept, None, round)
        assert found.flags == ()
        kept = found.kept


def test_hidden_attacker_is_limited_by_its_public_noise() -> None:
    """One that knows the test, and sends long noise to hide a pull in, is allowed no more by that."""
    rng = np.random.default_rng(10)
    signal = alike(22, rng)[0]
    direction = signal / np.linalg.norm(signal)

    def passes(pull: float, noise: float) -> bool:
        updates = noisy(np.tile(signal, (4, 1)), rng)
        updates[1] = noise * rng.normal(size=D)
        updates[1] -= (updates[1] @ direction + pull) * direction
        return not apply(dict(enumerate(updates)), RULE.initial(D, 4)).kept[OUT].any()

    assert all(passes(0.0, SCALES[1].noise) for _ in range(20))
    assert not any(passes(12.0, noise) for noise in (0.0, 1.0, 3.0) for _ in range(5))


def test_three_sites_are_too_few() -> None:
    assert "too few" in RULE.problem(3, 1.0)
    assert RULE.problem(4, 0.1) == ""


def test_strength_outlives_a_round_without_an_update() -> None:
    """Else a site gets its weight back by sending nothing valid in the last round in which strengths are measured."""
    kept = {**RULE.initial(D, len(SITES)), STRENGTHS: np.array([1, 1, 1, 0.25])}
    updates = noisy(EDGE, np.random.default_rng(0))
    found = apply({site: updates[site] for site in range(3)}, kept, round=2)
    np.testing.assert_array_equal(found.kept[STRENGTHS], kept[STRENGTHS])
