"""The settings of a report as tables for a terminal: what is the same in all lines is said once, above them."""

from collections.abc import Sequence

from fedhpc.records.metrics import shown_metrics
from fedhpc.report.details import point_cells, settings
from fedhpc.report.rows import Group
from fedhpc.util.text import data_size, fitted, fixed, wrapped

CASE = "case"
EMPTY = "-"


def settings_text(keys: Sequence[str], groups: Sequence[Group]) -> str:
    """Return a table of the settings, and one of the stress tests where there are any."""
    own = settings(keys)
    kinds = [[group for group in groups if (CASE in group.point) == stress] for stress in (False, True)]
    return "\n\n".join(_table(own, kind) for kind in kinds if kind)


def _table(keys: Sequence[str], groups: Sequence[Group]) -> str:
    heads = [metric.head for metric in shown_metrics()]
    names = [key.rpartition(".")[2] for key in keys]
    head = (*names, "runs", "AUC, lowest to highest", *heads, "up a round")
    lines = [_cells(keys, group) for group in groups]
    columns = list(zip(head, *lines, strict=True))
    # The first column that differs stays, and so do all numbers: a name for each line, and what was measured.
    same = [k for k, column in enumerate(columns[: len(names)]) if len(lines) > 1 and len(set(column[1:])) == 1]
    told = ", ".join(f"{columns[k][0]} {columns[k][1]}" for k in same if columns[k][1] != EMPTY)
    kept = [column for k, column in enumerate(columns) if k not in same]
    named = sum(k not in same for k in range(len(names)))
    table = fitted(list(zip(*kept, strict=True)), names=max(1, named))
    return f"{wrapped(told)}\n{table}" if told else table


def _cells(keys: Sequence[str], group: Group) -> tuple[str, ...]:
    point = (str(value or EMPTY) for value in point_cells(keys, group.baseline, group.point))
    ends = f" ({fixed(group.auc_lowest)} to {fixed(group.auc_highest)})" if len(group.aucs) > 1 else ""
    others = (fixed(group.metrics.get(metric.key)) for metric in shown_metrics())
    up = EMPTY if group.bytes_up is None else data_size(group.bytes_up)
    return (*point, f"{group.finished}/{group.runs}", f"{fixed(group.auc)}{ends}", *others, up)
