"""`run.py prepare statistics|distributions`: what a shard holds, released once, and hospitals side by side."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedhpc.cli.common import Parser, add_output_file
from fedhpc.cli.status import FINISHED

if TYPE_CHECKING:
    from argparse import _SubParsersAction

STATISTICS = (
    "{run} prepare statistics shards/north.h5 -o north.json",
    "{run} prepare statistics shards/north.h5 -o north.json --epsilon 0.2",
)
STATISTICS_TEXT = """Release the histogram of intensities and the patients by class and modality of one
shard, with Laplace noise. The hospital does it once, before training, and gives the
file to the others. Every patient of the shard is charged epsilon in the site ledger
before the noise is drawn; a second release of the shard is refused."""
DISTRIBUTIONS = (
    "{run} prepare distributions north.json south.json",
    "{run} prepare distributions *.json",
)


def add_statistics(kinds: "_SubParsersAction[Parser]") -> None:
    """Add `prepare statistics` and `prepare distributions`."""
    release = kinds.add_parser("statistics", help="release what a shard holds, once, with noise")
    release.describe(STATISTICS_TEXT, STATISTICS)
    release.add_argument("shard", type=Path, metavar="SHARD", help="of one hospital")
    add_output_file(release, "-o", "--out", suffix="", text="what is released (.json)", required=True, metavar="FILE")
    release.add_argument("--epsilon", type=float, default=0.5, metavar="EPS", help="what it costs every patient")
    release.add_argument("--ledger", metavar="DIR", help="the site ledger (default: where runs look for it)")
    release.set_defaults(action=_statistics)
    show = kinds.add_parser("distributions", help="released statistics of hospitals, side by side")
    show.describe("Print what hospitals have released: patients, and whose intensities are odd.", DISTRIBUTIONS)
    show.add_argument("files", type=Path, nargs="+", metavar="FILE", help="of `prepare statistics`")
    show.set_defaults(action=_distributions)


def _statistics(options: argparse.Namespace) -> int:
    from data_prep.distributions import distributions_text, statistics_text, write_statistics
    from data_prep.names import shown
    from fedhpc.errors import FileError, InputError
    from fedhpc.site.data.shard import Shard
    from fedhpc.site.statistics import release

    if options.out.exists():
        raise InputError(f"out={shown(options.out)}: exists. What was released is kept: name another", code="file")
    with Shard.open(options.shard, None, in_memory=False, need_train=False) as shard:
        found = release(shard, options.shard, options.epsilon, options.ledger)
    try:
        write_statistics(found, options.out)
    except FileError:
        # It is public, and paid for: it must not be lost with the disk.
        print(statistics_text(found))
        raise
    print(distributions_text([found]))
    print(shown(options.out))
    return FINISHED


def _distributions(options: argparse.Namespace) -> int:
    from data_prep.distributions import distributions_text, read_statistics
    from fedhpc.util.text import printable

    print(printable(distributions_text([read_statistics(path) for path in options.files])))
    return FINISHED
