"""Epsilon against an independent library and against published values, over a grid of noise, rate and steps."""

import logging
import warnings
from typing import Any

import numpy as np
import pytest
from dp_accounting import ComposedDpEvent, DpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant
from hypothesis import given
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant, RDPAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedhpc.errors import PrivacyError
from fedhpc.privacy import accountant, prv, skellam
from fedhpc.privacy.accountant import (
    CALIBRATION_SLACK,
    Charge,
    Mechanism,
    bounds_of,
    calibrate_gaussian,
    epsilon_of,
    gaussian_bounds,
)
from fedhpc.privacy.analytic_gaussian import exact_epsilon
from fedhpc.privacy.prv import PRV_ERROR, RDP_ORDERS
from fedhpc.privacy.rdp import History, Steps, composed_rdp, epsilon_from_rdp

GRID = [
    Steps(0.8, 0.01, 500),
    Steps(1.1, 256 / 60000, 14062),
    Steps(4.0, 0.01, 10000),
    Steps(1.0, 0.05, 100),
    Steps(4.7, 0.05, 600),
    Steps(3.73, 1.0, 1),
    Steps(20.4, 1.0, 30),
]


def event(history: History) -> DpEvent:
    def step(sigma: float, q: float) -> DpEvent:
        return GaussianDpEvent(sigma) if q == 1 else PoissonSampledDpEvent(q, GaussianDpEvent(sigma))

    return ComposedDpEvent([SelfComposedDpEvent(step(sigma, q), steps) for sigma, q, steps in history])


def by_google(history: History, accountant: PLDAccountant | RdpAccountant) -> float:
    logging.getLogger("absl").setLevel(logging.ERROR)
    accountant.compose(event(history))
    return float(accountant.get_epsilon(1e-5))


@pytest.mark.parametrize("delta", [1e-9, 1e-5, 0.5])
def test_rdp_equals_opacus_bitwise(delta: float) -> None:
    """Also where the best order is the first or the last, of which Opacus warns: the bound holds there too."""
    for history in (*((step,) for step in GRID), (Steps(0.05, 1.0, 1),), (Steps(1e4, 1.0, 1),), tuple(GRID)):
        theirs = RDPAccountant()
        theirs.history = list(history)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Optimal order is the")
            expected = theirs.get_epsilon(delta)
        assert epsilon_from_rdp(composed_rdp(history, RDP_ORDERS), RDP_ORDERS, delta) == max(0.0, expected)
    assert list(RDP_ORDERS) == RDPAccountant.DEFAULT_ALPHAS


@pytest.mark.parametrize("delta", [1e-9, 1e-5])
def test_prv_equals_opacus_bitwise(delta: float) -> None:
    """Its domain is computed from memoised RDP here, and nothing else differs."""
    histories = [*((step,) for step in GRID), (Steps(0.9, 0.01, 200), Steps(2.0, 0.1, 50), Steps(12.0, 1.0, 5))]
    for history in histories:
        ours, theirs = prv.prv_accountant_class()(), PRVAccountant()
        ours.history = theirs.history = list(history)
        words = {"delta": delta, "eps_error": 0.05}
        with warnings.catch_warnings(), np.errstate(divide="ignore"):
            warnings.filterwarnings("ignore", message="Optimal order is the")
            assert ours.get_epsilon(**words) == theirs.get_epsilon(**words), history


@pytest.mark.parametrize("step", GRID, ids=str)
def test_both_bounds_agree_with_googles(step: Steps) -> None:
    """PRV is never below the privacy loss distribution, and above it by its stated error; RDP is the same number."""
    bounds = gaussian_bounds((step,), 1e-5)
    pld = by_google((step,), PLDAccountant(value_discretization_interval=1e-3))
    assert bounds.prv is not None
    # Both discretise: Google's upwards by up to an interval a step, Opacus's within PRV_ERROR.
    assert pld - 0.015 <= bounds.prv <= pld + 2 * PRV_ERROR * max(1, bounds.rdp)
    assert bounds.rdp == pytest.approx(by_google((step,), RdpAccountant()), rel=2e-3)
    assert bounds.epsilon == bounds.prv < bounds.rdp


