"""Where a run goes on: the last round that every rank has whole on its disk and that rank 0 has recorded."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhpc.agreement import from_rank_0, together
from fedhpc.checkpoint import KEPT, forget_after, intact_rounds, saved_rounds
from fedhpc.errors import InputError
from fedhpc.rundir import RunDirectory
from fedhpc.runtime import environment
from fedhpc.session import Session

Records = list[dict[str, Any]]


def resume_point(session: Session) -> tuple[int, Records, dict[str, str]]:
    """(the number of rounds to go on after, their records (rank 0 only), the heads of the ledgers as last recorded).

    Records and files of later rounds are removed at every rank, but not the ledgers' heads: what was charged stays
    charged, and a round that is done again is charged again.

    Raises:
        InputError: at every rank, where what is left does not fit together.
    """
    mine = json.dumps(_found(session)).encode()
    told = [json.loads(payload) for payload in session.transport.gather([mine], "control")]
    directory = session.directory
    first, heads = from_rank_0(session.transport, lambda: _settled(directory, told))
    together(session.transport, lambda: _forget(session, first))
    return first, directory.read_rounds() if session.transport.rank == 0 else [], heads


def _places(session: Session) -> list[tuple[Path, str]]:
    """(folder, kind) of each state that this rank keeps."""
    directory = session.directory
    if session.config.mode != "federated":
        return [(directory.site(learner.name), "model") for learner in session.learners]
    sites = [(directory.site(site.name), "residual") for site in session.sites]
    return sites if session.transport.rank else [(directory.path / "state", "round"), *sites]


def _found(session: Session) -> dict[str, Any]:
    """The rounds that this rank has whole (None: nothing of the run is here, it can join any), and what is damaged."""
    rounds: set[int] | None = None
    damaged: list[str] = []
    for folder, kind in _places(session):
        if kind == "residual" and not saved_rounds(folder, kind):
            continue
        whole, problems = intact_rounds(folder, kind)
        rounds = set(whole) if rounds is None else rounds & set(whole)
        damaged += problems
    return {"rounds": None if rounds is None else sorted(rounds), "damaged": damaged}


def _settled(directory: RunDirectory, told: Sequence[Mapping[str, Any]]) -> tuple[int, dict[str, str]]:
    records = directory.read_rounds()
    first = last_common([found["rounds"] for found in told], len(records))
    if first is None:
        raise InputError(
            f"{directory.rounds}: has {len(records)} records, but no round near that is whole on the disks of all "
            f"ranks: {_listed(told)}; restore what is missing, or start in a new --run-dir"
        )
    for problem in (problem for found in told for problem in found["damaged"]):
        print(f"WARNING: {problem}", file=sys.stderr)
    if first < len(records):
        print(f"WARNING: {len(records)} rounds were recorded; going on after round {first}", file=sys.stderr)
    heads: dict[str, str] = records[-1]["ledger_heads"] if records else {}
    directory.write_rounds(records[:first])
    if not first:
        directory.write_json(directory.environment, environment())
    return first, heads


def last_common(found: Sequence[Sequence[int] | None], recorded: int) -> int | None:
    """The last recorded round that all ranks have whole; None where there should be one and is none.

    A crash can fall between a round's files and its record, so its files may be there without it, or at some ranks
    only; and a damaged one costs a round more.

    >>> last_common([[4, 5, 6], [4, 5]], 6), last_common([[5, 6, 7], None], 6), last_common([[1], []], 1)
    (5, 6, 0)
    >>> last_common([[7, 8, 9], [7, 8, 9]], 3), last_common([[1], [1]], 5)
    (None, None)
    """
    kept = [set(rounds) for rounds in found if rounds is not None]
    common = set.intersection(*kept) if kept else set()
    oldest = max(0, recorded - KEPT + 1)
    within = [round for round in (*common, 0) if oldest <= round <= recorded]
    lost = min((min(rounds) for rounds in kept if rounds), default=0) > recorded + 1
    return None if lost or not within else max(within)


def _listed(told: Sequence[Mapping[str, Any]]) -> str:
    return "; ".join(f"rank {rank} has {found['rounds']}" for rank, found in enumerate(told))


def _forget(session: Session, first: int) -> None:
    for folder, kind in _places(session):
        forget_after(folder, kind, first)
