"""Bytes between ranks by MPI collectives that sleep while they wait.

No rank ever waits inside a blocking MPI call: a rank that spins there steals the core from those that train. Where rank
0 waits for long, it says on stderr for whom (`fedhpc.transport.waiting`), and goes on waiting.

What all ranks have to send is one long stream of parts, in the order of the sites (before that is known, and of kind
control, in that of the ranks). It comes to rank 0 in waves of at most WAVE_BYTES, each one `Igatherv`; so no count ever
reaches the 2 GiB of MPI's ints, and rank 0 holds two waves and one payload, however many hospitals there are and
whichever rank they are at. From TREE_FROM ranks on a wave comes by way of group leaders, which changes no byte of it.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from fedhpc.errors import ExchangeError, InputError, RankLostError, SilentRankError
from fedhpc.transport.base import AloneTransport, Wire
from fedhpc.transport.egress_log import Kind
from fedhpc.transport.framing import Bytes, Pieces, carved, check_announced, divided, frame_header, interleaved
from fedhpc.transport.launcher_guard import is_rank
from fedhpc.transport.mpi_library import is_fault_tolerant, is_launched, load_mpi
from fedhpc.transport.waiting import Waiting, one_of, rest_of
from fedhpc.util.arrays import I64

if TYPE_CHECKING:
    from mpi4py import MPI

LOG = logging.getLogger(__name__)

FIRST_SLEEP_S, LONGEST_SLEEP_S = 50e-6, 5e-3
WAVE_BYTES = 32 * 2**20
BROADCAST_BYTES = 2**30
"""The most that one broadcast call carries: MPI counts in ints, of which 2^31 - 1 is the largest."""
TREE_FROM = 64
"""From so many ranks on the gather is a tree: a linear one makes rank 0 take size - 1 messages a wave, this one about
2 sqrt(size)."""
SIZE_TAG, HOST_BYTES = 1, 64
CALL_TAG, ANSWER_TAG, ANSWER_FROM_S = 2, 3, 0.1


class MpiTransport:
    """Collectives over an MPI communicator: sizes by Igather and Ibcast, bytes by Igatherv and Ibcast."""

    def __init__(self, comm: "MPI.Comm", tree_from: int = TREE_FROM, wave_bytes: int = WAVE_BYTES) -> None:
        self._mpi = load_mpi()
        self._comm, self._wave_bytes = comm, wave_bytes
        self.rank, self.size = comm.Get_rank(), comm.Get_size()
        node = comm.Split_type(self._mpi.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = node.Get_rank(), node.Get_size()
        node.Free()
        self._waiting, self._limit_s = Waiting(), math.inf
        self._site_ranks: I64 | None = None
        self._hosts, self._pids = self._all_hosts()
        self._names = [f"rank {rank} on {host}" for rank, host in enumerate(self._hosts)]
        self._group_size = math.isqrt(self.size - 1) + 1 if self.size >= tree_from else 0
        if self._group_size:
            self._group = comm.Split(self.rank // self._group_size, self.rank)
            self._leaders = comm.Split(int(self.rank % self._group_size != 0), self.rank)

    def gather(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> list[bytes]:
        """See `Transport`."""
        return list(self.stream(payloads, kind, round))

    def stream(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> Iterator[bytes]:
        """See `Transport`."""
        if self._site_ranks is None or kind == "control":
            framed, ranks, mine = True, np.arange(self.size), [Pieces([frame_header(payloads), *payloads])]
        else:
            framed, ranks, mine = False, self._site_ranks, [Pieces([payload]) for payload in payloads]
        sizes, excess = self._agreed_sizes([part.size for part in mine], ranks)
        waves = self._waves(mine, ranks, np.maximum(sizes, 0))
        if self.rank == 0:
            return carved(waves, self.size) if framed else divided(waves, sizes.tolist(), excess, kind)
        for _ in waves:
            continue
        return iter(())

    def deliver_by_site(self, ranks: Sequence[int]) -> None:
        """See `Transport`."""
        self._site_ranks = np.array(ranks, np.int64)

    def broadcast(self, payload: bytes | None, kind: Kind, round: int | None = None) -> bytes:
        """See `Transport`."""
        size = np.array([0 if payload is None else len(payload)], np.int64)
        others = [one_of(self._names[1:])]
        self._wait(self._comm.Ibcast(size, root=0), others)
        if payload is None:
            check_announced(int(size[0]), kind)
        buffer = bytearray(int(size[0])) if payload is None else payload
        view = memoryview(buffer)
        for at in range(0, len(buffer), BROADCAST_BYTES):
            self._wait(self._comm.Ibcast([view[at : at + BROADCAST_BYTES], self._mpi.BYTE], root=0), others)
        return bytes(buffer)

    def reordered(self, rank: int) -> "MpiTransport":
        """See `Wire`."""
        return MpiTransport(self._comm.Split(0, rank), wave_bytes=self._wave_bytes)

    def name_ranks(self, sites: Sequence[str]) -> None:
        """See `Wire`."""
        named = zip(sites, self._hosts, strict=True)
        self._names = [f"{names or 'no site'} (rank {rank} on {host})" for rank, (names, host) in enumerate(named)]

    def limit_waits(self, limit_s: float | None) -> None:
        """See `Transport`. A rank waits for rank 0 twice as long, since that waits for others itself."""
        self._limit_s = math.inf if limit_s is None else limit_s * (1 if self.rank == 0 else 2)

    def shrunk(self) -> tuple["MpiTransport", list[int]]:
        """Return the transport of the ranks that are left, and what their ranks have been here (ULFM).

        Every rank that is left must call it. What is under way in this transport ends with an error at all of them.
        """
        comm = self._comm
        for part in (self._group, self._leaders) if self._group_size else ():
            part.Revoke()
        while True:
            comm.Revoke()
            try:
                comm = comm.Shrink()
            except self._mpi.Exception:
                continue  # another rank has ended since
            opened = self._opened(comm)
            if opened is not None:
                return opened

    def _opened(self, comm: "MPI.Comm") -> "tuple[MpiTransport, list[int]] | None":
        """What `shrunk` returns, over a shrunk communicator; None at all its ranks where another has ended since.

        A rank that ends in here may be noticed by some of the others only. Were those to shrink again alone, ranks
        would go on by two lists of who is left.
        """
        opened = None
        try:
            # Who is left is asked of MPI: what another rank says would be believed, and as an object be unpickled.
            alive = comm.Get_group().Translate_ranks(group=self._comm.Get_group())
            opened = MpiTransport(comm, wave_bytes=self._wave_bytes), alive
        except (self._mpi.Exception, RankLostError):
            comm.Revoke()  # those that have not noticed wait for this rank
        try:
            return opened if comm.Agree(int(opened is not None)) else None
        except self._mpi.Exception:
            return None

    def shares_host(self, rank: int) -> bool:
        """Return whether a rank was started on the host of this one."""
        return self._hosts[rank] == self._hosts[self.rank]

    def _all_hosts(self) -> tuple[list[str], list[int]]:
        """Return the host of each rank, in short, and its process id there."""
        own = np.zeros(HOST_BYTES, np.uint8)
        name = socket.gethostname().partition(".")[0].encode()[:HOST_BYTES]
        own[: len(name)] = np.frombuffer(name, np.uint8)
        hosts, pids = np.zeros((self.size, HOST_BYTES), np.uint8), np.zeros(self.size, np.int64)
        self._wait(self._comm.Iallgather(own, hosts))
        self._wait(self._comm.Iallgather(np.array([os.getpid()], np.int64), pids))
        return [row.tobytes().rstrip(b"\0").decode(errors="replace") for row in hosts], pids.tolist()

    def _lose(self, missing: Sequence[int], waited_s: float) -> None:
        """End ranks on this host that do not answer, so that MPI reports them; others end this start of the run.

        Raises:
            SilentRankError: where a rank cannot be ended from here, or the others cannot go on without it.
        """
        pids = {rank: pid for rank in missing if (pid := self._pid_here(rank))}
        names = ", ".join(self._names[rank] for rank in missing) or one_of(self._names[1:])
        if not missing or len(pids) < len(missing) or not is_fault_tolerant():
            raise SilentRankError(
                f"{names}: has not answered for {waited_s:.0f} s (faults.round_timeout_s, faults.join_timeout_s); this "
                "start ends, and the same command goes on after the last saved round"
            )
        LOG.warning("%s: has not answered for %.0f s and is ended (faults.round_timeout_s)", names, waited_s)
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _pid_here(self, rank: int) -> int | None:
        """Return the process of a rank that was started on this host; None where it is not certain to be that.

        Host and process id are what the rank itself has said: it could name any process of this account.
        """
        (started_as,) = self._comm.Get_group().Translate_ranks([rank], self._mpi.COMM_WORLD.Get_group())
        pid = self._pids[rank]
        return pid if self.shares_host(rank) and is_rank(pid, started_as) else None

    def _agreed_sizes(self, own: Sequence[int], ranks: I64) -> tuple[I64, int]:
        """(bytes of each part of the stream, how many parts came beyond those that were expected), at every rank.

        Args:
            own: bytes of each part of this rank.
            ranks: of each part that is expected; -1 stands for the bytes of one that its rank does not have.
        """
        expected = np.bincount(ranks, minlength=self.size)
        most = int(expected[self.rank])
        sent = own[:most]
        row = np.array([*sent, *[-1] * (most - len(sent)), len(own) - len(sent)], np.int64)
        ends = np.cumsum(expected + 1)
        rows = self._rows_at_rank_0(row, ends)
        self._wait(self._comm.Ibcast(rows, root=0))
        sizes = np.empty(ranks.size, np.int64)
        sizes[np.argsort(ranks, kind="stable")] = np.delete(rows, ends - 1)
        return sizes, int(rows[ends - 1].sum())

    def _rows_at_rank_0(self, own: I64, ends: I64) -> I64:
        """The numbers of each rank, int64[ends[-1]] in rank order; zeros elsewhere. One message a rank, so that rank 0
        knows who has not come yet, which a collective would not tell."""
        rows = np.zeros(ends[-1], np.int64)
        if self.rank:
            self._wait(self._comm.Isend(own, dest=0, tag=SIZE_TAG))
            return rows
        rows[: ends[0]] = own
        missing = {
            rank: self._comm.Irecv(rows[ends[rank - 1] : ends[rank]], source=rank, tag=SIZE_TAG)
            for rank in range(1, self.size)
        }

        def all_came() -> bool:
            for rank in [rank for rank, request in missing.items() if self._done(request)]:
                del missing[rank]
            return not missing

        self._sleep_until(all_came, lambda: [self._names[rank] for rank in missing], lambda: list(missing))
        return rows

    def _waves(self, mine: "Sequence[Pieces]", ranks: I64, sizes: I64) -> Iterator[Bytes]:
        """The stream of all parts, a wave in pieces of one part each; empty ones elsewhere than at rank 0."""
        ends = np.cumsum(sizes)
        starts = ends - sizes
        own = list(zip(np.flatnonzero(ranks == self.rank).tolist(), mine, strict=False))
        for at in range(0, int(ends[-1]), self._wave_bytes):
            lows = np.clip(at - starts, 0, sizes)
            lengths = np.clip(at + self._wave_bytes - starts, 0, sizes) - lows
            pieces = [part.between(int(lows[i]), int(lows[i] + lengths[i])) for i, part in own if lengths[i]]
            counts = np.bincount(ranks, lengths, self.size).astype(np.int64)
            wave = self._wave(pieces[0] if len(pieces) == 1 else b"".join(pieces), counts)
            if self.rank == 0:
                yield from interleaved(wave, ranks, lengths)

    def _wave(self, piece: Bytes, counts: I64) -> Bytes:
        """`counts` bytes of each rank, in rank order, at rank 0."""
        if not self._group_size:
            return self._gatherv(self._comm, piece, counts)
        first = self.rank - self.rank % self._group_size
        block = self._gatherv(self._group, piece, counts[first : first + self._group_size])
        if self.rank != first:
            return b""
        return self._gatherv(self._leaders, block, np.add.reduceat(counts, np.arange(0, self.size, self._group_size)))

    def _gatherv(self, comm: "MPI.Comm", piece: Bytes, counts: I64) -> Bytes:
        if comm.Get_rank() != 0:
            self._wait(comm.Igatherv([piece, self._mpi.BYTE], None, root=0))
            return b""
        received = np.empty(int(counts.sum()), np.uint8)
        starts = np.cumsum(counts) - counts
        request = comm.Igatherv([piece, self._mpi.BYTE], [received, counts, starts, self._mpi.BYTE], root=0)
        senders = [self._names[rank] for rank in np.flatnonzero(counts).tolist() if rank] if comm is self._comm else []
        self._wait(request, [rest_of(senders or self._names[1:])])
        return received.data

    def _done(self, request: "MPI.Request") -> bool:
        with self._failures_told():
            return bool(request.Test())

    @contextlib.contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Raise in the place of MPI's own errors what says that another rank has ended."""
        try:
            yield
        except self._mpi.Exception as error:
            kind = RankLostError if error.Get_error_class() in self._lost_classes() else ExchangeError
            raise kind(
                f"a message could not be exchanged ({error.Get_error_string().strip()}): another rank has ended. See "
                "what the launcher says of it; the same command goes on after the last saved round"
            ) from None

    def _lost_classes(self) -> set[int]:
        """The classes of errors by which MPI reports a lost rank; none where it does not know of fault tolerance."""
        known = {self._mpi.ERR_PROC_FAILED, self._mpi.ERR_PROC_FAILED_PENDING, self._mpi.ERR_REVOKED}
        return known - {self._mpi.ERR_UNKNOWN}

    def _wait(self, request: "MPI.Request", whom: Sequence[str] = ()) -> None:
        """Sleep until `request` is done; where rank 0 waits for `whom`, it says so after a while."""
        # All but rank 0 wait for rank 0 only.
        lost = [0] if self.rank else []
        self._sleep_until(lambda: self._done(request), lambda: whom if self.rank == 0 else (), lambda: lost)

    def _silent(self) -> list[int]:
        """Call all ranks from rank 0; return those that do not answer within half of the limit of waits.

        A collective does not tell which rank it waits for. Ranks that wait, in whatever call, answer at once.
        """
        others = range(1, self.size)
        with self._failures_told():
            # A rank that was late in the last call has answered it since: that says nothing of now.
            while self._comm.Iprobe(tag=ANSWER_TAG):
                self._comm.Recv(np.empty(0), tag=ANSWER_TAG)
            silent = {rank: self._comm.Irecv(np.empty(0), source=rank, tag=ANSWER_TAG) for rank in others}
            calls = [self._comm.Isend(np.empty(0), dest=rank, tag=CALL_TAG) for rank in others]
        end_s = time.monotonic() + self._limit_s / 2
        while silent and time.monotonic() < end_s:
            for rank in [rank for rank, request in silent.items() if self._done(request)]:
                del silent[rank]
            time.sleep(LONGEST_SLEEP_S)
        with self._failures_told():
            for request in silent.values():
                request.Cancel()
            for request in (*calls, *silent.values()):
                request.Free()
        return list(silent)

    def _has_answered(self) -> bool:
        """Answer a call of rank 0; return whether there was one, so that rank 0 is there."""
        with self._failures_told():
            if not self._comm.Iprobe(source=0, tag=CALL_TAG):
                return False
            self._comm.Recv(np.empty(0), source=0, tag=CALL_TAG)
            self._comm.Isend(np.empty(0), dest=0, tag=ANSWER_TAG).Free()
            return True

    def _sleep_until(
        self, is_done: Callable[[], bool], whom: Callable[[], Sequence[str]], missing: Callable[[], Sequence[int]]
    ) -> None:
        """Sleep until `is_done`, longer each time.

        Args:
            is_done: whether the wait is over.
            whom: the names of those that are waited for now, for the notice of a long wait.
            missing: the ranks to take for lost once the limit of waits has passed. Where rank 0 cannot tell, and all
                answer its call, the wait goes on to twice the limit: one was late.
        """
        pause_s, limit_s, longest_s = FIRST_SLEEP_S, self._limit_s, 2 * self._limit_s
        with self._waiting.begun() as look:
            while not is_done():
                waited_s = look(whom())
                if self.rank and waited_s > ANSWER_FROM_S and self._has_answered():
                    limit_s = waited_s + self._limit_s
                if waited_s > limit_s:
                    lost = missing() or self._silent()
                    if is_done():
                        break
                    if lost or waited_s > longest_s:
                        self._lose(lost, waited_s)
                    limit_s = math.inf if lost else longest_s
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_SLEEP_S)


def connect() -> Wire:
    """Return the transport of this process: MPI's world where a launcher started it, else one process alone.

    Raises:
        InputError: where SLURM started several tasks and MPI sees one (the wrong `srun --mpi`).
    """
    if not is_launched():
        return AloneTransport()
    transport = MpiTransport(load_mpi().COMM_WORLD)
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", transport.size))
    if transport.size == 1 and tasks > 1 and "OMPI_COMM_WORLD_SIZE" not in os.environ:
        raise InputError(
            f"SLURM started {tasks} tasks on {socket.gethostname()}, but MPI sees a world of 1: `srun --mpi` does not "
            "fit the MPI library. See `srun --mpi=list`; Open MPI 5 wants --mpi=pmix, MPICH --mpi=pmi2",
            code="mpi.world-of-one",
        )
    return transport
