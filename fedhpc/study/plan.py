"""From a study's config to its cells: each a trial of one sweep, and a line of the frozen plan."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedhpc.config.loader import checked, merged
from fedhpc.config.problems import problems_message
from fedhpc.errors import ConfigError
from fedhpc.records.study import Cell, Size, Study
from fedhpc.study.cells import Draft, drafts_of
from fedhpc.study.config import StudyConfig
from fedhpc.sweep.config import Sweep, Trial, most_ranks
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.util.text import first_names


@dataclass(frozen=True)
class Planned:
    """A study that may be run: its plan, and the sweep that runs it."""

    study: Study
    sweep: Sweep


def plan_study(config: StudyConfig, path: Path, out: Path, *, size: Size) -> Planned:
    """Return all cells of a study, each with a checked config.

    Args:
        config: what the file at `path` says.
        path: paths in it are relative to its folder.
        out: the study's folder; need not exist.
        size: which section of the file `config` has laid over it.

    Raises:
        ConfigError: with the problems of all cells, one a line.
    """
    folder = SweepDirectory(out)
    problems: dict[str, list[str]] = {}
    cells, trials = [], []
    for draft in drafts_of(config, path.parent):
        where = folder.trial(draft.cell.name).path.absolute()
        tree = merged(draft.tree, {"name": draft.cell.name})
        if draft.cell.epsilon is not None and (tree.get("data") or {}).get("phantom") is not None:
            # Synthetic patients: each cell is charged by itself, as if the study had drawn them anew.
            tree = merged(tree, {"privacy": {"site_ledger": f"{where}/accounts/{{site}}"}})
        checked_config, wrong = checked(tree)
        for problem in wrong:
            problems.setdefault(problem, []).append(draft.cell.name)
        if checked_config is None:
            continue
        if draft.cell.kind in ("legacy", "schedule") and draft.cell.case not in checked_config.site_names:
            sites = ", ".join(checked_config.site_names)
            problems[f"{draft.cell.kind}.site={draft.cell.case}: is no site of its config; name one of {sites}"] = [
                draft.cell.name
            ]
        if draft.cell.kind == "early" and checked_config.data.phantom is None:
            problems["early: its new patients are synthetic, and data.phantom is null; set early: null"] = ["early"]
        files = {"{dir}": str(where), "{config}": str(where / "element.yaml")}
        commands = tuple(tuple(_filled(word, files) for word in words) for words in draft.commands)
        cells.append(_in_folder(draft, out, commands))
        trials.append(
            Trial(draft.cell.name, _baseline(draft.cell), _point(draft.cell), checked_config, draft.trains, commands)
        )
    problems |= _misfits(config, trials) | _twice(cells)
    if problems:
        raise ConfigError(
            problems_message(path, [f"{text} (in {first_names(names, 4)})" for text, names in problems.items()])
        )
    study = Study(config.name, size, tuple(cells))
    return Planned(study, Sweep(config.name, _grid_of(cells), config.slurm, config.local, tuple(trials)))


def _grid_of(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Return the columns of the sweep's table, and which values each has."""
    return {
        "part": list(dict.fromkeys(cell.part for cell in cells)),
        "privacy.epsilon": list(dict.fromkeys(cell.epsilon for cell in cells)),
        "exchange.density": [one for one in dict.fromkeys(cell.density for cell in cells) if one is not None],
        "seed": list(dict.fromkeys(cell.seed for cell in cells)),
    }


def _misfits(config: StudyConfig, trials: Sequence[Trial]) -> dict[str, list[str]]:
    """Return what does not go together between cells and the ranks that all of them get."""
    found: dict[str, list[str]] = {}
    for key, ranks in (("slurm.ranks", config.slurm.ranks), ("local.ranks", config.local.ranks)):
        over = [one.name for one in trials if one.trains and ranks != "auto" and ranks > most_ranks(one.config)]
        if over:
            found[f"{key}={ranks}: more than the cell can use"] = over
    return found


def _twice(cells: Sequence[Cell]) -> dict[str, list[str]]:
    """Return the cells that are in the plan more than once: they would be run in one folder at the same time."""
    counts = Counter(cell.name for cell in cells)
    double = [name for name, count in counts.items() if count > 1]
    return {"a value is listed twice, so that cells have one name; name each value once": double} if double else {}


def _filled(word: str, files: dict[str, str]) -> str:
    for mark, value in files.items():
        word = word.replace(mark, value)
    return word


def _in_folder(draft: Draft, out: Path, commands: Sequence[Sequence[str]]) -> Cell:
    where = f"elements/{draft.cell.name}"
    train = [f"python run.py train {out / where}/element.yaml --run-dir {out / where}"] if draft.trains else []
    lines = (*train, *(f"python run.py {' '.join(words)}" for words in commands))
    return replace(draft.cell, run=where, is_run=draft.trains, commands=lines)


def _baseline(cell: Cell) -> str:
    """Return what the sweep calls a cell that is no point of a grid."""
    return "" if cell.kind == "federated" else cell.kind


def _point(cell: Cell) -> dict[str, object]:
    point = {"privacy.epsilon": cell.epsilon, "exchange.density": cell.density, "seed": cell.seed}
    more = {"stress.case": cell.case, "aggregation.rule": cell.rule} if cell.kind == "stress" else {}
    shown = {key: value for key, value in point.items() if value is not None or key == "privacy.epsilon"}
    return {"part": cell.part, **shown, **more}
