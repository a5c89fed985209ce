"""`run.py privacy`: what configs will cost before any training, what a run has spent, what a shard's patients have.

Configs and ledgers; a shard is opened only where it is the target, to find its patients in the site ledger.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fedhpc.cli.common import Parser, Report, add_json, add_set, print_result
from fedhpc.errors import InputError

HELP = "what configs will cost, what a run or a shard's patients have spent"
EXAMPLES = ("{run} privacy configs/fedavg.yaml --set privacy.epsilon=2", "{run} privacy runs/fedavg --json")


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Print what configs will cost in epsilon, before any training; what a run has spent at each site; or what the "
        "patients of a shard have spent over all runs.",
        EXAMPLES,
    )
    parser.add_argument(
        "targets", type=Path, nargs="+", metavar="TARGET", help="configs (.yaml), one run directory, or one shard (.h5)"
    )
    add_set(parser, "override a key of the configs; may be given again")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the report."""
    found = report(options.targets, options.set)
    print_result(found.facts, found.text, as_json=options.json)
    return 0


def report(targets: Sequence[Path], overrides: list[str]) -> Report:
    """Return what `targets` cost or have spent.

    Args:
        targets: configs (.yaml, together a plan), one run directory, or one shard (.h5).

    Raises:
        InputError: a target of another kind, several of kinds that do not go together, a config without privacy.
    """
    from fedhpc.cli.privacy_config import report_configs
    from fedhpc.cli.privacy_spent import report_run, report_shard
    from fedhpc.config.loader import load_config
    from fedhpc.records.run_directory import RunDirectory

    if all(target.suffix in (".yaml", ".yml") for target in targets):
        return report_configs([load_config(target, overrides) for target in targets])
    if len(targets) > 1 or overrides:
        raise InputError(
            "several targets, or --set, go with configs only; give one run directory or one shard", code="command-line"
        )
    target = targets[0]
    if target.suffix == ".h5":
        return report_shard(target)
    if RunDirectory(target).config.exists():
        return report_run(RunDirectory(target))
    raise InputError(f"{target}: is no config (.yaml), run directory or shard (.h5)", code="command-line")
