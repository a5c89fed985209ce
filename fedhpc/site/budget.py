"""What a hospital spends of its patients' privacy in a run: every charge goes through here."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fedhpc.config.schema import RunConfig
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.evaluation_plan import charges_of_run
from fedhpc.privacy.ledger import Ledger, LedgerOwner, RunTerms, SiteAccount
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.account import forecast
from fedhpc.util.text import fixed


class Budget:
    """A site's plan of noise, its open ledger and its limits, all of them public.

    Args:
        site: its name.
        config: of the run.
        plan: the noise of this site; None without privacy, where nothing is charged.
    """

    def __init__(self, site: str, config: RunConfig, plan: PrivacyPlan | None) -> None:
        self._site, self._config, self._plan = site, config, plan
        self._ledger: Ledger | None = None

    @property
    def plan(self) -> PrivacyPlan:
        """The noise of this site; ValueError without privacy."""
        if self._plan is None:
            raise ValueError("privacy is off: there is no plan of noise")
        return self._plan

    @property
    def ledger(self) -> Ledger:
        """The open privacy ledger; ValueError before `open`."""
        if self._ledger is None:
            raise ValueError("no privacy ledger is open; call keep_ledger first")
        return self._ledger

    def open(self, path: Path, run: str, accounts: Sequence[SiteAccount]) -> Ledger:
        """Open the ledger of a run; see `Hospital.keep_ledger`."""
        p = self._config.privacy
        terms = RunTerms(p.delta, p.lifetime_epsilon, tuple(self._planned()))
        self._ledger = Ledger(path, LedgerOwner(self._site, run), accounts, terms)
        return self._ledger

    def charge_round(self, round: int) -> None:
        """Charge a round, from 0 on, before its first step.

        Raises:
            PrivacyError: it is refused, or cannot be written.
        """
        self.ledger.charge(self._round(round), self._config.privacy.epsilon)

    def charge_feature_mean(self) -> float:
        """Charge what comes before the rounds; return its noise multiplier.

        Raises:
            PrivacyError: it is refused, or cannot be written.
        """
        (planned,) = self.plan.before_rounds
        charge = self._of_run(planned)
        self.ledger.charge(charge, self._config.privacy.epsilon)
        return charge.noise_multiplier

    def affords(self, round: int) -> bool:
        """Whether one more round stays within the target epsilon and the lifetime cap; always without privacy."""
        target = self._config.privacy.epsilon
        return self._plan is None or target is None or self.ledger.affords(self._round(round), target)

    def refusal(self, round: int) -> str:
        """What was spent, what one more round would make it, and the limits; empty where the round is allowed."""
        p = self._config.privacy
        if self.affords(round):
            return ""
        spent, then = (self.ledger.epsilon(p.delta, *more) for more in ((), (self._round(round),)))
        cap = "" if p.lifetime_epsilon is None else f", privacy.lifetime_epsilon={p.lifetime_epsilon:g}"
        numbers = f"epsilon {fixed(spent)} spent, {fixed(then)} with one more round"
        refused = self.ledger.refused_by_accounts(self._round(round))
        return f"  {self._site}: {numbers}; privacy.epsilon={p.epsilon:g}{cap}" + (f"; {refused}" if refused else "")

    def forecast(self) -> list[str]:
        """Return what the user must know before the first step of a private run, a line for each site ledger.

        Where it lies, its cap, what its patients have spent, and what they will have spent at most after this run.
        """
        if self._plan is None:
            return []
        return [forecast(account, self.ledger.id, self._planned()) for account in self.ledger.accounts]

    def epsilon(self) -> float | None:
        """Return what this site has spent in the run's directory, by its ledger; None without privacy."""
        return None if self._ledger is None else self._ledger.epsilon(self._config.privacy.delta)

    def _round(self, round: int) -> Charge:
        return self._of_run(self.plan.charge(round))

    def _of_run(self, charge: Charge) -> Charge:
        p = self._config.privacy
        return replace(charge, unit=p.unit, insecure=p.noise_seed is not None)

    def _planned(self) -> list[Charge]:
        """All charges that the run means to make, of both populations."""
        return [] if self._plan is None else charges_of_run(self._config, self._plan)
