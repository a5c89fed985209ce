"""Collective steps of all ranks: one that can fail at any of them, a value of rank 0, a vote, equal replicas.

A rank that fails alone leaves the others waiting for ever. So every step that can fail at one rank is run by
`run_on_all_ranks`: all ranks learn of all problems and end with the same message.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedhpc.error_codes import known
from fedhpc.errors import CodedText, InputError, Interrupted, PayloadError, RankErrors, SiteError
from fedhpc.transport.base import Transport
from fedhpc.transport.messages import said
from fedhpc.util.arrays import F32
from fedhpc.util.masking import masked

T = TypeVar("T")


def run_on_all_ranks(transport: Transport, work: Callable[[], T]) -> T:
    """Do `work` at every rank; if it raises InputError at any, raise one at all, with every distinct message and code.

    A rank that failed alone would leave the others waiting for ever. What passes is the message for all ranks and the
    code, never an error's private part, nor what the environment of a rank holds (`outgoing`). A rank whose own work
    failed ends whatever rank 0 says: what it has checked may be what rank 0 has sent.

    Raises:
        RankErrors: at every rank, the same.
        PayloadError: at this rank alone, where rank 0 does not pass on its problem. No InputError, which every rank has
            and rank 0 alone shows: this one is shown by its own rank, and ends the others.
    """
    result, problem = None, ""
    try:
        result = work()
    except InputError as error:
        problem = f"{error.code}\n{outgoing(transport, str(error))}"
    told = [said(payload) for payload in transport.gather([problem.encode()], "control")]
    distinct = json.dumps(list(dict.fromkeys(filter(None, told)))).encode() if any(told) else b""
    problems = transport.broadcast(distinct if transport.rank == 0 else None, "control")
    if problems:
        raise RankErrors([_code_and_text(one) for one in json.loads(problems)])
    if problem:
        own = _code_and_text(problem)
        raise PayloadError(f"{own.text} (rank 0 has not passed this on: ask who runs the aggregator)", code=own.code)
    return result  # type: ignore[return-value]


def outgoing(transport: Transport, text: str) -> str:
    """Return a text as other ranks may have it, with environment variables unread; where there are none, as it is."""
    return masked(text) if transport.size > 1 else text


def _code_and_text(problem: str) -> CodedText:
    """Split what a rank has sent; a code that is not in the table is none."""
    code, _, text = problem.partition("\n")
    return CodedText(known(code), text)


def broadcast_json(transport: Transport, make: Callable[[], T]) -> T:
    """Return what `make` gives at rank 0, as JSON to all."""
    text = run_on_all_ranks(transport, lambda: json.dumps(make()) if transport.rank == 0 else "")
    value: T = json.loads(transport.broadcast(text.encode() if transport.rank == 0 else None, "control"))
    return value


def all_agree(transport: Transport, vote: bool, round: int | None = None) -> bool:
    """Return whether every rank votes yes; all learn the same answer. `round`: the one that the vote is about."""
    votes = transport.gather([bytes([vote])], "control", round)
    answer = bytes([all(v == b"\x01" for v in votes)]) if transport.rank == 0 else None
    return transport.broadcast(answer, "control", round) == b"\x01"


def unless_interrupted(train: Callable[[], T]) -> T | None:
    """Return what `train` gives; None where this rank was told to stop and left it."""
    try:
        return train()
    except Interrupted:
        return None


def require_all_trained(transport: Transport, trained: T | None, round: int) -> T:
    """`trained`, if every rank has trained; else all leave the round together: Interrupted at every rank."""
    everybody = all_agree(transport, trained is not None, round)
    if trained is None or not everybody:
        raise Interrupted(f"round {round}: a site left it")
    return trained


def check_replicas_equal(transport: Transport, params: F32, round: int, names: Sequence[str]) -> None:
    """Compare a digest of the global state over all ranks.

    Args:
        params: the global parameters after round `round`, f32[d].
        names: of this rank's sites.

    Raises:
        SiteError: at rank 0, naming the sites whose state is not the aggregator's.
    """
    digest = hashlib.sha256(params.data).digest()
    told = transport.gather([digest + ", ".join(names).encode()], "control", round)
    others = {rank: said(one[len(digest) :]) for rank, one in enumerate(told) if one[: len(digest)] != digest}
    if others:
        where = "; ".join(f"rank {rank} ({sites or 'no site'})" for rank, sites in others.items())
        raise SiteError(
            f"round {round}: the global state at {where} is not the aggregator's: memory or code changed it. "
            "This round was not recorded; the same command goes on from the one before",
            code="site.replica-differs",
        )
