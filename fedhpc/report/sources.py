"""What a report is on, read from directories: runs, a finished run with the baselines beside it, a study.

A sweep reads itself (`fedhpc.sweep.final_report`): this package knows runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhpc.records.beside import newest_beside
from fedhpc.records.run_directory import RunDirectory
from fedhpc.records.study import RESULT, Cell, StudyDirectory
from fedhpc.report.build import Report, write
from fedhpc.report.page import Content
from fedhpc.report.rows import (
    DATA,
    DENSITY,
    EPSILON,
    PART,
    SEED,
    SETTING,
    Label,
    Row,
    State,
    config_of,
    groups_of,
    row_of,
    rows_of_runs,
)
from fedhpc.report.study_results import CellResult
from fedhpc.report.view import RunView, view_of
from fedhpc.util.clock import now


def of_runs(paths: Sequence[Path]) -> Content:
    """Read run directories; a single finished run takes the newest baselines on the same data that lie beside it.

    Raises:
        InputError: a path that is no run directory.
    """
    for path in paths:
        config_of(path)
    beside = _beside(paths[0]) if len(paths) == 1 else []
    every = [*paths, *beside]
    rows = rows_of_runs(every)
    views = [view_of(path, config_of(path), row) for path, row in zip(every, rows, strict=True)]
    keys = (EPSILON, DENSITY, SEED, *(key for key in (DATA, SETTING) if any(key in row.point for row in rows)))
    name = paths[0].resolve().name if len(paths) == 1 else f"{len(paths)} runs"
    return _content(name, keys, rows, views, paths)


def _content(
    name: str, keys: Sequence[str], rows: Sequence[Row], views: Sequence[RunView], paths: Sequence[Path]
) -> Content:
    return Content(name, tuple(keys), tuple(rows), tuple(groups_of(rows)), now(), tuple(views), tuple(map(str, paths)))


def _beside(path: Path) -> list[Path]:
    """Return the newest finished run of each other mode on the same data, in the folder that a run lies in."""

    def shown(folder: Path, summary: Mapping[str, Any]) -> Path | None:
        if summary.get("stress"):
            return None
        config_of(folder)
        return folder

    return newest_beside(path, config_of(path), shown)


def of_study(path: Path) -> Content:
    """Read a study: its runs and its claims.

    Raises:
        InputError: no study, or a file of it was cut or changed.
    """
    directory = StudyDirectory(path)
    study = directory.read()
    rows, views = [], []
    for cell in study.cells:
        folder = path / cell.run
        if not cell.is_run or not RunDirectory(folder).config.exists():
            continue
        config = config_of(folder)
        label = Label(cell.name, _baseline(cell), _point(cell), cell.paper)
        row = row_of(config, RunDirectory(folder), State(cell.status), label)
        rows.append(row)
        views.append(view_of(folder, config, row))
    name = study.name if study.size == "full" else f"{study.name}, {study.size}"
    finished = [cell for cell in study.cells if cell.status == "finished" and (path / cell.run / RESULT).exists()]
    results = tuple(CellResult(cell, directory.result(cell)) for cell in finished)
    keys = (
        PART,
        EPSILON,
        DENSITY,
        SEED,
        *dict.fromkeys(k for row in rows for k in row.point if k in ("case", "rule")),
    )
    content = _content(name, keys, rows, views, [path])
    return replace(content, claims=directory.read_claims(), results=results)


def _baseline(cell: Cell) -> str:
    return "" if cell.kind in ("federated", "stress") else cell.kind


def _point(cell: Cell) -> dict[str, object]:
    point: dict[str, object] = {PART: cell.part, SEED: cell.seed}
    if cell.kind in ("federated", "stress"):
        point |= {EPSILON: cell.epsilon, DENSITY: cell.density}
    if cell.kind == "stress":
        point |= {"case": cell.case, "rule": cell.rule}
    return point


def write_run_report(path: Path) -> Path:
    """Write the report of one run into its directory; return the path of the page."""
    out = RunDirectory(path).report
    write(Report(of_runs([path])), out)
    return out
