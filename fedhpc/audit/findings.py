"""One line of the audit: what was attacked, how, what came out, and what that must not, or must, exceed."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from fedhpc.audit.bounds import (
    CEILING_CONFIDENCE,
    CONFIDENCE,
    LOW_FPR,
    Bound,
    Ceilings,
    Membership,
    Scores,
    gaussian_lower_bound,
    lower_bound,
    membership,
)

Kind = Literal["claim", "control", "shown"]
WITH_DP = "with DP"
EPSILON = "epsilon >="
CELL_NAMES = ("attack", "setting", "measured", "limit", "verdict")


@dataclass(frozen=True)
class Finding:
    """A result.

    Attributes:
        attack: what was done.
        setting: to what: "with DP", or how privacy was mutilated.
        quantity: what `measured` is.
        measured: the best estimate.
        proven: what is compared with the limit: a lower end of CEILING_CONFIDENCE, or `measured` itself.
        limit: the claim, ceiling or criterion, which `limit_name` says.
        kind: a "claim" holds if `proven` is not above the limit, a "control" is caught if it is; "shown" is not judged.
        details: more numbers for audit.json.
    """

    attack: str
    setting: str
    quantity: str
    measured: float
    proven: float
    limit: float
    limit_name: str
    kind: Kind
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether it is as it must be."""
        if self.kind == "shown":
            return True
        return (self.proven > self.limit) == (self.kind == "control")

    @property
    def verdict(self) -> str:
        """In words.

        >>> Finding("canaries", "no noise", "epsilon", 2.0, 2.0, 1.0, "claimed", "control").verdict
        'caught'
        """
        if self.kind == "shown":
            return "-"
        if self.kind == "control":
            return "caught" if self.passed else "NOT CAUGHT"
        return "holds" if self.passed else "VIOLATED"

    @property
    def cells(self) -> tuple[str, ...]:
        """One line of a table, for CELL_NAMES."""
        interval = "" if self.proven == self.measured else f" ({self.proven:.3f} at {CEILING_CONFIDENCE:.1%})"
        measured = f"{self.quantity} {self.measured:.3f}{interval}"
        return self.attack, self.setting, measured, f"{self.limit_name} {self.limit:.3g}", self.verdict

    def json(self) -> dict[str, Any]:
        """As plain values, for audit.json."""
        return {**asdict(self), "verdict": self.verdict}


def epsilon_finding(attack: str, setting: str, scores: Scores, claim: tuple[float, float]) -> Finding:
    """The lower bound from `scores` beside the `claim` (epsilon, delta); any setting but WITH_DP is a control."""
    epsilon, delta = claim
    bound = lower_bound(scores, delta)
    kind: Kind = "claim" if setting == WITH_DP else "control"
    sharper = {"epsilon_lower_bound_if_gaussian": gaussian_lower_bound(scores, delta)}
    details = {**_bound_details(bound), **sharper, **_membership_details(membership(scores))}
    return Finding(attack, setting, EPSILON, bound.epsilon, bound.epsilon, epsilon, "claimed", kind, details)


def confirmed(attempt: Callable[[int], Finding]) -> Finding:
    """`attempt(0)`; where it does not hold, the lower one of that and of `attempt(1)`, with coins and noise of its own.

    Some claims are next to 0, and of bounds with 95 % confidence one in twenty is above what is true. That two are both
    has a chance of 1 in 400, and true violations are found twice. A control gets no second chance.
    """
    first = attempt(0)
    if first.passed or first.kind == "control":
        return first
    lower = min(first, attempt(1), key=lambda finding: finding.proven)
    return replace(lower, details={**lower.details, "attempts": 2})


def membership_findings(attack: str, scores: Scores, ceiling: Ceilings) -> list[Finding]:
    """AUC, and true positive rate at a false positive rate of LOW_FPR, beside their ceilings."""
    found = membership(scores)
    details = _membership_details(found)
    rate, limit = f"TPR at FPR {LOW_FPR:.0%}", ceiling.tpr(LOW_FPR)
    # The true false positive rate of the threshold may be as high as fpr_high, and the ceiling with it.
    tpr_low = max(0.0, found.tpr_low - max(0.0, ceiling.tpr(found.fpr_high) - limit))
    return [
        Finding(attack, WITH_DP, "AUC", found.auc, found.auc_low, ceiling.auc, "ceiling", "claim", details),
        Finding(attack, WITH_DP, rate, found.tpr, tpr_low, limit, "ceiling", "claim", details),
    ]


def _bound_details(bound: Bound) -> dict[str, Any]:
    return {
        "epsilon_lower_bound": bound.epsilon,
        "delta": bound.delta,
        "confidence": CONFIDENCE,
        "canaries": bound.canaries,
        "guesses": bound.guesses,
        "correct": bound.correct,
    }


def _membership_details(found: Membership) -> dict[str, Any]:
    return {
        "auc": found.auc,
        "auc_low": found.auc_low,
        "tpr_at_fpr_1_percent": found.tpr,
        "tpr_low": found.tpr_low,
        "fpr_high": found.fpr_high,
        "ceiling_confidence": CEILING_CONFIDENCE,
        "identified_of_100": found.identified,
    }
