"""`run.py audit RUN|CONFIG`: attack transmitted updates, and check that broken privacy is noticed."""

import argparse
from pathlib import Path

from fedhpc.cli.common import Parser, add_json, add_set

HELP = "attack transmitted updates; check that broken privacy is noticed"
EXAMPLES = ("{run} audit runs/fedavg --quick", "{run} audit configs/smoke.yaml --no-real-patients --json")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Attack what a hospital sends: membership inference, reconstruction, canaries. The "
        "same attacks on deliberately broken privacy must succeed.",
        EXAMPLES,
    )
    parser.add_argument("target", type=Path, metavar="RUN|CONFIG", help="a run directory, or a config")
    add_set(parser, "override a key of a config; may be given again")
    parser.add_argument("--site", metavar="NAME", help="the site to attack (default: the config's first)")
    parser.add_argument("--quick", action="store_true", help="fewer trials, shorter training: about a minute")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of coins and searches; the noise is the system's own"
    )
    parser.add_argument(
        "--no-real-patients",
        action="store_true",
        help="attack canaries alone (default: also patients, charged to the site's ledger)",
    )
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="(default: RUN/audit, pictures in RUN/sites/NAME/audit)"
    )
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Run the audit; its exit status says whether the guarantee held."""
    from fedhpc.audit.procedure import Options, audit

    asked = Options(
        path=options.target,
        overrides=options.set,
        site=options.site,
        quick=options.quick,
        seed=options.seed,
        out=options.out,
        json=options.json,
        real_patients=not options.no_real_patients,
    )
    return audit(asked)
