"""`run.py errors [CODE]`: what the code in brackets after an error means, and what to do."""

import argparse
import textwrap
from collections.abc import Sequence
from itertools import groupby

from fedhpc.cli.common import WIDTH, Parser, add_json, print_result
from fedhpc.error_codes import TABLE, ErrorCode

HELP = "what the codes of errors mean, and what to do"
EXAMPLES = ("{run} errors run-directory.locked", "{run} errors > docs/errors.md")
HEADER = """# Every error code

This page is what `python run.py errors` prints. `python run.py errors CODE`
prints one code, or all of a family.

An error is one message on stderr, with its code at the end, in brackets:

    error: runs/a: another run is at work there: process 7 on n1, since
    12:00. Wait for its end, stop it, or give another --run-dir
    [run-directory.locked]

The message names the place; the code names the kind. A code keeps its meaning
from version to version, a message may change. A code says nothing of a site's
data. In Python it is `error.code`, and every error is a
`fedhpc.errors.FedhpcError`."""


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe("Print what the codes of errors mean, and what to do, as Markdown.", EXAMPLES)
    parser.add_argument("code", nargs="?", default="", metavar="CODE", help="this code or family alone (default: all)")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Print the table, or the part that is asked for."""
    from fedhpc.errors import InputError

    under = str(options.code).strip("[]")
    found = [one for one in TABLE if not under or one.name == under or one.name.startswith(f"{under}.")]
    if not found:
        families = ", ".join(dict.fromkeys(map(_family, TABLE)))
        raise InputError(f"CODE={under}: there is no such code. Give one, or a family: {families}", code="command-line")
    facts = [{"code": one.name, "meaning": one.meaning, "remedy": one.remedy} for one in found]
    print_result({"codes": facts}, markdown(found, HEADER if not under else ""), as_json=options.json)
    return 0


def markdown(codes: Sequence[ErrorCode], header: str = "") -> str:
    """Return codes as Markdown of 80 columns, a chapter a family."""
    chapters = [
        "\n".join([f"## {family}\n", *map(_entry, group)])
        for family, group in groupby(sorted(codes, key=lambda one: one.name), key=_family)
    ]
    return "\n\n".join(filter(None, [header, *chapters]))


def _family(one: ErrorCode) -> str:
    return one.name.partition(".")[0]


def _entry(one: ErrorCode) -> str:
    wrap = textwrap.TextWrapper(WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return wrap.fill(f"- **`{one.name}`**: {one.meaning} *What to do:* {one.remedy}")
