"""`run.py train CONFIG`: train as the config says; under mpirun or srun each rank is one hospital."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhpc.cli.common import Parser, add_run_dir, add_set, positive
from fedhpc.cli.status import BAD_INPUT, FAILED, FINISHED, INCOMPLETE, RESUMABLE, end_all, report_stop
from fedhpc.errors import InputError, RankLostError, Stopped, is_of_one_rank
from fedhpc.run.rounds.preemption import StopRequest
from fedhpc.util.files import write_text
from fedhpc.util.startup import Startup

if TYPE_CHECKING:
    from fedhpc.run.start.agreement import Source

HELP = "train as the config says; under mpirun or srun one hospital a rank"
EXAMPLES = (
    "mpirun -n 4 {run} train configs/smoke.yaml",
    "{run} train configs/smoke.yaml --set training.rounds=5",
)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Train one model over all sites of a config. A run directory that holds finished rounds of the same config is "
        "continued after them.",
        EXAMPLES,
    )
    parser.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml)")
    add_set(parser)
    add_run_dir(parser)
    parser.add_argument("--stop-after", type=positive, metavar="N", help="stop after N more rounds with exit status 75")
    parser.add_argument(
        "--init-from", type=Path, metavar="RUN", help="start from a finished run's model: sets model.init_from"
    )
    parser.add_argument(
        "--take-over", action="store_true", help="use a run directory that a failed node has left locked"
    )
    # For slurm/launch.sh: srun may report another status than its ranks.
    parser.add_argument("--status", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    parser.set_defaults(shared=True)


def run(options: argparse.Namespace) -> int:
    """Train at this rank; a failure of this rank alone ends the others too."""
    # Before all that takes seconds to import: until then a signal ends this process.
    notice = StopRequest()
    notice.listen()
    startup = Startup()
    from fedhpc.run.start.agreement import Source, join_timeout_s
    from fedhpc.transport.mpi import connect
    from fedhpc.transport.mpi_library import abort_at_exit
    from fedhpc.transport.start_watch import watched_start

    started = [] if options.init_from is None else [f"model.init_from={json.dumps(str(options.init_from))}"]
    source = Source(options.config, [*options.set, *started], options.run_dir, options.take_over)
    limit_s = join_timeout_s(source)
    with watched_start(limit_s):
        transport = connect()
    startup.mark("MPI")
    transport.limit_waits(limit_s)
    try:
        return _train(source, transport, notice, startup, options)
    except InputError as error:
        if not is_of_one_rank(error, transport.size):
            raise
        options.ended_alone = True
        return end_all(error, transport.rank, BAD_INPUT)
    except RankLostError as error:
        return end_all(error, transport.rank, RESUMABLE)
    except (KeyboardInterrupt, Stopped) as stop:
        status = report_stop(stop)
        if transport.size > 1:
            abort_at_exit(status)
        return status
    except BaseException as error:
        return end_all(error, transport.rank, FAILED)


def _train(source: "Source", transport: Any, notice: StopRequest, startup: Startup, options: argparse.Namespace) -> int:
    from fedhpc.run.start.agreement import check_start

    check_start(transport, source)
    from fedhpc.models.lean_torch import import_lean

    import_lean()
    from fedhpc.run.train import Machine, Work, train
    from fedhpc.transport.mpi_library import is_fault_tolerant

    def may_resume() -> None:
        if options.status is not None:
            write_text(options.status, f"{RESUMABLE}\n")

    stopped = train(Work(source, options.stop_after, may_resume), Machine(transport, notice, startup))
    options.leave_at_once = is_fault_tolerant()
    return {"preempted": RESUMABLE, "incomplete": INCOMPLETE}.get(stopped, FINISHED)
