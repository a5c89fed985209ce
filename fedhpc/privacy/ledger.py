"""The write-ahead privacy ledgers of one site: what its patients have spent, on disk before it is spent.

Two files, both hash chains (`fedhpc.privacy.hash_chain`) of one JSON line a charge:

- `sites/<site>/ledger.jsonl` in the run directory: what this run has spent;
- `<site>.ledger.jsonl` beside the shard: what every run has spent on these patients, for the shard's whole life.

A charge goes to the lifetime ledger first, then to the run's, each fsynced, and only then do the steps run that it pays
for. So a crash, a requeue or a replayed round can only make the reported epsilon larger, never smaller than the truth.
After a crash between the two writes the run's ledger is completed from the lifetime's; any other difference between
the two is refused. The last seal of the run's ledger goes into every round's record at the aggregator, outside the
hospital: a ledger that was cut or swapped afterwards does not hold it any more. What this cannot see: somebody who
rewrites both files and the aggregator's records.
"""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Bounds, Charge, Population, bounds_of
from fedhpc.privacy.hash_chain import REMEDY, Chain

SEAL_DIGITS = 16
"""How much of a seal goes into a round's record."""


def lifetime_path(shard: Path) -> Path:
    """The lifetime ledger of a shard.

    >>> str(lifetime_path(Path("data/site1.h5")))
    'data/site1.ledger.jsonl'
    """
    return shard.with_suffix(".ledger.jsonl")


@dataclass(frozen=True)
class Spending:
    """What one run, by its name and the id of its ledger, has charged to a shard, in the order of the charges."""

    run: str
    ledger: str
    charges: tuple[Charge, ...]


class Lifetime:
    """The lifetime ledger of one shard. Many runs may append to it, from any number of processes."""

    def __init__(self, path: Path, site: str) -> None:
        self._chain, self.site = Chain(path), site
        _check_owner(self._chain, site)

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self._chain.path

    def spendings(self) -> tuple[Spending, ...]:
        """By run, oldest first."""
        names: dict[str, str] = {}
        by_run: dict[str, list[Charge]] = {}
        for entry in self._chain.entries[1:]:
            names[entry["ledger"]] = entry["run"]
            by_run.setdefault(entry["ledger"], []).append(_charge_of(entry))
        return tuple(Spending(names[key], key, tuple(charges)) for key, charges in by_run.items())

    def charges(self, ledger: str | None = None) -> tuple[Charge, ...]:
        """All charges, or those of one run's ledger by its id."""
        chosen = (e for e in self._chain.entries[1:] if ledger is None or e["ledger"] == ledger)
        return tuple(_charge_of(entry) for entry in chosen)

    def open(self) -> None:
        """Make the file where there is none, and find out that it can be written."""
        with self._chain.locked():
            if not self._chain.entries:
                self._chain.append({"lifetime_ledger_of": self.site, "time": _now()})

    def charge(self, charge: Charge, owner: tuple[str, str], cap: tuple[float | None, float]) -> None:
        """Write a charge of a run, `owner` = (its ledger's id, its name), within `cap` = (lifetime epsilon, delta).

        Raises:
            PrivacyError: where the cap would be passed, for instance by what another run has spent meanwhile.
        """
        with self._chain.locked():
            if cap[0] is not None and self.with_planned(charge, cap[1]).epsilon > cap[0]:
                raise PrivacyError(f"{self.path}: one more charge would pass privacy.lifetime_epsilon={cap[0]}")
            self._chain.append({"ledger": owner[0], "run": owner[1], **_entry_of(charge)})

    def with_planned(self, planned: Charge, delta: float) -> Bounds:
        """What all runs have spent together, and one more charge.

        Raises:
            PrivacyError: where no sum can be formed: runs with different units, or with noise from a fixed seed.
        """
        self._chain.refresh()
        charges = (*self.charges(), planned)
        if len({charge.unit for charge in charges}) > 1:
            raise PrivacyError(
                f"{self.path}: charged for patients by some runs and for images by others; privacy.lifetime_epsilon "
                "has no one sum for that: use the same privacy.unit for all runs on a shard, or set no cap"
            )
        if any(charge.insecure for charge in charges[:-1]):
            raise PrivacyError(
                f"{self.path}: a run with privacy.noise_seed was charged here, which voids all guarantees: "
                "privacy.lifetime_epsilon cannot hold for this shard; set no cap"
            )
        return bounds_of(charges, delta)


