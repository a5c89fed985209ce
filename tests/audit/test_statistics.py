"""The intervals of the audit: they hold the truth, they are not wider than they must be, and they notice faults."""

import numpy as np
import pytest

from fedhpc.audit.bounds import Scores
from fedhpc.audit.findings import WITH_DP, Guarantee, Law, epsilon_finding, worst
from fedhpc.audit.statistics import (
    LAW_RISK,
    correlation_limit,
    dispersion_interval,
    distance_limit,
    draws_for_collision,
    gaussian_distance,
    largest_correlation,
    mean_interval,
    share_interval,
    spread_interval,
)
from fedhpc.audit.unit_laws import sampling_laws


@pytest.fixture
def rng() -> np.random.Generator:
    """Of each test by itself: whichever tests run, each sees the same draws."""
    return np.random.default_rng(5)


@pytest.mark.parametrize("factor", [1.0, 0.7])
def test_spread_interval_tells_whole_noise_from_less(rng: np.random.Generator, factor: float) -> None:
    low, high = spread_interval(rng.normal(0, factor * 3.0, 2000), LAW_RISK)
    assert low <= factor * 3.0 <= high
    assert (low <= 3.0 <= high) == (factor == 1.0)


def test_intervals_miss_the_truth_as_often_as_they_say(rng: np.random.Generator) -> None:
    """At a risk of 10 %, over 2,000 repetitions: 7 to 13 % is beyond 4 standard deviations."""
    spread = [spread_interval(row, 0.1) for row in rng.normal(0, 1, (2000, 30))]
    mean = [mean_interval(row, 1.0, 0.1) for row in rng.normal(0, 1, (2000, 30))]
    counts = rng.binomial(100, 0.15, (2000, 50)).astype(float)
    dispersion = [dispersion_interval(row, 100, 0.15, 0.1) for row in counts]
    for intervals, truth in ((spread, 1.0), (mean, 0.0), (dispersion, 1.0)):
        missed = np.mean([not low <= truth <= high for low, high in intervals])
        assert 0.07 <= missed <= 0.13
    shares = [share_interval(int(found), 100, 0.1) for found in rng.binomial(100, 0.15, 2000)]
    assert np.mean([not low <= 0.15 <= high for low, high in shares]) <= 0.11


def test_correlation_limit_is_passed_by_a_repeated_vector_alone(rng: np.random.Generator) -> None:
    rows = rng.normal(size=(100, 200))
    limit = correlation_limit(200, 4950, LAW_RISK)
    assert largest_correlation(rows) < limit
    rows[7] = rows[3]
    assert largest_correlation(rows) > limit


def test_gaussian_distance_notices_another_shape_of_the_same_variance(rng: np.random.Generator) -> None:
    limit = distance_limit(5000, LAW_RISK)
    assert gaussian_distance(rng.normal(0, 2, 5000), 2.0) < limit
    assert gaussian_distance(rng.uniform(-(12**0.5), 12**0.5, 5000), 2.0) > limit


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_so_many_draws_hold_a_collision(rng: np.random.Generator, bits: int) -> None:
    draws = draws_for_collision(bits, LAW_RISK)
    assert len(set(rng.integers(0, 2**bits, draws).tolist())) < draws


def test_sampling_laws_hold_for_poisson_and_for_nothing_else(rng: np.random.Generator) -> None:
    def broken(drawn: np.ndarray) -> set[str]:
        return {law.attack for law in sampling_laws(drawn, 0.25) if not law.passed}

    poisson = rng.random((100, 120)) < 0.25
    assert broken(poisson) == set()
    fixed = np.argsort(rng.random((100, 120)), axis=1) < 30
    assert broken(fixed) == {"Poisson sampling, batch sizes vary"}
    epochs = np.concatenate([rng.permutation(120).reshape(4, 30)[:, :, None] == np.arange(120) for _ in range(25)])
    assert "Poisson sampling, units vary" in broken(epochs.any(axis=1))
    assert "Poisson sampling, steps" in broken(np.repeat(poisson[:50], 2, axis=0))
    assert "sample rate" in broken(rng.random((100, 120)) < 0.35)


@pytest.mark.parametrize("claimed", [0.5, 5.8, 50.0])
def test_control_is_judged_at_any_claim(rng: np.random.Generator, claimed: float) -> None:
    """Canaries prove a few epsilons at most: of a larger claim a control must prove what they can."""
    included = rng.random(500) < 0.5
    seen, guessed = Scores(included + 0.1 * rng.random(500), included), Scores(rng.random(500), included)
    caught, blind = (epsilon_finding("x", "no noise", scores, Guarantee(claimed, 1e-3)) for scores in (seen, guessed))
    assert (caught.verdict, blind.verdict) == ("caught", "NOT CAUGHT")
    assert caught.limit == min(claimed, blind.limit) < caught.proven < 2
    claim = epsilon_finding("x", WITH_DP, seen, Guarantee(claimed, 1e-3))
    assert claim.limit == claimed and claim.verdict == ("VIOLATED" if claimed < 1 else "holds")


def test_worst_is_the_one_farthest_out_or_not_a_number() -> None:
    def law(value: float) -> Law:
        return Law("x", "with DP", f"at {value}", value, value, value, 0.9, 1.1)

    assert worst([law(1.0), law(1.2), law(0.5)]).measured == 0.5
    broken = worst([law(1.0), law(float("nan"))])
    assert not broken.passed and len(broken.details["places"]) == 2
