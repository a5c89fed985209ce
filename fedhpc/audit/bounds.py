"""From canary scores to a lower bound on epsilon, and from a privacy history to the ceilings of any attack.

The lower bounds are `jax_privacy.auditing`'s. That file needs numpy, scipy and dp_accounting alone, its package would
import JAX, so the file is loaded by itself.
"""

import importlib.util
import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, mannwhitneyu, norm

from fedhpc.errors import InputError
from fedhpc.privacy.accountant import Mechanism, epsilon_of
from fedhpc.privacy.rdp import History
from fedhpc.privacy.skellam import epsilon_by_rdp
from fedhpc.util.arrays import F64

CONFIDENCE = 0.95
CEILING_CONFIDENCE = 1 - 1e-6
"""Of the intervals that are held against ceilings: a good attack comes close to them, and there are several."""
LOW_FPR = 0.01
CANDIDATES = 100
FPR_GRID = np.linspace(0, 1, 2001)
_DELTAS = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.02, 0.04, 0.07, 0.1, 0.2, 0.3)
_MODULE = "fedhpc.audit._jax_privacy_auditing"
HINT = "install what `run.py audit` needs: pip install 'fedhpc[audit]' && pip install --no-deps jax-privacy"


@lru_cache(maxsize=1)
def auditing() -> Any:
    """Return the module `jax_privacy.auditing`.

    Raises:
        InputError: where it, or what it needs, is not installed; says how to install it.
    """
    package = importlib.util.find_spec("jax_privacy")
    if package is None or not package.submodule_search_locations:
        raise InputError(f"jax-privacy is not installed; {HINT}", code="audit.jax-privacy")
    path = Path(package.submodule_search_locations[0]) / "auditing.py"
    spec = importlib.util.spec_from_file_location(_MODULE, path)
    if spec is None or spec.loader is None or not path.is_file():
        raise InputError(f"{path}: no such file in the jax-privacy that is installed; {HINT}", code="audit.jax-privacy")
    module = importlib.util.module_from_spec(spec)
    # Its dataclasses look their module up by name.
    sys.modules[_MODULE] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[_MODULE]
        raise InputError(
            f"jax-privacy's auditing cannot be loaded ({error}); {HINT}", code="audit.jax-privacy"
        ) from None
    return module


EXPECTED_CORRECT = 0.95
"""Share of right guesses of an attack on what has no privacy at all, at least."""


@dataclass(frozen=True)
class Scores:
    """What the adversary measured of each canary (or patient), and whether it took part.

    Attributes:
        values: f64[n], higher for those who are thought to have taken part.
        included: bool[n], the truth.
    """

    values: F64
    included: NDArray[np.bool_]

    @classmethod
    def pooled(cls, parts: "list[Scores]") -> "Scores":
        """Of several independent runs; each canary is in one of them, so all runs together cost what one does."""
        return cls(np.concatenate([p.values for p in parts]), np.concatenate([p.included for p in parts]))


