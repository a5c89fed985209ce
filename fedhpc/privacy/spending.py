"""What each patient of a site has spent, from charges that each concern a set of patients.

Patients are grouped by the sets that hold them, so the work grows with the number of groups, not of patients.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhpc.privacy.accountant import Charge, Population, bounds_of
from fedhpc.privacy.rdp_filter import ORDERS, curve_of, filter_epsilon, total_curve
from fedhpc.privacy.unit_sets import Memberships
from fedhpc.util.arrays import F64, U64

POPULATIONS: tuple[Population, ...] = ("train", "evaluation")


@dataclass(frozen=True)
class Paid:
    """One charge of a run, in the unit of the account.

    Attributes:
        charge: at the cost to one unit of the account.
        units: the digest of the set that it concerns.
        ledger: the id of the run's ledger.
        sole: the cap to which the run's whole plan was committed; None for a run that is judged by the filter.
    """

    charge: Charge
    units: str
    ledger: str
    sole: float | None = None


@dataclass(frozen=True)
class Limit:
    """The cap (None: no limit), the cap that sets the filter's shares of delta, and the account's delta."""

    cap: float | None
    shares_cap: float | None
    delta: float


def no_set(digest: str) -> U64:
    """Give no set, by KeyError: of an account that nothing was paid on none is asked for."""
    raise KeyError(digest)


@dataclass(frozen=True)
class Group:
    """Units that have met the same charges: how many patients and images, what they spent, and at which charges."""

    patients: int
    images: int
    epsilon: float
    paid: tuple[Paid, ...]


class Spending:
    """All that was paid on one account, and what more would cost.

    Args:
        paid: in the order of the charges.
        read: from the digest of a set to its units.
    """

    def __init__(self, paid: Iterable[Paid], read: Callable[[str], U64]) -> None:
        self._read = read
        self._by_set: dict[str, list[Paid]] = {}
        self._curves: dict[str, F64] = {}
        self._memberships = Memberships.of((), ())
        for one in paid:
            self.add(one)

    def add(self, one: Paid) -> None:
        """One more charge."""
        self._by_set.setdefault(one.units, []).append(one)
        self._curves[one.units] = self._curves.get(one.units, np.zeros(len(ORDERS))) + curve_of(one.charge)

    def groups(self, limit: Limit, only: U64 | None = None) -> list[Group]:
        """All groups of units, or of those among `only`; those that have spent most first."""
        if not self._by_set:
            return []
        members = self._grouped(None)
        if only is not None:
            sets = [np.intersect1d(self._read(digest), only, assume_unique=True) for digest in members.digests]
            members = Memberships.of(members.digests, sets)
        epsilons = filter_epsilon(self._sums(members), limit.delta, limit.shares_cap)
        found = []
        for row, epsilon in enumerate(epsilons.tolist()):
            paid = self._paid_by(members, row)
            if all(one.sole is not None for one in paid):
                epsilon = min(epsilon, bounds_of([one.charge for one in paid], limit.delta).epsilon)
            found.append(Group(int(members.patients[row]), int(members.images[row]), epsilon, paid))
        return sorted(found, key=lambda group: -group.epsilon)

    def would_pass(self, one: Paid, limit: Limit) -> bool:
        """Return whether one more charge brings any unit that it concerns above the cap of `limit`."""
        if limit.cap is None:
            return False
        members, rows = self._concerned(one.units)
        epsilons = filter_epsilon(self._sums(members)[rows] + curve_of(one.charge), limit.delta, limit.shares_cap)
        over = rows[epsilons > limit.cap]
        if one.sole is None or one.charge.insecure:
            return bool(len(over))
        return any(self._sole_passes(self._paid_by(members, row), one, limit) for row in over)

    def _sole_passes(self, paid: tuple[Paid, ...], one: Paid, limit: Limit) -> bool:
        if limit.cap is None or any(other.ledger != one.ledger for other in paid):
            return True
        return bounds_of([*(other.charge for other in paid), one.charge], limit.delta).epsilon > limit.cap

    def plan_passes(self, units: str, plan: Sequence[Charge], limit: Limit) -> bool:
        """Return whether a whole plan, already in the account's unit, brings any unit of a set above the cap."""
        if limit.cap is None:
            return False
        members, rows = self._concerned(units)
        curves = self._sums(members)[rows] + total_curve(plan)
        return bool((filter_epsilon(curves, limit.delta, limit.shares_cap) > limit.cap).any())

    def others(self, units: str, ledger: str) -> list[Paid]:
        """Return the charges of other runs that concern any unit of a set."""
        members, rows = self._concerned(units)
        paid = {one for row in rows for one in self._paid_by(members, row)}
        return [one for one in paid if one.ledger != ledger]

    def largest_with(self, plans: Sequence[Sequence[Charge]], limit: Limit, *, moving: bool = False) -> float:
        """What the unit that has spent most would have spent after the `plans` of so many runs, if all concern it.

        In a run a unit is in one population: in the same one in all these runs, or where `moving` in any in each, as in
        the folds of a cross-validation. One run on an account that nothing was paid on has its own accountant.
        """
        by_population = [[[c for c in plan if c.population == whose] for plan in plans] for whose in POPULATIONS]
        if not self._by_set and len(plans) == 1:
            if any(charge.insecure for charge in plans[0]):
                return math.inf
            return max(bounds_of(charges[0], limit.delta).epsilon for charges in by_population)
        nothing = np.zeros((1, len(ORDERS)))
        curves = np.array([[nothing[0], *map(total_curve, those)] for those in by_population])
        planned = curves.max(axis=0).sum(axis=0)[None] if moving else curves.sum(axis=1)
        before = self._sums(self._grouped(None)) if self._by_set else nothing
        together = (before[:, None] + planned).reshape(-1, len(ORDERS))
        return float(filter_epsilon(together, limit.delta, limit.shares_cap).max(initial=0.0))

    def _paid_by(self, members: Memberships, row: int) -> tuple[Paid, ...]:
        held = (digest for digest, holds in zip(members.digests, members.groups[row], strict=True) if holds)
        return tuple(one for digest in held for one in self._by_set.get(digest, ()))

    def _concerned(self, units: str) -> tuple[Memberships, NDArray[np.int64]]:
        members = self._grouped(units)
        return members, np.flatnonzero(members.groups[:, members.digests.index(units)])

    def _grouped(self, more: str | None) -> Memberships:
        known = self._memberships.digests
        wanted = [digest for digest in (*self._by_set, *([more] if more else [])) if digest not in known]
        if wanted:
            digests = (*known, *dict.fromkeys(wanted))
            self._memberships = Memberships.of(digests, [self._read(digest) for digest in digests])
        return self._memberships

    def _sums(self, members: Memberships) -> F64:
        """f64[groups, orders]."""
        nothing = np.zeros(len(ORDERS))
        curves = np.array([self._curves.get(digest, nothing) for digest in members.digests])
        endless = np.isinf(curves)
        sums: F64 = members.groups.astype(np.float64) @ np.where(endless, 0.0, curves)
        sums[(members.groups.astype(np.float64) @ endless.astype(np.float64)) > 0] = np.inf
        return sums
