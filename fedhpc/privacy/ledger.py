"""The write-ahead privacy ledger of one site in one run: what the run has spent, on disk before it is spent.

Two places, both hash chains of one JSON line a charge:

- the site ledger (`fedhpc.privacy.site_ledger`): what every run has spent on the hospital's patients, with its cap;
- `sites/<site>/ledger.jsonl` in the run directory: what this run has spent.

A charge is judged and written as one act, under the locks of both: first to the site ledger, then to the run's, each
fsynced, and only then do the steps run that it pays for. So two jobs in one run directory can not pass the run's target
together, and a crash, a requeue or a replayed round can only make the reported epsilon larger, never smaller than the
truth. After a crash between the two writes the run's ledger is completed from the site ledger; any other difference
between the two is refused. The last seal of each goes into every round's record at the aggregator, outside the
hospital: a ledger that was cut or swapped afterwards does not hold it any more.
"""

import secrets
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Self

from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Bounds, Charge, Population, bounds_of
from fedhpc.privacy.hash_chain import REMEDY, Chain
from fedhpc.privacy.ledger_folder import SEAL_DIGITS
from fedhpc.privacy.site_ledger import SiteLedger, charge_of
from fedhpc.privacy.site_terms import Answer, Owner, Request
from fedhpc.privacy.unit_sets import Identities, UnitSet
from fedhpc.util.clock import now


@dataclass(frozen=True)
class SiteAccount:
    """The units of one site's shard on the hospital's site ledger: whom a charge to each population concerns.

    `synthetic`: they do not exist.
    """

    ledger: SiteLedger
    site: str
    units: Mapping[Population, UnitSet]
    synthetic: bool = False

    @classmethod
    def of(
        cls, ledger: SiteLedger, site: str, identities: Mapping[Population, Identities], synthetic: bool = False
    ) -> Self:
        """Register the units (private) of each population."""
        units = {population: ledger.register(those) for population, those in identities.items()}
        return cls(ledger, site, units, synthetic)


@dataclass(frozen=True)
class RunTerms:
    """What a run asks for: its delta, a lower cap than the account's (privacy.lifetime_epsilon), its whole plan."""

    delta: float = 1e-5
    lower_cap: float | None = None
    plan: tuple[Charge, ...] = ()


@dataclass(frozen=True)
class LedgerOwner:
    """Whose ledger it is: the names of the site and of the run."""

    site: str
    run: str


