"""`run.py bench stress CONFIG`: what each aggregation rule makes of each corrupted or hostile site, as a table.

Every cell is a whole run of the config with a section `stress` and a rule, at each epsilon. The clean run of the mean
at the same epsilon is what all are compared with, on the same test images. The noise is drawn from one seed in all runs
(`privacy.noise_seed`): what a draw of the noise does to clean and stressed run alike drops out of the difference. So no
model of this benchmark is private; all charge accounts of their own in the output folder. A run that is finished in the
output folder is not done again.
"""

import contextlib
import io
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from fedhpc.api import load_config, train
from fedhpc.bench.accounts import charged_to
from fedhpc.config.schema import RunConfig
from fedhpc.config.stress import DATA_CASES, UPDATE_CASES
from fedhpc.errors import PayloadError, SiteError
from fedhpc.util.files import write_json
from fedhpc.util.progress import at_work
from fedhpc.util.text import fitted, wrapped

CLEAN, REFERENCE = "clean", "mean"
LATE, LATE_FROM_ROUND = "late_", 5
CASES: tuple[str, ...] = (CLEAN, *DATA_CASES, *UPDATE_CASES, f"{LATE}sign_flip", f"{LATE}inner_product")
"""`late_` before a case of updates: from round LATE_FROM_ROUND on."""
RULES = (REFERENCE, "coordinate_median", "geometric_median", "mda", "centred_clipping", "screened_mean")
"""With four sites the trimmed mean of one is the coordinate median, and Krum is refused."""
NONE = "none"
TOLERANCE = 0.02


class Column(NamedTuple):
    """One column of the table: an epsilon, or `none`, and a rule."""

    epsilon: str
    rule: str


@dataclass(frozen=True)
class Matrix:
    """What to run.

    Attributes:
        config: of a federated run, with overrides `sets`.
        cases: of `stress.case`, or `clean`; `late_` before one of updates: see CASES.
        rules: each as YAML of the section `aggregation`, or its name alone.
        epsilons: numbers, or `none`.
        site: the bad one.
        seeds: of the noise, one run for each.
    """

    config: Path
    sets: Sequence[str]
    cases: Sequence[str]
    rules: Sequence[str]
    epsilons: Sequence[str]
    site: str
    seeds: Sequence[int]

    def columns(self) -> list[Column]:
        """Return the columns of the table, by epsilon."""
        return [Column(epsilon, rule) for epsilon in self.epsilons for rule in self.rules]

    def load(self, cell: "Cell") -> RunConfig:
        """Return the config of one run."""
        privacy = "privacy=off" if cell.epsilon == NONE else f"privacy.epsilon={cell.epsilon}"
        seed = [] if cell.epsilon == NONE else [f"privacy.noise_seed={cell.seed}"]
        case = cell.case.removeprefix(LATE)
        late = "" if case == cell.case else f", from_round: {LATE_FROM_ROUND}"
        stress = "null" if case == CLEAN else f"{{case: {case}, sites: [{self.site}]{late}}}"
        own = [privacy, *seed, f"stress={stress}", f"aggregation={json.dumps(section_of(cell.rule))}"]
        return load_config(self.config, [*self.sets, *own, "evaluation.epsilon=null", "runtime.threads=1"])


@dataclass(frozen=True)
class Cell:
    """One run."""

    case: str
    rule: str
    epsilon: str
    seed: int

    @property
    def name(self) -> str:
        """Of its run directory."""
        rule = "".join(letter if letter.isalnum() or letter == "_" else "-" for letter in self.rule).strip("-")
        return f"eps-{self.epsilon}/{self.case}--{rule}--{self.seed}"


def section_of(rule: str) -> dict[str, Any]:
    """Return the section `aggregation` that a rule's text stands for.

    >>> section_of("mda"), section_of("{rule: mda, mixing: true}")
    ({'rule': 'mda'}, {'rule': 'mda', 'mixing': True})
    """
    read = yaml.safe_load(rule)
    return dict(read) if isinstance(read, dict) else {"rule": str(read)}


def run(matrix: Matrix, out: Path) -> dict[str, Any]:
    """Do all runs that are not done; return the table.

    Raises:
        InputError: a config that cannot be, before the first run.
    """
    cells = list(_cells(matrix))
    configs = {cell: matrix.load(cell) for cell in cells}
    found: dict[Cell, dict[str, Any]] = {}
    with at_work(f"{len(cells)} runs") as begins:
        for number, cell in enumerate(cells):
            begins(cell.name)
            found[cell] = _result(configs[cell], out / cell.name)
            print(f"{number + 1}/{len(cells)} {cell.name} {found[cell]['auc']}", file=sys.stderr, flush=True)
    legacy = min(configs[cells[0]].data.sites, key=lambda site: site.weight or 0).name
    return {"config": str(matrix.config), "site": matrix.site, **tables(matrix, found, legacy)}


