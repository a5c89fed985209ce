"""Where the site ledger of a site lies on this node."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedhpc.config.data import placed
from fedhpc.errors import PrivacyError
from fedhpc.privacy.ledger_folder import exists
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.unit_sets import Identities
from fedhpc.util.masking import hide, masked

VARIABLE = "FEDHPC_SITE_LEDGER"
SYNTHETIC_VARIABLE = "FEDHPC_SYNTHETIC_LEDGER"
"""Where benchmarks keep the accounts of synthetic patients. It means nothing for a shard of any others, so that no
benchmark, and no config that claims to be of the built-in cohort, leads away from a hospital's account."""


@dataclass(frozen=True)
class Whose:
    """A site and its shard; `synthetic`: its patients do not exist (the built-in phantom cohort)."""

    site: str
    shard: Path
    synthetic: bool


def site_ledger_folder(whose: Whose, configured: str | None) -> Path:
    """Return the folder of the site ledger, by the first of these that is set.

    1. for synthetic patients FEDHPC_SYNTHETIC_LEDGER, which benchmarks set for themselves
    2. the environment variable FEDHPC_SITE_LEDGER, the hospital's own setting; {site} stands for the site's name
    3. the config key privacy.site_ledger, `configured` here
    4. beside the shard, for synthetic patients
    5. fedhpc/ledgers/{site} in $XDG_STATE_HOME or ~/.local/state

    Raises:
        PrivacyError: `configured` would lead away from an account that the hospital has initialised at the default
            place: no config chooses which budget it is judged by.
    """
    for variable in (SYNTHETIC_VARIABLE, VARIABLE) if whose.synthetic else (VARIABLE,):
        template = os.environ.get(variable)
        if template:
            return placed(variable, template, whose.site, own=True)
    default = default_folder(whose.site)
    if configured is not None:
        chosen = placed("privacy.site_ledger", configured, whose.site)
        if chosen.resolve() != default.resolve() and exists(default) and SiteLedger(default).terms.initialised:
            raise PrivacyError(
                f"privacy.site_ledger={configured}: the hospital has initialised the site ledger of {whose.site} at "
                f"{default}. Remove the key; to move the account, move its folder and set {VARIABLE}",
                code="privacy.ledger-other",
            )
        return chosen
    return whose.shard.with_suffix(".site-ledger") if whose.synthetic else default


def default_folder(site: str) -> Path:
    """Of a user who has set nothing."""
    chosen = os.environ.get("XDG_STATE_HOME")
    state = chosen or str(Path.home() / ".local" / "state")
    hide(state, "$XDG_STATE_HOME" if chosen else "~/.local/state")
    return Path(state) / "fedhpc" / "ledgers" / site


def check_other_names(ledger: SiteLedger, site: str, identities: Identities) -> None:
    """See that a site's patients have no other account on this node, under the name of another site.

    Where the hospital's setting holds {site}, or at the default place, a config that renames a site leads to another
    folder, and without an account there to a new one without a cap. So of two accounts side by side of which the
    hospital has initialised one, the other must not concern the same patients. Accounts that this process may not read
    are left out: they are other hospitals'.

    Args:
        ledger: of the site, in its folder.
        site: its name in this run.
        identities: of all of its patients (private).

    Raises:
        PrivacyError: another account has charged some of them.
    """
    for folder in _beside(ledger.folder, site):
        other = SiteLedger(folder)
        if other.terms.initialised != ledger.terms.initialised and other.has_charged(identities):
            whose = "the hospital has initialised" if other.terms.initialised else "an earlier run has made"
            raise PrivacyError(
                f"site ledger of {site}: {ledger.folder}: some of its patients were charged to {folder}, which "
                f"{whose}: another name of the site leads to another budget. Use the name that the account has, or set "
                f"{VARIABLE} to one folder, without {{site}}",
                code="privacy.ledger-other",
            )


def check_unknown(whose: Whose, folder: Path, identities: Identities) -> None:
    """See that no hospital's account knows the patients of a run without privacy, which has none of its own.

    Such a run is let through where there is no account; a config that renames the site, or a shard that claims to be
    synthetic, leads to such a place.

    Args:
        whose: the shard.
        folder: where its account would be.
        identities: of all of its patients (private).

    Raises:
        PrivacyError: an account that a hospital has initialised has charged some of them.
    """
    if whose.synthetic:
        _refuse_synthetic(folder, whose.site, identities)
        return
    for other in map(SiteLedger, _beside(folder, whose.site)):
        if other.terms.initialised and other.has_charged(identities):
            raise PrivacyError(
                f"site {whose.site}: some of its patients were charged to {other.folder}, which the hospital has "
                "initialised: another name of the site leads around it. Use the name that the account has, or set "
                f"{VARIABLE} to one folder, without {{site}}",
                code="privacy.ledger-other",
            )


def check_synthetic(ledger: SiteLedger, site: str, identities: Identities) -> None:
    """See that no patient of a shard that says it is synthetic was charged to a hospital's account.

    What a shard says of its origin is not authenticated, and a synthetic one is charged to an account beside it. So no
    other account at the default places, or where FEDHPC_SITE_LEDGER leads for this or another site name, that a
    hospital has initialised may know these patients. Not noticed: a shard that was changed before any of its patients
    was charged.

    Args:
        ledger: the account that is charged now.
        site: its name in this run.
        identities: of all of its patients (private).

    Raises:
        PrivacyError: such an account has charged some of them.
    """
    _refuse_synthetic(ledger.folder, site, identities)


def _refuse_synthetic(folder: Path, site: str, identities: Identities) -> None:
    above, template = default_folder(site).parent, os.environ.get(VARIABLE)
    places = sorted(above.iterdir()) if os.access(above, os.R_OK | os.X_OK) else []
    named = placed(VARIABLE, template, site, own=True) if template else None
    hospitals = [named, *_beside(named, site)] if named else []
    own = folder.resolve()
    for other in (SiteLedger(one) for one in _accounts([*places, *hospitals]) if one.resolve() != own):
        if other.terms.initialised and other.has_charged(identities):
            raise PrivacyError(
                f"site ledger of {site}: the shard says that its patients are synthetic (created_by), and some of them "
                f"were charged to {other.folder}, which the hospital has initialised. Restore the shard from its "
                f"import, or set {VARIABLE}",
                code="privacy.ledger-other",
            )


def _beside(folder: Path, site: str) -> list[Path]:
    """Accounts at the places of other site names, in the same folder or in the folders beside it.

    Where they lie is hidden from other ranks, as where the account itself lies is.
    """
    own = folder.resolve()
    nested = own.parent.name == site
    above = own.parent.parent if nested else own.parent
    if not os.access(above, os.R_OK | os.X_OK):
        return []
    found = [one / own.name if nested else one for one in sorted(above.iterdir())]
    others = [one for one in _accounts(found) if one != own]
    shown = masked(str(folder))
    for one in others:
        if shown != str(folder) and masked(str(one)) == str(one):
            hide(str(one), f"{shown}/{os.path.relpath(one, own)}")
    return others


def _accounts(folders: Iterable[Path]) -> list[Path]:
    """Those that hold an account that this process may read; others are other hospitals'."""
    # An account that another process is just making has no ledger yet, and has charged nothing.
    needed = ("key", "ledger.jsonl")
    return [one for one in folders if all(os.access(one / name, os.R_OK) for name in needed)]
