"""From a shard to the hospital's site ledger: whom a charge concerns, and whether the hospital lets a run begin."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Charge, Population
from fedhpc.privacy.ledger import SiteAccount
from fedhpc.privacy.ledger_folder import exists
from fedhpc.privacy.lifetime import lifetime_path, take_over
from fedhpc.privacy.places import Whose, check_other_names, check_synthetic, check_unknown, site_ledger_folder
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Terms
from fedhpc.privacy.unit_sets import Identities
from fedhpc.site.data.shard import Shard, created_by
from fedhpc.util.text import fixed

LOG = logging.getLogger(__name__)

SYNTHETIC = "data_prep.phantom"
"""How the attribute created_by of a shard of the built-in cohort begins. A config cannot claim it for other shards; who
may write to a shard can, before its patients are charged for the first time (`fedhpc.privacy.places`)."""
DELTA = 1e-5
SPLITS: Mapping[Population, tuple[str, ...]] = {"train": ("train",), "evaluation": ("val", "test")}


def whose(config: RunConfig, shard: Shard) -> Whose:
    """Whose shard it is, and whether its patients exist."""
    return Whose(shard.site, config.data.shard_path(shard.site), shard.created_by.startswith(SYNTHETIC))


def found_ledger(config: RunConfig, site: str) -> SiteLedger | None:
    """Return the site ledger of a site on this node, whether its shard is here or not; None where there is none."""
    folder = folder_on_this_node(config, site)
    return SiteLedger(folder) if exists(folder) else None


def folder_on_this_node(config: RunConfig, site: str) -> Path:
    """Where a run would look for the site ledger of a site on this node, whether its shard is here or not.

    A missing shard counts as synthetic where the config would make it.
    """
    shard = config.data.shard_path(site)
    synthetic = created_by(shard).startswith(SYNTHETIC) if shard.exists() else config.data.phantom is not None
    return site_ledger_folder(Whose(site, shard, synthetic), config.privacy.site_ledger)


def identities_of(shard: Shard, splits: tuple[str, ...]) -> Identities:
    """Return the patients and images of some splits (private)."""
    rows = np.concatenate([shard.indices(split) for split in splits])
    names, images = np.unique(shard.patient[rows], return_counts=True)
    hashes = tuple(shard.row_hashes[row] for row in rows.tolist())
    return Identities(tuple(names.tolist()), hashes, int(images.max(initial=1)))


def largest_delta(units: int) -> float:
    """Return the largest delta for so many declared units: a tenth of a unit may be exposed, in expectation."""
    return 1 / (10 * units)


def open_account(config: RunConfig, shard: Shard) -> SiteAccount:
    """Open the site ledger of a private run, make it where there is none, and take over an older ledger of the shard.

    Raises:
        PrivacyError: a ledger that is not as it must be, or whose delta is too large for the site's declared units, or
            beside which another has charged some of its patients.
    """
    asked = whose(config, shard)
    units = {site.name: site.weight for site in config.data.sites}[shard.site] or 1
    allowed = largest_delta(units)
    terms = Terms(config.privacy.unit, min(DELTA, allowed))
    ledger = SiteLedger.open_or_create(site_ledger_folder(asked, config.privacy.site_ledger), terms)
    if ledger.terms.delta > allowed:
        raise PrivacyError(
            f"site ledger of {shard.site}: its delta is {ledger.terms.delta:g}, above 1 / (10 x {units} declared "
            f"units) = {allowed:.2g}; set a smaller one with `run.py budget grant`",
            code="privacy.site-terms",
        )
    _check_declared_cap(config, shard.site, ledger)
    identities = {who: identities_of(shard, splits) for who, splits in SPLITS.items()}
    everybody = identities_of(shard, ("train", "val", "test"))
    if asked.synthetic:
        check_synthetic(ledger, shard.site, everybody)
    else:
        check_other_names(ledger, shard.site, everybody)
    account = SiteAccount.of(ledger, shard.site, identities, asked.synthetic)
    older = lifetime_path(asked.shard)
    if older.exists():
        count = take_over(older, ledger, ledger.register(everybody))
        if count:
            LOG.warning(
                "site %s: %d charges of %s were taken over", shard.site, count, older, extra={"site": shard.site}
            )
    return account


def _check_declared_cap(config: RunConfig, site: str, ledger: SiteLedger) -> None:
    """Refuse where the account allows more than the hospital has declared to the federation.

    Raises:
        PrivacyError: it does.
    """
    declared = next((one.lifetime_cap for one in config.data.sites if one.name == site), None)
    if declared is not None and (ledger.terms.cap is None or ledger.terms.cap > declared):
        raise PrivacyError(
            f"data.sites of {site}: lifetime_cap={declared:g}: its account allows more. Declare the account's cap "
            "(`run.py budget show`), or none",
            code="privacy.site-terms",
        )


def permit_without_privacy(config: RunConfig, shards: Sequence[Shard], run: str) -> None:
    """Let a run without privacy begin where each hospital allows it, and note it in the initialised site ledgers.

    Raises:
        PrivacyError: a hospital demands privacy.
    """
    for shard in shards:
        _permit(config, shard, run)


def permit_exact_evaluation(
    config: RunConfig, shards: Sequence[Shard], accounts: Sequence[SiteAccount], run: str
) -> None:
    """Let a private run with `evaluation.epsilon: null` begin where each hospital allows it, and note it there.

    Its validation and test patients have no epsilon: to them, and to whoever was trained on before, it is a run without
    privacy.

    Raises:
        PrivacyError: a hospital demands privacy.
    """
    if config.evaluation.epsilon is not None:
        return
    for shard, account in zip(shards, accounts, strict=True):
        terms = account.ledger.terms
        if terms.require_privacy and not terms.allow_off:
            raise PrivacyError(
                f"site {shard.site}: evaluation.epsilon=null releases exact counts of validation and test patients; "
                "its site ledger demands privacy. Set evaluation.epsilon, or ask the hospital for an exception "
                "(`run.py budget grant --allow-off`)",
                code="privacy.required",
            )
        if terms.initialised:
            units = account.units["evaluation"]
            account.ledger.note("without_privacy", {"run": run, "site": shard.site, "units": units.digest})


def _permit(config: RunConfig, shard: Shard, run: str) -> None:
    asked = whose(config, shard)
    folder = site_ledger_folder(asked, config.privacy.site_ledger)
    ledger = SiteLedger(folder) if exists(folder) else None
    if ledger is None or not ledger.terms.initialised:
        check_unknown(asked, folder, identities_of(shard, ("train", "val", "test")))
    if ledger is None:
        return
    terms = ledger.terms
    if terms.require_privacy and not config.privacy.off:
        raise PrivacyError(
            f"site {shard.site}: its site ledger demands privacy, and this run has none: set privacy.epsilon"
            + (", or say `privacy: off`, which the hospital allows" if terms.allow_off else ""),
            code="privacy.required",
        )
    if terms.require_privacy and not terms.allow_off:
        raise PrivacyError(
            f"site {shard.site}: privacy.off=true: its site ledger demands privacy and allows no exception. Set "
            "privacy.epsilon, or ask the hospital for one (`run.py budget grant --allow-off`)",
            code="privacy.required",
        )
    if terms.initialised:
        units = ledger.register(identities_of(shard, ("train",)))
        ledger.note("without_privacy", {"run": run, "site": shard.site, "units": units.digest})


def forecast(account: SiteAccount, ledger: str, planned: Sequence[Charge]) -> str:
    """About a site ledger and a run: a line, and the ledger's place.

    Args:
        account: of the site.
        ledger: the id of the run's own ledger, whose charges so far are part of its plan.
        planned: the whole plan of the run.
    """
    site, terms = account.ledger, account.ledger.terms
    before = site.largest_with((), frozenset({ledger}))
    after = site.largest_with([planned], frozenset({ledger}))
    cap = f"cap {terms.cap:g} at delta {terms.delta:g}" if terms.cap is not None else "no cap is set"
    return (
        f"{account.site}: epsilon {told(before)} per {terms.unit} spent, at most {told(after)} with this run\n"
        f"  {cap}; site ledger: {site.folder}"
    )


def told(epsilon: float) -> str:
    """An epsilon for the user.

    >>> told(0.12345), told(float("inf"))
    ('0.123', 'without bound')
    """
    return fixed(epsilon) if np.isfinite(epsilon) else "without bound"
