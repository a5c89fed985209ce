"""What a hospital has set for its site ledger, and what a run asks of it."""

from dataclasses import dataclass

from fedhpc.errors import InputError
from fedhpc.privacy.accountant import Charge, Unit
from fedhpc.privacy.unit_sets import UnitSet

LARGEST_DELTA = 1e-3
"""For an account of unknown size: 1 / (10 x 100 units). No hospital's shard has fewer."""


@dataclass(frozen=True)
class Terms:
    """What the hospital has set.

    Attributes:
        unit: what the epsilon is per; fixed when the account is made.
        delta: at which the cap is judged, whatever the delta of a run.
        cap: epsilon that no unit may pass; None: no limit.
        require_privacy: whether a run without privacy is refused.
        allow_off: whether it is let through all the same where its config says `privacy: off`.
        initialised: whether the hospital made the account, or a run did for want of one.
    """

    unit: Unit
    delta: float = 1e-5
    cap: float | None = None
    require_privacy: bool = False
    allow_off: bool = False
    initialised: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.delta <= LARGEST_DELTA:
            raise InputError(
                f"delta={self.delta:g}: of n patients, delta x n may be exposed altogether; allowed: above 0, at most "
                f"{LARGEST_DELTA:g}, and at most 1 / (10 x patients)",
                code="privacy.site-terms",
            )
        if self.cap is not None and not 0 < self.cap < float("inf"):
            raise InputError(
                f"cap={self.cap:g}: not a budget; allowed: a finite epsilon above 0", code="privacy.site-terms"
            )


@dataclass(frozen=True)
class Owner:
    """Who charges: the id of the run's ledger, the run's name, the site's name in the run."""

    ledger: str
    run: str
    site: str


@dataclass(frozen=True)
class Answer:
    """One release of validation or test patients, without its content: run ledger, site, stage and split.

    One charge covers a release of the validation split and one of the test split. So each is counted, in the site
    ledger: whoever can put back an older copy of a run directory must not get another draw of the noise for it.
    """

    ledger: str
    site: str
    stage: int
    split: str


@dataclass(frozen=True)
class Request:
    """One charge that is asked for.

    Attributes:
        plan: the charges that the run means to make after this one.
        lower_cap: of the run's config (privacy.lifetime_epsilon); it can only ask for less.
    """

    charge: Charge
    units: UnitSet
    owner: Owner
    plan: tuple[Charge, ...] = ()
    lower_cap: float | None = None
