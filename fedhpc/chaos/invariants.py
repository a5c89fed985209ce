"""What must hold of a run directory after every start of a run, however it ended."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fedhpc.config.schema import RunConfig
from fedhpc.errors import FedhpcError
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.ledger import read_ledger
from fedhpc.records.checkpoint import load_state, saved_rounds
from fedhpc.records.run_directory import RunDirectory
from fedhpc.report.egress import report
from fedhpc.util.files import read_lines


@dataclass(frozen=True)
class Snapshot:
    """What a run directory holds: the charges of each site's ledger, and the number of recorded rounds."""

    charges: Mapping[str, tuple[Charge, ...]] = field(default_factory=dict)
    rounds: int = 0


def snapshot(directory: RunDirectory, config: RunConfig) -> Snapshot:
    """Read the ledgers, whose hash chains are checked, and the records, which are checked for one of each round.

    Raises:
        FedhpcError: one that is not intact.
    """
    charges = {
        name: read_ledger(directory.ledger(name))[1] for name in config.site_names if directory.ledger(name).exists()
    }
    return Snapshot(charges, len(directory.read_rounds()) if directory.rounds.exists() else 0)


def violations(directory: RunDirectory, config: RunConfig, before: Snapshot) -> tuple[list[str], Snapshot]:
    """Return what does not hold after a start, and the snapshot for the next.

    Args:
        directory: of the run.
        config: the run's, of all sites.
        before: the snapshot before the start.
    """
    try:
        after = snapshot(directory, config)
        records = directory.read_rounds() if directory.rounds.exists() else []
        found = [*_ledgers(before, after), *_model(directory)]
        found += _charged(records, after) if config.private else []
        found += [*_egress(directory, records), *_once(records, _starts(directory))]
    except FedhpcError as error:
        return [f"not intact: {error}"], before
    return found, after


def _ledgers(before: Snapshot, after: Snapshot) -> list[str]:
    """A ledger only grows: no charge that was there is gone or changed."""
    return [
        f"ledger of {name}: {len(charges)} charges before, and they are not the first of the {len(now)} after"
        for name, charges in before.charges.items()
        if (now := after.charges.get(name, ()))[: len(charges)] != charges
    ]


def _charged(records: list[dict[str, Any]], after: Snapshot) -> list[str]:
    """No step without its charge: a recorded round was charged to every site that took part in it.

    A late update (schedule.policy=deadline) was charged in the round that it was begun in.
    """
    found = []
    for record in records:
        for name in set(record["per_site"]) - set(record.get("late", ())):
            begun = record["round"] - record.get("staleness", {}).get(name, 0)
            charged = {charge.round + 1 for charge in after.charges.get(name, ()) if charge.population == "train"}
            if begun not in charged:
                found.append(f"ledger of {name}: round {begun} is recorded and was not charged")
    return found


def _once(records: list[dict[str, Any]], firsts: list[int]) -> list[str]:
    """Each update enters the mean of one round, and none that was begun before the start that recorded the round.

    Args:
        records: of all rounds.
        firsts: after how many rounds each start went on, in order.
    """
    entered: dict[tuple[str, int], int] = {}
    found = []
    for record in records:
        number = record["round"]
        first = max((one for one in firsts if one < number), default=0)
        for name, late in record.get("staleness", {}).items():
            begun = number - late
            if (name, begun) in entered:
                found.append(
                    f"update of {name}, begun in round {begun}: is in rounds {entered[name, begun]} and {number}"
                )
            if begun <= first:
                found.append(f"update of {name}, begun in round {begun}: is in round {number} of a start after {first}")
            entered[name, begun] = number
    return found


def _starts(directory: RunDirectory) -> list[int]:
    lines = read_lines(directory.starts, "Remove it")[0] if directory.starts.exists() else []
    return [int(json.loads(line)["after_round"]) for line in lines]


def _model(directory: RunDirectory) -> list[str]:
    rounds = saved_rounds(directory.state, "round")
    if not rounds:
        return []
    params = load_state(directory.state, "round", rounds[-1])["params"]
    return [] if np.isfinite(params).all() else [f"model after round {rounds[-1]}: is not finite"]


def _egress(directory: RunDirectory, records: list[dict[str, Any]]) -> list[str]:
    """The egress logs hold what the records say was sent (`run.py egress`)."""
    if not records:
        return []
    checks = report(directory.path).facts["checks"]
    return [f"egress, {name}: {check['text']}" for name, check in checks.items() if check["holds"] is False]
