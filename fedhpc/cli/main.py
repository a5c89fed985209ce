"""`main`: find the command, parse its arguments, run it, return the exit status."""

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from fedhpc import __version__
from fedhpc.cli.common import OUTPUTS, Parser
from fedhpc.cli.status import (
    BAD_INPUT,
    FAILED,
    FINISHED,
    INTERRUPTED,
    RESUMABLE,
    STATUSES,
    is_first_rank,
    report_stop,
)
from fedhpc.errors import FileError, InputError, Stopped, printed
from fedhpc.util.core_files import forbid_core_files
from fedhpc.util.files import write_text
from fedhpc.util.output import stop_printing

if TYPE_CHECKING:
    import logging

__all__ = ["BAD_INPUT", "COMMANDS", "FAILED", "FINISHED", "INTERRUPTED", "RESUMABLE", "main", "parser"]


class Command(NamedTuple):
    """A command: the module that holds it, and its one line in `--help` (empty: not shown there)."""

    module: str
    help: str


COMMANDS = {
    "prepare": Command("fedhpc.cli.prepare", "write shards, or check them"),
    "train": Command("fedhpc.cli.train", "train as the config says; under mpirun or srun one hospital a rank"),
    "preflight": Command("fedhpc.cli.preflight", "the checks of every run alone; --report: what to send for help"),
    "evaluate": Command("fedhpc.cli.evaluate", "test a finished model on a shard that it never saw"),
    "predict": Command("fedhpc.cli.predict", "calibrated scores of a finished model for new images"),
    "export": Command("fedhpc.cli.export", "a finished model as ONNX, checked against PyTorch"),
    "contribution": Command(
        "fedhpc.cli.contribution", "who contributed how much to a run: Shapley values with intervals"
    ),
    "privacy": Command("fedhpc.cli.privacy", "what configs will cost, what a run or a shard's patients have spent"),
    "budget": Command("fedhpc.cli.budget", "the hospital's own cap on what its patients spend over all runs"),
    "pki": Command("fedhpc.cli.pki", "the certificates of the hospitals and of rank 0"),
    "egress": Command("fedhpc.cli.egress", "what left each hospital in a run, and why no image is among it"),
    "audit": Command("fedhpc.cli.audit", "attack transmitted updates; check that broken privacy is noticed"),
    "sweep": Command("fedhpc.cli.sweep", "many configs as one SLURM array, or a few at a time on this machine"),
    "study": Command("fedhpc.cli.study", "the whole evaluation as one batch, beside the paper's claims"),
    "watch": Command("fedhpc.cli.watch", "how a run, a sweep or a study goes, until it ends"),
    "report": Command("fedhpc.cli.report", "one page about runs, a sweep or a study"),
    "bench": Command("fedhpc.cli.bench", "the project's own benchmarks, with ratios"),
    "chaos": Command("fedhpc.cli.chaos", "break runs on purpose, and check that nothing is lost"),
    "config": Command("fedhpc.cli.config", "show a config with where each value comes from; or all keys there are"),
    "errors": Command("fedhpc.cli.errors", "what the codes of errors mean, and what to do"),
    "world": Command("fedhpc.cli.world", ""),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run the command, return the exit status."""
    options = argparse.Namespace()
    forbid_core_files()
    try:
        options = _parsed(list(sys.argv[1:] if arguments is None else arguments))
        _log()
        _clear_status(options)
        status: int = options.run(options)
        sys.stdout.flush()
    except InputError as error:
        if is_first_rank():
            # What a hospital runs by itself may tell it everything; the console of a run is rank 0's.
            _log().error("%s", printed(error, private=not getattr(options, "shared", False)))
        status = BAD_INPUT
    except (KeyboardInterrupt, Stopped) as stop:
        status = report_stop(stop)
    except BrokenPipeError:
        # Whoever read the output (`| head`) has seen enough; what a command makes is in files.
        stop_printing()
        status = FINISHED
    if getattr(options, "status", None) and (
        is_first_rank() or status == FAILED or getattr(options, "ended_alone", False)
    ):
        # Launchers lose it: as the first rank ends with 75, srun ends the others and says 143.
        _write_status(options.status, status)
    if getattr(options, "leave_at_once", False):
        # MPI_Finalize may hang where a rank has been lost.
        with suppress(BrokenPipeError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)
    return status


def parser(chosen: str | None = None) -> Parser:
    """Return the parser of the command line; of the commands only `chosen` gets its arguments."""
    top = Parser(prog=_program())
    top.describe(
        "Federated learning for diagnostic imaging as a batch job.",
        ["mpirun -n 4 {run} train configs/smoke.yaml", "{run} train --help"],
    )
    top.epilog = f"{top.epilog}\n\n{OUTPUTS}\n\n{STATUSES}"
    top.add_argument("--version", action="version", version=__version__)
    commands = top.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for name, command in COMMANDS.items():
        # argparse lists a command only where it is given `help`.
        own = commands.add_parser(name, help=command.help) if command.help else commands.add_parser(name)
        if name == chosen:
            module = importlib.import_module(command.module)
            module.add_arguments(own)
            own.set_defaults(run=module.run)
    return top


def _program() -> str:
    """How this program was started: `run.py`, `fedhpc`, or `python -m fedhpc`."""
    way = Path(sys.argv[0])
    if (way.parent.name, way.name) == ("fedhpc", "__main__.py"):
        return "python -m fedhpc"
    return "fedhpc" if way.name == "fedhpc" else "run.py"


def _parsed(words: list[str]) -> argparse.Namespace:
    """Return the options, or end the process with a message."""
    chosen = words[0] if words and words[0] in COMMANDS else None
    if words and not chosen and not words[0].startswith("-"):
        parser().error(_unknown(words[0]))
    if chosen:
        words = [chosen, *getattr(importlib.import_module(COMMANDS[chosen].module), "arrange", list)(words[1:])]
    top = parser(chosen)
    if words and not chosen and words[0] not in ("-h", "--help", "--version"):
        top.error(f"{words[0]}: a command must come first")
    try:
        return top.parse_args(words)
    finally:
        sys.stdout.flush()


def _unknown(word: str) -> str:
    import difflib

    shown = [name for name, command in COMMANDS.items() if command.help]
    near = difflib.get_close_matches(word, shown, n=1)
    return f"{word or repr(word)}: no such command. " + (
        f"Did you mean {near[0]}?" if near else f"Give one of: {', '.join(shown)}"
    )


def _clear_status(options: argparse.Namespace) -> None:
    """Remove the status that an earlier run wrote: a run that is killed must not seem to have ended as that one did."""
    path: Path | None = getattr(options, "status", None)
    if path is None or not is_first_rank():
        return
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        options.status = None
        raise InputError(
            f"--status {path}: cannot be written there. Give a file in a folder that you may write to",
            code="command-line",
        )
    path.unlink(missing_ok=True)


def _write_status(path: Path, status: int) -> None:
    try:
        write_text(path, f"{status}\n")
    except FileError as error:
        _log().warning("--status: %s", error)


def _log() -> "logging.Logger":
    """Return the logger of the command line, with logging configured; imported here, since `--help` needs none."""
    import logging

    from fedhpc.util.log import configure

    configure()
    return logging.getLogger(__name__)