def _cells(matrix: Matrix) -> Iterator[Cell]:
    """The clean runs first: all are compared with them."""
    for case in (CLEAN, *(case for case in matrix.cases if case != CLEAN)):
        for epsilon in matrix.epsilons:
            for rule in dict.fromkeys((REFERENCE, *matrix.rules)) if case == CLEAN else matrix.rules:
                for seed in matrix.seeds if epsilon != NONE else matrix.seeds[:1]:
                    yield Cell(case, rule, epsilon, seed)


def _result(config: RunConfig, directory: Path) -> dict[str, Any]:
    """AUC, flags and rounds of one run, done now or before; no AUC where the run was stopped."""
    kept = directory / "result.json"
    if not kept.exists():
        with charged_to(directory / "accounts"), contextlib.redirect_stdout(io.StringIO()):
            write_json(kept, _trained(config, directory))
    result: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
    return result


def _trained(config: RunConfig, directory: Path) -> dict[str, Any]:
    try:
        summary = train(config, directory).summary
    except (PayloadError, SiteError) as error:
        return {"auc": None, "flags": [], "rounds": 0, "stopped": str(error)}
    return {"auc": summary["auc"], "flags": summary["flags"], "rounds": summary["rounds"], "stopped": ""}


def tables(matrix: Matrix, found: Mapping[Cell, Mapping[str, Any]], legacy: str) -> dict[str, Any]:
    """Return both tables: a row a case, the worst first, and a row a rule.

    Args:
        matrix: what was run.
        found: the result of each run.
        legacy: the smallest hospital, which is honest unless it is the bad one.
    """
    cases = [case for case in matrix.cases if case != CLEAN]
    rows = [_case_row(matrix, found, case) for case in (CLEAN, *cases)]
    rows.sort(key=lambda row: min((value for value in row["less_clean"] if value is not None), default=0.0))
    return {
        "columns": [list(column) for column in matrix.columns()],
        "cases": rows,
        "rules": [_rule_row(matrix, found, column, legacy) for column in matrix.columns()],
    }


def _case_row(matrix: Matrix, found: Mapping[Cell, Mapping[str, Any]], case: str) -> dict[str, Any]:
    return {"case": case, "less_clean": [_less_clean(matrix, found, case, column) for column in matrix.columns()]}


def _less_clean(matrix: Matrix, found: Mapping[Cell, Mapping[str, Any]], case: str, column: Column) -> float | None:
    """Return the mean over seeds of the AUC less that of the clean run of the mean; None where a run was stopped."""
    epsilon, rule = column
    seeds = matrix.seeds if epsilon != NONE else matrix.seeds[:1]
    pairs = [
        (found[Cell(case, rule, epsilon, seed)]["auc"], found[Cell(CLEAN, REFERENCE, epsilon, seed)]["auc"])
        for seed in seeds
    ]
    less = [auc - clean for auc, clean in pairs if auc is not None]
    return statistics.fmean(less) if len(less) == len(pairs) else None


def _rule_row(matrix: Matrix, found: Mapping[Cell, Mapping[str, Any]], column: Column, legacy: str) -> dict[str, Any]:
    """What a rule comes to over all cases; false rejection is the share of rounds without the honest legacy site."""
    epsilon, rule = column
    harm = {case: _less_clean(matrix, found, case, column) for case in matrix.cases if case != CLEAN}
    measured = {case: value for case, value in harm.items() if value is not None}
    worst = min(measured, key=lambda case: measured[case], default=None)
    mine = [one for cell, one in found.items() if (cell.epsilon, cell.rule) == column]
    rounds = sum(one["rounds"] for one in mine)
    without = sum(flag["excluded"] and flag["site"] == legacy for one in mine for flag in one["flags"])
    return {
        "epsilon": epsilon,
        "rule": rule,
        "clean": _less_clean(matrix, found, CLEAN, column),
        "worst": None if worst is None else measured[worst],
        "worst_case": worst,
        "stopped": [case for case, value in harm.items() if value is None],
        "false_rejection": without / rounds if rounds and legacy != matrix.site else None,
    }


def text(result: Mapping[str, Any]) -> str:
    """For a person."""
    head = ("case", *(f"{epsilon} {rule}" for epsilon, rule in result["columns"]))
    cases = [head, *((row["case"], *map(_signed, row["less_clean"])) for row in result["cases"])]
    names = ("epsilon", "rule", "clean", "worst", "in case", "stopped in", "without legacy")
    rules = [names, *map(_rule_line, result["rules"])]
    title = (
        f"AUC less that of the clean run of the mean; {result['site']} is the bad one; worst case first. `stopped`: "
        "the run ended and named a site"
    )
    return f"{wrapped(title)}\n{fitted(cases)}\n\n{fitted(rules)}"


def _rule_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    rejection = "-" if row["false_rejection"] is None else f"{row['false_rejection']:.1%}"
    ends = (row["worst_case"] or "-", str(len(row["stopped"])), rejection)
    return (row["epsilon"], row["rule"], _signed(row["clean"]), _signed(row["worst"]), *ends)


def _signed(value: float | None) -> str:
    return "stopped" if value is None else f"{value:+.3f}"
