"""The Skellam mechanism: the bound on its divergence, the noise that is calibrated, and a sampler that is exact."""

import warnings
from collections.abc import Iterator

import mpmath
import numpy as np
import pytest
from dp_accounting.rdp import compute_epsilon
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ive, logsumexp

from fedhpc.errors import PrivacyError
from fedhpc.privacy import skellam
from fedhpc.privacy.accountant import epsilon_of
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.rdp import Steps
from fedhpc.privacy.skellam import ORDERS, calibrate, draw, epsilon_by_rdp, rdp, scale_of, variance_for


@pytest.mark.parametrize("variance", [4.0, 100.0, 1000.0])
@pytest.mark.parametrize("shift", [1, 3])
@pytest.mark.parametrize("order", [2, 5, 16])
def test_the_bound_holds_and_is_near_for_the_exact_divergence(variance: float, shift: int, order: int) -> None:
    """Theorem 3.5 against the Renyi divergence of two shifted Skellam distributions, summed up."""
    k = np.arange(-600, 601)
    with np.errstate(divide="ignore"):
        log_p, log_q = np.log(ive(np.abs(k), variance)), np.log(ive(np.abs(k - shift), variance))
    seen = np.isfinite(log_p) & np.isfinite(log_q)
    exact = logsumexp(order * log_p[seen] - (order - 1) * log_q[seen]) / (order - 1)
    bound = rdp(variance, shift, shift, order)
    assert exact <= bound * (1 + 1e-9)
    assert exact >= 0.98 * order * shift**2 / (2 * variance) or variance < 1000


@given(st.floats(0.02, 100), st.integers(1, 2**50), st.sampled_from(ORDERS))
def test_enough_variance_costs_no_more_than_a_gaussian(noise_multiplier: float, l2_squared: int, order: int) -> None:
    """For the worst L1 norm that an integer vector of this L2 norm can have."""
    variance = variance_for(noise_multiplier, l2_squared**0.5)
    assert rdp(variance, l2_squared, l2_squared**0.5, order) <= order / (2 * noise_multiplier**2) * (1 + 1e-12)


@pytest.mark.parametrize("order", [1, 1.5, 2.5])
def test_orders_that_the_theorem_does_not_cover_are_refused(order: float) -> None:
    with pytest.raises(ValueError, match="integer orders"):
        rdp(100, 1, 1, order)  # type: ignore[arg-type]


@pytest.mark.parametrize(("epsilon", "releases"), [(0.1, 10), (1.0, 1), (1.0, 10), (1.0, 100), (8.0, 10)])
def test_calibrated_noise_is_the_smallest_that_keeps_the_target(epsilon: float, releases: int) -> None:
    noise = calibrate(epsilon, 1e-5, releases)
    assert epsilon_by_rdp((Steps(noise, 1.0, releases),), 1e-5) <= epsilon
    assert epsilon_by_rdp((Steps(0.9999 * noise, 1.0, releases),), 1e-5) > epsilon


def test_epsilon_is_that_of_another_library_and_above_the_gaussians_own() -> None:
    """dp_accounting converts the same divergences; PRV gives the exact epsilon of the Gaussian they belong to."""
    for noise, releases in ((4.0, 1), (12.8, 10), (1.3, 4)):
        ours = epsilon_by_rdp((Steps(noise, 1.0, releases),), 1e-5)
        theirs, _ = compute_epsilon(ORDERS, [releases * order / (2 * noise**2) for order in ORDERS], 1e-5)
        assert ours == pytest.approx(theirs, rel=1e-6)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="divide by zero")
        assert 1.05 < epsilon_by_rdp((Steps(12.8, 1.0, 10),), 1e-5) / epsilon_of((Steps(12.8, 1.0, 10),), 1e-5) < 1.1


def test_charges_of_both_mechanisms_add_up() -> None:
    skellams, gaussians = Steps(12.8, 1.0, 10), Steps(2.0, 0.05, 60)
    both = epsilon_by_rdp((skellams, gaussians), 1e-5)
    assert both > max(epsilon_by_rdp((one,), 1e-5) for one in (skellams, gaussians))
    assert both < sum(epsilon_by_rdp((one,), 1e-5) for one in (skellams, gaussians))
    assert epsilon_by_rdp((), 1e-5) == 0


