"""What a sweep costs the patients: every private run on a shard adds to what its patients have spent.

Calibrates the noise of every element, so it takes a second or two; sees configs and ledgers only.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from fedhpc.config import RunConfig
from fedhpc.errors import ConfigError, PrivacyError
from fedhpc.privacy.accountant import Charge, Total, total_of
from fedhpc.privacy.ledger import Spending
from fedhpc.privacy.plan import plan_privacy
from fedhpc.privacy_report import planned_charges, spendings
from fedhpc.sweep.config import Element


@dataclass
class Account:
    """One site's shard: what was spent on it before, and what the elements that fit so far add.

    `delta` is the largest of the elements.
    """

    before: list[Charge]
    delta: float
    charges: list[Charge] = field(default_factory=list)

    def with_more(self, more: Sequence[Charge], delta: float) -> Total:
        """All of it and `more`."""
        return total_of([*self.before, *self.charges, *more], delta)


@dataclass(frozen=True)
class Budget:
    """What to tell before the sweep starts, and for each element that cannot fit, why."""

    told: tuple[str, ...]
    refused: tuple[str, ...]


def budget_of(elements: Iterable[Element], own: Collection[str] = ()) -> Budget:
    """Add up all private elements, in their order, on top of what the lifetime ledgers say was spent.

    Args:
        elements: those that are to run.
        own: the ids of their ledgers: what they have spent in earlier attempts is part of what they plan.
    """
    private = [element for element in elements if element.config.private]
    accounts: dict[tuple[str, str], Account] = {}
    refused = []
    for element in private:
        try:
            planned = planned_charges(element.config, plan_privacy(element.config))
        except PrivacyError as error:
            refused.append(f"{element.name}: {error}")
            continue
        mine = [_account(accounts, element.config, site, own) for site in element.config.site_names]
        problems = list(dict.fromkeys(filter(None, (_over(account, element, planned) for account in mine))))
        refused += [f"{element.name}: {problem}" for problem in problems]
        if not problems:
            for account in mine:
                account.charges += planned
    return Budget(_told(private, accounts), tuple(refused))


def _account(accounts: dict[tuple[str, str], Account], config: RunConfig, site: str, own: Collection[str]) -> Account:
    key = (site, config.data.shards)
    if key not in accounts:
        charges = [charge for spent in _seen(config, site) if spent.ledger not in own for charge in spent.charges]
        accounts[key] = Account(charges, config.privacy.delta)
    account = accounts[key]
    account.delta = max(account.delta, config.privacy.delta)
    return account


def _seen(config: RunConfig, site: str) -> tuple[Spending, ...]:
    """By the ledger beside the shard; nothing where only the hospital's own node knows where that is.

    The run itself looks again, at its own node, and stops where a cap would be passed.
    """
    try:
        shard = config.data.shard_path(site)
    except ConfigError:
        return ()
    return spendings(shard, site)


def _over(account: Account, element: Element, planned: Sequence[Charge]) -> str:
    """Why an element does not fit within its privacy.lifetime_epsilon; empty where it does."""
    p = element.config.privacy
    if p.lifetime_epsilon is None:
        return ""
    after = account.with_more(planned, p.delta)
    if after.insecure or len(after.by_unit) > 1:
        return f"privacy.lifetime_epsilon={p.lifetime_epsilon:g} cannot hold: {after.text} would have been spent"
    epsilon = max(bounds.epsilon for bounds in after.by_unit.values())
    if epsilon <= p.lifetime_epsilon:
        return ""
    already = account.with_more([], p.delta).text
    return (
        f"would bring its patients to epsilon {epsilon:.3f}, above privacy.lifetime_epsilon={p.lifetime_epsilon:g}; "
        f"before it they have spent: {already}"
    )


def _told(private: Sequence[Element], accounts: dict[tuple[str, str], Account]) -> tuple[str, ...]:
    if not private:
        return ()
    caps = sorted({e.config.privacy.lifetime_epsilon for e in private if e.config.privacy.lifetime_epsilon is not None})
    cap = f"privacy.lifetime_epsilon {caps[0]:g}" if caps else "privacy.lifetime_epsilon not set: nothing caps it"
    by_text: dict[str, list[str]] = {}
    for (site, _), account in accounts.items():
        before, after = total_of(account.before, account.delta).text, account.with_more([], account.delta).text
        by_text.setdefault(
            f"spent before, by the ledgers seen from here: {before}; after this sweep: {after}", []
        ).append(site)
    return (
        f"privacy: {len(private)} private runs on the same patients. Each keeps its own epsilon, but what all of them "
        f"reveal together adds up ({cap}):",
        *(f"  {', '.join(sites)}: {text}" for text, sites in by_text.items()),
    )
