"""`run.py evaluate RUN --shard FILE`: test a finished model on a shard that it never saw."""

import argparse
from pathlib import Path

from fedhpc.cli.common import Parser, add_json, print_result

HELP = "test a finished model on a shard that it never saw"
EXAMPLES = (
    "{run} evaluate runs/fedavg --shard data/other/site1.h5",
    "{run} evaluate model.pt --shard site5.h5 --json",
)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe("Print the metrics of a finished model on the test split of a shard.", EXAMPLES)
    parser.add_argument("run_or_model", type=Path, metavar="RUN", help="a run directory, or a model.pt")
    parser.add_argument("--shard", type=Path, required=True, metavar="FILE", help="the shard (.h5)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate and print."""
    from fedhpc.run.evaluate import evaluate, evaluation_text
    from fedhpc.util.progress import at_work
    from fedhpc.util.text import wrapped

    with at_work("evaluate"):
        result = evaluate(options.run_or_model, options.shard)
    print_result(result, wrapped(evaluation_text(result)), as_json=options.json)
    return 0
