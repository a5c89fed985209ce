"""`run.py report RUN|SWEEP|STUDY...`: one page about runs, a sweep or a study."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedhpc.cli.common import Parser, add_json, add_output_file, print_result, reading
from fedhpc.errors import InputError

if TYPE_CHECKING:
    from fedhpc.report.page import Content

HELP = "one page about runs, a sweep or a study"
EXAMPLES = (
    "{run} report runs/sweep_epsilon_density",
    "{run} report runs/fedavg runs/local -o compared.html --csv numbers",
)


def add_arguments(parser: Parser) -> None:
    """Add the arguments of the command."""
    parser.describe(
        "Write one self-contained HTML page with the results, JSON and CSV beside it, and print where it is. Every "
        "finished run has such a page in its directory already.",
        EXAMPLES,
    )
    parser.add_argument("targets", type=Path, nargs="+", metavar="RUN|SWEEP|STUDY", help="any number of directories")
    text = "required for several (default: report.html in the directory)"
    add_output_file(parser, "-o", "--out", suffix=".html", text=text, metavar="FILE.html")
    parser.add_argument("--csv", type=Path, metavar="DIR", help="write each table of the page as a CSV file, too")
    add_json(parser)


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    from fedhpc.report.build import report, write

    out = options.out or (options.targets[0] / "report.html" if len(options.targets) == 1 else None)
    if out is None:
        raise InputError(
            f"{len(options.targets)} targets: say where the report goes: -o report.html", code="command-line"
        )
    _check_replaced(out)
    with reading(options.targets[0] if len(options.targets) == 1 else out):
        found = report(contents(options.targets))
        write(found, out, options.csv)
        print_result(found.facts(), found.text(out), as_json=options.json)
    return 0


def _check_replaced(out: Path) -> None:
    """Refuse a page whose .json or .csv would replace a file of something else, as summary.html of a run would.

    Raises:
        InputError: it would.
    """
    from fedhpc.report.build import is_report
    from fedhpc.util.files import read_text
    from fedhpc.util.regular_file import LARGEST_LINES  # the page of a large sweep is larger than other documents

    if out.stem == "report":
        return
    facts = out.with_suffix(".json")
    beside = [path for path in (facts, out.with_suffix(".csv")) if path.exists()]
    if beside and not (facts.is_file() and is_report(read_text(facts, "Give another name", LARGEST_LINES))):
        raise InputError(
            f"{out}: {beside[0].name} would be replaced, which lies there and is of no report. Give another name",
            code="command-line",
        )


def contents(targets: list[Path]) -> "list[Content]":
    """Read what the directories hold: each study, each sweep, and all runs together.

    Raises:
        InputError: a directory that is none of them.
    """
    from fedhpc.records.study import StudyDirectory
    from fedhpc.report.sources import of_runs, of_study
    from fedhpc.sweep.directory import SweepDirectory
    from fedhpc.sweep.final_report import content_of

    found, runs = [], []
    for target in targets:
        if StudyDirectory(target).exists():
            found.append(of_study(target))
        elif SweepDirectory(target).plan.exists():
            found.append(content_of(target))
        else:
            runs.append(target)
    return [*found, *([of_runs(runs)] if runs else [])]
