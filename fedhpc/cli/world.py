"""`run.py world`: the number of ranks that MPI sees, printed by each of them. For slurm/launch.sh; not in `--help`."""

import argparse

from fedhpc.cli.common import Parser

HELP = ""
EXAMPLES = ("{run} world", "srun --mpi=pmix {run} world")


def add_arguments(parser: Parser) -> None:
    """There are none."""
    parser.describe("Print how many ranks MPI sees, at each rank: does this launcher fit it?", EXAMPLES)


def run(options: argparse.Namespace) -> int:
    """Connect, print, end."""
    from fedhpc.transport.mpi_library import world_size

    print(world_size(), flush=True)
    return 0
