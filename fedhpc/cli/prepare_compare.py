"""`run.py prepare compare|landmarks`: what harmonisation does to hospitals' images, and a reference's numbers."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedhpc.cli.common import Parser, add_output_file, positive
from fedhpc.cli.status import FINISHED

if TYPE_CHECKING:
    from argparse import _SubParsersAction

BACKBONES = ("phantom", "efficientnet_lite0", "efficientnet_lite0+phantom", "efficientnet_lite0+phantom+cropped")
COMPARE = (
    "{run} prepare compare data/phantom/site?.h5 -o shift.html",
    "{run} prepare compare data/phantom/site?.h5 --config my.yaml",
)
COMPARE_TEXT = """Compare the images of several hospitals before and after each step of `harmonise`.
Prints the AUC of a classifier that tells two hospitals apart on features of a public
backbone, by images of one class and modality: 0.5 is the goal. And the share of the
features' variance that lies between hospitals: 0 is the goal.

It reads shards of several hospitals, so it is for phantoms, public images, or a place
that may see all of them. The page is as private as the shards."""
LANDMARKS = (
    "{run} prepare landmarks data/phantom/reference.h5",
    "{run} prepare landmarks reference.h5 --frequencies 9",
)


def add_compare(kinds: "_SubParsersAction[Parser]") -> None:
    """Add `prepare compare` and `prepare landmarks`."""
    compare = kinds.add_parser("compare", help="hospitals before and after harmonisation")
    compare.describe(COMPARE_TEXT, COMPARE)
    compare.add_argument("shards", type=Path, nargs="+", metavar="SHARD", help="of two or more sites")
    page = "write a page: as private as the shards"
    add_output_file(compare, "-o", "--out", suffix=".html", text=page, metavar="HTML")
    compare.add_argument("--images", type=positive, default=400, metavar="N", help="at most, of each shard")
    compare.add_argument(
        "--backbone", default="phantom", choices=BACKBONES, metavar="NAME", help="phantom or efficientnet_lite0"
    )
    compare.add_argument("--reference", type=Path, metavar="SHARD", help="public images, for nyul and fourier")
    compare.add_argument("--config", type=Path, metavar="CONFIG", help="compare its `harmonise` too, site by site")
    _add_frequencies(compare)
    compare.set_defaults(action=_compare)
    landmarks = kinds.add_parser("landmarks", help="numbers of a public reference, for harmonise")
    landmarks.describe("Print the steps nyul and fourier of `harmonise`, from public images without labels.", LANDMARKS)
    landmarks.add_argument("reference", type=Path, metavar="SHARD", help="public images without labels")
    _add_frequencies(landmarks)
    landmarks.set_defaults(action=_landmarks)


def _add_frequencies(parser: Parser) -> None:
    parser.add_argument("--frequencies", type=_odd, default=5, metavar="K", help="a side, of the step fourier; odd")


def _odd(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 63 or not int(text) % 2:
        raise argparse.ArgumentTypeError(f"{text!r} must be an odd number from 1 to 63")
    return int(text)


def _compare(options: argparse.Namespace) -> int:
    from data_prep.compare import Comparison, compare, comparison_text, write_page
    from fedhpc.config.loader import load_config
    from fedhpc.errors import InputError

    if len(options.shards) < 2:
        raise InputError(f"{options.shards[0]}: is one shard. Give those of two or more sites", code="command-line")
    config = load_config(options.config) if options.config else None
    wanted = Comparison(
        tuple(options.shards), options.images, options.backbone, options.reference, options.frequencies,
        config.harmonise if config else None,
        {site.name: site.harmonise for site in config.data.sites if site.harmonise} if config else {},
    )  # fmt: skip
    found = compare(wanted)
    print(comparison_text(found))
    if options.out:
        write_page(found, options.out)
        print(options.out)
    return FINISHED


def _landmarks(options: argparse.Namespace) -> int:
    from data_prep.compare import landmarks_text

    print(landmarks_text(options.reference, options.frequencies))
    return FINISHED