class Ledger:
    """The ledger of one site in one run, checked against the site ledgers that it charges and kept equal to them.

    Args:
        path: of the run's ledger.
        owner: the site and the run that it belongs to.
        accounts: of the shards whose patients it trains on: one, but for the pooled learner of the centralised mode.
        terms: of the run.

    Raises:
        PrivacyError: a ledger that was changed or cut, of another site, or not what the site ledger says.
    """

    def __init__(
        self, path: Path, owner: LedgerOwner, accounts: Sequence[SiteAccount] = (), terms: RunTerms | None = None
    ) -> None:
        self._chain, self.accounts, self._terms = Chain(path), _each_once(accounts), terms or RunTerms()
        site = owner.site
        with ExitStack() as held:
            self._hold(held)
            if not self._chain.entries:
                self._chain.append(
                    {"ledger_of": site, "ledger": secrets.token_hex(16), "run": owner.run, "time": now()}
                )
            found = self._chain.entries[0].get("ledger_of")
            if found != site:
                raise PrivacyError(
                    f"{path}: is the ledger of site {found}, this is {site}; each keeps its own",
                    code="privacy.ledger-other",
                )
            self._reconcile()

    def _hold(self, held: ExitStack) -> None:
        """Take all locks, in an order that is the same for all processes."""
        held.enter_context(self._chain.locked())
        ledgers = {account.ledger.folder.resolve(): account.ledger for account in self.accounts}
        for _, ledger in sorted(ledgers.items()):
            held.enter_context(ledger.locked())

    def _reconcile(self) -> None:
        mine = self.charges
        found = [account.ledger.charges(self.id, account.site) for account in self.accounts]
        longest = max([mine, *found], key=len)
        for account, charges in zip(self.accounts, found, strict=True):
            if charges != longest[: len(charges)] or len(charges) < len(mine):
                raise PrivacyError(
                    f"{account.ledger.folder}: does not hold the {len(mine)} charges of {self._chain.path}; {REMEDY}",
                    code="privacy.ledger-damaged",
                )
        if mine != longest[: len(mine)] or len(mine) < len(longest) - 1:
            raise PrivacyError(
                f"{self._chain.path}: has {len(mine)} charges, the site ledger has {len(longest)} of this run: it was "
                f"cut or swapped; {REMEDY}",
                code="privacy.ledger-damaged",
            )
        # A crash fell between the writes of one charge: it was about to be spent, so it counts everywhere.
        for charge in longest[len(mine) :]:
            for account, charges in zip(self.accounts, found, strict=True):
                if len(charges) < len(longest):
                    account.ledger.write(self._request(account, charge))
            self._append(charge)

    @property
    def id(self) -> str:
        """What its charges are found by in a site ledger."""
        return str(self._chain.entries[0]["ledger"])

    @property
    def charges(self) -> tuple[Charge, ...]:
        """All charges of this run."""
        return tuple(charge_of(entry) for entry in self._chain.entries[1:])

    @property
    def head(self) -> str:
        """What stands for the whole ledger in a round's record: the beginning of its last seal."""
        return self._chain.head[:SEAL_DIGITS]

    def account_head(self, site: str) -> str:
        """Return the head of the site ledger that this site's charges go to; empty where there is none."""
        return next((account.ledger.head for account in self.accounts if account.site == site), "")

    def check_head(self, head: str) -> None:
        """Raises PrivacyError where this ledger never had the `head` that a round's record tells of."""
        if not any(seal.startswith(head) for seal in self._chain.seals):
            raise PrivacyError(
                f"{self._chain.path}: lacks the line {head} that the record of an earlier round tells of: it was cut "
                f"or swapped; {REMEDY}",
                code="privacy.ledger-damaged",
            )

    def bounds(self, delta: float, planned: Charge | None = None, population: Population = "train") -> Bounds:
        """What this run has spent at `delta` on one population, with one more charge, if any, which names its own."""
        whose = planned.population if planned else population
        charges = [*self.charges, *([planned] if planned else [])]
        return bounds_of([charge for charge in charges if charge.population == whose], delta)

    def epsilon(self, delta: float, planned: Charge | None = None, population: Population = "train") -> float:
        """Return the tighter of `bounds`."""
        return self.bounds(delta, planned, population).epsilon

    def affords(self, planned: Charge, target: float) -> bool:
        """Whether one more charge stays within the run's `target` epsilon, and within the cap of every account."""
        self._chain.refresh()
        return self.epsilon(self._terms.delta, planned) <= target and not self.refused_by_accounts(planned)

    def refused_by_accounts(self, planned: Charge) -> str:
        """Why an account would refuse one more charge; empty where none would. Public, as `SiteLedger.refusal` is."""
        for account in self.accounts:
            account.ledger.refresh()
            refused = account.ledger.refusal(self._request(account, planned))
            if refused:
                return f"site ledger of {account.site}: {refused}"
        return ""

    def charge(self, charge: Charge, target: float | None = None) -> None:
        """Judge `charge` and write it to the disk, as one act; it counts from here on, whether its steps end or not.

        Raises:
            PrivacyError: it would pass the run's `target` epsilon or a cap, for instance by what another job has spent
                meanwhile; or it cannot be written.
        """
        with ExitStack() as held:
            self._hold(held)
            self._charge(charge, target)

    def _charge(self, charge: Charge, target: float | None) -> None:
        """See `charge`; within `_hold`."""
        if target is not None and self.epsilon(self._terms.delta, charge) > target:
            raise PrivacyError(
                f"{self._chain.path}: one more charge would pass the run's epsilon {target:g}", code="privacy.budget"
            )
        requests = [(account, self._request(account, charge)) for account in self.accounts]
        for account, request in requests:
            _refuse(account, request)
        charged: list[SiteLedger] = []
        for account, request in requests:
            if account.ledger in charged:
                # A patient may be in two shards of one account: what was just written counts for the next.
                _refuse(account, request)
            account.ledger.write(request)
            charged.append(account.ledger)
        self._append(charge)

    def has_paid_answer(self, stage: int, split: str) -> bool:
        """Whether its site ledgers tell of a charge at the stage that no answer on this split was made for yet."""
        for account in self.accounts:
            account.ledger.refresh()
        return self._has_paid_answer(stage, split)

    def _has_paid_answer(self, stage: int, split: str) -> bool:
        for account in self.accounts:
            charges = account.ledger.charges(self.id, account.site)
            paid = sum((charge.round, charge.population) == (stage, "evaluation") for charge in charges)
            if account.ledger.answers(Answer(self.id, account.site, stage, split)) >= paid:
                return False
        return True

    def begin_answer(self, charge: Charge, target: float, split: str, *, due: bool) -> None:
        """Write down that an answer of validation or test patients is about to be made; charge it where that is due.

        A charge covers one answer on each split. How many there were is in the site ledger, so that an older copy of
        the run directory, or a second one, gets no further answer for the same charge.

        Args:
            charge: of its stage.
            target: epsilon of all stages of the run.
            split: "val" or "test".
            due: whether it must be charged by what the caller knows; else the site ledgers decide.

        Raises:
            PrivacyError: as `charge`.
        """
        with ExitStack() as held:
            self._hold(held)
            if due or not self._has_paid_answer(charge.round, split):
                self._charge(charge, target)
            for account in self.accounts:
                account.ledger.write_answer(Answer(self.id, account.site, charge.round, split))

    def _request(self, account: SiteAccount, charge: Charge) -> Request:
        owner = Owner(self.id, str(self._chain.entries[0]["run"]), account.site)
        later = [c for c in self._terms.plan if c.population == charge.population and c.round > charge.round]
        plan = tuple(replace(one, insecure=charge.insecure) for one in later)
        return Request(charge, account.units[charge.population], owner, plan, self._terms.lower_cap)

    def _append(self, charge: Charge) -> None:
        same = (charge.round, charge.population)
        attempt = sum((earlier.round, earlier.population) == same for earlier in self.charges)
        self._chain.append({**asdict(charge), "time": now(), "attempt": attempt})


def _refuse(account: SiteAccount, request: Request) -> None:
    refused = account.ledger.refusal(request)
    if refused:
        raise PrivacyError(f"site ledger of {account.site}: {refused}", code="privacy.site-budget")


def _each_once(accounts: Sequence[SiteAccount]) -> tuple[SiteAccount, ...]:
    """Let the accounts of sites that are charged to one folder (FEDHPC_SITE_LEDGER without {site}) have one ledger.

    What has the lock of a folder is one object, and only that can write.
    """
    ledgers: dict[Path, SiteLedger] = {}
    return tuple(replace(one, ledger=ledgers.setdefault(one.ledger.folder.resolve(), one.ledger)) for one in accounts)


def read_ledger(path: Path) -> tuple[str, tuple[Charge, ...]]:
    """(site, charges) of a run's ledger, only looked at.

    Raises:
        PrivacyError: where it is missing, or not intact.
    """
    chain = Chain(path)
    if not chain.entries:
        raise PrivacyError(f"{path}: no such ledger, or an empty one; {REMEDY}", code="privacy.ledger-missing")
    return chain.entries[0]["ledger_of"], tuple(charge_of(entry) for entry in chain.entries[1:])
