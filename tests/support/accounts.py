"""Small shards of patients that look real, and runs that are charged for them as `run.py train` charges."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shard_writer import write_shard
from fedhpc.cli.privacy_config import planned_charges
from fedhpc.config.schema import RunConfig
from fedhpc.privacy.accountant import Population
from fedhpc.privacy.ledger import Ledger, LedgerOwner, RunTerms, SiteAccount
from fedhpc.privacy.plan import plan_privacy
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Terms
from fedhpc.privacy.unit_sets import Identities

ANYBODY: Mapping[Population, Identities] = {
    "train": Identities((b"p",), (b"i",)),
    "evaluation": Identities((b"q",), (b"j",)),
}


def write_patients(path: Path, names: Sequence[str], split: Sequence[int], **other: Any) -> Path:
    """A shard of one image a patient; the pixels follow from the name and `size`, so a new import gives them again."""
    size = other.pop("size", 32)
    pixels = [np.random.default_rng([size, *name.encode()]).integers(0, 256, (1, size, size)) for name in names]
    content: dict[str, Any] = {
        "site": path.stem,
        "classes": ("a", "b"),
        "images": np.array(pixels, np.uint8),
        "labels": np.arange(len(names)) % 2,
        "patient": names,
        "split": split,
        "modality": ["MR"] * len(names),
        "pixel_range": (0, 255),
        "created_by": "a test",
    }
    write_shard(path, **{**content, **other})
    return path


def charge_run(config: RunConfig, account: SiteAccount, run: Path, rounds: int | None = None) -> Ledger:
    """Charge a whole run, or its first rounds, each within the run's target and the account's cap."""
    planned = planned_charges(config, plan_privacy(config))
    terms = RunTerms(config.privacy.delta, config.privacy.lifetime_epsilon, tuple(planned))
    ledger = Ledger(
        run / "sites" / account.site / "ledger.jsonl", LedgerOwner(account.site, run.name), [account], terms
    )
    for charge in planned[:rounds]:
        ledger.charge(charge, config.privacy.epsilon)
    return ledger


def spend(config: RunConfig, site: str, folder: Path, run: Path) -> str:
    """Charge a whole run to the site ledger in `folder`, of two patients; the id of its ledger."""
    account = SiteAccount.of(SiteLedger.open_or_create(folder, Terms(config.privacy.unit)), site, ANYBODY)
    return charge_run(config, account, run).id