def test_unlike_charges_compose() -> None:
    history = (Steps(0.9, 0.01, 200), Steps(2.0, 0.1, 50), Steps(12.0, 1.0, 5))
    pld = by_google(history, PLDAccountant(value_discretization_interval=1e-3))
    assert pld - 0.01 <= epsilon_of(history, 1e-5) <= pld + 2 * PRV_ERROR * max(1, 2 * pld)


@pytest.mark.parametrize(
    ("step", "published", "source"),
    [
        (Steps(1.1, 256 / 60000, 14062), 2.6, "RDP, TensorFlow Privacy's MNIST tutorial with the conversion of 2020"),
        (
            Steps(4.0, 0.01, 10000),
            1.04,
            "moments accountant of Abadi et al. 2016, section 3.2, 1.26 there",
        ),
    ],
)
def test_published_values_of_rdp(step: Steps, published: float, source: str) -> None:
    assert gaussian_bounds((step,), 1e-5).rdp == pytest.approx(published, abs=0.01), source


@pytest.mark.parametrize(("sigma", "steps"), [(3.73, 1), (1.0, 1), (20.0, 30)])
def test_full_batches_are_gaussian_releases(sigma: float, steps: int) -> None:
    """Balle and Wang 2018, Theorem 8, for the composition as one release of sigma / sqrt(steps)."""
    mu = steps**0.5 / sigma

    def delta_above(epsilon: float) -> float:
        log_second = epsilon + norm.logcdf(-mu / 2 - epsilon / mu)
        return float(norm.cdf(mu / 2 - epsilon / mu) - pow(2.718281828459045, log_second)) - 1e-5

    exact = brentq(delta_above, 1e-3, 50)
    assert exact <= epsilon_of((Steps(sigma, 1.0, steps),), 1e-5) <= exact + 2 * PRV_ERROR * max(1, 2 * exact)


def test_every_argument_counts() -> None:
    base = epsilon_of((Steps(2.0, 0.05, 100),), 1e-5)
    assert epsilon_of((Steps(2.1, 0.05, 100),), 1e-5) < base
    assert epsilon_of((Steps(2.0, 0.06, 100),), 1e-5) > base
    assert epsilon_of((Steps(2.0, 0.05, 101),), 1e-5) > base
    assert epsilon_of((Steps(2.0, 0.05, 100),), 1e-6) > base


@pytest.mark.parametrize(("epsilon", "rate", "steps"), [(0.5, 0.05, 200), (1.0, 1.0, 30), (8.0, 0.1, 100)])
def test_calibration_meets_its_target_from_below(epsilon: float, rate: float, steps: int) -> None:
    spent = epsilon_of((Steps(calibrate_gaussian(epsilon, 1e-5, rate, steps), rate, steps),), 1e-5)
    assert epsilon * (1 - CALIBRATION_SLACK) <= spent <= epsilon


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 20.0, 50.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5])
def test_last_round_is_within_the_target(epsilon: float, delta: float) -> None:
    """Full batches are calibrated for exactly: one unit in the last place above the target would cost a round."""
    for rounds in (1, 2, 3, 5, 10, 20, 50):
        for steps in (1, 3):
            sigma = calibrate_gaussian(epsilon, delta, 1.0, rounds * steps)
            spent = bounds_of([Charge(round, sigma, 1.0, steps) for round in range(rounds)], delta).epsilon
            assert epsilon * (1 - 1e-6) <= spent <= epsilon, (rounds, steps)


