"""`run.py watch RUN|SWEEP|STUDY`: how it goes, from its files, until it ends."""

import argparse
from pathlib import Path

from fedhpc.cli.common import Parser, reading

HELP = "how a run, a sweep or a study goes, until it ends"
EXAMPLES = ("{run} watch runs/fedavg", "{run} watch runs/study --once")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Show progress, validation AUC, epsilon left, bytes, slow and missing sites, and the time left. Only files are "
        "read: the run does not notice, and any node that sees its directory will do. It ends when the run ends.",
        EXAMPLES,
    )
    parser.add_argument("directory", type=Path, metavar="RUN|SWEEP|STUDY", help="its directory")
    parser.add_argument("--every", type=_seconds, default=2.0, metavar="S", help="how often the files are read")
    parser.add_argument("--once", action="store_true", help="show it as it stands, and end")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number of seconds from 0.1 to 3600")
    return seconds


def run(options: argparse.Namespace) -> int:
    """Watch it."""
    from fedhpc.watch.command import watch

    with reading(options.directory):
        status = watch(options.directory, options.every, once=options.once)
    return status