class Ledger:
    """The ledger of one site in one run, checked against the lifetime ledgers of its shards and kept equal to them.

    Args:
        path: of the run's ledger.
        owner: (the site's name, the run's name).
        lifetimes: of the shards whose patients it trains on: one, but for the pooled learner of the centralised mode.
        cap: (privacy.lifetime_epsilon, delta).

    Raises:
        PrivacyError: a ledger that was changed or cut, of another site, or not what the lifetime ledger says.
    """

    def __init__(
        self,
        path: Path,
        owner: tuple[str, str],
        lifetimes: Sequence[Lifetime] = (),
        cap: tuple[float | None, float] = (None, 1e-5),
    ) -> None:
        self._chain, self.lifetimes, self._cap = Chain(path), tuple(lifetimes), cap
        site, run = owner
        _check_owner(self._chain, site)
        for lifetime in self.lifetimes:
            lifetime.open()
        if not self._chain.entries:
            with self._chain.locked():
                self._chain.append({"ledger_of": site, "ledger": secrets.token_hex(16), "run": run, "time": _now()})
        self._owner: tuple[str, str] = (self._chain.entries[0]["ledger"], self._chain.entries[0]["run"])
        self._reconcile()

    def _reconcile(self) -> None:
        mine = self.charges
        found = {lifetime: lifetime.charges(self._owner[0]) for lifetime in self.lifetimes}
        longest = max([mine, *found.values()], key=len)
        for lifetime, charges in found.items():
            if charges != longest[: len(charges)] or len(charges) < len(mine):
                raise PrivacyError(
                    f"{lifetime.path}: does not hold the {len(mine)} charges of {self._chain.path}; {REMEDY}"
                )
        if mine != longest[: len(mine)] or len(mine) < len(longest) - 1:
            raise PrivacyError(
                f"{self._chain.path}: has {len(mine)} charges, {len(longest)} were written beside the shard: it was "
                f"cut or swapped; {REMEDY}"
            )
        # A crash fell between the writes of one charge: it was about to be spent, so it counts everywhere.
        for charge in longest[len(mine) :]:
            for lifetime in (lifetime for lifetime, charges in found.items() if len(charges) < len(longest)):
                lifetime.charge(charge, self._owner, (None, self._cap[1]))
            self._append(charge)

    @property
    def id(self) -> str:
        """What its charges are found by in a lifetime ledger."""
        return self._owner[0]

    @property
    def charges(self) -> tuple[Charge, ...]:
        """All charges of this run."""
        return tuple(_charge_of(entry) for entry in self._chain.entries[1:])

    @property
    def head(self) -> str:
        """What stands for the whole ledger in a round's record: the beginning of its last seal."""
        return self._chain.head[:SEAL_DIGITS]

    def check_head(self, head: str) -> None:
        """Raises PrivacyError where this ledger never had the `head` that a round's record tells of."""
        if not any(seal.startswith(head) for seal in self._chain.seals):
            raise PrivacyError(
                f"{self._chain.path}: lacks the line {head} that the record of an earlier round tells of: it was cut "
                f"or swapped; {REMEDY}"
            )

    def bounds(self, delta: float, planned: Charge | None = None, population: Population = "train") -> Bounds:
        """What this run has spent at `delta` on one population, with one more charge, if any, which names its own."""
        whose = planned.population if planned else population
        charges = [*self.charges, *([planned] if planned else [])]
        return bounds_of([charge for charge in charges if charge.population == whose], delta)

    def epsilon(self, delta: float, planned: Charge | None = None, population: Population = "train") -> float:
        """The tighter of `bounds`."""
        return self.bounds(delta, planned, population).epsilon

    def affords(self, planned: Charge, target: float) -> bool:
        """Whether one more charge stays within the run's `target` epsilon, and every shard within its lifetime cap."""
        cap, delta = self._cap
        if self.epsilon(delta, planned) > target:
            return False
        return cap is None or all(life.with_planned(planned, delta).epsilon <= cap for life in self.lifetimes)

    def charge(self, charge: Charge) -> None:
        """Write `charge` to the disk, first beside the shard; it counts from here on, whether its steps end or not."""
        for lifetime in self.lifetimes:
            lifetime.charge(charge, self._owner, self._cap)
        self._append(charge)

    def _append(self, charge: Charge) -> None:
        same = (charge.round, charge.population)
        attempt = sum((earlier.round, earlier.population) == same for earlier in self.charges)
        with self._chain.locked():
            self._chain.append({**_entry_of(charge), "attempt": attempt})


def read_ledger(path: Path) -> tuple[str, tuple[Charge, ...]]:
    """(site, charges) of a run's ledger, only looked at.

    Raises:
        PrivacyError: where it is missing, or not intact.
    """
    chain = Chain(path)
    if not chain.entries:
        raise PrivacyError(f"{path}: no such ledger, or an empty one; {REMEDY}")
    return chain.entries[0]["ledger_of"], tuple(_charge_of(entry) for entry in chain.entries[1:])


def _check_owner(chain: Chain, site: str) -> None:
    first = chain.entries[0] if chain.entries else {"ledger_of": site}
    owner = first.get("ledger_of", first.get("lifetime_ledger_of"))
    if owner != site:
        raise PrivacyError(f"{chain.path}: is the ledger of site {owner}, this is {site}; each keeps its own")


def _entry_of(charge: Charge) -> dict[str, Any]:
    return {**asdict(charge), "time": _now()}


def _charge_of(entry: dict[str, Any]) -> Charge:
    """The charge of an entry; one written before a field existed has that field's default."""
    return Charge(**{field.name: entry[field.name] for field in fields(Charge) if field.name in entry})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
