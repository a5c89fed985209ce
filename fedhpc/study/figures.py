"""Figures over the finished cells of a study: means, with intervals over seeds, or over patients where one ran."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from scipy.special import betaincinv, stdtrit

from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.records.study import Cell, StudyDirectory

CONFIDENCE = 0.975


@dataclass(frozen=True)
class Figure:
    """A mean with a 95 % interval; `over` says of what it is; no ends where there is no interval."""

    mean: float
    low: float | None
    high: float | None
    over: str

    def text(self, digits: int = 3) -> str:
        """For a table.

        >>> Figure(0.95, 0.94, 0.96, "3 seeds").text(), Figure(1.0, None, None, "one run").text()
        ('0.950 (0.940 to 0.960)', '1.000')
        """
        ends = "" if self.low is None or self.high is None else f" ({self.low:.{digits}f} to {self.high:.{digits}f})"
        return f"{self.mean:.{digits}f}{ends}"


def over_seeds(values: Sequence[float]) -> Figure:
    """Return the mean of values of independent seeds, with Student's interval; without one where there is one value.

    >>> over_seeds([1.0, 1.0, 1.0]), over_seeds([0.5]).low
    (Figure(mean=1.0, low=1.0, high=1.0, over='interval over 3 seeds'), None)
    """
    mean, n = statistics.fmean(values), len(values)
    if n < 2:
        return Figure(mean, None, None, "one run, no interval")
    half = float(stdtrit(n - 1, CONFIDENCE)) * statistics.stdev(values) / math.sqrt(n)
    return Figure(mean, mean - half, mean + half, f"interval over {n} seeds")


def share_interval(hits: int, of: int) -> tuple[float, float]:
    """Return the exact 95 % interval of a share (Clopper and Pearson 1934).

    >>> low, high = share_interval(9, 10)
    >>> round(low, 4), round(high, 4), share_interval(10, 10)[1]
    (0.555, 0.9975, 1.0)
    """
    low = 0.0 if hits == 0 else float(betaincinv(hits, of - hits + 1, 1 - CONFIDENCE))
    high = 1.0 if hits == of else float(betaincinv(hits + 1, of - hits, CONFIDENCE))
    return low, high


def summary_of(records: StudyDirectory, cell: Cell) -> dict[str, Any]:
    """Return summary.json of a finished run of a study."""
    return RunDirectory(records.path / cell.run).read_summary()


def figure_of(records: StudyDirectory, cells: Sequence[Cell], key: str) -> Figure | None:
    """Return a metric over the seeds of one point; of a single run the AUC with its own interval over patients.

    None where no cell has it.
    """
    found = [summary_of(records, cell) for cell in cells]
    values = [summary[key] for summary in found if summary.get(key) is not None]
    if not values:
        return None
    interval = found[0].get("auc_ci95") if key == "auc" and len(values) == 1 else None
    if interval is None:
        return over_seeds(values)
    return Figure(values[0], interval[0], interval[1], "interval over patients, one run")


def paired(
    records: StudyDirectory, ours: Sequence[Cell], theirs: Sequence[Cell], key: str
) -> list[tuple[float, float]]:
    """Return a metric of both for each seed that both have."""
    others = {cell.seed: summary_of(records, cell).get(key) for cell in theirs}
    pairs = [(summary_of(records, cell).get(key), others.get(cell.seed)) for cell in ours]
    return [(mine, other) for mine, other in pairs if mine is not None and other is not None]


def at_point(cells: Sequence[Cell], epsilon: float | None, density: float) -> tuple[Cell, ...]:
    """Return the cells at one point of the grid.

    Raises:
        InputError: two of them have one seed; the plan was changed.
    """
    found = tuple(cell for cell in cells if (cell.epsilon, cell.density) == (epsilon, density))
    if len({cell.seed for cell in found}) < len(found):
        raise InputError("study.json: a point of the grid has a seed twice; it was changed", code="file.damaged")
    return found
