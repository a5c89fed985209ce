"""The older ledger beside a shard, `<site>.ledger.jsonl`: its charges are taken over into the site ledger, once each.

It named no patients, so each of its charges counts for every patient of the shard. It has no key, and whoever may
write beside the shard can write one: of its lines nothing but a charge that costs something enters the account.
"""

from pathlib import Path
from typing import Annotated, Any, NotRequired

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Mechanism, Population, Unit
from fedhpc.privacy.hash_chain import Chain
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.unit_sets import UnitSet


class Older(TypedDict):
    """A line of an older ledger after its first; other fields are left. The oldest had the first six alone."""

    ledger: str
    run: str
    round: Annotated[int, Field(ge=0)]
    noise_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    sample_rate: Annotated[float, Field(gt=0, le=1)]
    steps: Annotated[int, Field(ge=1)]
    time: NotRequired[str]
    mechanism: NotRequired[Mechanism]
    unit: NotRequired[Unit]
    insecure: NotRequired[bool]
    population: NotRequired[Population]


OLDER = TypeAdapter(Older)


def lifetime_path(shard: Path) -> Path:
    """Return the older ledger of a shard.

    >>> str(lifetime_path(Path("data/site1.h5")))
    'data/site1.ledger.jsonl'
    """
    return shard.with_suffix(".ledger.jsonl")


def take_over(path: Path, ledger: SiteLedger, everybody: UnitSet) -> int:
    """Charge to `ledger` what the older ledger at `path` tells of and was not taken over yet; how many charges.

    Raises:
        PrivacyError: it is not intact, or a line of it is no charge.
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
    site = str(chain.entries[0].get("lifetime_ledger_of"))
    shared = {"site": site, "units": everybody.digest, "largest": everybody.largest}
    lines: list[dict[str, Any]] = [
        {**_charge(path, number, entry), **shared, "imported": seal}
        for number, (entry, seal) in enumerate(zip(chain.entries, chain.seals, strict=True), 1)
        if number > 1
    ]
    return ledger.take_in(lines)


def _charge(path: Path, number: int, entry: dict[str, Any]) -> Older:
    try:
        return OLDER.validate_python(entry, strict=True)
    except ValidationError:
        raise PrivacyError(
            f"{path} line {number}: is no charge of an older ledger; nothing of the file was taken over. Ask who wrote "
            "it; remove it only if no run was charged to it",
            code="privacy.ledger-damaged",
        ) from None
