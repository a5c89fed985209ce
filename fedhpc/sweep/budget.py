"""What a sweep costs the patients: every private run on a shard adds to what its patients have spent.

Calibrates the noise of every trial, so it takes a second or two; sees configs and ledgers only.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from fedhpc.config.schema import RunConfig
from fedhpc.errors import ConfigError, PrivacyError
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.evaluation_plan import charges_of_run
from fedhpc.privacy.plan import site_plans
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.spending import Limit, Spending, no_set
from fedhpc.site.account import found_ledger, told
from fedhpc.sweep.config import Trial


@dataclass
class Account:
    """One site: its site ledger (None: none is seen from here), and the plans of the trials that fit so far."""

    ledger: SiteLedger | None
    own: frozenset[str]
    delta: float
    plans: list[list[Charge]] = field(default_factory=list)

    def after(self, more: Sequence[list[Charge]], cap: float | None = None) -> float:
        """Return what the patient who has spent most will have spent after all plans so far, and `more`."""
        plans = [*self.plans, *more]
        if self.ledger is not None:
            return self.ledger.largest_with(plans, self.own)
        return Spending((), no_set).largest_with(plans, Limit(cap, cap, self.delta))

    def cap(self, config: RunConfig) -> float | None:
        """Return the lower of the site ledger's cap and the config's."""
        return self.limit(config).cap

    def limit(self, config: RunConfig) -> Limit:
        """By what a run of `config` is judged."""
        lower = config.privacy.lifetime_epsilon
        return Limit(lower, lower, self.delta) if self.ledger is None else self.ledger.limit(lower)


class ShardKey(NamedTuple):
    """Which shard: the site, and the pattern of the shards' paths."""

    site: str
    shards: str


@dataclass(frozen=True)
class Budget:
    """What to tell before the sweep starts, and for each trial that cannot fit, why."""

    told: tuple[str, ...]
    refused: tuple[str, ...]


def budget_of(trials: Iterable[Trial], own: Collection[str] = ()) -> Budget:
    """Add up all private trials, in their order, on top of what the site ledgers say was spent.

    Args:
        trials: those that are to run.
        own: the ids of their ledgers: what they have spent in earlier attempts is part of what they plan.
    """
    private = [trial for trial in trials if trial.config.private]
    accounts: dict[ShardKey, Account] = {}
    refused = []
    for trial in private:
        try:
            plans = site_plans(trial.config)
        except PrivacyError as error:
            refused.append(f"{trial.name}: {error}")
            continue
        mine = {site: _account(accounts, trial.config, site, own) for site in trial.config.site_names}
        planned = {site: charges_of_run(trial.config, plan) for site, plan in plans.items()}
        problems = [_over(account, trial, planned[site]) for site, account in mine.items()]
        problems = list(dict.fromkeys(filter(None, problems)))
        refused += [f"{trial.name}: {problem}" for problem in problems]
        if not problems:
            for site, account in mine.items():
                account.plans.append(planned[site])
    return Budget(_told(private, accounts), tuple(refused))


def _account(accounts: dict[ShardKey, Account], config: RunConfig, site: str, own: Collection[str]) -> Account:
    key = ShardKey(site, config.data.shards)
    if key not in accounts:
        accounts[key] = Account(_seen(config, site), frozenset(own), config.privacy.delta)
    return accounts[key]


def _seen(config: RunConfig, site: str) -> SiteLedger | None:
    """Return the site ledger; None where there is none yet, or only the hospital's own node knows where it is.

    The run itself looks again, at its own node, and stops where a cap would be passed.
    """
    try:
        return found_ledger(config, site)
    except ConfigError:
        return None


def _over(account: Account, trial: Trial, planned: list[Charge]) -> str:
    """Why a trial does not fit within its site ledger's cap, or its privacy.lifetime_epsilon; empty where it does.

    It is judged as if it concerned the patient who has spent most: no shard is opened here.
    """
    limit = account.limit(trial.config)
    if limit.cap is None:
        return ""
    epsilon = account.after([planned], limit.cap)
    if epsilon <= limit.cap:
        return ""
    by = "privacy.lifetime_epsilon" if limit.cap == trial.config.privacy.lifetime_epsilon else "the site ledger's cap"
    return (
        f"would bring its patients to epsilon {told(epsilon)}, above {by}={limit.cap:g}; before it they have spent: "
        f"epsilon {told(account.after([], limit.cap))}"
    )


def _told(private: Sequence[Trial], accounts: Mapping[ShardKey, Account]) -> tuple[str, ...]:
    if not private:
        return ()
    caps = {account.cap(trial.config) for trial in private for account in accounts.values()}
    capped = sorted(cap for cap in caps if cap is not None)
    cap = f"the lowest cap is epsilon {capped[0]:g}" if capped else "no cap is set"
    by_text: dict[str, list[str]] = {}
    for key, account in accounts.items():
        before = account.ledger.largest_with((), account.own) if account.ledger is not None else 0.0
        text = f"spent before, by the site ledgers seen from here: epsilon {told(before)}; after this sweep: epsilon "
        by_text.setdefault(text + told(account.after([])), []).append(key.site)
    return (
        f"privacy: {len(private)} private runs on the same patients. Each keeps its own epsilon, but what all of them "
        f"reveal together adds up ({cap}):",
        *(f"  {', '.join(sites)}: {text}" for text, sites in by_text.items()),
    )
