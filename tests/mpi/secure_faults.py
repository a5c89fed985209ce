"""Run under mpirun: the real program with one fault in its second round of a secure sum.

python -m tests.mpi.secure_faults FAULT ARGUMENTS OF run.py

- `kill-METHOD`, `stop-METHOD`: rank 1 gets SIGKILL or SIGSTOP as its first site comes to that message (`advertise`,
  `share`, `mask`, `confirm`, `reveal`);
- `fail-SITE,SITE`: these sites run out of memory in the training of every round;
- `substitute`: rank 0 puts the round keys of its own hospital in the place of the last site's.
"""

import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import Any

from fedhpc.cli.main import main
from fedhpc.secagg.messages import HEADER, KEYS, frame
from fedhpc.secagg.protocol import MaskedSite, SumAggregator
from fedhpc.site import hospital
from fedhpc.site.training.secure_contribution import IntegerGrid
from fedhpc.util.arrays import F32, I64

ROUND = 1


def with_signal(method: Callable[..., bytes], number: signal.Signals) -> Callable[..., bytes]:
    """`method` of `MaskedSite`, before which this process gets the signal, once."""
    waiting = [True]

    def faulty(self: MaskedSite, *arguments: Any) -> bytes:
        if self._round == ROUND and waiting:
            waiting.pop()
            os.kill(os.getpid(), number)
        return method(self, *arguments)

    return faulty


def out_of_memory(*_: object) -> Any:
    raise MemoryError("as a too large batch does")


def failing(names: Sequence[str]) -> Callable[..., Any]:
    """`Hospital.contribute`, in which these sites run out of memory."""
    honest, train = hospital.Hospital.contribute, hospital.contribution

    def contribute(self: hospital.Hospital, params: F32, round: int, grid: IntegerGrid) -> I64:
        hospital.contribution = out_of_memory if self.name in names else train
        return honest(self, params, round, grid)

    return contribute


def substituted(honest: Callable[..., bytes]) -> Callable[..., bytes]:
    """`SumAggregator.answer`, which replaces the last site's keys by those of a site that it plays itself."""

    def answer(self: SumAggregator, kind: int, payloads: Sequence[bytes]) -> bytes:
        if kind == KEYS and self.round == ROUND:
            last = len(payloads) - 1
            # Those of the first hospital, which is the aggregator's own, with its good signature.
            payloads = [*payloads[:last], frame(KEYS, last, self.round, payloads[0][HEADER.size :])]
        return honest(self, kind, payloads)

    return answer


if __name__ == "__main__":
    from mpi4py import MPI

    fault, rank = sys.argv[1], MPI.COMM_WORLD.Get_rank()
    action, _, name = fault.partition("-")
    if action == "fail":
        hospital.Hospital.contribute = failing(name.split(","))  # type: ignore[method-assign]
    elif action == "substitute" and rank == 0:
        SumAggregator.answer = substituted(SumAggregator.answer)  # type: ignore[method-assign]
    elif action in ("kill", "stop") and rank == 1:
        number = signal.SIGKILL if action == "kill" else signal.SIGSTOP
        setattr(MaskedSite, name, with_signal(getattr(MaskedSite, name), number))
    sys.exit(main(sys.argv[2:]))
