"""`run.py chaos`: kill, stop, delay and starve real runs, and check that nothing is lost."""

import argparse
import math
import signal
from pathlib import Path
from typing import NoReturn

from fedhpc.cli.common import Parser, add_json, print_result
from fedhpc.cli.status import FAILED, FINISHED, TERMINATED

HELP = "break runs on purpose, and check that nothing is lost"
EXAMPLES = ("{run} chaos --minutes 3", "{run} chaos --minutes 30 --seed 7 -o /tmp/chaos --json")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Run a small built-in cohort under mpirun on this machine. At random moments ranks are killed, stopped for "
        "good or for seconds, told to stop, or their disk becomes full (where a small one can be mounted). Each run is "
        "started again until it has finished. After every start: ledgers only grow and miss no step, each round is "
        "recorded once, the model is finite, egress logs are complete. Exit status 1 where that does not hold.",
        EXAMPLES,
    )
    parser.add_argument("--minutes", type=_minutes, default=3.0, metavar="N", help="begin no run after N minutes")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the faults")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/chaos"), metavar="DIR", help="folder of the runs")
    add_json(parser)


def _minutes(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number above 0")
    return value


def _terminated(number: int, frame: object) -> NoReturn:
    """End as by an exception: the ranks are ended and the small disk is unmounted on the way out."""
    raise SystemExit(TERMINATED)


def run(options: argparse.Namespace) -> int:
    """Try runs until the time is over; 1 where something was lost."""
    from fedhpc.chaos.campaign import Campaign, run_campaign

    signal.signal(signal.SIGTERM, _terminated)
    campaign = Campaign(options.out, options.minutes, options.seed)
    for start in run_campaign(campaign):
        if not options.json:
            print(start.line(), flush=True)
    facts = campaign.facts()
    blows = sum(bool(start.blow) for start in campaign.starts)
    text = (
        f"{facts['runs']} runs, {len(campaign.starts)} starts, {blows} faults, seed {campaign.seed}: "
        f"{campaign.violated} starts with a violation"
    )
    print_result(facts, text, as_json=options.json)
    return FAILED if campaign.violated else FINISHED
