"""What the commands share: help of 80 columns, the options that several have, printed results."""

import argparse
import json
import os
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from fedhpc.errors import InputError, public_cause
from fedhpc.util.text import for_stderr, printable

WIDTH = 80
HELP_COLUMN = 26
OUTPUTS = """outputs: a FILE is written into a folder that exists. A DIR is made where it is
missing, with the folders above it."""


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Help of at most 80 columns that shows the default of every option that has one."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=HELP_COLUMN, width=WIDTH)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        text, default = action.help, action.default
        if not text or "default:" in text or default is None or default is False or default in ([], argparse.SUPPRESS):
            return text
        shown = " ".join(map(str, default)) if isinstance(default, list | tuple) else str(default)
        return f"{text} (default: {shown.replace('%', '%%')})"


class Parser(argparse.ArgumentParser):
    """An argument parser whose help ends with examples."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("formatter_class", HelpFormatter)
        super().__init__(*args, **options)

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """Leave with a message, which is wrapped on a terminal."""
        super().exit(status, message and for_stderr(message.rstrip("\n")) + "\n")

    def error(self, message: str) -> NoReturn:
        """Leave with the usage and a message that ends with its code."""
        super().error(f"{message} [command-line]")

    def _get_value(self, action: argparse.Action, arg_string: str) -> Any:
        """Refuse an empty path, which would stand for the folder that one is in."""
        is_path = action.type is Path or isinstance(action.type, OutputFile)
        if is_path and not arg_string.strip():
            raise argparse.ArgumentError(action, "is empty (a shell variable that is not set?)")
        return super()._get_value(action, arg_string)

    def describe(self, text: str, examples: Iterable[str]) -> None:
        """Set the description and the examples of the help.

        Args:
            text: what the command does, in paragraphs that are wrapped here.
            examples: command lines; `{run}` stands for the way in which this program was started.
        """
        program = self.prog.partition(" ")[0]
        run = {"run.py": "python run.py", "python": "python -m fedhpc"}.get(program, program)
        lines = "".join(f"\n  {example.replace('{run}', run)}" for example in examples)
        self.description = "\n\n".join(textwrap.fill(paragraph, WIDTH) for paragraph in text.split("\n\n"))
        self.epilog = f"examples:{lines}"


def add_kinds(parser: Parser) -> "argparse._SubParsersAction[Parser]":
    """Add the sub-commands of a command; argparse makes each a parser of the same class."""
    kinds: argparse._SubParsersAction[Parser] = parser.add_subparsers(required=True, metavar="KIND", title="kinds")
    return kinds


def add_set(parser: argparse.ArgumentParser, text: str = "override a config key; may be given again") -> None:
    """Add `--set KEY=VALUE`."""
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=text)


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add `--json`."""
    parser.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else")


def add_run_dir(parser: argparse.ArgumentParser, text: str = "the run directory (default: runs/<name>)") -> None:
    """Add `-o`, `--out` and `--run-dir`: three spellings of the folder that a run, a sweep or a study is in."""
    parser.add_argument("-o", "--out", "--run-dir", dest="run_dir", type=Path, metavar="DIR", help=text)


def add_kept_runs(parser: argparse.ArgumentParser) -> None:
    """Add `-o DIR`, where a benchmark keeps its runs."""
    parser.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="where runs are kept; finished ones are reused"
    )


class OutputFile(NamedTuple):
    """The type of an argument that names a file to write: refused before anything is computed where it cannot be.

    A file of another kind is refused too: one letter off, its name would be that of an input. The folder is not made:
    a misspelled one would be made as readily. Folders that commands write into are made.

    Attributes:
        suffix: that the name must have; empty: any.
    """

    suffix: str

    def __call__(self, text: str) -> Path:
        """Return the path.

        Raises:
            InputError: it has another suffix, is a folder, or is in one that is not there or may not be written to.
        """
        path = Path(text)
        # Not `Path.is_dir`, which raises where a folder above may not be entered.
        if self.suffix and path.suffix.lower() != self.suffix:
            problem = f"what is written there is a {self.suffix} file. Give a name that ends in {self.suffix}"
        elif not os.path.isdir(path.parent):
            problem = "its folder does not exist. Give a file in one that does"
        elif not os.access(path.parent, os.W_OK | os.X_OK):
            problem = "cannot be written there. Give a file in a folder that you may write to"
        elif os.path.isdir(path):
            problem = "is a folder. Give the name of a file"
        else:
            return path
        raise InputError(f"{path}: {problem}", code="command-line")


def add_output_file(parser: Any, *flags: str, suffix: str, text: str, **options: Any) -> None:
    """Add an option that names a file to write.

    Args:
        parser: or a group of its arguments.
        flags: as of `add_argument`.
        suffix: that the name must have; empty: any.
        text: the help.
        options: more of `add_argument`.
    """
    parser.add_argument(*flags, type=OutputFile(suffix), help=text, **options)


def positive(text: str) -> int:
    """Return the whole number of at least 1 that an argument is."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def epsilon_or_none(text: str) -> float | None:
    """Read a number, or none for a run without privacy."""
    return None if text == "none" else float(text)


# Not a dataclass: importing dataclasses is half of what `--help` costs.
class Report(NamedTuple):
    """The same facts twice: `facts` for a program, `text` for a person."""

    facts: dict[str, Any]
    text: str


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Read records that another user or program may have written: what they break is one message, with its place.

    Raises:
        InputError: in the place of an error that values of other types or sizes than expected cause.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        raise InputError(
            f"{path}: its records cannot be shown ({public_cause(error)}); they were cut or changed, or another "
            "version wrote them. Restore them from a backup",
            code="file.damaged",
        ) from error


def print_result(facts: Mapping[str, Any], text: str, *, as_json: bool) -> None:
    """Print a result as one JSON object, or as text."""
    print(json.dumps(facts, allow_nan=False) if as_json else printable(text))


def print_table(result: dict[str, Any], table: Callable[[dict[str, Any]], str], as_json: bool) -> int:
    """Print a result by its table, or as JSON; return the exit status 0."""
    print_result(result, "" if as_json else table(result), as_json=as_json)
    return 0
