"""The attacks of stress tests: each by its definition, and what the round makes of sites that send no update."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from fedhpc.aggregation.attacks import ATTACKS, STRENGTHS, Scene
from fedhpc.aggregation.base import AggregationRule, RuleRound
from fedhpc.aggregation.coordinate_median import CoordinateMedian
from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.minimum_diameter import MinimumDiameter
from fedhpc.aggregation.trimmed_mean import TrimmedMean
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.hostile_sites import HostileSites
from fedhpc.algorithms.round_types import RoundResult
from fedhpc.algorithms.run_state import fresh_state
from fedhpc.compression.update import SparseVector
from fedhpc.config.stress import STRENGTH, UPDATE_CASES
from fedhpc.errors import PayloadError
from fedhpc.transport.base import AloneTransport
from fedhpc.util.arrays import F32
from tests.algorithms.test_fedavg import Puller, terms_of

D = 50
HONEST = (np.random.default_rng(0).normal(size=(3, D)) + 2).astype(np.float32)
OWN = (np.random.default_rng(1).normal(size=D) + 2).astype(np.float32)
MEAN, DEVIATION = HONEST.mean(axis=0), HONEST.std(axis=0, ddof=1)


def scene(strength: float, rule: AggregationRule) -> Scene:
    def result(update: F32) -> F32:
        aggregator = rule.aggregator(RuleRound(D))
        for site, vector in enumerate([update, *HONEST]):
            aggregator.add(site, SparseVector(D, np.arange(D), vector), 1)
        return aggregator.result()

    return Scene(OWN, HONEST, strength, np.random.default_rng(2), result)


DIRECT: list[tuple[str, float, F32]] = [
    ("sign_flip", 1, -OWN),
    ("scaled", 10, 10 * OWN),
    ("inner_product", 2, -2 * MEAN),
    ("alie", 1.5, MEAN - 1.5 * DEVIATION),
    ("mimic", 1, HONEST[0]),
]


@pytest.mark.parametrize(
    ("case", "strength", "expected"), DIRECT, ids=lambda value: value if isinstance(value, str) else ""
)
def test_attack_equals_its_definition(case: str, strength: float, expected: F32) -> None:
    np.testing.assert_allclose(ATTACKS[case](scene(strength, Mean())), expected, rtol=1e-5)


def test_gaussian_attack_has_its_length() -> None:
    noise = ATTACKS["gaussian"](scene(10, Mean()))
    # chi with 50 degrees of freedom: half or twice its mean has a chance below 1e-6.
    assert 0.5 < np.linalg.norm(noise) / (10 * np.linalg.norm(OWN)) < 2


@pytest.mark.parametrize("case", ["inner_product", "alie"])
@pytest.mark.parametrize("rule", [Mean(), CoordinateMedian(), MinimumDiameter()], ids=lambda rule: rule.rule)
def test_optimal_attack_harms_most(case: str, rule: AggregationRule) -> None:
    harm = {s: np.linalg.norm(scene(s, rule).result(ATTACKS[case](scene(s, rule))) - MEAN) for s in STRENGTHS}
    found = scene(1, rule).result(ATTACKS[f"{case}_optimal"](scene(1, rule)))
    np.testing.assert_allclose(np.linalg.norm(found - MEAN), max(harm.values()), rtol=1e-6)


def run(
    case: str, rule: AggregationRule, hostile: tuple[int, ...] = (1,), rounds: int = 3, before: int = 0
) -> list[RoundResult]:
    """Rounds of four sites that pull to (1, ..., 1) and a little more each."""
    sites = [Puller(name, i, np.full(D, 1 + i / 10, np.float32)) for i, name in enumerate("abcd")]
    terms = replace(terms_of(rounds, 1, 1, (1, 1, 1, 1)), sites=tuple("abcd"), aggregation=rule)
    stress = HostileSites(case, frozenset(hostile), STRENGTH.get(case, 1.0), seed=0, rounds_before=before)
    results: list[RoundResult] = []

    def on_round(result: RoundResult) -> bool:
        results.append(result)
        return True

    start = fresh_state(np.zeros(D, np.float32), "abcd", terms.server)
    federate(sites, start, replace(terms, stress=stress), AloneTransport(), on_round)
    return results


NO_UPDATE = ("nan", "wrong_length", "replayed")


@pytest.mark.parametrize("case", NO_UPDATE)
def test_mean_refuses_what_is_no_update(case: str) -> None:
    with pytest.raises(PayloadError, match="site b"):
        run(case, Mean())


@pytest.mark.parametrize("case", NO_UPDATE)
def test_robust_rule_goes_on_and_names_the_site(case: str) -> None:
    last = run(case, TrimmedMean())[-1]
    assert [(flag.site, flag.reason, flag.excluded) for flag in last.flags] == [("b", "payload", True)]
    assert (last.state.params > 0.5).all()


@pytest.mark.parametrize("case", [case for case in UPDATE_CASES if case not in NO_UPDATE])
def test_trimmed_mean_withstands_one_hostile_site(case: str) -> None:
    params = run(case, TrimmedMean(), rounds=8)[-1].state.params
    assert (abs(params - 1.15) < 0.25).all()


def test_colluding_sites_send_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[F32] = []
    attack: Callable[[Scene], F32] = ATTACKS["alie"]
    monkeypatch.setitem(ATTACKS, "alie", lambda scene: sent.append(attack(scene)) or sent[-1])
    run("alie", Mean(), hostile=(1, 3), rounds=1)
    assert len(sent) == 2 and (sent[0] == sent[1]).all()


def test_site_that_turns_late_behaves_before() -> None:
    honest, late = run("clean", Mean(), hostile=()), run("scaled", Mean(), before=2)
    same = [np.array_equal(a.state.params, b.state.params) for a, b in zip(honest, late, strict=True)]
    assert same == [True, True, False]