def guess_count(canaries: int) -> int:
    """Return how many of the highest scores are guessed to have taken part: fixed before any score is seen.

    1 % of many; of few as much as leaves a bound room: with n guesses, all right, it cannot pass about log(n / 3).

    >>> guess_count(200_000), guess_count(8000), guess_count(500)
    (2000, 400, 100)
    """
    return max(canaries // 100, min(400, canaries // 5), 1)


@dataclass(frozen=True)
class Bound:
    """A lower bound on epsilon at `delta`: that of Steinke, Nasr & Jagielski 2023 for approximate DP.

    It assumes that the coins were independent, and nothing else.

    Attributes:
        epsilon: the bound, of confidence CONFIDENCE.
        delta: of the claim.
        canaries, guesses, correct: coins, how many were guessed, how many of these were right.
    """

    epsilon: float
    delta: float
    canaries: int
    guesses: int
    correct: int


def lower_bound(scores: Scores, delta: float) -> Bound:
    """Return what the scores prove.

    The `guess_count` highest scores are guessed to have taken part. The threshold depends on the scores and not on the
    truth, as the theorem allows, so there is nothing to correct for.
    """
    auditor, guesses, correct = _guessed(scores)
    at = auditing().Explicit(1.0)
    epsilon = auditor.epsilon_one_run(1 - CONFIDENCE, delta, threshold_strategy=at)
    return Bound(float(epsilon), delta, len(scores.values), guesses, correct)


def provable(canaries: int, delta: float) -> float:
    """Return the bound that so many canaries prove if EXPECTED_CORRECT of the guesses are right.

    No attack proves much more, however weak the privacy is: a larger epsilon is out of reach of these canaries.
    """
    guesses = guess_count(canaries)
    wrong = round((1 - EXPECTED_CORRECT) * guesses)
    marks = np.zeros(canaries)
    marks[:guesses] = 1.0
    included = np.arange(canaries) % 2 == 0
    included[:guesses] = np.arange(guesses) >= wrong
    return lower_bound(Scores(marks, included), delta).epsilon


def gaussian_lower_bound(scores: Scores, delta: float) -> float:
    """Return the bound of Mahloujifar, Melis & Chaudhuri 2024 from the same guesses.

    Sharper, but what it bounds is the epsilon of a Gaussian mechanism: it tests the whole curve of one, not a point.
    """
    at = auditing().Explicit(1.0)
    return float(_guessed(scores)[0].epsilon_one_run_fdp(1 - CONFIDENCE, delta, threshold_strategy=at))


def _guessed(scores: Scores) -> tuple[Any, int, int]:
    """(an auditor for whom 1 is a guess and 0 none, number of guesses, of correct ones)."""
    guesses = guess_count(len(scores.values))
    highest = np.argsort(-scores.values, kind="stable")[:guesses]
    # Of equal scores at the threshold all or none would count as guessed: hence ones and zeros in their place.
    marks = np.zeros(len(scores.values))
    marks[highest] = 1.0
    auditor = auditing().CanaryScoreAuditor(marks[scores.included], marks[~scores.included])
    return auditor, guesses, int(scores.included[highest].sum())


@dataclass(frozen=True)
class Membership:
    """How well scores tell who took part; ends of one-sided intervals have the confidence CEILING_CONFIDENCE.

    Attributes:
        auc, auc_low: probability that a member scores higher than a non-member, and its lower end.
        tpr: share of members found at a false positive rate of LOW_FPR by these scores.
        tpr_low, fpr_high: both ends together of what that threshold finds: each has half of what may go wrong.
        identified: share of members that score above CANDIDATES - 1 non-members each: reconstruction from a prior by
            which each of CANDIDATES is as likely (Hayes, Mahloujifar & Balle 2023); None where there are too few.
    """

    auc: float
    auc_low: float
    tpr: float
    tpr_low: float
    fpr_high: float
    identified: float | None


def membership(scores: Scores) -> Membership:
    """See `Membership`."""
    members, others = scores.values[scores.included], scores.values[~scores.included]
    risk = 1 - CEILING_CONFIDENCE
    # Not the auditor's `attack_auroc`, the area under the convex hull of the curve, which is above the truth.
    auc = float(mannwhitneyu(members, others).statistic) / (len(members) * len(others))
    threshold = np.quantile(others, 1 - LOW_FPR, method="higher")
    found, wrong = int((members > threshold).sum()), int((others > threshold).sum())
    low = beta.ppf(risk / 2, found, len(members) - found + 1) if found else 0.0
    high = beta.ppf(1 - risk / 2, wrong + 1, len(others) - wrong)
    return Membership(
        auc=auc,
        auc_low=_lower_end(auc, min(len(members), len(others))),
        tpr=found / len(members),
        tpr_low=float(low),
        fpr_high=float(high),
        identified=_identified(members, others),
    )


def _lower_end(auc: float, n: int) -> float:
    """Return the score interval of a share (Wilson 1927), which stays below 1 where every member is above every other.

    The variance of an AUC is auc (1 - auc) / n at most, with n the number of the fewer (Birnbaum & Klose 1957).

    >>> round(_lower_end(1.0, 250), 3), round(_lower_end(0.5, 250), 3)
    (0.917, 0.356)
    """
    z = float(norm.ppf(CEILING_CONFIDENCE))
    middle, spread = auc + z**2 / (2 * n), z * math.sqrt(auc * (1 - auc) / n + z**2 / (4 * n**2))
    return (middle - spread) / (1 + z**2 / n)


def _identified(members: F64, others: F64) -> float | None:
    games = min(len(members), len(others) // (CANDIDATES - 1))
    if games < CANDIDATES:
        return None
    best = others[: games * (CANDIDATES - 1)].reshape(games, CANDIDATES - 1).max(axis=1)
    return float((members[:games] > best).mean())


@dataclass(frozen=True)
class Ceilings:
    """What no attack on a private release can pass: its ROC curve at FPR_GRID, f64[n]."""

    roc: F64

    @property
    def auc(self) -> float:
        """Of membership inference."""
        return float(np.trapezoid(self.roc, FPR_GRID))

    def tpr(self, fpr: float) -> float:
        """True positive rate at a false positive rate; at 1 / n, also the chance to pick the right one of n candidates.

        (Kaissis et al. 2023, "Bounding data reconstruction attacks with the hypothesis testing interpretation".)
        """
        return float(np.interp(fpr, FPR_GRID, self.roc))


def claimed_epsilon(history: History, delta: float, mechanism: Mechanism = "gaussian") -> float:
    """Return what the ledger's accountant says of a history."""
    if mechanism == "skellam":
        return epsilon_by_rdp(history, delta)
    # Opacus takes log(1 - sample_rate), harmlessly where every unit takes part.
    with np.errstate(divide="ignore"):
        return max(0.0, epsilon_of(history, delta))


@lru_cache(maxsize=64)
def ceilings(history: History, mechanism: Mechanism = "gaussian") -> Ceilings:
    """From the accountant's whole curve, not from one point of it.

    An attack on an (epsilon, delta) release has TPR <= e^epsilon FPR + delta, and 1 - FPR <= e^epsilon (1 - TPR) +
    delta (Kairouz, Oh & Viswanath 2015). It holds at every delta, and the lowest of these lines bounds the ROC curve.

    A single Gaussian step at mu = 1 / 3.73 (exactly: .575 and 1.98 %):

    >>> from fedhpc.privacy.rdp import Steps
    >>> found = ceilings((Steps(3.73, 1.0, 1),))
    >>> round(found.auc, 2), round(found.tpr(0.01), 3)
    (0.58, 0.02)
    """
    epsilons = np.array([claimed_epsilon(history, delta, mechanism) for delta in _DELTAS])
    deltas = np.array(_DELTAS)
    fpr = FPR_GRID[:, None]
    up = (np.exp(epsilons) * fpr + deltas).min(axis=1)
    across = (1 - np.exp(-epsilons) * (1 - fpr - deltas)).min(axis=1)
    return Ceilings(np.minimum(np.minimum(up, across), 1))
