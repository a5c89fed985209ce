"""The robust rules: each against a direct implementation or brute force, and the laws that all of them keep."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import minimize

from fedhpc.aggregation.base import Aggregated, AggregationRule, RuleRound
from fedhpc.aggregation.centred_clipping import CentredClipping
from fedhpc.aggregation.coordinate_median import CoordinateMedian
from fedhpc.aggregation.geometric_median import GeometricMedian
from fedhpc.aggregation.krum import Krum, MultiKrum
from fedhpc.aggregation.minimum_diameter import MinimumDiameter
from fedhpc.aggregation.robust import RobustRule
from fedhpc.aggregation.screened_mean import ScreenedMean
from fedhpc.aggregation.trimmed_mean import TrimmedMean
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.round_types import RoundResult
from fedhpc.algorithms.run_state import RunState, fresh_state
from fedhpc.compression.update import SparseVector, pack_arrays, unpack_arrays
from fedhpc.transport.base import AloneTransport
from fedhpc.util.arrays import F32, F64
from tests.algorithms.test_fedavg import Puller, terms_of

D = 12
RULES: list[RobustRule] = [
    CoordinateMedian(),
    TrimmedMean(),
    GeometricMedian(),
    Krum(),
    MultiKrum(),
    MinimumDiameter(),
    CentredClipping(),
]
MIXED = [rule.model_copy(update={"mixing": True}) for rule in RULES]
NAMES = [rule.rule + " mixed" * rule.mixing for rule in RULES + MIXED]


def draw(n: int = 7, seed: int = 0) -> F32:
    """Updates of n sites that differ in size."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, D)) * np.linspace(1, 2, n)[:, None] + 3).astype(np.float32)


def apply(rule: AggregationRule, updates: F32, center: F32 | None = None) -> Aggregated:
    """One round; the state of a rule that has one is `center`."""
    kept = {"center": np.zeros(D, np.float32) if center is None else center}
    aggregator = rule.aggregator(RuleRound(D, kept=kept))
    for site, update in enumerate(updates):
        aggregator.add(site, SparseVector(D, np.arange(D), update), weight=site + 1)
    return aggregator.aggregated()


def result(rule: AggregationRule, updates: F32, center: F32 | None = None) -> F32:
    return apply(rule, updates, center).update


def trimmed(rows: F64, f: int) -> list[float]:
    return [float(np.mean(sorted(column)[f : len(column) - f])) for column in rows.T]


def krum_order(rows: F64, f: int) -> list[int]:
    """Blanchard et al. 2017: by the sum of squared distances to the n - f - 2 closest others."""
    scores = []
    for i, row in enumerate(rows):
        others = sorted(float(((row - other) ** 2).sum()) for j, other in enumerate(rows) if j != i)
        scores.append(sum(others[: len(rows) - f - 2]))
    return sorted(range(len(rows)), key=scores.__getitem__)


def diameter_mean(rows: F64, f: int) -> F64:
    def diameter(subset: tuple[int, ...]) -> float:
        return max((float(np.linalg.norm(rows[i] - rows[j])) for i in subset for j in subset), default=0)

    best = min(itertools.combinations(range(len(rows)), len(rows) - f), key=diameter)
    return rows[list(best)].mean(axis=0)


def neighbours(rows: F64, f: int) -> F64:
    """Allouah et al. 2023, Algorithm 2."""
    out = []
    for row in rows:
        order = sorted(range(len(rows)), key=lambda j: float(np.linalg.norm(row - rows[j])))
        out.append(np.mean([rows[j] for j in order[: len(rows) - f]], axis=0))
    return np.array(out)


DIRECT: list[tuple[RobustRule, Callable[[F64], object]]] = [
    (CoordinateMedian(faulty_sites=3), lambda rows: [sorted(column)[3] for column in rows.T]),
    (TrimmedMean(faulty_sites=2), lambda rows: trimmed(rows, 2)),
    (Krum(faulty_sites=2), lambda rows: rows[krum_order(rows, 2)[0]]),
    (MultiKrum(faulty_sites=2), lambda rows: rows[krum_order(rows, 2)[:3]].mean(axis=0)),
    (MultiKrum(faulty_sites=1, selected=2), lambda rows: rows[krum_order(rows, 1)[:2]].mean(axis=0)),
    (MinimumDiameter(faulty_sites=2), lambda rows: diameter_mean(rows, 2)),
    (TrimmedMean(faulty_sites=2, mixing=True), lambda rows: trimmed(neighbours(rows, 2), 2)),
]


@pytest.mark.parametrize(("rule", "direct"), DIRECT, ids=lambda value: getattr(value, "rule", ""))
def test_rule_equals_its_definition(rule: RobustRule, direct: Callable[[F64], object]) -> None:
    for seed in range(3):
        updates = draw(seed=seed)
        np.testing.assert_allclose(result(rule, updates), direct(updates.astype(np.float64)), rtol=1e-5)


def test_geometric_median_minimises_distances() -> None:
    for seed in range(3):
        rows = draw(seed=seed).astype(np.float64)

        def cost(point: F64, rows: F64 = rows) -> float:
            return float(np.linalg.norm(rows - point, axis=1).sum())

        found = result(GeometricMedian(iterations=1000), draw(seed=seed)).astype(np.float64)
        assert cost(found) <= minimize(cost, rows.mean(axis=0), method="BFGS").fun * (1 + 1e-6)


def test_centred_clipping_follows_its_equation() -> None:
    """Karimireddy et al. 2021, equation 4, over two rounds with the center kept between them."""
    rule, center = CentredClipping(radius=2.0, iterations=2), np.zeros(D)
    kept: F32 | None = None
    for seed in range(2):
        rows = draw(seed=seed).astype(np.float64)
        for _ in range(2):
            moves = [(row - center) * min(1.0, 2.0 / float(np.linalg.norm(row - center))) for row in rows]
            center = center + sum(moves) / len(rows)
        found = apply(rule, draw(seed=seed), kept)
        kept = found.kept["center"].astype(np.float32)
        np.testing.assert_allclose(found.update, center, rtol=1e-5)


