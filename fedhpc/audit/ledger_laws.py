"""What the ledgers say while a hospital trains, and what the claim costs by another library's accountant."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from dp_accounting import DpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

from fedhpc.audit.canaries import Blank, CanarySamples, network_canaries
from fedhpc.audit.findings import WITH_DP, Law
from fedhpc.audit.mechanism import LEARNING_RATE
from fedhpc.audit.observation import Claim, observed_config
from fedhpc.errors import InputError, SiteError
from fedhpc.models.vector import to_vector
from fedhpc.privacy.accountant import Charge, bounds_of
from fedhpc.privacy.ledger import SiteAccount, read_ledger
from fedhpc.privacy.ledger_folder import exists
from fedhpc.privacy.rdp import Steps
from fedhpc.privacy.site_ledger import SiteLedger, charge_of
from fedhpc.privacy.site_terms import LARGEST_DELTA, Terms
from fedhpc.privacy.unit_sets import Identities
from fedhpc.site.context import SiteContext
from fedhpc.site.hospital import Hospital

UNITS, ROUNDS = 20, 3
PESSIMISTIC = 0.03
"""By what share of epsilon another accountant may pass the claim: Google's rounds each loss up to a multiple of 10^-3,
and the tests hold the two within this of each other."""
CAP_SHARE = 0.9


@dataclass
class Books:
    """A step callback that reads the ledgers at the first step of each round, before it is known what the step did."""

    ledger: Path
    account: Path
    site: str
    taken: int = 0
    charged_first: list[int] = field(default_factory=list)
    account_first: list[int] = field(default_factory=list)

    def __call__(self, done: int, total: int) -> None:
        """One step more was taken."""
        self.taken += 1
        if done == 1:
            self.charged_first.append(steps_of(read_ledger(self.ledger)[1]))
            self.account_first.append(steps_of(account_charges(self.account, self.site)))


def steps_of(charges: tuple[Charge, ...]) -> int:
    """Return how many steps were charged."""
    return sum(charge.steps for charge in charges)


def account_charges(path: Path, site: str) -> tuple[Charge, ...]:
    """What the site ledger in the folder `path` was charged for the site's patients; nothing where there is none."""
    entries = SiteLedger(path).entries("charge") if exists(path) else []
    return tuple(charge_of(entry) for entry in entries if entry["site"] == site)


def ledger_laws(claim: Claim) -> Iterator[Law]:
    """Charged before the first step, all steps, to the run and to the account, and never past the cap."""
    per_round = claim.plan.steps_per_round
    with tempfile.TemporaryDirectory(prefix="fedhpc-audit-") as scratch:
        books, charges = _trained(claim, Path(scratch), None)
        account = account_charges(books.account, books.site)
    for name, firsts in (("ledger", books.charged_first), ("account", books.account_first)):
        due = [(round + 1) * per_round for round in range(ROUNDS)]
        early = min((have / want for have, want in zip(firsts, due, strict=False)), default=0.0)
        place = "charged / due at the first step of a round:"
        yield Law(f"{name} before the steps", WITH_DP, place, early, early, early, 1.0, np.inf)
    for name, found in (("ledger", charges), ("account", account)):
        share = steps_of(found) / max(1, books.taken)
        yield Law(f"{name}, all steps", WITH_DP, "steps charged / taken:", share, share, share, 1.0, np.inf)
    yield _terms_charged(claim, charges)
    with tempfile.TemporaryDirectory(prefix="fedhpc-audit-") as scratch:
        one_round = bounds_of([claim.plan.charge(0)], claim.config.privacy.delta).epsilon
        past = float(_trained(claim, Path(scratch), CAP_SHARE * one_round)[0].taken)
    yield Law("cap of the account", WITH_DP, "steps taken past it:", past, past, past, 0.0, 0.0)


def _terms_charged(claim: Claim, charges: tuple[Charge, ...]) -> Law:
    """Epsilon of what was charged, step by step, over that of what was planned."""
    plan, delta = claim.plan, claim.config.privacy.delta
    planned = bounds_of([plan.charge(round) for round in range(ROUNDS)], delta).epsilon
    share = bounds_of(charges, delta).epsilon / planned
    return Law("ledger, epsilon", WITH_DP, "charged / planned:", share, share, share, 1 - 1e-6, np.inf)


def _trained(claim: Claim, scratch: Path, cap: float | None) -> tuple[Books, tuple[Charge, ...]]:
    """Train ROUNDS rounds, or as many as the site takes part in; (what the ledgers said, all charges at the end)."""
    site = claim.config.site_names[0]
    config = observed_config(claim, ROUNDS, LEARNING_RATE)
    model = network_canaries(Blank(claim.classes), UNITS, claim.classes, 10.0).module.to(claim.device.device)
    ledger = scratch / "ledger.jsonl"
    books = Books(ledger, scratch / "account", site)
    units = Identities(tuple(b"canary %d" % number for number in range(UNITS)), ())
    made = SiteLedger.create(books.account, Terms(config.privacy.unit, min(config.privacy.delta, LARGEST_DELTA), cap))
    account = SiteAccount.of(made, site, {"train": units, "evaluation": Identities((), ())})
    place = SiteContext(config, model, claim.device, claim.plan, books)
    hospital = Hospital(site, 0, UNITS, CanarySamples(np.ones(UNITS, np.bool_)), place)
    hospital.keep_ledger(ledger, "audit", [account])
    start = to_vector(model)
    for round in range(ROUNDS):
        _unless_refused(lambda round=round: hospital.train(start, round))  # type: ignore[misc]
    return books, read_ledger(ledger)[1]


def _unless_refused(train: Callable[[], object]) -> None:
    try:
        train()
    except (InputError, SiteError):
        return


def accountant_laws(claim: Claim) -> Iterator[Law]:
    """The whole run's epsilon by dp_accounting (Google), which shares no code with the accountant of the ledger."""
    plan, p, rounds = claim.plan, claim.config.privacy, claim.config.training.rounds
    steps = plan.steps_per_round * rounds
    released = claim.config.model.feature_mean == "sites"
    before = [Steps(p.feature_mean_noise, 1.0, 1)] if released else []
    history = [*before, Steps(plan.noise_multiplier, plan.sample_rate, steps)]
    found = epsilon_by_google(history, p.delta, gaussian=plan.mechanism == "gaussian")
    limit = float(p.epsilon or 0.0) * (1 + PESSIMISTIC)
    name = f"epsilon of {steps:,} steps by dp_accounting:"
    yield Law("another accountant", WITH_DP, name, found, found, found, -np.inf, limit)
    booked = bounds_of(plan.charges(rounds), p.delta).epsilon / found
    name = "epsilon by the ledger / by dp_accounting:"
    yield Law("accountant of the ledger", WITH_DP, name, booked, booked, booked, 1 - PESSIMISTIC, np.inf)


def epsilon_by_google(history: Sequence[Steps], delta: float, *, gaussian: bool) -> float:
    """By privacy loss distributions; of Skellam noise by RDP at integer orders, where it costs what a Gaussian does."""
    accountant = PLDAccountant(value_discretization_interval=1e-3) if gaussian else RdpAccountant(orders=range(2, 512))
    for steps in history:
        step: DpEvent = GaussianDpEvent(steps.noise_multiplier)
        event = step if steps.sample_rate == 1 else PoissonSampledDpEvent(steps.sample_rate, step)
        accountant.compose(SelfComposedDpEvent(event, steps.number))
    return float(accountant.get_epsilon(delta))
