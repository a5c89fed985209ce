"""`run.py study CONFIG -o DIR`: the whole evaluation, and the paper's claims beside what was measured."""

import argparse
from pathlib import Path

from fedhpc.cli.common import Parser, add_run_dir, add_set
from fedhpc.errors import InputError

HELP = "the whole evaluation as one batch, beside the paper's claims"
EXAMPLES = (
    "{run} study configs/study.yaml -o runs/study --quick --cluster local",
    "{run} study runs/study",
)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Run every cell of a study: federated over epsilon and density, baselines, corrupted hospitals, the legacy "
        "scanner, a slow hospital, contributions, the audit. Then write claims.md, .csv and .json. The same command "
        "goes on where it was stopped: what has finished is kept, what has failed is named and run again.\n\n"
        "With the folder of a study in the place of CONFIG: write and print its claims again; nothing is run.",
        EXAMPLES,
    )
    parser.add_argument("target", type=Path, metavar="CONFIG|DIR", help="a study's config (.yaml), or its folder")
    add_run_dir(parser, "the study's folder")
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", action="store_const", dest="size", const="quick", default="full",
        help="its section `quick`: small cohorts, one seed, few cells",
    )  # fmt: skip
    size.add_argument(
        "--medium", action="store_const", dest="size", const="medium",
        help="its section `medium`: a whole network on a cohort that two cores train in half an hour",
    )  # fmt: skip
    parser.add_argument(
        "--cluster", choices=("slurm", "local"), default="slurm", help="one SLURM array, or processes on this machine"
    )
    parser.add_argument("--parts", nargs="+", default=[], metavar="PART", help="only these parts (default: all)")
    parser.add_argument("--dry-run", action="store_true", help="show the cells; run and write nothing")
    parser.add_argument(
        "--no-calibration",
        action="store_true",
        help="run nothing here before the start, on a login node for example: the time left is known when cells have "
        "ended (default: a few training rounds of each kind of cell are timed on this machine first)",
    )
    add_set(parser, "override a key of the study's file; may be given again")


def run(options: argparse.Namespace) -> int:
    """Run it, or show its claims."""
    from fedhpc.run.display import Console
    from fedhpc.study.command import Asked, show_claims, start

    if options.target.is_dir():
        if options.run_dir is not None:
            raise InputError(
                f"study {options.target}: is a folder, which takes no -o. Give a config", code="command-line"
            )
        return show_claims(options.target, Console(speaks=True, is_all=True))
    if options.run_dir is None:
        raise InputError("study: say where it goes: -o DIR", code="command-line")
    asked = Asked(
        config=options.target,
        overrides=options.set,
        out=options.run_dir,
        cluster=options.cluster,
        size=options.size,
        parts=options.parts,
        dry_run=options.dry_run,
        calibrate=not options.no_calibration,
    )
    return start(asked)