@pytest.mark.parametrize("rule", RULES + MIXED, ids=NAMES)
def test_order_of_sites_does_not_matter(rule: RobustRule) -> None:
    updates = draw()
    for seed in range(3):
        shuffled = np.random.default_rng(seed).permutation(updates)
        np.testing.assert_allclose(result(rule, shuffled), result(rule, updates), rtol=1e-5)


@pytest.mark.parametrize("rule", RULES + MIXED, ids=NAMES)
def test_shift_of_all_shifts_the_result(rule: RobustRule) -> None:
    shift = np.random.default_rng(5).normal(size=D).astype(np.float32) * 10
    moved = result(rule, draw() + shift, center=shift)
    np.testing.assert_allclose(moved, result(rule, draw()) + shift, atol=1e-4)


@pytest.mark.parametrize("rule", RULES + MIXED, ids=NAMES)
def test_equal_updates_give_that_update(rule: RobustRule) -> None:
    one = draw()[0]
    np.testing.assert_allclose(result(rule, np.tile(one, (7, 1))), one, rtol=1e-5)


@pytest.mark.parametrize("rule", [TrimmedMean(faulty_sites=0), MinimumDiameter(faulty_sites=0)], ids=lambda r: r.rule)
@pytest.mark.parametrize("mixing", [False, True])
def test_no_faulty_site_gives_the_mean(rule: RobustRule, mixing: bool) -> None:
    updates = draw()
    found = result(rule.model_copy(update={"mixing": mixing}), updates)
    np.testing.assert_allclose(found, updates.mean(axis=0), rtol=1e-5)


@pytest.mark.parametrize("rule", RULES + MIXED, ids=NAMES)
@pytest.mark.parametrize("size", [1e3, 1e6])
def test_outliers_move_the_result_little(rule: RobustRule, size: float) -> None:
    """Two of seven updates far away, by any length: the result stays within the spread of the five honest ones."""
    rule = rule.model_copy(update={"faulty_sites": 2})
    honest, updates = draw()[:5], draw()
    mean = honest.mean(axis=0)
    spread = float(np.linalg.norm(honest - mean, axis=1).max())
    rng = np.random.default_rng(9)
    for far in (rng.normal(size=(2, D)), np.ones((2, D)), -np.ones((2, D))):
        updates[5:] = size * far
        assert np.linalg.norm(result(rule, updates, center=mean) - mean) < 2 * spread


REFUSED: list[tuple[RobustRule, int, float, str]] = [
    (CoordinateMedian(faulty_sites=2), 4, 1, "faulty_sites=2"),
    (TrimmedMean(faulty_sites=2), 4, 1, "1 or less"),
    (GeometricMedian(faulty_sites=2), 4, 1, "faulty_sites"),
    (CentredClipping(faulty_sites=2), 4, 1, "faulty_sites"),
    (MinimumDiameter(faulty_sites=2), 4, 1, "faulty_sites"),
    (MinimumDiameter(faulty_sites=14), 30, 1, "subsets"),
    (Krum(), 4, 1, "5 sites"),
    (Krum(), 4, 1, "there are 4. Set it to 0"),
    (MultiKrum(), 4, 1, "5 sites"),
    (MultiKrum(selected=3), 5, 1, "selected=3"),
    (CoordinateMedian(), 4, 0.1, "exchange.density=0.1"),
    (TrimmedMean(), 4, 0.5, "exchange.density=0.5"),
]


@pytest.mark.parametrize(("rule", "sites", "density", "named"), REFUSED, ids=lambda value: getattr(value, "rule", ""))
def test_broken_assumption_is_named(rule: RobustRule, sites: int, density: float, named: str) -> None:
    assert named in rule.problem(sites, density)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.rule)
def test_kept_assumption_is_allowed(rule: RobustRule) -> None:
    assert rule.problem(5, 1.0) == ""
    assert "weights (3, 2, 2, 1, 1) are ignored" in rule.notice((3, 2, 2, 1, 1))


def test_too_few_updates_are_refused_in_the_round() -> None:
    with pytest.raises(ValueError, match="5 sites"):
        result(Krum(), draw(4))


@pytest.mark.parametrize("rule", [CentredClipping(), ScreenedMean()], ids=lambda rule: rule.rule)
def test_state_of_a_rule_survives_a_resume(rule: AggregationRule) -> None:
    """Through the bytes of a checkpoint: the same bits as a run that was not stopped."""
    sites = [Puller(name, i, update) for i, (name, update) in enumerate(zip("abcd", draw(4), strict=True))]
    terms = replace(terms_of(6, 1, 1, (1, 2, 3, 4)), sites=tuple("abcd"), aggregation=rule)

    def run(start: RunState, stop_after: int = 6) -> RunState:
        done: list[RoundResult] = []
        return federate(sites, start, terms, AloneTransport(), lambda r: not done.append(r) and len(done) < stop_after)[
            0
        ]

    fresh = fresh_state(np.zeros(D, np.float32), "abcd", terms.server, rule=rule.initial(D, 4))
    half = run(fresh, stop_after=3)
    assert any(half.server[f"rule.{name}"].any() for name in rule.initial(D, 4))
    resumed = run(replace(half, server=unpack_arrays(pack_arrays(half.server))))
    whole = run(fresh)
    assert resumed.params.tobytes() == whole.params.tobytes()
    assert all(resumed.server[name].tobytes() == whole.server[name].tobytes() for name in whole.server)
