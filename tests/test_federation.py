"""The round as pure functions: three numbers by hand, and what each density does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from fedhpc.exchange.comm import AloneTransport
from fedhpc.exchange.update import F32
from fedhpc.federation import GlobalState, Participant, RoundResult, Terms, federate, fresh_memory, placement


@dataclass
class Puller:
    """A hospital whose training moves half the way to a target of its own."""

    name: str
    index: int
    target: F32
    budget: int = 1000

    def train(self, params: F32, round: int) -> F32:
        return (self.target - params) / 2

    def can_afford(self, round: int) -> bool:
        return round < self.budget


def run(
    sites: Sequence[Participant], terms: Terms, d: int, go_on: int = 1000
) -> tuple[GlobalState, str, list[RoundResult]]:
    results: list[RoundResult] = []

    def on_round(result: RoundResult) -> bool:
        results.append(result)
        return len(results) < go_on

    start = (GlobalState(0, np.zeros(d, np.float32)), fresh_memory(sites, d))
    state, stopped = federate(sites, start, terms, AloneTransport(), on_round)
    return state, stopped, results


def pullers(d: int = 3) -> list[Puller]:
    return [Puller("a", 0, np.full(d, 4, np.float32)), Puller("b", 1, np.full(d, 8, np.float32))]


def test_one_dense_round_by_hand() -> None:
    """From 0: updates 2 and 4 with weights 1 and 3 give (2 + 12) / 4 = 3.5."""
    state, stopped, results = run(pullers(), Terms(1, 1, 1, (1, 3)), 3)
    assert state.params.tolist() == [3.5, 3.5, 3.5]
    assert (state.round, stopped) == (1, "finished")
    assert not any(residual.any() for residual in results[0].residuals.values())


def test_dense_rounds_reach_the_weighted_mean_of_the_targets() -> None:
    rng = np.random.default_rng(0)
    sites = [Puller(n, i, rng.normal(size=40).astype(np.float32)) for i, n in enumerate("abc")]
    state, _, _ = run(sites, Terms(40, 1, 1, (1, 2, 3)), 40)
    expected = np.average([site.target for site in sites], axis=0, weights=(1, 2, 3))
    np.testing.assert_allclose(state.params, expected, atol=1e-5)


@pytest.mark.parametrize(("up", "down"), [(0.5, 1), (1, 0.1), (0.1, 0.1)])
def test_nothing_is_lost_on_the_way(up: float, down: float) -> None:
    """What all sites trained equals what arrived plus what sites and server still keep (weights equal)."""

    @dataclass
    class Fixed(Puller):
        def train(self, params: F32, round: int) -> F32:
            return self.target

    sites = [Fixed(n, i, np.arange(i, i + 40, dtype=np.float32)) for i, n in enumerate("ab")]
    state, _, results = run(sites, Terms(7, up, down, (1, 1)), 40)
    kept = np.mean([results[-1].residuals[name] for name in "ab"], axis=0) + results[-1].server_residual
    trained = 7 * np.mean([site.target for site in sites], axis=0)
    np.testing.assert_allclose(state.params + kept, trained, rtol=1e-6)


def test_bytes_follow_each_density_by_itself() -> None:
    def traffic(up: float, down: float) -> tuple[int, int]:
        found = run(pullers(1000), Terms(1, up, down, (1, 1)), 1000)[2][0].traffic
        assert found is not None
        return found.up_bytes[0], found.down_bytes

    dense_up, dense_down = traffic(1, 1)
    assert traffic(0.1, 1)[0] < 0.2 * dense_up
    assert traffic(0.1, 1)[1] == dense_down
    assert traffic(1, 0.1)[1] < 0.2 * dense_down
    assert traffic(1, 0.1)[0] == dense_up


def test_budget_and_preemption_end_the_run() -> None:
    sites = pullers()
    sites[1].budget = 2
    state, stopped, _ = run(sites, Terms(5, 1, 1, (1, 1)), 3)
    assert (state.round, stopped) == (2, "budget")
    state, stopped, _ = run(pullers(), Terms(5, 1, 1, (1, 1)), 3, go_on=1)
    assert (state.round, stopped) == (1, "preempted")
    assert run(pullers(), Terms(1, 1, 1, (1, 1)), 3, go_on=1)[1] == "finished"


@pytest.mark.parametrize("sites", [1, 4, 64])
@pytest.mark.parametrize("ranks", [1, 3, 4])
@pytest.mark.parametrize("dedicated", [False, True])
def test_every_site_has_one_rank_in_order(sites: int, ranks: int, dedicated: bool) -> None:
    blocks = placement(sites, ranks, dedicated)
    assert len(blocks) == ranks
    assert [index for block in blocks for index in block] == list(range(sites))
    used = [len(block) for block in blocks[int(dedicated and ranks > 1) :]]
    assert max(used) - min(used) <= 1
