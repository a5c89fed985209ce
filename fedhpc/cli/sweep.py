"""`run.py sweep CONFIG` and `run.py sweep status|resume|cancel DIR`: many configs as one batch."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedhpc.cli.common import Parser, add_json, add_kinds, add_run_dir, add_set

HELP = "many configs as one SLURM array, or a few at a time on this machine"
EXAMPLES = (
    "{run} sweep configs/sweep_epsilon_density.yaml --dry-run",
    "{run} sweep status runs/sweep_epsilon_density",
)
START = ("{run} sweep configs/sweep_epsilon_density.yaml --dry-run", "{run} sweep sweep.yaml --cluster local")
STATUS = (
    "{run} sweep status runs/sweep_epsilon_density --watch",
    "{run} sweep status runs/sweep_epsilon_density --json",
)
RESUME = ("{run} sweep resume runs/sweep_epsilon_density", "{run} sweep resume runs/mine --cluster local")
CANCEL = ("{run} sweep cancel runs/sweep_epsilon_density", "{run} sweep cancel runs/mine")
ACTIONS = ("start", "status", "resume", "cancel")
WITH_VALUE = ("--cluster", "--set", "--out", "--run-dir")
CLUSTERS = ("slurm", "local")


def add_arguments(parser: Parser) -> None:
    """Add the actions of the command."""
    parser.describe(
        "Train every point of a grid of configs. `sweep CONFIG` is short for `sweep start CONFIG`, whose --help shows "
        "the options.",
        EXAMPLES,
    )
    actions = add_kinds(parser)
    start = actions.add_parser("start", help="check the whole sweep, then submit or run it")
    start.describe("Check all trials of a sweep, print what it costs, then submit or run it.", START)
    start.add_argument("config", type=Path, metavar="CONFIG", help="a config with a grid (.yaml)")
    start.add_argument(
        "--cluster", choices=CLUSTERS, default="slurm", help="one SLURM array, or processes on this machine"
    )
    start.add_argument("--dry-run", action="store_true", help="show trials and scripts; submit and write nothing")
    add_set(start)
    add_run_dir(start, "the sweep's directory (default: runs/<name>)")
    start.set_defaults(action=_start)
    status = actions.add_parser("status", help="how the trials of a started sweep stand")
    status.describe("Print how the trials of a started sweep stand.", STATUS)
    _add_directory(status)
    status.add_argument("--watch", action="store_true", help="print again and again, until all have ended")
    add_json(status)
    status.set_defaults(action=_status)
    resume = actions.add_parser("resume", help="run what has failed or is missing, and only that")
    resume.describe("Run the trials of a sweep that have failed or are missing, and only those.", RESUME)
    _add_directory(resume)
    resume.add_argument("--cluster", choices=CLUSTERS, help="(default: where it ran last)")
    resume.set_defaults(action=_resume)
    cancel = actions.add_parser("cancel", help="end the trials that wait or run")
    cancel.describe("Cancel the trials that wait or run; finished rounds are kept.", CANCEL)
    _add_directory(cancel)
    cancel.set_defaults(action=_cancel)


def arrange(words: Sequence[str]) -> list[str]:
    """Return the words with the action first: `start` where there is none.

    >>> arrange(["-o", "status", "a.yaml"]), arrange(["--watch", "status", "runs/a"])
    (['start', '-o', 'status', 'a.yaml'], ['status', '--watch', 'runs/a'])
    """
    is_value = False
    for at, word in enumerate(words):
        if is_value:
            is_value = False
        elif word.startswith("-"):
            # argparse takes abbreviations.
            is_value = word == "-o" or (len(word) > 2 and any(option.startswith(word) for option in WITH_VALUE))
        elif word in ACTIONS:
            return [word, *words[:at], *words[at + 1 :]]
        else:
            return ["start", *words]
    return list(words)


def run(options: argparse.Namespace) -> int:
    """Do what the action says."""
    status: int = options.action(options)
    return status


def _add_directory(parser: Parser) -> None:
    parser.add_argument("directory", type=Path, metavar="DIR", help="the sweep's directory")


def _start(options: argparse.Namespace) -> int:
    from fedhpc.sweep.commands import Asked, start

    return start(Asked(options.config, options.set, options.cluster, options.run_dir), dry_run=options.dry_run)


def _status(options: argparse.Namespace) -> int:
    from fedhpc.sweep.commands import status

    return status(options.directory, watch=options.watch, as_json=options.json)


def _resume(options: argparse.Namespace) -> int:
    from fedhpc.sweep.commands import resume

    return resume(options.directory, options.cluster)


def _cancel(options: argparse.Namespace) -> int:
    from fedhpc.sweep.commands import cancel

    return cancel(options.directory)
