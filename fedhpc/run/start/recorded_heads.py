"""The heads of site ledgers that earlier runs recorded, looked up at rank 0, outside the hospitals.

A site ledger that was shortened, or put back from a backup, lacks one of them; one that was removed and made anew has
another id.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedhpc.config.data import placed
from fedhpc.config.schema import RunConfig
from fedhpc.config.strict_yaml import MOST_BYTES
from fedhpc.errors import ConfigError, InputError, PrivacyError
from fedhpc.privacy.hash_chain import REMEDY
from fedhpc.privacy.ledger import SiteAccount
from fedhpc.util.files import read_text
from fedhpc.util.regular_file import each_line

MOST_LETTERS = 200
"""Of a head: an account's id and a seal."""


@dataclass(frozen=True)
class Recorded:
    """What a run recorded of a site: the head of its site ledger, and by which shards it trained."""

    run: str
    site: str
    head: str
    shards: str


def recorded_heads(run: Path, sites: Iterable[str]) -> list[Recorded]:
    """Return the last heads of `sites` in the records of the run at `run` and of all runs that can be read beside it.

    Beside it means: in the same folder, in the sweeps there, and for a trial of a sweep also beside the sweep.
    """
    wanted = frozenset(sites)
    parent = run.resolve().parent
    above = parent.parent.parent if parent.name == "elements" else parent
    patterns = ("*/rounds.jsonl", "*/elements/*/rounds.jsonl")
    found = {path for top in {parent, above} for pattern in patterns for path in top.glob(pattern)}
    return [one for path in sorted(found) for one in _of_run(path, wanted)]


def _of_run(path: Path, wanted: frozenset[str]) -> Iterator[Recorded]:
    heads: dict[str, str] = {}
    try:
        config: Any = yaml.safe_load(read_text(path.parent / "config.yaml", "", MOST_BYTES))
        shards = config["data"]["shards"]
        for line in each_line(path):
            heads.update((site, head) for site, head in _account_heads(line).items() if site in wanted)
    except (InputError, OSError, ValueError, KeyError, TypeError, RecursionError, yaml.YAMLError):
        return  # of another program, of another user, or being written
    for site, head in heads.items():
        if head and isinstance(shards, str):
            yield Recorded(path.parent.name, site, head, shards)


def _account_heads(line: bytes) -> Mapping[str, str]:
    try:
        heads = json.loads(line).get("account_heads", {})
    except (ValueError, AttributeError, RecursionError):
        return {}  # a line that a crash has cut, or of another program
    if not isinstance(heads, dict):
        return {}
    return {site: head for site, head in heads.items() if isinstance(head, str) and len(head) <= MOST_LETTERS}


def check_recorded(config: RunConfig, accounts: Sequence[SiteAccount], recorded: Sequence[Recorded]) -> None:
    """Find every recorded head in the site ledgers of this rank.

    Raises:
        PrivacyError: one that was recorded of this account is missing, or one of another account on the same shards.
    """
    for account in accounts:
        ledger = account.ledger
        lost = {entry["account"] for entry in ledger.entries("accept_lost")}
        for one in (one for one in recorded if one.site == account.site):
            recorded_id = one.head.partition(":")[0]
            if recorded_id == ledger.id and not ledger.has_head(one.head):
                raise PrivacyError(
                    f"site ledger of {account.site}: lacks the line {one.head.partition(':')[2]} that the records of "
                    f"run {one.run} tell of: it was shortened, or an older copy was put back; {REMEDY}",
                    code="privacy.ledger-damaged",
                )
            elsewhere = recorded_id != ledger.id and _same_shard(one, config)
            if elsewhere and not account.synthetic and recorded_id not in lost:
                raise PrivacyError(
                    f"site ledger of {account.site}: run {one.run} on the same shards was charged to another site "
                    f"ledger, {recorded_id}: this one is {ledger.id}, and does not know what was spent. Put that one "
                    f"back; where it is lost for good, the hospital says so: `run.py budget grant DIR --accept-lost "
                    f"{recorded_id} --reason ...`",
                    code="privacy.ledger-other",
                )


def _same_shard(recorded: Recorded, config: RunConfig) -> bool:
    """Return whether both mean one file for the site, however they spell it."""
    try:
        there = placed("data.shards", recorded.shards, recorded.site)
    except ConfigError:  # of another node, whose variables are not set here
        return recorded.shards == config.data.shards
    return there.resolve() == config.data.shard_path(recorded.site).resolve()