@pytest.mark.parametrize("mechanisms", [("skellam",), ("gaussian", "skellam")])
def test_prv_does_not_speak_of_skellam_noise(mechanisms: tuple[Mechanism, ...]) -> None:
    charges = [Charge(round, 12.8, 1.0, 1, mechanism) for round, mechanism in enumerate(mechanisms)]
    bounds = bounds_of(charges, 1e-5)
    assert bounds.prv is None
    assert bounds.epsilon == bounds.rdp > gaussian_bounds((Steps(12.8, 1.0, len(charges)),), 1e-5).epsilon


EDGES = [(1.0, 30), (0.05, 600), (1e-6, 3_000_000)]
TARGETS = [(1000.0, 1e-5), (1.0, 1e-15), (0.1, 1e-5), (1e-3, 1e-5)]


@pytest.mark.parametrize("target", TARGETS, ids=str)
@pytest.mark.parametrize("steps", EDGES, ids=str)
def test_edge_case_is_answered_within_bounded_work(
    steps: tuple[float, int], target: tuple[float, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes the time is PRV's mesh: its points, all trials together, are counted, and no clock is read."""
    points: list[float] = []
    measured = prv._mesh_points

    def counted(*arguments: Any) -> float:
        points.append(measured(*arguments))
        return points[-1]

    monkeypatch.setattr(prv, "_mesh_points", counted)
    (rate, count), (epsilon, delta) = steps, target
    try:
        noise = calibrate_gaussian.__wrapped__(epsilon, delta, rate, count)
    except PrivacyError as error:
        assert f"privacy.epsilon={epsilon:g}" in str(error)
        assert "give an epsilon from" in str(error)
    else:
        assert 0.9 * epsilon <= epsilon_of((Steps(noise, rate, count),), delta) <= epsilon
    assert len(points) <= accountant.MOST_TRIALS + 1
    assert prv.MOST_PRV_POINTS <= 2**19


@pytest.mark.parametrize("epsilon", [float("inf"), float("nan"), 0.0, -1.0, 1e6])
def test_epsilon_out_of_reach_is_refused(epsilon: float) -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon=.*privacy: off"):
        calibrate_gaussian(epsilon, 1e-5, 1.0, 30)


def test_unreachable_epsilon_of_secure_sums_names_the_range() -> None:
    for epsilon in (1e-3, 1e9):
        with pytest.raises(PrivacyError, match=r"give an epsilon from 0\.\d+ to \d"):
            skellam.calibrate(epsilon, 1e-5, 30)


@given(mu=st.floats(1e-4, 30), log10_delta=st.floats(-15, -0.5))
def test_exact_epsilon_matches_quadrature(mu: float, log10_delta: float) -> None:
    """Balle and Wang's formula against the hockey-stick divergence by numerical integration, in 40 digits."""
    from mpmath import mp, mpf, ncdf

    delta = 10**log10_delta
    epsilon = exact_epsilon(mu, delta)
    with mp.workdps(40):
        m, e = mpf(mu), mpf(epsilon)

        def exact(e: Any) -> Any:
            return ncdf(m / 2 - e / m) - mp.exp(e) * ncdf(-m / 2 - e / m)

        assert exact(e) <= delta
        assert epsilon == 0 or exact(e * (1 - mpf(10) ** -6)) >= delta * (1 - 1e-9)


@pytest.mark.parametrize("step", [Steps(1.0, 0.05, 100), Steps(5.0, 1.0, 30), Steps(0.3, 0.01, 50)], ids=str)
def test_full_batches_bound_subsampled_ones(step: Steps) -> None:
    noise, _, steps = step
    assert epsilon_of((step,), 1e-5) <= exact_epsilon(steps**0.5 / noise, 1e-5) * (1 + 1e-9)


@pytest.mark.parametrize("sigma", [3.73, 20.4, 300.0])
def test_exact_epsilon_agrees_with_googles(sigma: float) -> None:
    pld = by_google((Steps(sigma, 1.0, 30),), PLDAccountant(value_discretization_interval=1e-3))
    exact = exact_epsilon(30**0.5 / sigma, 1e-5)
    assert exact * (1 - 1e-8) <= pld <= exact * 1.01 + 0.02
