"""Where a run goes on: the last round that every rank has whole on its disk and that rank 0 has recorded."""

import hashlib
import json
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError
from fedhpc.records.checkpoint import KEPT, ForeignCheckpointError, Owner, forget_after, intact_rounds, saved_rounds
from fedhpc.records.environment import environment
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.session import POOLED, Session
from fedhpc.run.start.agreement import FREE
from fedhpc.run.start.secure_channel import sites_by_rank
from fedhpc.site.data.shard_record import shard_mark
from fedhpc.transport.collectives import broadcast_json, outgoing, run_on_all_ranks
from fedhpc.transport.messages import Count, Text, parsed
from fedhpc.transport.tls import AGGREGATOR_NAME

LOG = logging.getLogger(__name__)

Records = list[dict[str, Any]]


@dataclass(frozen=True)
class Resumed:
    """Where a run goes on.

    Attributes:
        first: the number of rounds to go on after.
        records: of those rounds (rank 0 only).
        heads: of the ledgers, as last recorded.
        residuals: for each site that takes part, the last round up to `first` that it took part in.
        owners: by the name of each site or learner of this rank, and of the aggregator: what its checkpoints carry.
    """

    first: int
    records: Records
    heads: dict[str, str]
    residuals: Mapping[str, int]
    owners: Mapping[str, Owner]


def resume_point(session: Session) -> Resumed:
    """Find where the run goes on.

    Records and files of later rounds are removed at every rank, but not the ledgers' heads: what was charged stays
    charged, and a round that is done again is charged again.

    Raises:
        InputError: at every rank, where what is left does not fit together or belongs to another run, round, site,
            config or shard.
    """
    directory, transport = session.directory, session.transport
    run = broadcast_json(transport, directory.write_identity)
    started = broadcast_json(transport, directory.has_rounds)

    def looked() -> tuple[dict[str, Owner], Found]:
        owners = _owners(session, run, started=started)
        return owners, _found(session, owners)

    owners, mine = run_on_all_ranks(transport, looked)
    payloads = transport.gather([json.dumps(mine).encode()], "control")
    told = [read_found(session.config, transport.size, rank, payload) for rank, payload in enumerate(payloads)]
    first, heads, residuals = broadcast_json(transport, lambda: _settled(directory, told, session.config.site_names))
    records = run_on_all_ranks(transport, lambda: _forgotten(session, first))
    return Resumed(first, records, heads, residuals, owners)


class Found(TypedDict):
    """What a rank has found: see `_found`."""

    rounds: dict[Text, list[Count]]
    damaged: list[Text]
    foreign: list[Text]


FOUND = TypeAdapter(Found)


def read_found(config: RunConfig, ranks: int, rank: int, payload: bytes) -> Found:
    """Return what a rank has found, from its payload.

    Raises:
        PayloadError: no such message, or one that speaks for sites that the rank does not play.
    """
    found = parsed(payload, FOUND, f"rank {rank}, control")
    own = {config.site_names[i] for i in sites_by_rank(config, ranks)[rank]}
    allowed = own if rank else {*own, AGGREGATOR_NAME, POOLED}
    if not set(found["rounds"]) <= allowed:
        raise PayloadError(f"rank {rank}, control: it speaks for sites that it does not play")
    return found


def _owners(session: Session, run: str, *, started: bool) -> dict[str, Owner]:
    """Return what the checkpoints of this rank carry. Only a site's own hold the mark of its shard."""
    config = f"{lasting_digest(session.declared)} {run}"
    owners = {AGGREGATOR_NAME: Owner(AGGREGATOR_NAME, config)}
    for name, digests in session.shard_digests.items():
        mark = shard_mark(session.directory.site(name), name, digests, started=started)
        owners[name] = Owner(name, config, mark)
    return owners


def lasting_digest(config: RunConfig) -> str:
    """SHA-256 of the config without what may change while a run lasts, 16 hex digits."""
    lasting = config.identity(exclude={**FREE, "training": {"rounds"}, "privacy": {"epsilon"}})
    return hashlib.sha256(json.dumps(lasting, sort_keys=True).encode()).hexdigest()[:16]


def _places(session: Session) -> list[tuple[str, Path, str]]:
    """(owner, folder, kind) of each state that this rank keeps."""
    directory = session.directory
    if session.config.mode != "federated":
        return [(learner.name, directory.site(learner.name), "model") for learner in session.learners]
    sites = [(site.name, directory.site(site.name), "residual") for site in session.sites]
    return sites if session.transport.rank else [(AGGREGATOR_NAME, directory.state, "round"), *sites]


