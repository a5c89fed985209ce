"""Run under mpirun: the real program, with one fault at rank 1 in its second round.

python -m tests.mpi.faulty memory|wire ARGUMENTS OF run.py
"""

import sys
from collections.abc import Iterator, Sequence

import numpy as np

from fedhpc.algorithms import fedavg as federation
from fedhpc.algorithms.run_state import RunState
from fedhpc.cli.main import main
from fedhpc.transport.egress_log import Kind
from fedhpc.transport.mpi import MpiTransport

ROUND = 2
honest_state, honest_stream = federation.next_state, MpiTransport.stream


def one_bit_wrong(state: RunState, message: bytes, terms: federation.RoundConfig) -> RunState:
    """The next state, with the last bit of one parameter turned over."""
    after = honest_state(state, message, terms)
    if after.round == ROUND:
        after.params.view(np.uint32)[7] ^= 1
    return after


def one_bit_changed(
    self: MpiTransport, payloads: Sequence[bytes], kind: Kind, round: int | None = None
) -> Iterator[bytes]:
    """What is sent, with one bit of the last payload turned over."""
    sent = list(payloads)
    if kind == "update" and round == ROUND and sent:
        sent[-1] = sent[-1][:300] + bytes([sent[-1][300] ^ 1]) + sent[-1][301:]
    return honest_stream(self, sent, kind, round)


if __name__ == "__main__":
    from mpi4py import MPI

    if MPI.COMM_WORLD.Get_rank() == 1 and sys.argv[1] == "memory":
        federation.next_state = one_bit_wrong
    elif MPI.COMM_WORLD.Get_rank() == 1:
        MpiTransport.stream = one_bit_changed  # type: ignore[method-assign]
    sys.exit(main(sys.argv[2:]))
