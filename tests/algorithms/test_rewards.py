"""Rewards: who contributes most gets the whole step, a free rider less; every site keeps a model of its own."""

from dataclasses import dataclass

import numpy as np
import pytest

from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.rewards import CONTRIBUTIONS, Rewards, shares, with_rewards
from fedhpc.algorithms.round_types import RoundConfig, RoundResult
from fedhpc.algorithms.run_state import RECEIVED, RunState, fresh_state
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.transport.base import AloneTransport
from fedhpc.util.arrays import F32

SITES, D, ROUNDS = ("a", "b", "rider"), 400, 12
TARGET = np.random.default_rng(0).standard_normal(D, np.float32)


@dataclass
class Site:
    """Steps in a direction that it sees with more or less noise; a free rider sends noise alone."""

    name: str
    index: int
    noise: float
    signal: float = 1.0

    def train(self, params: F32, round: int, regularizer: Regularizer = NOTHING) -> F32:
        drawn = np.random.default_rng((self.index, round)).standard_normal(D, np.float32)
        return self.signal * TARGET + np.float32(self.noise) * drawn

    def gradient_weight(self, round: int) -> float:
        return 1.0

    def can_afford(self, round: int) -> bool:
        return True


def hospitals() -> list[Site]:
    return [Site("a", 0, 0.1), Site("b", 1, 0.5, signal=0.5), Site("rider", 2, 0.5, signal=0.0)]


def terms(altruism: float | None) -> RoundConfig:
    exact = CompressionConfig(1.0)
    rewards = None if altruism is None else Rewards(altruism, 0.5, SITES, SITES, ("away", *SITES))
    return RoundConfig(ROUNDS, exact, exact, SITES, (1, 1, 1), rewards=rewards)


def start() -> RunState:
    """One declared site is away."""
    return with_rewards(fresh_state(np.zeros(D, np.float32), SITES, ServerSgd()), 1 + len(SITES))


def run(altruism: float, state: RunState | None = None, rounds: int = ROUNDS) -> tuple[RunState, list[RoundResult]]:
    results: list[RoundResult] = []

    def on_round(result: RoundResult) -> bool:
        results.append(result)
        return result.state.round < rounds

    return federate(hospitals(), state or start(), terms(altruism), AloneTransport(), on_round)[0], results


def distance(state: RunState, site: str) -> float:
    """Of a site's model from the global one."""
    return float(np.linalg.norm(state.sites[site][RECEIVED] - state.params))


def test_largest_contributor_gets_the_whole_model() -> None:
    """Bit for bit that of rank 0; the others have less of it, the free rider the least, and nothing stops the run."""
    state, results = run(altruism=1.0)
    assert state.sites["a"][RECEIVED].tobytes() == state.params.tobytes()
    assert 0 == distance(state, "a") < distance(state, "b") < distance(state, "rider")
    sent = np.sum([result.traffic.down_by_site for result in results if result.traffic], axis=0)
    assert sent[0] > sent[1] > sent[2]
    assert state.server[CONTRIBUTIONS].argmax() == 1


def test_altruism_makes_rewards_equal() -> None:
    gaps = [distance(run(altruism)[0], "b") for altruism in (1.0, 20.0)]
    assert gaps[1] < 0.1 * gaps[0]


def test_rewarded_run_goes_on_bit_by_bit() -> None:
    """From its state alone, as it is saved."""
    whole, half = run(1.0)[0], run(1.0, rounds=5)[0]
    again = run(1.0, RunState(half.round, half.params, half.public, half.server, half.sites))[0]
    assert again.params.tobytes() == whole.params.tobytes()
    for name in SITES:
        assert again.sites[name][RECEIVED].tobytes() == whole.sites[name][RECEIVED].tobytes()
    assert again.server[CONTRIBUTIONS].tobytes() == whole.server[CONTRIBUTIONS].tobytes()


def test_contributions_are_the_papers_running_cosines() -> None:
    """One round from zeros: (1 - alpha) cos(u_i, mean of the u_j), not below 0."""
    state, _ = run(1.0, rounds=1)
    updates = np.stack([site.train(np.zeros(D, np.float32), 0) for site in hospitals()]).astype(np.float64)
    mean = updates.mean(axis=0)
    cosines = updates @ mean / np.linalg.norm(updates, axis=1) / np.linalg.norm(mean)
    assert state.server[CONTRIBUTIONS] == pytest.approx([0, *np.maximum(0.5 * cosines, 0)], rel=1e-4)


def test_shares_are_the_papers() -> None:
    found = shares(np.array([0.2, 0.8, 0.0]), altruism=2.0)
    assert found == pytest.approx(np.tanh([0.4, 1.6, 0.0]) / np.tanh(1.6))


def test_without_rewards_nothing_is_kept_or_changed() -> None:
    plain = fresh_state(np.zeros(D, np.float32), SITES, ServerSgd())
    state, _ = federate(hospitals(), plain, terms(None), AloneTransport(), lambda result: True)
    assert all(RECEIVED not in kept for kept in state.sites.values())
