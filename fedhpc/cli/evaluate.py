"""`run.py evaluate RUN --shard FILE`: test a finished model on a shard that it never saw."""

import argparse
from pathlib import Path

from fedhpc.cli.common import Parser, add_json, print_result
from fedhpc.errors import InputError

HELP = "test a finished model on a shard that it never saw"
EXAMPLES = (
    "{run} evaluate runs/fedavg --shard data/other/site1.h5 --json",
    "{run} evaluate runs/legacy_scanner --site site3 --personal",
)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe("Print the metrics of a finished model on the test split of a shard.", EXAMPLES)
    parser.add_argument("run_or_model", type=Path, metavar="RUN", help="a run directory, or a model.pt")
    parser.add_argument("--shard", type=Path, metavar="FILE", help="the shard (.h5)")
    parser.add_argument("--site", metavar="NAME", help="a site of the run: its shard, where --shard names none")
    parser.add_argument("--personal", action="store_true", help="the personal model of --site, at that hospital")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Evaluate and print."""
    from fedhpc.run.finished.evaluate import Tested, evaluate, evaluation_text
    from fedhpc.util.progress import at_work
    from fedhpc.util.text import wrapped

    if options.shard is None and options.site is None:
        raise InputError("--shard: missing. Give a shard, or --site with the name of a site", code="command-line")
    if options.personal and options.site is None:
        raise InputError("--personal: whose? Give --site with the name of the hospital", code="command-line")
    with at_work("evaluate"):
        result = evaluate(options.run_or_model, Tested(options.shard, options.site, options.personal))
    print_result(result, wrapped(evaluation_text(result)), as_json=options.json)
    return 0
