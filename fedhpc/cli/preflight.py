"""`run.py preflight`: the checks alone, before a job waits for them in a queue; and what to send for help."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedhpc.cli.common import Parser, add_run_dir, add_set

if TYPE_CHECKING:
    from fedhpc.transport.base import Wire

HELP = "the checks of every run alone; --report: what to send for help"
EXAMPLES = (
    "mpirun -n 4 {run} preflight configs/smoke.yaml --speeds",
    "{run} preflight configs/smoke.yaml --report > report.txt",
)
FIRST_CONFIG = Path("configs/fedavg.yaml")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Check what every run checks before it starts: ranks, nodes, GPUs, shards, run directory, disk, clocks, "
        "versions. Certificates and privacy accounts are checked by `train`, before its first round.",
        EXAMPLES,
    )
    parser.add_argument("config", type=Path, nargs="?", default=FIRST_CONFIG, metavar="CONFIG", help="a config (.yaml)")
    add_set(parser)
    add_run_dir(parser)
    parser.add_argument(
        "--report", action="store_true", help="print all about this machine and job: send it when asking for help"
    )
    parser.add_argument(
        "--speeds",
        action="store_true",
        help="measure what a step takes at each site, on random numbers, and print it for the config (schedule)",
    )
    parser.set_defaults(shared=True)


def run(options: argparse.Namespace) -> int:
    """Check at every rank; print the result at rank 0."""
    from fedhpc.cli.status import BAD_INPUT, FAILED, end_all
    from fedhpc.errors import InputError, is_of_one_rank
    from fedhpc.transport.mpi import connect
    from fedhpc.transport.mpi_library import abort_at_exit

    transport = connect()
    try:
        return _check(options, transport)
    except InputError as error:
        if not is_of_one_rank(error, transport.size):
            raise
        return end_all(error, transport.rank, BAD_INPUT)
    except Exception as error:
        return end_all(error, transport.rank, FAILED)
    except BaseException:
        abort_at_exit(FAILED)
        raise


def _check(options: argparse.Namespace, transport: "Wire") -> int:
    from fedhpc.config.loader import load_config
    from fedhpc.errors import InputError
    from fedhpc.records.run_directory import RunDirectory
    from fedhpc.run.preflight.check import preflight
    from fedhpc.run.preflight.report import report
    from fedhpc.run.start.agreement import check_ranks
    from fedhpc.run.start.placement import place_sites
    from fedhpc.transport.collectives import run_on_all_ranks
    from fedhpc.util.text import wrapped

    if options.report and transport.rank == 0:
        print(report(options.config, options.set), flush=True)
    config = run_on_all_ranks(transport, lambda: load_config(options.config, options.set))
    run_on_all_ranks(transport, lambda: check_ranks(config, transport.size))
    transport = place_sites(config, transport)
    directory = RunDirectory(options.run_dir or Path("runs") / config.name)
    try:
        said, ranks = preflight(config, directory, transport)
    except InputError as problem:
        if not options.report:
            raise
        # A report tells what is wrong; it is not wrong itself.
        said, ranks = str(problem), ""
    if transport.rank == 0:
        print(f"{ranks}\n{wrapped(said)}".strip(), flush=True)
    if options.speeds:
        from fedhpc.run.preflight.speeds import measured_speeds

        sections = measured_speeds(config, transport)
        if transport.rank == 0:
            print(sections, flush=True)
    return 0
