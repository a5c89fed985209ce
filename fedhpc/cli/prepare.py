"""`run.py prepare phantom|images|dicom|nifti|npz|check`: write shards, or check them."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from fedhpc.cli.common import Parser, add_kinds, add_output_file
from fedhpc.cli.prepare_archive import add_dicom, add_nifti, add_npz
from fedhpc.cli.prepare_compare import add_compare
from fedhpc.cli.prepare_statistics import add_statistics
from fedhpc.cli.status import BAD_INPUT, FINISHED, INTERRUPTED, TERMINATED

if TYPE_CHECKING:
    from argparse import _SubParsersAction

HELP = "write shards, or check them"
EXAMPLES = ("{run} prepare images brain_mri -o data/brain_mri", "{run} prepare check data/brain_mri/*.h5")
PHANTOM = ("{run} prepare phantom -o data/phantom", "{run} prepare phantom -o data/small --images 400 --size 32")
IMAGES = (
    "{run} prepare images brain_mri -o data/brain_mri --sites 4",
    "{run} prepare images brain_mri -o data/brain_mri --size 224 \\\n"
    "      --skew 0.5 --modality MR --patient-regex '^(P[0-9]+)_' --reference 200",
)
CHECK = ("{run} prepare check data/phantom/*.h5", "{run} prepare check site1.h5 --png contact_sheet.png")
IMAGES_TEXT = """Import a folder that holds one folder of images per class. Prints what was
found, taken and left out and why; writes one shard a hospital and OUT/train.yaml,
a config to begin with.

Shards, contact sheets and file lists are as private as the images. A --seed that
others know lets them test whether a guessed patient id is in a shard."""
SWITCHES = {
    "--split-folders": "the top folders are splits (Training, Testing, ...), the classes lie in them",
    "--follow-links": "walk into links to folders; links to files are always followed",
    "--repair-nan": "give NaN and infinite pixels the smallest or largest finite value of their image",
    "--skip-unreadable": "leave out images that cannot be read (default: refuse the import)",
    "--replace": "remove the shards of another import from OUT; ledgers stay",
    "--list-files": "write what became of every file to OUT/files.csv: as private as the images",
}


def add_arguments(parser: Parser) -> None:
    """Add the kinds of the command."""
    parser.describe("Write the shards (.h5) that a run trains on, one a hospital, or check them.", EXAMPLES)
    kinds = add_kinds(parser)
    _add_phantom(kinds)
    _add_images(kinds)
    add_dicom(kinds)
    add_nifti(kinds)
    add_npz(kinds)
    add_compare(kinds)
    add_statistics(kinds)
    check = kinds.add_parser("check", help="what is in each shard, and whether it can be used")
    check.describe("Print what is in each shard. Exit status 2 where one cannot be used.", CHECK)
    check.add_argument("shards", type=Path, nargs="+", metavar="SHARD", help="shards (.h5)")
    sheet = "write a contact sheet: as private as the images"
    add_output_file(check, "--png", suffix=".png", text=sheet, metavar="FILE")
    check.set_defaults(action=_check)


def run(options: argparse.Namespace) -> int:
    """Do what the kind says."""
    status: int = options.action(options)
    return status


def _add_phantom(kinds: "_SubParsersAction[Parser]") -> None:
    phantom = kinds.add_parser("phantom", help="the built-in cohort of four hospitals")
    phantom.describe("Write the shards of the built-in synthetic cohort of four hospitals.", PHANTOM)
    phantom.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="the folder of the shards")
    phantom.add_argument("--images", type=int, default=8000, metavar="N", help="of all hospitals together")
    phantom.add_argument("--size", type=int, default=64, metavar="PIXELS", help="pixels a side")
    phantom.add_argument("--seed", type=int, default=0, metavar="N", help="of the whole cohort")
    phantom.add_argument(
        "--difficulty", type=float, metavar="X", help="0 easy to 1 impossible (default: 0.26, the study's)"
    )
    phantom.set_defaults(action=_phantom)


def _add_images(kinds: "_SubParsersAction[Parser]") -> None:
    images = kinds.add_parser("images", help="class folders of images, one shard a hospital")
    images.describe(IMAGES_TEXT, IMAGES)
    images.add_argument("source", type=Path, metavar="DIR", help="the folder of class folders")
    images.add_argument(
        "-o", "--out", type=Path, required=True, metavar="OUT", help="a folder; with --sites 1 also one .h5 file"
    )
    images.add_argument("--sites", type=int, default=4, metavar="N", help="hospitals")
    images.add_argument(
        "--skew", type=float, metavar="ALPHA", help="Dirichlet alpha of the label skew (default: alike)"
    )
    images.add_argument("--size", type=int, default=64, metavar="PIXELS", help="pixels a side")
    images.add_argument("--seed", type=int, default=0, metavar="N", help="of splits and pseudonyms")
    images.add_argument(
        "--modality", type=str.upper, default="OT", metavar="MR|CT|...", help="of all images, as DICOM says it"
    )
    images.add_argument("--patient-csv", type=Path, metavar="FILE", help="a table with the columns file,patient")
    images.add_argument("--patient-regex", metavar="REGEX", help="its group is the patient, in the file name")
    images.add_argument("--all-test", action="store_true", help="no training split")
    images.add_argument(
        "--val-share",
        type=float,
        metavar="SHARE",
        help="of the patients in the validation split (default: 0.1, 0 with --split-folders)",
    )
    images.add_argument("--fold", type=_fold, metavar="K/N", help="cross-validation: part K of N is the test split")
    images.add_argument(
        "--reference", type=int, default=0, metavar="N", help="set N patients aside for good, unlabelled: reference.h5"
    )
    for name, text in SWITCHES.items():
        images.add_argument(name, action="store_true", help=text)
    images.set_defaults(action=_images)


def _fold(text: str) -> tuple[int, int]:
    number, slash, folds = text.partition("/")
    if not (slash and number.isdecimal() and folds.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} must read K/N, for example 1/5")
    return int(number), int(folds)


def _phantom(options: argparse.Namespace) -> int:
    from data_prep.phantom import Cohort, site_names, write_site
    from data_prep.target import writing

    chosen = {} if options.difficulty is None else {"difficulty": options.difficulty}
    cohort = Cohort(seed=options.seed, images=options.images, image_size=options.size, **chosen)
    with writing(options.out, options.images * options.size**2):
        for site in site_names(cohort):
            path = options.out / f"{site}.h5"
            write_site(cohort, site, path)
            print(path)
    return FINISHED


def _images(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from data_prep.image_job import ImageImport
    from data_prep.images import import_images
    from data_prep.names import shown
    from data_prep.starter import write_starter

    job = ImageImport(**{field.name: getattr(options, field.name) for field in fields(ImageImport)})
    try:
        paths = import_images(job)
    except (KeyboardInterrupt, SystemExit) as stop:
        by, status = ("Ctrl-C", INTERRUPTED) if isinstance(stop, KeyboardInterrupt) else ("SIGTERM", TERMINATED)
        print(f"stopped by {by}: nothing was written to {shown(job.out)}", file=sys.stderr)
        return status
    for path in paths:
        print(shown(path))
    print(write_starter(job))
    return FINISHED


def _check(options: argparse.Namespace) -> int:
    from data_prep.check import check
    from data_prep.target import writing

    with writing(options.png or Path(), 0):
        return FINISHED if check(options.shards, options.png) else BAD_INPUT
