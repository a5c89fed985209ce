"""One line of the audit: what was attacked, how, what came out, and what that must not, or must, exceed."""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, Protocol

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
    provable,
)

Kind = Literal["claim", "control", "shown"]
WITH_DP = "with DP"
EPSILON = "epsilon >="
ATTEMPTS = 4
KEPT = "(kept in the site's folder)"
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
        unnoised: whether it was measured on patients without noise, or beside their images: no epsilon bounds it.
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
    unnoised: bool = False

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
        interval = "" if self.proven == self.measured else f" ({self.proven:.3f} at {CEILING_CONFIDENCE:.4%})"
        measured = f"{self.quantity} {self.measured:.3f}{interval}"
        return self.attack, self.setting, measured, f"{self.limit_name} {self.limit:.3g}", self.verdict

    def json(self) -> dict[str, Any]:
        """As plain values, for audit.json."""
        return {**asdict(self), "verdict": self.verdict}


class Result(Protocol):
    """What every line of the audit has: a `Finding` or a `Law`."""

    @property
    def attack(self) -> str:
        """What was done."""

    @property
    def setting(self) -> str:
        """To what."""

    @property
    def kind(self) -> Kind:
        """Whether it is judged, and how."""

    @property
    def unnoised(self) -> bool:
        """Whether no epsilon bounds what its figures tell about patients."""

    @property
    def passed(self) -> bool:
        """Whether it is as it must be."""

    @property
    def verdict(self) -> str:
        """One or two words."""

    @property
    def cells(self) -> tuple[str, ...]:
        """One line of a table, for CELL_NAMES."""

    def json(self) -> dict[str, Any]:
        """As plain values, for audit.json."""


@dataclass(frozen=True)
class Law:
    """A measured quantity that must be within bounds.

    Attributes:
        attack: the name of the law.
        setting: "with DP", or how privacy was broken on purpose.
        quantity: what `measured` is.
        measured: the estimate; of several, the one farthest from the bounds.
        low, high: a confidence interval of it; both `measured` where nothing is random.
        least, most: the bounds: the law holds if the interval and the bounds have a point in common.
        kind: a "claim" must hold, a "control" must not.
        details: more numbers for audit.json.
        unnoised: whether it was measured on patients without noise, or beside their images: no epsilon bounds it.
    """

    attack: str
    setting: str
    quantity: str
    measured: float
    low: float
    high: float
    least: float
    most: float
    kind: Kind = "claim"
    details: Mapping[str, Any] = field(default_factory=dict)
    unnoised: bool = False

    @property
    def within(self) -> bool:
        """Whether the measurement agrees with the bounds; never for what is not a number."""
        return self.low <= self.most and self.high >= self.least

    @property
    def passed(self) -> bool:
        """Whether it is as it must be."""
        return self.kind == "shown" or self.within == (self.kind == "claim")

    @property
    def verdict(self) -> str:
        """In words.

        >>> Law("noise", "with DP", "ratio", 0.7, 0.69, 0.71, 1.0, 1.0).verdict
        'VIOLATED'
        """
        if self.kind == "shown":
            return "-"
        if self.kind == "control":
            return "caught" if self.passed else "NOT CAUGHT"
        return "holds" if self.passed else "VIOLATED"

    @property
    def cells(self) -> tuple[str, ...]:
        """One line of a table, for CELL_NAMES."""
        interval = "" if self.low == self.high else f" ({self.low:.3f} to {self.high:.3f})"
        return self.attack, self.setting, f"{self.quantity} {self.measured:.3f}{interval}", self._limits, self.verdict

    @property
    def _limits(self) -> str:
        if self.least == self.most:
            return f"must be {self.most:.4g}"
        if self.least == -math.inf:
            return f"at most {self.most:.4g}"
        return f"at least {self.least:.4g}" if self.most == math.inf else f"{self.least:.4g} to {self.most:.4g}"

    def json(self) -> dict[str, Any]:
        """As plain values, for audit.json; an open end is null."""
        plain = {
            key: None if isinstance(value, float) and math.isinf(value) else value for key, value in vars(self).items()
        }
        return {**plain, "details": dict(self.details), "verdict": self.verdict}


def cells_to_tell(result: Result) -> tuple[str, ...]:
    """Return the line of a result outside of the site's folder: without figures that no epsilon bounds."""
    attack, setting, measured, limit, verdict = result.cells
    return (attack, setting, *((KEPT, "") if result.unnoised else (measured, limit)), verdict)


def worst(laws: list[Law]) -> Law:
    """Of one law measured in several places the one farthest out of its bounds, with all of them in its details."""

    def outside(law: Law) -> float:
        return max(law.low - law.most, law.least - law.high) if math.isfinite(law.measured) else math.inf

    chosen = max(laws, key=outside)
    places = [{"place": law.quantity, "measured": law.measured, "low": law.low, "high": law.high} for law in laws]
    return replace(chosen, details={**chosen.details, "places": places})


@dataclass(frozen=True)
class Guarantee:
    """What the accountant says of a mechanism: it is (epsilon, delta)-private."""

    epsilon: float
    delta: float


def epsilon_finding(attack: str, setting: str, scores: Scores, claim: Guarantee) -> Finding:
    """Return the lower bound from `scores` beside the `claim`; any setting but WITH_DP is a control.

    A control must prove more than was claimed. Of a claim that so many canaries cannot reach, it must prove as much as
    they can: it shows that the attack works, and the audit's power ends there.
    """
    delta = claim.delta
    bound = lower_bound(scores, delta)
    kind: Kind = "claim" if setting == WITH_DP else "control"
    reach = provable(len(scores.values), delta) if kind == "control" else math.inf
    limit, limit_name = min((claim.epsilon, "claimed"), (reach, "provable"))
    sharper = {"epsilon_lower_bound_if_gaussian": gaussian_lower_bound(scores, delta)}
    details = {**_bound_details(bound), **sharper, **_membership_details(membership(scores))}
    return Finding(attack, setting, EPSILON, bound.epsilon, bound.epsilon, limit, limit_name, kind, details)


def confirmed(attempt: Callable[[int], Finding]) -> Finding:
    """`attempt(0)`; where it does not hold, the lowest of up to ATTEMPTS, each with coins and noise of its own.

    Some claims are next to 0, and of bounds with 95 % confidence one in twenty is above what is true. That ATTEMPTS
    independent ones are has a chance of 6e-6.
    """
    lowest = attempt(0)
    if lowest.kind == "control":
        return lowest
    attempts = 1
    while not lowest.passed and attempts < ATTEMPTS:
        lowest = min(lowest, attempt(attempts), key=lambda finding: finding.proven)
        attempts += 1
    return replace(lowest, details={**lowest.details, "attempts": attempts}) if attempts > 1 else lowest


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
