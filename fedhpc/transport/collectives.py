"""What all ranks must be of one mind about in a round: whether to go on, that nobody has left it, the global state."""

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from fedhpc.compression.update import F32
from fedhpc.errors import Interrupted, SiteError
from fedhpc.transport.messages import said
from fedhpc.transport.mpi import Transport

T = TypeVar("T")


def agreed(transport: Transport, vote: bool, round: int | None = None) -> bool:
    """Whether every rank votes yes; all learn the same answer. `round`: the one that the vote is about."""
    votes = transport.gather([bytes([vote])], "control", round)
    answer = bytes([all(v == b"\x01" for v in votes)]) if transport.rank == 0 else None
    return transport.broadcast(answer, "control", round) == b"\x01"


def unless_interrupted(train: Callable[[], T]) -> T | None:
    """What `train` gives; None where this rank was told to stop and left it."""
    try:
        return train()
    except Interrupted:
        return None


def nobody_left(transport: Transport, trained: T | None, round: int) -> T:
    """`trained`, if every rank has trained; else all leave the round together: Interrupted at every rank."""
    everybody = agreed(transport, trained is not None, round)
    if trained is None or not everybody:
        raise Interrupted(f"round {round}: a site left it")
    return trained


def same_everywhere(transport: Transport, params: F32, round: int, names: Sequence[str]) -> None:
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
            "This round was not recorded; the same command goes on from the one before"
        )
