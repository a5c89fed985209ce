"""`run.py bench KIND`: the project's own benchmarks; `--help` lists them."""

import argparse

from fedhpc.cli.bench_hospitals import add_hospitals
from fedhpc.cli.bench_quality import add_quality
from fedhpc.cli.bench_speed import add_speed
from fedhpc.cli.common import Parser, add_kinds

HELP = "the project's own benchmarks, with ratios"
EXAMPLES = ("{run} bench codec --size 1000000", "{run} bench dp --models head --json")


def add_arguments(parser: Parser) -> None:
    """Add one kind for each benchmark."""
    parser.describe("Measure this program beside something comparable, in the same process or run.", EXAMPLES)
    kinds = add_kinds(parser)
    add_speed(kinds)
    add_quality(kinds)
    add_hospitals(kinds)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark."""
    status: int = options.action(options)
    return status
