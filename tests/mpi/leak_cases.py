"""Broken shards at rank 1, one after the other under one mpirun; every payload of every rank is kept in a file.

mpirun -n 2 python -m tests.mpi.leak_cases FOLDER CONFIG CASE...      `run.py train` with each case's shards
mpirun -n 2 python -m tests.mpi.leak_cases FOLDER CONFIG raise=TEXT   an exception of any kind in training at rank 1

The shards and the site ledgers lie where environment variables say: at rank 1 in folders whose names hold SECRET.
"""

import os
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from fedhpc.cli.main import main
from fedhpc.site.data.resident import ShippedSamples
from fedhpc.transport.mpi import MpiTransport

SECRET = "Zq7secretX"
"""Short enough for a pseudonym, and in no other text."""
PRIVATE = (
    "data.shards=$ACCOUNT/raise/{site}.h5",
    "data.sites=[{name: site1, weight: 10}, {name: site2, weight: 10}]",
    "privacy={epsilon: 8.0}",
)


def keep_payloads(path: Path) -> None:
    """Append all that leaves this process to `path`, before it does."""
    original = MpiTransport.stream

    def kept(self: MpiTransport, payloads: Sequence[bytes], kind: str, round: int | None = None) -> Iterator[bytes]:
        with path.open("ab") as file:
            file.writelines(payloads)
        return original(self, payloads, kind, round)  # type: ignore[arg-type]

    MpiTransport.stream = kept  # type: ignore[method-assign, assignment]


def fail_with(text: str) -> None:
    """Let reading an image warn and then fail as numpy does: with values in the message."""

    def failing(*_: object) -> None:
        warnings.warn(f"overflow encountered in {text}", RuntimeWarning, stacklevel=1)
        raise ValueError(f"could not convert string to float: {text}")

    ShippedSamples.inputs = failing  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    folder, config, rank = Path(sys.argv[1]), sys.argv[2], os.environ["OMPI_COMM_WORLD_RANK"]
    keep_payloads(folder / f"payloads-{rank}")
    account = folder / (SECRET if rank == "1" else "rank0")
    account.mkdir(exist_ok=True)
    os.environ.update(ACCOUNT=str(account), FEDHPC_SITE_LEDGER=f"{account}/ledgers/{{site}}")
    status = 0
    for case in sys.argv[3:]:
        words = ["train", config, "--run-dir", str(folder / case.partition("=")[0])]
        if case.startswith("raise="):
            (account / "raise").symlink_to(folder)
            words += [word for one in PRIVATE for word in ("--set", one)]
            if rank == "1":
                fail_with(case.partition("=")[2])
        else:
            (account / case).symlink_to(folder / case / "shards")
            words += ["--set", f"data.shards=$ACCOUNT/{case}/{{site}}.h5", "--set", f"exchange.pki={folder}/pki"]
        status = max(status, main(words))
    sys.exit(status)