def _found(session: Session, owners: Mapping[str, Owner]) -> Found:
    """Return the rounds that each owner at this rank has whole, and what is wrong with others.

    A site of which nothing of the run is here is left out: it can join any round.
    """
    rounds: dict[str, list[int]] = {}
    damaged: list[str] = []
    foreign: list[str] = []
    for name, folder, kind in _places(session):
        if kind == "residual" and not saved_rounds(folder, kind):
            continue
        try:
            rounds[name], problems = intact_rounds(folder, kind, owners[name])
        except ForeignCheckpointError as error:
            foreign.append(outgoing(session.transport, str(error)))
            continue
        damaged += [outgoing(session.transport, problem) for problem in problems]
    return {"rounds": rounds, "damaged": damaged, "foreign": foreign}


def _settled(
    directory: RunDirectory, told: Sequence[Found], sites: Sequence[str]
) -> tuple[int, dict[str, str], dict[str, int]]:
    records = directory.read_rounds()
    foreign = [problem for found in told for problem in found["foreign"]]
    # Before a first record, what lies there is of an earlier attempt, and is removed.
    if foreign and records:
        raise InputError("\n".join(foreign), code="resume.other-checkpoint")
    absences = [frozenset(record.get("absent", ())) for record in records]
    kept = {name: rounds for found in told for name, rounds in found["rounds"].items()}
    first = last_common([carried(name, rounds, absences) for name, rounds in kept.items()], len(records))
    if first is None:
        raise InputError(
            f"{directory.rounds}: has {len(records)} records, but no round near that is whole on the disks of all "
            f"ranks: {_listed(told)}; restore what is missing, or start in a new --run-dir",
            code="resume.no-whole-round",
        )
    for problem in (problem for found in told for problem in found["damaged"]):
        LOG.warning("%s", problem)
    if first < len(records):
        LOG.warning("%d rounds were recorded; going on after round %d", len(records), first)
    heads = {name: head for record in records for name, head in record["ledger_heads"].items()}
    directory.write_rounds(records[:first])
    if not first:
        directory.write_json(directory.environment, environment())
    return first, heads, {name: last_present(name, first, absences) for name in sites}


def last_present(name: str, round: int, absences: Sequence[Collection[str]]) -> int:
    """Return the last round up to `round` that a site took part in; 0 for none. `absences`: of each recorded round.

    >>> last_present("a", 3, [set(), {"a"}, {"a", "b"}]), last_present("a", 1, [{"a"}]), last_present("c", 2, [set()])
    (1, 0, 2)
    """
    while 0 < round <= len(absences) and name in absences[round - 1]:
        round -= 1
    return round


def carried(name: str, rounds: Sequence[int], absences: Sequence[Collection[str]]) -> list[int]:
    """Return the rounds that an owner can go on from: what it keeps does not change while it is absent.

    >>> carried("a", [1, 2], [set(), set(), {"a"}, {"a"}])
    [1, 2, 3, 4]
    """
    away = [
        round
        for round in range(1, len(absences) + 1)
        if name in absences[round - 1] and last_present(name, round, absences) in (0, *rounds)
    ]
    return sorted({*rounds, *away})


def last_common(found: Sequence[Sequence[int]], recorded: int) -> int | None:
    """Return the last recorded round that all owners have whole; None where there should be one and is none.

    A crash can fall between a round's files and its record, so its files may be there without it, or at some ranks
    only; and a damaged one costs a round more.

    >>> last_common([[4, 5, 6], [4, 5]], 6), last_common([[5, 6, 7]], 6), last_common([[1], []], 1)
    (5, 6, 0)
    >>> last_common([[7, 8, 9], [7, 8, 9]], 3), last_common([[1], [1]], 5)
    (None, None)
    """
    kept = [set(rounds) for rounds in found]
    common = set.intersection(*kept) if kept else set()
    oldest = max(0, recorded - KEPT + 1)
    within = [round for round in (*common, 0) if oldest <= round <= recorded]
    lost = min((min(rounds) for rounds in kept if rounds), default=0) > recorded + 1
    return None if lost or not within else max(within)


def _listed(told: Sequence[Found]) -> str:
    return "; ".join(f"rank {rank} has {found['rounds']}" for rank, found in enumerate(told))


def _forgotten(session: Session, first: int) -> Records:
    """Remove what this rank keeps of later rounds; return the records that are left, at rank 0."""
    for _, folder, kind in _places(session):
        forget_after(folder, kind, first)
    return [] if session.transport.rank else session.directory.read_rounds()
