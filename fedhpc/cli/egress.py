"""`run.py egress RUN`: what left each hospital in a run, and why no image is among it."""

import argparse
from pathlib import Path

from fedhpc.cli.common import Parser, add_json, print_result, reading
from fedhpc.cli.status import FAILED, FINISHED

HELP = "what left each hospital in a run, and why no image is among it"
EXAMPLES = ("{run} egress runs/fedavg", "{run} egress runs/fedavg --json")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Sum up the egress logs of a run and compare them with its records. Exit status 1 where they disagree.",
        EXAMPLES,
    )
    parser.add_argument("directory", type=Path, metavar="RUN", help="a run directory")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report; 1 where what it checks does not hold."""
    from fedhpc.report.egress import report

    with reading(options.directory):
        found = report(options.directory)
    print_result(found.facts, found.text, as_json=options.json)
    return FINISHED if found.facts["holds"] else FAILED
