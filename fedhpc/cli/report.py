"""`run.py report SWEEP|RUN...`: one page about a sweep, or about several runs."""

import argparse
from pathlib import Path

from fedhpc.cli.common import Parser, add_json, print_result
from fedhpc.errors import InputError

HELP = "one page about a sweep, or about several runs"
EXAMPLES = ("{run} report runs/sweep_epsilon_density", "{run} report runs/fedavg runs/local -o compared.html")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe("Write one HTML page with the results, and print where it is.", EXAMPLES)
    parser.add_argument("targets", type=Path, nargs="+", metavar="SWEEP|RUN", help="one sweep, or any number of runs")
    parser.add_argument(
        "-o",
        "--out",
        type=Path,
        metavar="FILE.html",
        help="required for several (default: report.html in the directory)",
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    from fedhpc.report.build import report, write

    found = report(options.targets)
    out = options.out or (options.targets[0] / "report.html" if len(options.targets) == 1 else None)
    if out is None:
        raise InputError(f"{len(options.targets)} runs: say where the report goes: -o report.html", code="command-line")
    write(found, out)
    print_result(found.facts(), found.told(out), as_json=options.json)
    return 0
