"""The older ledger beside a shard, `<site>.ledger.jsonl`: its charges are taken over into the site ledger, once each.

It named no patients, so each of its charges counts for every patient of the shard.
"""

from pathlib import Path
from typing import Any

from fedhpc.errors import PrivacyError
from fedhpc.privacy.hash_chain import Chain
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.unit_sets import UnitSet


def lifetime_path(shard: Path) -> Path:
    """Return the older ledger of a shard.

    >>> str(lifetime_path(Path("data/site1.h5")))
    'data/site1.ledger.jsonl'
    """
    return shard.with_suffix(".ledger.jsonl")


def take_over(path: Path, ledger: SiteLedger, everybody: UnitSet) -> int:
    """Charge to `ledger` what the older ledger at `path` tells of and was not taken over yet; how many charges.

    Raises:
        PrivacyError: it is not intact.
    """
    chain = Chain(path)
    if chain.torn:
        raise PrivacyError(
            f"{path}: its last line is not whole, so what it charged is not known. Look at it; restore a backup, or "
            "remove just that line if its run never went on",
            code="privacy.ledger-damaged",
        )
    if not chain.entries:
        return 0
    site = chain.entries[0].get("lifetime_ledger_of")
    shared = {"site": site, "units": everybody.digest, "largest": everybody.largest}
    lines: list[dict[str, Any]] = [
        {**entry, **shared, "imported": seal} for entry, seal in zip(chain.entries[1:], chain.seals[1:], strict=True)
    ]
    return ledger.take_in(lines)
