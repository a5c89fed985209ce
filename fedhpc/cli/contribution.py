"""`run.py contribution RUN`: who contributed how much to a run."""

import argparse
import logging
from pathlib import Path

from fedhpc.cli.common import Parser, add_json, positive, print_result
from fedhpc.errors import FileError

LOG = logging.getLogger(__name__)

HELP = "who contributed how much to a run: Shapley values with intervals"
EXAMPLES = (
    "{run} contribution runs/fedavg --on data/public/labelled.h5",
    "{run} contribution runs/fedavg --json",
)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Rebuild the model of every coalition of sites from the updates that the run has kept "
        "(contribution.store_updates), judge each, and print every site's Shapley value, leave-one-out and CGSV. "
        "Nothing is trained, and no epsilon is spent. The result is kept in RUN/contribution.json, where the report "
        "finds it.",
        EXAMPLES,
    )
    parser.add_argument("directory", type=Path, metavar="RUN", help="a run directory, at rank 0")
    parser.add_argument(
        "--on",
        type=Path,
        nargs="+",
        default=[],
        metavar="SHARD",
        help="labelled images that are public; without any, the directions of the updates are judged",
    )
    parser.add_argument("--split", choices=("val", "test"), default="val", help="of the shards")
    parser.add_argument("--draws", type=positive, default=200, metavar="N", help="of patients and noise, for intervals")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Compute and print."""
    from fedhpc.records.run_directory import RunDirectory
    from fedhpc.run.finished.contribution import Judged, contribution
    from fedhpc.run.finished.contribution_table import table_text
    from fedhpc.util.progress import at_work

    with at_work("contribution"):
        facts = contribution(options.directory, Judged(tuple(options.on), options.split, options.draws))
    kept = RunDirectory(options.directory)
    try:
        kept.write_json(kept.contribution, facts)
    except FileError as error:
        LOG.warning("%s; the report of the run will not show it", error)
    print_result(facts, table_text(facts), as_json=options.json)
    return 0
