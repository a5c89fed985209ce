"""Lower bounds stay below what a mechanism really costs, and ceilings above what any attack reaches."""

import importlib.util
import math
import sys

import numpy as np
import pytest
from scipy.stats import norm

from fedhpc.audit.bounds import (
    CONFIDENCE,
    Scores,
    auditing,
    ceilings,
    claimed_epsilon,
    guess_count,
    lower_bound,
    membership,
)
from fedhpc.audit.findings import Finding, confirmed, membership_findings
from fedhpc.errors import InputError
from fedhpc.privacy.rdp import Steps


def randomized_response(epsilon: float, m: int, rng: np.random.Generator) -> Scores:
    """Each coin told truly with chance e^epsilon / (1 + e^epsilon): exactly epsilon-DP, the worst there is."""
    included = rng.random(m) < 0.5
    truth = rng.random(m) < math.exp(epsilon) / (1 + math.exp(epsilon))
    return Scores((included == truth).astype(float), included)


def gaussian(mu: float, m: int, rng: np.random.Generator) -> Scores:
    """A Gaussian mechanism of sensitivity mu and noise 1, on m canaries."""
    included = rng.random(m) < 0.5
    return Scores(rng.normal(size=m) + mu * included, included)


def test_bound_is_below_the_truth_in_95_of_100_runs() -> None:
    """Randomised response reaches its epsilon exactly, so a bound of confidence 95 % may pass it in 5 % of the runs."""
    rng = np.random.default_rng(0)
    bounds = np.array([lower_bound(randomized_response(1.0, 2000, rng), 1e-9).epsilon for _ in range(400)])
    # 5 % of 400 and three standard deviations.
    assert (bounds > 1.0).mean() <= 1 - CONFIDENCE + 3 * math.sqrt(0.05 * 0.95 / 400)
    assert np.median(bounds) > 0.7


def test_bound_of_a_gaussian_step_is_between_nothing_and_its_claim() -> None:
    sigma, rng = 3.73, np.random.default_rng(1)
    claimed = claimed_epsilon((Steps(sigma, 1.0, 1),), 1e-5)
    assert claimed == pytest.approx(1.0, abs=0.02)
    bounds = [lower_bound(gaussian(1 / sigma, 50_000, rng), 1e-5).epsilon for _ in range(20)]
    assert min(bounds) > 0
    assert max(bounds) < claimed


def test_bound_tells_half_the_noise_from_the_whole() -> None:
    rng = np.random.default_rng(2)
    assert min(lower_bound(gaussian(2 / 3.73, 200_000, rng), 1e-5).epsilon for _ in range(5)) > 1.1


def test_scores_that_know_nothing_prove_nothing() -> None:
    rng = np.random.default_rng(3)
    bounds = [lower_bound(gaussian(0.0, 5000, rng), 1e-5).epsilon for _ in range(20)]
    assert np.mean(np.array(bounds) == 0) > 0.8


def test_perfect_scores_are_limited_by_the_guesses_alone() -> None:
    scores = Scores(np.arange(1000.0), np.arange(1000) >= 500)
    bound = lower_bound(scores, 1e-9)
    assert bound.guesses == bound.correct == guess_count(1000)
    p = math.exp(bound.epsilon) / (1 + math.exp(bound.epsilon))
    assert p**bound.guesses == pytest.approx(0.05, rel=1e-3)


def test_equal_scores_are_guessed_as_many_as_promised() -> None:
    assert lower_bound(Scores(np.zeros(1000), np.arange(1000) % 2 == 0), 1e-5).guesses == guess_count(1000)


@pytest.mark.parametrize("sigma", [1.0, 3.73])
def test_ceilings_are_the_gaussian_ones_or_a_little_above(sigma: float) -> None:
    """mu = .268: AUC .575, TPR 1.98 % at FPR 1 % (Dong, Roth & Su 2022)."""
    found, mu = ceilings((Steps(sigma, 1.0, 1),)), 1 / sigma
    auc, tpr = norm.cdf(mu / math.sqrt(2)), norm.cdf(norm.ppf(0.01) + mu)
    assert auc <= found.auc <= auc + 0.02
    assert tpr <= found.tpr(0.01) <= 1.05 * tpr
    assert (np.diff(found.roc) >= 0).all()


def test_the_best_attack_holds_its_ceilings_and_a_better_one_does_not() -> None:
    rng, limits = np.random.default_rng(4), ceilings((Steps(3.73, 1.0, 1),))
    for _ in range(20):
        assert all(f.passed for f in membership_findings("x", gaussian(1 / 3.73, 8000, rng), limits))
    assert not any(f.passed for f in membership_findings("x", gaussian(1.0, 8000, rng), limits))


def test_membership_by_hand() -> None:
    """Three members at 3, 2, 1 and two others at 2.5, 0: members win 4 of 6 pairs."""
    found = membership(Scores(np.array([3.0, 2, 1, 2.5, 0]), np.array([True, True, True, False, False])))
    assert found.auc == pytest.approx(4 / 6)
    assert found.auc_low < found.auc
    assert found.tpr == pytest.approx(1 / 3)
    assert found.tpr_low < found.tpr
    assert found.fpr_high > 0.01
    assert found.identified is None


def test_a_claim_holds_below_its_limit_and_a_control_is_caught_above_it() -> None:
    def finding(proven: float, kind: str) -> Finding:
        return Finding("a", "s", "q", proven, proven, 1.0, "claimed", kind)

    assert [finding(p, "claim").verdict for p in (0.9, 1.1)] == ["holds", "VIOLATED"]
    assert [finding(p, "control").verdict for p in (0.9, 1.1)] == ["NOT CAUGHT", "caught"]
    assert [finding(p, "shown").passed for p in (0.9, 1.1)] == [True, True]


def test_a_violated_claim_is_confirmed_and_a_control_gets_one_chance() -> None:
    def attempts(kind: str, *proven: float) -> tuple[Finding, int]:
        asked: list[int] = []

        def attempt(number: int) -> Finding:
            asked.append(number)
            return Finding("a", "s", "q", proven[number], proven[number], 1.0, "claimed", kind)

        return confirmed(attempt), len(asked)

    told = [attempts("claim", *p) for p in ((0.9, 2), (1.1, 0.9), (1.1, 1.2, 1.3, 0.9), (1.4, 1.1, 1.2, 1.3))]
    assert [found.passed for found, _ in told] == [True, True, True, False]
    assert [asked for _, asked in told] == [1, 2, 4, 4]
    assert told[-1][0].proven == 1.1
    found, asked = attempts("control", 0.9, 1.1)
    assert (found.verdict, asked) == ("NOT CAUGHT", 1)


def test_auditing_needs_no_jax() -> None:
    assert hasattr(auditing(), "CanaryScoreAuditor")
    assert "jax" not in sys.modules


def test_without_jax_privacy_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    auditing.cache_clear()
    try:
        with pytest.raises(InputError, match="pip install --no-deps jax-privacy"):
            auditing()
    finally:
        auditing.cache_clear()
