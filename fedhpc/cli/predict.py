"""`run.py predict RUN --input FILES`: calibrated scores of a finished model for new images, at the hospital."""

import argparse
import math
import sys
from pathlib import Path

from fedhpc.cli.common import Parser, add_output_file
from fedhpc.errors import InputError

HELP = "calibrated scores of a finished model for new images"
EXAMPLES = (
    "{run} predict runs/fedavg --input scans/*.png -o scores.csv",
    "{run} predict runs/ct --input study --window lung -o scores.csv",
)
TEXT = """Score images with a finished model: PNG, JPEG and the like, DICOM, NIfTI, NRRD, or
one shard. They are read as `prepare` reads them and harmonised as in the run.
Give the options of the import again: a model does not hold them.

The table has the log odds, the probability and the decision at the operating
point. Both come from the counts of validation patients that the run released. It
is as private as the images, and no diagnosis: see MODEL_CARD.md of the run."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(TEXT, EXAMPLES)
    parser.add_argument("run_or_model", type=Path, metavar="RUN", help="a run directory, or a model.pt")
    parser.add_argument(
        "--input", type=Path, nargs="+", required=True, metavar="FILE", help="files, folders or a shard"
    )
    add_output_file(parser, "-o", "--out", suffix=".csv", text="the table to write", required=True, metavar="CSV")
    parser.add_argument("--site", metavar="NAME", help="the hospital where this is, for --personal")
    parser.add_argument("--personal", action="store_true", help="the personal model of --site, at that hospital")
    series = parser.add_argument_group("as at the import")
    series.add_argument("--window", nargs="+", default=["wide"], metavar="NAME", help="of CT, a channel each")
    series.add_argument("--stack", type=int, default=1, metavar="N", help="neighbouring slices as channels")
    series.add_argument("--pixel-mm", type=float, metavar="MM", help="of a pixel (default: all of the image fits in)")
    series.add_argument("--slice-mm", type=float, metavar="MM", help="between planes of 3-D patches")
    series.add_argument("--plane", choices=("axial", "coronal", "sagittal"), help="of volumes")
    series.add_argument("--modality", type=str.upper, default="OT", metavar="CT|MR|...", help="of NIfTI and NRRD")


def run(options: argparse.Namespace) -> int:
    """Predict and write."""
    from data_prep.importers.intensity import windows
    from data_prep.importers.recipe import Depth, Recipe
    from data_prep.importers.resample import Square
    from data_prep.unlabelled import Inputs
    from fedhpc.run.finished.evaluate import Tested
    from fedhpc.run.finished.predict import predict, prediction_text, scores_csv
    from fedhpc.util.files import PRIVATE, write_text
    from fedhpc.util.progress import at_work
    from fedhpc.util.text import printable, wrapped

    if options.personal and options.site is None:
        raise InputError("--personal: whose? Give --site with the name of the hospital", code="command-line")
    if options.stack % 2 == 0 or not 1 <= options.stack <= 63:
        raise InputError(f"--stack={options.stack}: allowed is an odd number of slices, 1 to 63", code="command-line")
    for name, value in (("pixel", options.pixel_mm), ("slice", options.slice_mm)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"--{name}-mm={value}: must be above 0", code="command-line")
    windows(tuple(options.window))
    # Size and number of planes are the model's.
    depth = Depth(1, options.slice_mm)
    recipe = Recipe(Square(64, options.pixel_mm), tuple(options.window), options.stack, depth=depth)
    inputs = Inputs(tuple(options.input), recipe, options.modality, options.plane)
    notes: list[str] = []
    with at_work("predict"):
        found = predict(options.run_or_model, Tested(None, options.site, options.personal), inputs, notes.append)
        write_text(options.out, scores_csv(found), mode=PRIVATE)
    for line in notes:
        print(printable(wrapped(f"note: {line}")), file=sys.stderr)
    print(printable(wrapped(prediction_text(found, options.out))))
    return 0
