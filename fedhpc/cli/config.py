"""`run.py config show CONFIG` and `run.py config reference [KEY]`: what a config says, and what it can say."""

import argparse
import json
from pathlib import Path
from typing import Any

from fedhpc.cli.common import WIDTH, Parser, add_json, add_kinds, add_set, print_result

HELP = "show a config with where each value comes from; or all keys there are"
EXAMPLES = ("{run} config show configs/smoke.yaml", "{run} config reference privacy")
SHOW = (
    "{run} config show configs/smoke.yaml --set training.rounds=5",
    "{run} config show configs/fedavg.yaml --json",
)
REFERENCE = ("{run} config reference exchange.value_bits", "{run} config reference > docs/config.md")
COMMENT_COLUMN = 42
HEADER = """# Every key of a config

This page is what `python run.py config reference` prints. `python run.py config
show CONFIG` prints a config with all its values and where each comes from.

A config is a YAML file. It may begin with `extends: other.yaml`, relative to
itself: then its keys are laid over those of the other. On the command line
`--set section.key=value` overrides a key. An unknown key is an error. Paths
inside a config are relative to the working directory."""
SWEEP_HEADER = """# Only in the config of a sweep

A sweep is an ordinary config with these sections besides. See
`configs/sweep_epsilon_density.yaml`."""


def add_arguments(parser: Parser) -> None:
    """Add the kinds of the command."""
    parser.describe("Show what a config says, or what a config can say.", EXAMPLES)
    kinds = add_kinds(parser)
    show = kinds.add_parser("show", help="a config with all its values, and where each comes from")
    show.describe(
        "Print a config with all its values as YAML. A comment says where each comes from: a file and its line, "
        "(extends) where that is not CONFIG itself, --set, or default.",
        SHOW,
    )
    show.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml)")
    add_set(show)
    add_json(show)
    show.set_defaults(action=_show)
    reference = kinds.add_parser("reference", help="every key: type, default, allowed values, what it does")
    reference.describe(
        "Print every key of a config as Markdown: type, default, allowed values, what it does.", REFERENCE
    )
    reference.add_argument("key", nargs="?", default="", metavar="KEY", help="this key or section alone (default: all)")
    add_json(reference)
    reference.set_defaults(action=_reference)


def run(options: argparse.Namespace) -> int:
    """Do what the kind says."""
    status: int = options.action(options)
    return status


def _show(options: argparse.Namespace) -> int:
    from fedhpc.config.loader import config_of, read_merged
    from fedhpc.config.origins import origins

    tree = read_merged(options.config, options.set)
    config = config_of(options.config, tree)
    resolved = config.model_dump(mode="json")
    found = origins(options.config, tree, resolved)
    named = {_dotted(keys): origin for keys, origin in found.items()}
    facts = {"config": resolved, "from": named, "digest": config.digest()}
    print_result(facts, "\n".join(_lines(resolved, found)), as_json=options.json)
    return 0


def _dotted(keys: tuple[str | int, ...]) -> str:
    """("data", "sites", 0, "name") as "data.sites[0].name"."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys)[1:]


def _lines(tree: Any, found: dict[tuple[str | int, ...], str], keys: tuple[str | int, ...] = ()) -> list[str]:
    """Return the lines of YAML of what lies at `keys`, each value with its origin."""
    indent = "  " * len(keys)
    lines = []
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        way = (*keys, key)
        head = f"{indent}-" if isinstance(key, int) else f"{indent}{key}:"
        if way in found:
            lines += _commented(f"{head} {_scalar(value)}", found[way], indent)
            continue
        inner = _lines(value, found, way)
        # The first key of a list's item stands on the line of its dash.
        lines += [f"{head} {inner[0].lstrip()}", *inner[1:]] if isinstance(key, int) else [head, *inner]
    return lines


def _commented(line: str, origin: str, indent: str) -> list[str]:
    together = f"{line.ljust(COMMENT_COLUMN)}  # {origin}"
    return [together] if len(together) <= WIDTH else [f"{indent}# {origin}", line]


def _scalar(value: Any) -> str:
    """A plain value, an empty list or an empty mapping as YAML on one line."""
    from fedhpc.config.strict_yaml import dump_yaml

    text = dump_yaml({"key": value}).removeprefix("key: ").rstrip("\n")
    return json.dumps(value) if "\n" in text else text


def _reference(options: argparse.Namespace) -> int:
    from fedhpc.config.reference import facts_of, keys_of, markdown
    from fedhpc.config.schema import RunConfig
    from fedhpc.errors import InputError
    from fedhpc.sweep.config import Sections

    roots = (keys_of(RunConfig), keys_of(Sections))
    under = str(options.key)
    facts = facts_of(roots, under)
    if not facts:
        names = ", ".join(key.name for root in roots for key in root.keys)
        raise InputError(f"KEY={under}: no config has it. Give a section ({names}) or a key in it", code="command-line")
    parts = [markdown(root, under) for root in roots]
    if not under:
        parts = [HEADER, parts[0], SWEEP_HEADER, parts[1]]
    print_result({"keys": facts}, "\n\n".join(filter(None, parts)), as_json=options.json)
    return 0
