"""One line of the audit: what was attacked, how, what came out, and what that must not, or must, exceed."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from fedhpc.audit.bounds import (
    CLAIM_CONFIDENCE,
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
        proven: what is compared with the limit: a lower end of CLAIM_CONFIDENCE, or `measured` itself.
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
        interval = "" if self.proven == self.measured else f" ({self.proven:.3f} at {CLAIM_CONFIDENCE:.1%})"
        measured = f"{self.quantity} {self.measured:.3f}{interval}"
        return self.attack, self.setting, measured, f"{self.limit_name} {self.limit:.3g}", self.verdict

    def json(self) -> dict[str, Any]:
        """As plain values, for audit.json."""
        return {**asdict(self), "verdict": self.verdict}


def epsilon_finding(attack: str, setting: str, scores: Scores, claim: tuple[float, float]) -> Finding:
    """The lower bound from `scores` beside the `claim` (epsilon, delta); any setting but WITH_DP is a control.

    A control is caught by the bound itself, a claim is violated by the one of CLAIM_CONFIDENCE.
    """
    epsilon, delta = claim
    bound = lower_bound(scores, delta)
    kind: Kind = "claim" if setting == WITH_DP else "control"
    sharper = {"epsilon_lower_bound_if_gaussian": gaussian_lower_bound(scores, delta)}
    details = {**_bound_details(bound), **sharper, **_membership_details(membership(scores))}
    proven = bound.epsilon_sure if kind == "claim" else bound.epsilon
    return Finding(attack, setting, EPSILON, bound.epsilon, proven, epsilon, "claimed", kind, details)


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
        "epsilon_lower_bound_sure": bound.epsilon_sure,
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
        "claim_confidence": CLAIM_CONFIDENCE,
        "identified_of_100": found.identified,
    }
