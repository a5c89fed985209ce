"""The round as pure functions: three numbers by hand, what each density does, and who is named where it fails."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from fedhpc.aggregation.screened_mean import ScreenedMean
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.algorithms.fedavg import federate, mean_update, rule_kept, rule_round, site_round
from fedhpc.algorithms.round_types import Participant, RoundConfig, RoundResult
from fedhpc.algorithms.run_state import RESIDUAL, RULE, RunState, fresh_state, under
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.compression.top_k import Layer
from fedhpc.errors import PayloadError
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.transport.base import AloneTransport
from fedhpc.transport.egress_log import Kind
from fedhpc.util.arrays import F32, Array


@dataclass
class Puller:
    """A hospital whose training moves half the way to a target of its own."""

    name: str
    index: int
    target: F32
    budget: int = 1000

    def train(self, params: F32, round: int, regularizer: Regularizer = NOTHING) -> F32:
        return (self.target - params) / 2

    def gradient_weight(self, round: int) -> float:
        return 0.5

    def can_afford(self, round: int) -> bool:
        return round < self.budget


def run(
    sites: Sequence[Participant], terms: RoundConfig, d: int, go_on: int = 1000
) -> tuple[RunState, str, list[RoundResult]]:
    results: list[RoundResult] = []

    def on_round(result: RoundResult) -> bool:
        results.append(result)
        return len(results) < go_on

    start = fresh_state(np.zeros(d, np.float32), [site.name for site in sites], ServerSgd())
    state, stopped = federate(sites, start, terms, AloneTransport(), on_round)
    return state, stopped, results


def terms_of(
    rounds: int,
    up: float | CompressionConfig,
    down: float | CompressionConfig,
    weights: tuple[int, ...],
    seed: int | None = None,
) -> RoundConfig:
    """A density stands for that share of the entries as they are."""
    codings = [coding if isinstance(coding, CompressionConfig) else CompressionConfig(coding) for coding in (up, down)]
    return RoundConfig(rounds, *codings, tuple("abc"[: len(weights)]), weights, seed)


def pullers(d: int = 3) -> list[Puller]:
    return [Puller("a", 0, np.full(d, 4, np.float32)), Puller("b", 1, np.full(d, 8, np.float32))]


def test_one_dense_round_by_hand() -> None:
    """From 0: updates 2 and 4 with weights 1 and 3 give (2 + 12) / 4 = 3.5."""
    state, stopped, results = run(pullers(), terms_of(1, 1, 1, (1, 3)), 3)
    assert state.params.tolist() == [3.5, 3.5, 3.5]
    assert (state.round, stopped) == (1, "finished")
    assert not any(kept[RESIDUAL].any() for kept in results[0].state.sites.values())


def test_dense_rounds_reach_the_weighted_mean_of_the_targets() -> None:
    rng = np.random.default_rng(0)
    sites = [Puller(n, i, rng.normal(size=40).astype(np.float32)) for i, n in enumerate("abc")]
    state, _, _ = run(sites, terms_of(40, 1, 1, (1, 2, 3)), 40)
    expected = np.average([site.target for site in sites], axis=0, weights=(1, 2, 3))
    np.testing.assert_allclose(state.params, expected, atol=1e-5)


@dataclass
class Fixed(Puller):
    """A hospital whose update is always the same."""

    def train(self, params: F32, round: int, regularizer: Regularizer = NOTHING) -> F32:
        return self.target


@pytest.mark.parametrize(
    ("up", "down", "seed"),
    [
        (0.5, 1, None),
        (1, 0.1, None),
        (0.1, 0.1, None),
        (CompressionConfig(0.1, 4), CompressionConfig(0.2, 3), None),
        (CompressionConfig(1, 5), CompressionConfig(1, 4), 1),
        (CompressionConfig(0.1, 4, warm_up_rounds=5), CompressionConfig(0.1, 3, warm_up_rounds=2), 1),
        (CompressionConfig(0.2, 4, (Layer("x", 10), Layer("y", 30)), per_tensor=True), CompressionConfig(1, 16), 1),
    ],
)
def test_nothing_is_lost_on_the_way(
    up: float | CompressionConfig, down: float | CompressionConfig, seed: int | None
) -> None:
    """What all sites trained equals what arrived plus what sites and server still keep (weights equal)."""
    sites = [Fixed(n, i, np.arange(i, i + 40, dtype=np.float32)) for i, n in enumerate("ab")]
    state, _, _ = run(sites, terms_of(7, up, down, (1, 1), seed), 40)
    kept = np.mean([state.sites[name][RESIDUAL] for name in "ab"], axis=0) + state.server[RESIDUAL]
    trained = 7 * np.mean([site.target for site in sites], axis=0)
    np.testing.assert_allclose(state.params + kept, trained, rtol=1e-6)


def random_targets(d: int) -> list[Puller]:
    rng = np.random.default_rng(0)
    return [Puller(name, i, rng.standard_normal(d, np.float32)) for i, name in enumerate("ab")]


def test_warm_up_sends_less_from_round_to_round() -> None:
    coding = CompressionConfig(0.01, warm_up_rounds=3)
    wire, up = Weighing(), []

    def on_round(result: RoundResult) -> bool:
        up.append(wire.up[0])
        return True

    sites = random_targets(10_000)
    start = fresh_state(np.zeros(10_000, np.float32), ["a", "b"], ServerSgd())
    federate(sites, start, terms_of(5, coding, coding, (1, 1)), wire, on_round)
    assert up[0] > 2 * up[1] > 4 * up[2] > 8 * up[3]
    assert up[3] < 1.2 * up[4]


class Weighing(AloneTransport):
    """Notes the length of all that passes."""

    def __init__(self) -> None:
        self.up: list[int] = []
        self.down = 0

    def stream(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> Iterator[bytes]:
        self.up = [len(payload) for payload in payloads]
        return super().stream(payloads, kind, round)

    def broadcast(self, payload: bytes | None, kind: Kind, round: int | None = None) -> bytes:
        if kind == "update":
            self.down = len(payload or b"")
        return super().broadcast(payload, kind, round)


def test_traffic_is_what_passed_and_follows_each_density_by_itself() -> None:
    def traffic(up: float, down: float) -> tuple[int, int]:
        sites, transport, results = random_targets(1000), Weighing(), []
        start = fresh_state(np.zeros(1000, np.float32), [site.name for site in sites], ServerSgd())
        federate(sites, start, terms_of(1, up, down, (1, 1)), transport, lambda result: results.append(result) or True)
        found = results[0].traffic
        assert (found.up_bytes, found.down_bytes) == (tuple(transport.up), transport.down)
        return found.up_bytes[0], found.down_bytes

    dense_up, dense_down = traffic(1, 1)
    assert traffic(0.1, 1)[0] < 0.2 * dense_up
    assert traffic(0.1, 1)[1] > 1.5 * traffic(0.1, 0.1)[1], "twice as many entries as one site sent are not zero"
    assert traffic(1, 0.1)[1] < 0.2 * dense_down
    assert traffic(1, 0.1)[0] == dense_up


@pytest.mark.parametrize("seed", [None, 5])
def test_a_run_goes_on_from_its_memory_with_the_same_bits(seed: int | None) -> None:
    """Rounding errors that were kept are sent after the restart, and the draws are those of the round."""
    terms, sites = terms_of(4, CompressionConfig(0.1, 3), CompressionConfig(0.2, 3), (1, 2), seed), random_targets(500)
    straight, _, _ = run(sites, terms, 500)
    _, _, results = run(sites, terms, 500, go_on=1)
    resumed, _ = federate(sites, results[0].state, terms, AloneTransport(), lambda _: True)
    assert results[0].state.sites["a"][RESIDUAL].any()
    assert resumed.params.tobytes() == straight.params.tobytes()


def test_rounding_is_another_at_each_site_and_round() -> None:
    """The same update at both: what is rounded up at one would otherwise be rounded up at all, and in every round."""
    update = np.random.default_rng(0).standard_normal(300, np.float32)
    sites = [Fixed(name, i, update) for i, name in enumerate("ab")]
    terms, nothing = terms_of(2, CompressionConfig(1, 4), 1, (1, 1), seed=3), np.zeros(300, np.float32)

    def rest(site: Puller, round: int) -> bytes:
        return site_round(site, RunState(round, nothing), {RESIDUAL: nothing}, terms)[1][RESIDUAL].tobytes()

    kept = [rest(site, round) for site in sites for round in (0, 1)]
    assert len(set(kept)) == 4
    assert rest(sites[0], 0) == kept[0]


def test_who_sent_it_is_named_where_a_payload_is_damaged() -> None:
    state, terms = RunState(4, np.zeros(3, np.float32)), terms_of(9, 1, 1, (1, 1))
    payloads = [site_round(site, state, {RESIDUAL: np.zeros(3, np.float32)}, terms)[0] for site in pullers()]
    payloads[1] = payloads[1][:-1]
    with pytest.raises(PayloadError, match="site b: payload of sender 1 in round 5: checksum"):
        mean_update(payloads, state, terms)


@pytest.mark.parametrize("value", [1e38, 3e36, 1.1e6, -2e6])
def test_an_update_of_implausible_size_is_refused_before_it_is_folded(value: float) -> None:
    """3e36 is finite, and so is its mean; the model after it is of no use."""
    state = RunState(4, np.zeros(3, np.float32))
    terms = terms_of(9, CompressionConfig(1, layers=(Layer("conv", 2), Layer("head", 1))), 1, (1, 1))
    sites = [Fixed("a", 0, np.ones(3, np.float32)), Fixed("b", 1, np.array([1, 2, value], np.float32))]
    payloads = [site_round(site, state, {RESIDUAL: np.zeros(3, np.float32)}, terms)[0] for site in sites]
    with pytest.raises(PayloadError, match=r"^site b: round 5: entry 0 of layer head of its update is "):
        mean_update(payloads, state, terms)


def test_site_and_layer_are_named_where_what_is_kept_overflows() -> None:
    site = Fixed("a", 0, np.array([1, 2, 3e38], np.float32))
    terms = terms_of(1, CompressionConfig(1, layers=(Layer("conv", 2), Layer("head", 1))), 1, (1,))
    with pytest.raises(PayloadError, match="site a, round 1: entry 0 of layer head is inf"):
        site_round(site, RunState(0, np.zeros(3, np.float32)), {RESIDUAL: site.target}, terms)


def test_budget_and_preemption_end_the_run() -> None:
    sites = pullers()
    sites[1].budget = 2
    state, stopped, _ = run(sites, terms_of(5, 1, 1, (1, 1)), 3)
    assert (state.round, stopped) == (2, "budget")
    state, stopped, _ = run(pullers(), terms_of(5, 1, 1, (1, 1)), 3, go_on=1)
    assert (state.round, stopped) == (1, "preempted")
    assert run(pullers(), terms_of(1, 1, 1, (1, 1)), 3, go_on=1)[1] == "finished"


def of_rows(array: Array, numbers: Sequence[int]) -> Array:
    """An array with a row for each number, full of it."""
    return np.broadcast_to(np.reshape(numbers, (-1, *(1,) * (array.ndim - 1))), array.shape).astype(array.dtype)


def test_rule_keeps_what_belongs_to_a_site_while_others_are_absent() -> None:
    """Rows are of declared sites: whoever is absent, a present site finds its own, and an absent one's stay."""
    coding, rule, rows = CompressionConfig(1.0), ScreenedMean(), (0, 2, 3, 4)
    terms = RoundConfig(3, coding, coding, ("a", "c", "d", "e"), (1,) * 4, aggregation=rule, rows=rows)
    before = {name: of_rows(array, range(5)) for name, array in rule.initial(2, 5).items()}
    state = RunState(0, np.zeros(2, np.float32), server=under(RULE, before))
    seen = rule_round(state, terms).kept
    for array in seen.values():
        np.testing.assert_array_equal(array, of_rows(array, rows))
    for array in rule_kept({name: array + 10 for name, array in seen.items()}, state, terms).values():
        np.testing.assert_array_equal(array, of_rows(array, (10, 1, 12, 13, 14)))
