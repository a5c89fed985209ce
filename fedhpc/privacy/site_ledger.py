"""The site ledger: a hospital's own account of what its patients have spent, with a cap that no config can raise.

A folder that the hospital owns (`run.py budget init`):

    key            256 random bits, mode 0600: authenticates all else, and keys the hashes of the patients
    ledger.jsonl   terms, grants and charges: a keyed, anchored hash chain (`fedhpc.privacy.anchored_chain`)
    anchor.json    how many lines there are, and the last seal
    sets/          whom the charges concern, as keyed hashes (`fedhpc.privacy.unit_sets`); they stay in the hospital

Spending is per patient, over all charges that concern it: of any run, fold, shard or split, training and evaluation
alike. The cap is on the patient who has spent most. It is judged at the account's own delta by a Renyi filter
(`fedhpc.privacy.rdp_filter`), since a run may be chosen after the results of the one before. Reading, judging and
writing are one act under one lock, so that runs at the same time cannot pass the cap together.

A run whose whole plan passes the filter's cap, on patients who have spent nothing, may still be within the cap by its
own accountant (PRV), which is tighter and holds because the plan was fixed in advance. The account then commits the
whole cap to that run at its first charge, and refuses every other run on these patients, even if it stops early, until
the hospital grants more: which of the two rules governs never depends on a result.

What the account cannot see: somebody with the key (who may read the folder may write it) who rewrites it all, or puts
back an older copy of the whole folder, or removes it. The ledger's head is in every round's record at rank 0, outside
the hospital, and every later run compares: then it is seen, as long as any such record is left where that run looks,
beside its own run directory. If all records are gone as well, nothing shows it. Patients who come back under another
pseudonym *and* with other pixels (a new import with another seed and another size) are other patients to the account.
A refusal tells the federation that some patient of the shard has no budget left.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np

from fedhpc.errors import InputError, PrivacyError
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.anchored_chain import AnchoredChain
from fedhpc.privacy.hash_chain import REMEDY
from fedhpc.privacy.ledger_folder import CONTENT, SEAL_DIGITS, account_id, derived, exists, make, making, read_key
from fedhpc.privacy.rdp_filter import in_larger_units
from fedhpc.privacy.site_terms import Answer, Request, Terms
from fedhpc.privacy.spending import Group, Limit, Paid, Spending
from fedhpc.privacy.unit_sets import Identities, SetStore, UnitSet, keys_of
from fedhpc.util.clock import now


class SiteLedger:
    """One opened account. Many runs may append to it, from any number of processes.

    Raises:
        PrivacyError: there is none, its key is readable by others, or it was changed, shortened or swapped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = read_key(folder)
        self._chain = AnchoredChain(folder, self._derived("chain"))
        if not self._entries():
            raise PrivacyError(f"{folder}: holds a key and no ledger; {REMEDY}", code="privacy.ledger-missing")
        first = self._entries()[0]
        self.id = account_id(self._key)
        self._secret = self._derived(f"units {first['salt']}")
        self._sets = SetStore(folder / "sets", self._derived("sets"))
        self._spending, self._seen = Spending((), self._sets.get), 0

    @classmethod
    def create(cls, folder: Path, terms: Terms) -> Self:
        """Make an account; where a run has made one that the hospital did not initialise, set its terms.

        Raises:
            InputError: an initialised account, or one of another unit.
        """
        with making(folder):
            # A key alone: a crash fell between the first two writes, and nothing was charged yet.
            if not any((folder / name).exists() for name in CONTENT):
                make(folder, terms)
                return cls(folder)
        made = cls(folder)
        if made.terms.initialised or not terms.initialised:
            raise InputError(
                f"{folder}: is an initialised site ledger; `run.py budget grant` changes its terms",
                code="privacy.ledger-exists",
            )
        made.change(terms, "budget init")
        return made

    @classmethod
    def open_or_create(cls, folder: Path, terms: Terms) -> Self:
        """Return the account in `folder`; made with these `terms` where there is none."""
        if not (folder / "ledger.jsonl").exists():
            with making(folder):
                if not exists(folder):
                    make(folder, terms)
        return cls(folder)

    @property
    def terms(self) -> Terms:
        """As last set."""
        last = [entry for entry in self._entries() if entry["kind"] == "terms"][-1]
        return Terms(**{field.name: last[field.name] for field in fields(Terms)})

    @property
    def head(self) -> str:
        """What stands for the whole ledger in a round's record: "<account id>:<beginning of the last seal>"."""
        return f"{self.id}:{self._chain.head[:SEAL_DIGITS]}"

    def refresh(self) -> None:
        """Read and check what others have appended."""
        self._chain.refresh()

    def has_head(self, head: str) -> bool:
        """Return whether a `head` that was recorded of this account is one of its lines."""
        seal = head.partition(":")[2]
        return any(one.startswith(seal) for one in self._chain.seals)

    def entries(self, kind: str) -> list[dict[str, Any]]:
        """All entries of a kind: terms, charge, answer, without_privacy, accept_lost."""
        return [entry for entry in self._entries() if entry["kind"] == kind]

    def charges(self, ledger: str, site: str) -> tuple[Charge, ...]:
        """Return the charges of one run's ledger for one site, as the run made them."""
        mine = (e for e in self.entries("charge") if (e["ledger"], e["site"]) == (ledger, site))
        return tuple(charge_of(entry) for entry in mine)

    def register(self, identities: Identities) -> UnitSet:
        """Store the set of these units.

        Raises:
            PrivacyError: it cannot be written.
        """
        try:
            return UnitSet(self._sets.put(keys_of(identities, self._secret)), identities.largest)
        except OSError as error:
            raise PrivacyError(
                f"{self.folder}: cannot be written ({error.strerror}); free the disk", code="privacy.ledger-unwritable"
            ) from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among all processes, and up to date: `affords` and `write` within are one act."""
        with self._chain.locked():
            yield

    def refusal(self, request: Request) -> str:
        """Return why a charge would be refused; empty where it is not. Public: it names no patient and no amount."""
        limit = self.limit(request.lower_cap)
        if limit.cap is None:
            return ""
        by = "its cap" if limit.cap == self.terms.cap else "privacy.lifetime_epsilon"
        one, spending = self._paid(request), self._caught_up()
        if request.charge.insecure:
            return f"privacy.noise_seed voids the guarantee, and {by} is epsilon {limit.cap:g}; remove the seed"
        for other in spending.others(request.units.digest, request.owner.ledger):
            if other.charge.insecure:
                return f"a run with privacy.noise_seed was charged to some of these patients: {by} cannot hold for them"
            if other.sole is not None and other.sole >= limit.cap:
                return f"all of {by}, epsilon {limit.cap:g}, is committed to another run (see `run.py budget show`)"
        if spending.would_pass(one, limit):
            return f"one more charge would pass {by}, epsilon {limit.cap:g} at delta {limit.delta:g}"
        return ""

    def write(self, request: Request) -> None:
        """Charge, within `locked` and after `refusal`; on disk when this returns, and counted even where it raises."""
        one = self._paid(request)
        concerned = {"units": one.units, "largest": request.units.largest, "sole": one.sole}
        entry = {**asdict(request.owner), **asdict(request.charge), **concerned, "time": now()}
        self._chain.append({"kind": "charge", **entry})

    def charge(self, request: Request) -> None:
        """Judge and write, as one act.

        Raises:
            PrivacyError: the charge is refused, or cannot be written.
        """
        with self.locked():
            refused = self.refusal(request)
            if refused:
                raise PrivacyError(f"site ledger of {request.owner.site}: {refused}", code="privacy.site-budget")
            self.write(request)

    def take_in(self, entries: Sequence[Mapping[str, Any]]) -> int:
        """Append charges that were made elsewhere, each once, by its "imported" seal; how many were new."""
        with self.locked():
            known = {entry.get("imported") for entry in self.entries("charge")}
            new = [entry for entry in entries if entry["imported"] not in known]
            for entry in new:
                # Last: an entry that named its own kind could set the account's terms.
                self._chain.append({**entry, "sole": None, "kind": "charge"})
        return len(new)

    def change(self, terms: Terms, reason: str, seen: Terms | None = None) -> None:
        """Set other terms, for a reason; the unit stays.

        Args:
            terms: all of the new ones.
            reason: for the ledger.
            seen: the terms that the new ones were made from, which nobody may have changed meanwhile; None: any.

        Raises:
            InputError: another unit, a lower cap, or a change meanwhile.
        """
        with self.locked():
            before = self.terms
            if seen is not None and before != seen:
                raise InputError(
                    f"{self.folder}: its terms were changed meanwhile; look at them with `run.py budget show`, and "
                    "grant again",
                    code="privacy.site-terms",
                )
            if terms.unit != before.unit:
                raise InputError(
                    f"unit={terms.unit}: this site ledger counts per {before.unit}, for good", code="privacy.site-terms"
                )
            if before.cap is not None and (terms.cap is None or terms.cap < before.cap):
                raise InputError(
                    f"cap={terms.cap}: the cap is {before.cap:g}; a grant can only raise it", code="privacy.site-terms"
                )
            self._chain.append({"kind": "terms", **asdict(terms), "reason": reason, "time": now()})

    def answers(self, answer: Answer) -> int:
        """Return how many answers of this kind were made, whether they are still kept or not."""
        wanted = asdict(answer)
        return sum(wanted.items() <= entry.items() for entry in self.entries("answer"))

    def write_answer(self, answer: Answer) -> None:
        """Write down, within `locked`, that an answer is about to be made; on disk when this returns."""
        self._chain.append({"kind": "answer", **asdict(answer), "time": now()})

    def note(self, kind: Literal["without_privacy", "accept_lost"], content: Mapping[str, str]) -> None:
        """Write down what is no charge: a run without privacy, or that another account is known to be lost."""
        with self.locked():
            self._chain.append({"kind": kind, **content, "time": now()})

    def limit(self, lower_cap: float | None = None) -> Limit:
        """Return the lower of the account's cap and `lower_cap`, at the account's delta."""
        terms = self.terms
        caps = [cap for cap in (terms.cap, lower_cap) if cap is not None]
        return Limit(min(caps, default=None), terms.cap if terms.cap is not None else lower_cap, terms.delta)

    def groups(self) -> list[Group]:
        """Return what was spent, by groups of units with the same charges; those that have spent most first."""
        return self._caught_up().groups(self.limit())

    def largest_with(
        self, plans: Sequence[Sequence[Charge]], without: frozenset[str] = frozenset(), *, moving: bool = False
    ) -> float:
        """What the patient who has spent most would have spent after the `plans` of so many runs, if all concern it.

        Args:
            plans: the planned charges of each run. Images are counted as patients of one image.
            without: ids of run ledgers to leave out.
            moving: whether a patient may be in another split in each of the runs.
        """
        spending = self._caught_up()
        if without:
            paid = (self._paid_of(e) for e in self.entries("charge") if e["ledger"] not in without)
            spending = Spending(paid, self._sets.get)
        converted = [[in_larger_units(charge, self._group(charge, 1)) for charge in plan] for plan in plans]
        return spending.largest_with(converted, self.limit(), moving=moving)

    def spent_by(self, identities: Identities) -> float:
        """Return what the one of these units that has spent most has spent."""
        groups = self._caught_up().groups(self.limit(), keys_of(identities, self._secret))
        return groups[0].epsilon if groups else 0.0

    def has_charged(self, identities: Identities) -> bool:
        """Return whether any of these units was charged here, by its pseudonym or by its pixels."""
        keys = keys_of(identities, self._secret)
        digests = {entry["units"] for entry in self.entries("charge")}
        return any(bool(np.isin(keys, self._sets.get(digest)).any()) for digest in digests)

    def _group(self, charge: Charge, largest: int) -> int:
        """Return how many units of the charge one unit of the account can hold.

        To change one image of a patient is to take the patient away and put another in its place: 2.
        """
        if charge.unit == self.terms.unit:
            return 1
        return largest if charge.unit == "image" else 2

    def _paid(self, request: Request) -> Paid:
        group = self._group(request.charge, request.units.largest)
        one = Paid(in_larger_units(request.charge, group), request.units.digest, request.owner.ledger)
        return replace(one, sole=self._sole_cap(request, group))

    def _sole_cap(self, request: Request, group: int) -> float | None:
        """Return the cap that is committed to this run alone; see the module's text."""
        whose = (request.owner.ledger, request.units.digest)
        mine = [entry for entry in self.entries("charge") if (entry["ledger"], entry["units"]) == whose]
        if mine:
            committed: float | None = mine[0]["sole"]
            return committed
        limit, spending, digest = self.limit(request.lower_cap), self._caught_up(), request.units.digest
        whole = [in_larger_units(charge, group) for charge in (request.charge, *request.plan)]
        if limit.cap is None or spending.others(digest, "") or not spending.plan_passes(digest, whole, limit):
            return None
        return limit.cap

    def _paid_of(self, entry: Mapping[str, Any]) -> Paid:
        charge = charge_of(entry)
        group = self._group(charge, int(entry["largest"]))
        return Paid(in_larger_units(charge, group), entry["units"], entry["ledger"], entry["sole"])

    def _caught_up(self) -> Spending:
        entries = self._entries()
        if len(entries) < self._seen:
            self._spending, self._seen = Spending((), self._sets.get), 0
        for entry in entries[self._seen :]:
            if entry["kind"] == "charge":
                self._spending.add(self._paid_of(entry))
        self._seen = len(entries)
        return self._spending

    def _entries(self) -> list[dict[str, Any]]:
        begun = self._chain.pending
        return self._chain.entries if begun is None else [*self._chain.entries, begun]

    def _derived(self, purpose: str) -> bytes:
        return derived(self._key, purpose)


def charge_of(entry: Mapping[str, Any]) -> Charge:
    """Return the charge of an entry; a field that it was written without has its default."""
    return Charge(**{field.name: entry[field.name] for field in fields(Charge) if field.name in entry})
