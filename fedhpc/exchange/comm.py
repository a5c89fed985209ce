"""Bytes between ranks: MPI collectives that sleep while they wait, and their one-process twin.

No rank ever waits inside a blocking MPI call: a rank that spins there steals the core from those that train. Every wait
goes through `MpiTransport._wait`, the one place where a time-out belongs.
"""

import itertools
import os
import socket
import struct
import time
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from fedhpc.errors import InputError

if TYPE_CHECKING:
    from mpi4py import MPI

FIRST_SLEEP_S, LONGEST_SLEEP_S = 50e-6, 5e-3
LAUNCHER_SIZE_VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS", "SLURM_STEP_NUM_TASKS")


class Transport(Protocol):
    """What the round needs of the ranks. `rank` 0 is the aggregator's."""

    rank: int
    size: int
    local_rank: int
    local_size: int

    def gather(self, payloads: Sequence[bytes]) -> list[bytes]:
        """All ranks' payloads in rank order at rank 0; an empty list elsewhere."""

    def broadcast(self, payload: bytes | None) -> bytes:
        """Rank 0's payload, at every rank; the others pass None."""


class AloneTransport:
    """The sequential driver's: one process is all there is."""

    rank, size, local_rank, local_size = 0, 1, 0, 1

    def gather(self, payloads: Sequence[bytes]) -> list[bytes]:
        """See `Transport`."""
        return list(payloads)

    def broadcast(self, payload: bytes | None) -> bytes:
        """See `Transport`."""
        if payload is None:
            raise ValueError("payload=None: rank 0 must pass the payload that it broadcasts")
        return payload


class MpiTransport:
    """Collectives over an MPI communicator: sizes by Igather, bytes by Igatherv and Ibcast."""

    def __init__(self, comm: "MPI.Comm") -> None:
        self._mpi = _mpi()
        self._comm = comm
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        node = comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = node.Get_rank(), node.Get_size()
        node.Free()

    def gather(self, payloads: Sequence[bytes]) -> list[bytes]:
        """See `Transport`."""
        mine = _pack(payloads)
        sizes = np.zeros(self.size, np.int64)
        self._wait(self._comm.Igather(np.array([len(mine)], np.int64), sizes, root=0))
        if self.rank != 0:
            self._wait(self._comm.Igatherv([mine, self._mpi.BYTE], None, root=0))
            return []
        starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
        received = np.empty(int(sizes.sum()), np.uint8)
        self._wait(self._comm.Igatherv([mine, self._mpi.BYTE], [received, sizes, starts, self._mpi.BYTE], root=0))
        blocks = [received[start : start + size] for start, size in zip(starts, sizes, strict=True)]
        return [payload for block in blocks for payload in _unpack(block.data)]

    def broadcast(self, payload: bytes | None) -> bytes:
        """See `Transport`."""
        size = np.array([0 if payload is None else len(payload)], np.int64)
        self._wait(self._comm.Ibcast(size, root=0))
        buffer = bytearray(int(size[0])) if payload is None else payload
        self._wait(self._comm.Ibcast([buffer, self._mpi.BYTE], root=0))
        return bytes(buffer)

    def _wait(self, request: "MPI.Request") -> None:
        pause_s = FIRST_SLEEP_S
        while not request.Test():
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, LONGEST_SLEEP_S)


def connect() -> Transport:
    """The transport of this process: MPI's world where a launcher started it, else one process alone.

    Raises:
        InputError: where SLURM started several tasks and MPI sees one (the wrong `srun --mpi`).
    """
    if not any(int(os.environ.get(name, "1")) > 1 for name in LAUNCHER_SIZE_VARIABLES):
        return AloneTransport()
    transport = MpiTransport(_mpi().COMM_WORLD)
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", transport.size))
    if transport.size == 1 and tasks > 1 and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        raise InputError(
            f"SLURM started {tasks} tasks on {socket.gethostname()}, but MPI sees a world of 1: `srun --mpi` does not "
            "fit the MPI library. See `srun --mpi=list`; Open MPI 5 wants --mpi=pmix, MPICH --mpi=pmi2"
        )
    return transport


def abort_at_exit(status: int) -> None:
    """Make this process end the whole MPI job with `status` when it exits: the others may wait for it in a collective.

    `comm.Abort` at once would lose the message and, under some launchers, be recorded as success.
    """
    from mpi4py import run

    run.set_abort_status(status)


def _mpi() -> ModuleType:
    """mpi4py.MPI, whose import starts MPI: only where a launcher has prepared a world."""
    from mpi4py import MPI

    return MPI


def _pack(payloads: Sequence[bytes]) -> bytes:
    """Several payloads -> one.

    >>> [bytes(p) for p in _unpack(memoryview(_pack([b"ab", b"", b"c"])))]
    [b'ab', b'', b'c']
    """
    lengths = struct.pack(f"<{1 + len(payloads)}Q", len(payloads), *map(len, payloads))
    return b"".join((lengths, *payloads))


def _unpack(block: memoryview) -> list[bytes]:
    (count,) = struct.unpack_from("<Q", block)
    lengths = struct.unpack_from(f"<{count}Q", block, 8)
    ends = np.cumsum((8 + 8 * count, *lengths)).tolist()
    return [bytes(block[start:end]) for start, end in itertools.pairwise(ends)]
