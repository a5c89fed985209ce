"""What an audit spends of the site's patients: trainings with noise on all of them are charged before they run.

What an audit measures on patients is of three kinds:

- with the run's noise, on all training patients: one round for the inversion of a real round, one round for each
  attempt of the canaries in the real training. Each is a release like a round of the run. Console and verdicts tell
  what came of it, so it is charged to the site ledger, and refused where the cap does not allow it.
- without noise, or beside the image itself (inversions of one image, controls, the sum of a few patients, losses of the
  released model): no epsilon bounds it. Its figures are in sites/<site>/audit/ (mode 0600) and nowhere else.
- on canaries alone: it concerns nobody.
"""

import secrets
from dataclasses import dataclass, field, replace

from fedhpc.audit.findings import ATTEMPTS
from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.privacy.ledger import SiteAccount
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.privacy.site_terms import Owner, Request
from fedhpc.site.account import open_account
from fedhpc.site.data.shard import Shard

MOST_ROUNDS = 1 + ATTEMPTS
"""An inversion of a real round, and as many attempts of canaries in the real training as one audit makes."""
REMEDY = "--no-real-patients audits canaries alone, which costs nothing; `run.py budget show` tells what is left"


@dataclass
class PatientCharges:
    """The account of one audit on one site's ledger, which is opened when it is first needed.

    Attributes:
        config: of the run; its privacy.lifetime_epsilon holds here too.
        shard: of the site (private).
        rounds: how many were charged.
    """

    config: RunConfig
    shard: Shard
    rounds: int = 0
    _account: SiteAccount | None = None
    _id: str = field(default_factory=lambda: secrets.token_hex(16))

    @property
    def account(self) -> SiteAccount:
        """That of the shard's patients; made where there is none, as a run makes it."""
        if self._account is None:
            self._account = open_account(self.config, self.shard)
        return self._account

    def check(self, plan: PrivacyPlan) -> None:
        """See that all rounds that the audit may need are allowed, before it spends any.

        Raises:
            PrivacyError: they are not.
        """
        whole = self._request(replace(plan, steps_per_round=MOST_ROUNDS * plan.steps_per_round))
        with self.account.ledger.locked():
            self._raise(self.account.ledger.refusal(whole))

    def pay(self, plan: PrivacyPlan) -> None:
        """Charge one round of `plan` to all training patients; on disk when this returns.

        Raises:
            PrivacyError: the cap does not allow it, or the ledger cannot be written.
        """
        request = self._request(plan)
        with self.account.ledger.locked():
            self._raise(self.account.ledger.refusal(request))
            self.account.ledger.write(request)
        self.rounds += 1

    def _request(self, plan: PrivacyPlan) -> Request:
        p = self.config.privacy
        charge = replace(plan.charge(self.rounds), unit=p.unit)
        owner = Owner(self._id, f"audit of {self.config.name}", self.account.site)
        return Request(charge, self.account.units["train"], owner, lower_cap=p.lifetime_epsilon)

    def _raise(self, refused: str) -> None:
        if refused:
            raise PrivacyError(
                f"site ledger of {self.account.site}: the audit is refused: {refused}. {REMEDY}",
                code="privacy.site-budget",
            )