def test_a_target_out_of_reach_is_refused() -> None:
    with pytest.raises(PrivacyError, match=r"privacy\.epsilon=1e-09"):
        calibrate(1e-9, 1e-5, 100)


@pytest.fixture(scope="module")
def precise() -> Iterator[None]:
    with mpmath.workdps(60):
        yield


def log_probability(k: int, variance: float) -> mpmath.mpf:
    """log of exp(-v) I_k(v) by Hankel's expansion for large v (DLMF 10.40.1), up to a term that all k share."""
    total = term = mpmath.mpf(1)
    for m in range(1, 400):
        term *= -(4 * mpmath.mpf(k) ** 2 - (2 * m - 1) ** 2) / (8 * m * mpmath.mpf(variance))
        total += term
        if abs(term) < mpmath.mpf(10) ** -50:
            return mpmath.log(total)
    raise ArithmeticError(f"k={k}, variance={variance}: the expansion has not settled")


@pytest.mark.parametrize("variance", [skellam.SMALLEST_VARIANCE, 2.0**40, 2.0**60])
@pytest.mark.parametrize("deviations", [0.5, 1.0, 2.0, 4.0])
def test_acceptance_is_that_of_the_exact_distribution(precise: None, variance: float, deviations: float) -> None:
    """Proposal times acceptance, relative to k = 0, is the Skellam probability of k to the precision of a float64."""
    scale = scale_of(variance)
    k = round(deviations * variance**0.5)
    at = skellam._log_acceptance(np.array([0, k]), variance, scale)
    ours = float(at[1] - at[0]) - k / scale
    exact = float(log_probability(k, variance) - log_probability(0, variance))
    assert ours == pytest.approx(exact, abs=2e-14 * max(1, deviations**6 / 100))
    assert at.max() <= 0


def test_numpys_sampler_is_not_used_where_it_is_wrong() -> None:
    """Why there is a sampler here: the fourth moment of numpy's Poisson at a mean of 2^50 is not a Poisson's 3."""
    rng = np.random.default_rng(0)
    at_2_50 = (rng.poisson(2.0**50, 200_000) - 2**50) / 2.0**25
    ours = draw(2.0**51, 200_000, KeyStream.of_seed(0)) / 2.0**25.5
    assert (at_2_50**4).mean() > 4
    assert (ours**4).mean() == pytest.approx(3, abs=0.1)


def test_draws_are_numpys_where_numpy_is_right() -> None:
    rng, n, variance = np.random.default_rng(0), 200_000, skellam.SMALLEST_VARIANCE
    theirs = rng.poisson(variance / 2, n) - rng.poisson(variance / 2, n)
    ours = draw(variance, n, KeyStream.of_seed(0))
    assert stats.ks_2samp(ours, theirs).pvalue > 1e-4
    assert ours.dtype == np.int64
    assert len(np.unique(ours % 16, return_counts=True)[1]) == 16
    assert stats.chisquare(np.bincount(ours % 16)).pvalue > 1e-4


@pytest.mark.parametrize(("sites", "colluding", "dropouts"), [(4, 0, 0), (4, 1, 1), (16, 3, 2)])
def test_honest_shares_have_the_calibrated_variance_and_distribution(sites: int, colluding: int, dropouts: int) -> None:
    """n - c - t shares are one draw of the whole; those of all sites that stayed are never less."""
    stream, size, variance = KeyStream.of_seed(1), 40_000, 2.0**40
    honest = sites - colluding - dropouts
    shares = [draw(variance / honest, size, stream) for _ in range(sites)]
    together = sum(shares[:honest])
    assert together.var() == pytest.approx(variance, rel=0.03)
    assert stats.kstest(together / variance**0.5, "norm").pvalue > 1e-4
    assert stats.ks_2samp(together, draw(variance, size, stream)).pvalue > 1e-4
    assert sum(shares[: sites - dropouts]).var() >= 0.97 * variance


@pytest.mark.parametrize("variance", [0.0, 2.0**25, 2.0**101, float("nan")])
def test_variances_that_the_sampler_does_not_do(variance: float) -> None:
    with pytest.raises(ValueError, match="allowed"):
        draw(variance, 3, KeyStream.of_seed(0))
