"""Where the site ledger of a site lies on this node."""

import os
from dataclasses import dataclass
from pathlib import Path

from fedhpc.config import placed
from fedhpc.errors import PrivacyError
from fedhpc.privacy.site_ledger import SiteLedger, exists

VARIABLE = "FEDHPC_SITE_LEDGER"


@dataclass(frozen=True)
class Whose:
    """A site and its shard; `synthetic`: its patients do not exist (the built-in phantom cohort)."""

    site: str
    shard: Path
    synthetic: bool


def site_ledger_folder(whose: Whose, configured: str | None) -> Path:
    """The folder of the site ledger, by the first of these that is set.

    1. the environment variable FEDHPC_SITE_LEDGER, the hospital's own setting; {site} stands for the site's name
    2. the config key privacy.site_ledger, `configured` here
    3. beside the shard, for synthetic patients
    4. fedhpc/ledgers/{site} in $XDG_STATE_HOME or ~/.local/state

    Raises:
        PrivacyError: `configured` would lead away from an account that the hospital has initialised at the default
            place: no config chooses which budget it is judged by.
    """
    template = os.environ.get(VARIABLE)
    if template:
        return placed(VARIABLE, template, whose.site)
    default = default_folder(whose.site)
    if configured is not None:
        chosen = placed("privacy.site_ledger", configured, whose.site)
        if chosen.resolve() != default.resolve() and exists(default) and SiteLedger(default).terms.initialised:
            raise PrivacyError(
                f"privacy.site_ledger={configured}: the hospital has initialised the site ledger of {whose.site} at "
                f"{default}. Remove the key; to move the account, move its folder and set {VARIABLE}"
            )
        return chosen
    return whose.shard.with_suffix(".site-ledger") if whose.synthetic else default


def default_folder(site: str) -> Path:
    """Of a user who has set nothing."""
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "fedhpc" / "ledgers" / site
