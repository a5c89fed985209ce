"""Values of sites: Shapley's axioms, models of coalitions, cosines, and what cannot be told apart."""

import itertools
import math

import numpy as np
import pytest

from fedhpc.aggregation.contribution import (
    History,
    coalition_models,
    cosine_utility,
    cosine_values,
    leave_one_out,
    members,
    rebuilt,
    same_updates,
    shapley,
    uncertain,
)
from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.util.arrays import F64


def by_permutations(utility: F64, sites: int) -> list[float]:
    """Shapley 1953 as it is defined: the mean gain over all orders in which the sites may come."""
    gains = np.zeros(sites)
    for order in itertools.permutations(range(sites)):
        coalition = 0
        for site in order:
            gains[site] += utility[coalition | 1 << site] - utility[coalition]
            coalition |= 1 << site
    return list(gains / math.factorial(sites))


@pytest.mark.parametrize("sites", [1, 2, 4])
def test_shapley_is_the_mean_over_all_orders(sites: int) -> None:
    utility = np.random.default_rng(0).normal(size=2**sites)
    assert shapley(utility) == pytest.approx(by_permutations(utility, sites))


def test_shapley_obeys_its_axioms() -> None:
    """Efficiency; a site that changes nothing has 0; two that are alike have the same; values are linear."""
    rng = np.random.default_rng(1)
    utility = rng.normal(size=(16, 3))
    assert shapley(utility).sum(axis=0) == pytest.approx(utility[-1] - utility[0])
    null = np.concatenate([utility[:8], utility[:8]])
    assert shapley(null)[3] == pytest.approx(0)
    sizes = np.array([bin(c).count("1") for c in range(16)], np.float64)
    assert np.ptp(shapley(np.sqrt(sizes))) < 1e-12
    assert shapley(2 * utility + null) == pytest.approx(2 * shapley(utility) + shapley(null))


def test_leave_one_out_is_the_last_gain() -> None:
    utility = np.random.default_rng(2).normal(size=8)
    assert leave_one_out(utility) == pytest.approx([utility[7] - utility[c] for c in (0b110, 0b101, 0b011)])


def history(**changes: object) -> History:
    """Three rounds of three sites of weights 1, 2, 3, in float32."""
    rng = np.random.default_rng(3)
    made = {
        "start": rng.normal(size=5).astype(np.float32),
        "updates": rng.normal(size=(3, 3, 5)).astype(np.float32),
        "present": np.ones((3, 3), bool),
        "weights": (1, 2, 3),
        "rule": Mean(),
        "server": ServerSgd(),
    }
    return History(**{**made, **changes})  # type: ignore[arg-type]


def test_model_of_a_coalition_is_its_weighted_mean() -> None:
    one = history()
    for coalition in range(1, 8):
        inside = list(members(coalition, 3))
        steps = np.average(one.updates[:, inside], axis=1, weights=np.array(one.weights)[inside])
        np.testing.assert_allclose(rebuilt(one, coalition), one.start + steps.sum(axis=0), rtol=1e-5, atol=1e-6)
    assert rebuilt(one, 0).tolist() == one.start.tolist()


def test_site_that_was_absent_is_left_out_of_the_round() -> None:
    present = np.ones((3, 3), bool)
    present[1, 2] = False
    one = history(present=present)
    steps = one.updates[0, 2] + one.updates[2, 2]
    np.testing.assert_allclose(rebuilt(one, 0b100), one.start + steps, rtol=1e-5, atol=1e-6)


def test_result_may_be_the_mean_of_the_last_models() -> None:
    one = history(average_last=0.6)
    models = one.start + np.cumsum(np.average(one.updates, axis=1, weights=one.weights), axis=0)
    np.testing.assert_allclose(coalition_models(one)[-1], models[-2:].mean(axis=0), rtol=1e-5, atol=1e-6)


def test_too_many_sites_are_refused() -> None:
    with pytest.raises(ValueError, match="11 sites have 2048 coalitions"):
        coalition_models(history(weights=(1,) * 11))


def test_cosines_are_those_of_the_paper() -> None:
    one = history()
    mean = np.average(one.updates, axis=1, weights=one.weights)

    def cosine(a: F64, b: F64) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    expected = [np.mean([cosine(one.updates[t, i], mean[t]) for t in range(3)]) for i in range(3)]
    assert cosine_values(one) == pytest.approx(expected, rel=1e-5)
    utility = cosine_utility(one)
    assert (utility[0], utility[7]) == (0, pytest.approx(1))
    assert utility[0b100] == pytest.approx(expected[2], rel=1e-5)


def test_copies_are_found_and_zeros_are_not() -> None:
    updates = history().updates.copy()
    updates[2, 1] = updates[2, 0]
    updates[0, 1:] = 0
    assert same_updates(history(updates=updates)) == [frozenset({0, 1})]


def test_noise_is_added_to_what_was_sent() -> None:
    updates = np.zeros((1, 2, 20_000), np.float32)
    updates[0, 0] = 1
    one = history(updates=updates, present=np.ones((1, 2), bool), weights=(1, 1), start=np.zeros(20_000, np.float32))
    noisy = one.with_noise(np.array([[0.5, 3.0]]), np.random.default_rng(0)).updates
    assert noisy[0, 0].std() == pytest.approx(0.5, rel=0.05)
    assert not noisy[0, 1].any()


def test_sites_are_apart_where_the_interval_of_their_difference_is() -> None:
    """Two values that move together are apart though their own intervals overlap."""
    rng = np.random.default_rng(0)
    common = rng.normal(0, 1, 4000)
    draws = np.stack([common, common + rng.normal(0, 0.01, 4000), rng.normal(0, 1, 4000)], axis=1)
    found = uncertain(np.array([1.0, 1.2, 1.1]), draws, np.empty((0, 3)))
    assert found.apart(0, 1) and not found.apart(0, 2)
    assert found.ranks() == [(2, 3), (1, 2), (1, 3)]
    low, high = found.interval(2)
    assert (low, high) == (pytest.approx(1.1 - 1.96, abs=0.1), pytest.approx(1.1 + 1.96, abs=0.1))


def test_variances_over_patients_and_noise_add() -> None:
    rng = np.random.default_rng(0)
    draws = [rng.normal(0, sd, (4000, 2)) for sd in (3.0, 4.0)]
    found = uncertain(np.zeros(2), *draws)
    assert np.sqrt(np.diag(found.covariance)) == pytest.approx([5, 5], rel=0.1)
    assert (found.patients[0], found.noise[0]) == (pytest.approx(3, rel=0.1), pytest.approx(4, rel=0.1))
