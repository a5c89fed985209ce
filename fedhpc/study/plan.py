"""From a study's config to its cells: each a trial of one sweep, and a line of the frozen plan."""

import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from fedhpc.config.loader import checked, merged, read_tree, told_of
from fedhpc.errors import ConfigError
from fedhpc.records.study import Cell, Study
from fedhpc.study.config import Codec, Contributions, Legacy, Part, SlowHospital, StressTests, StudyConfig, Tree
from fedhpc.sweep.config import Sweep, Trial, most_ranks
from fedhpc.sweep.directory import SweepDirectory

CLEAN, MEAN = "clean", "mean"
OFF: Tree = {"privacy": {"epsilon": None, "off": True}}


@dataclass(frozen=True)
class Draft:
    """A cell before its config is checked.

    Attributes:
        cell: its line in the plan, without folder and commands.
        tree: of its config.
        trains: whether it is a run of that config.
        commands: what is run after that or in its place: words after `run.py`; {dir} stands for its folder, {config}
            for its config file.
    """

    cell: Cell
    tree: Tree
    trains: bool = True
    commands: tuple[tuple[str, ...], ...] = field(default=())


@dataclass(frozen=True)
class Planned:
    """A study that may be run: its plan, and the sweep that runs it."""

    study: Study
    sweep: Sweep


def plan_study(config: StudyConfig, path: Path, out: Path, *, quick: bool) -> Planned:
    """Return all cells of a study, each with a checked config.

    Args:
        config: what the file at `path` says.
        path: paths in it are relative to its folder.
        out: the study's folder; need not exist.
        quick: whether `config` is the small one.

    Raises:
        ConfigError: with the problems of all cells, one a line.
    """
    folder = SweepDirectory(out)
    problems: dict[str, list[str]] = {}
    cells, trials = [], []
    for draft in _drafts(config, path.parent):
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
        files = {"{dir}": str(where), "{config}": str(where / "element.yaml")}
        commands = tuple(tuple(_filled(word, files) for word in words) for words in draft.commands)
        cells.append(_in_folder(draft, out, commands))
        trials.append(
            Trial(draft.cell.name, _baseline(draft.cell), _point(draft.cell), checked_config, draft.trains, commands)
        )
    problems |= _misfits(config, trials) | _twice(cells)
    if problems:
        raise ConfigError(told_of(path, [f"{text} (in {_some(names)})" for text, names in problems.items()]))
    study = Study(config.name, quick, tuple(cells))
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


def _some(names: Sequence[str], shown: int = 4) -> str:
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


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


def _drafts(config: StudyConfig, folder: Path) -> Iterator[Draft]:
    """Yield what was never timed first, then by part: so the estimate of the time left is whole early."""
    if config.audit is not None:
        yield _audit(config.parts[config.audit.part], config.audit.part, config.audit.epsilon, folder)
    if config.codec is not None:
        yield _codec(config, config.codec, folder)
    if config.legacy is not None:
        yield _legacy(config.legacy, folder)
    if config.schedule is not None:
        yield from _schedule(config.parts[config.schedule.part], config.schedule, folder)
    if config.contribution is not None:
        yield from _contribution(config.parts[config.contribution.part], config.contribution, folder)
    for name, part in config.parts.items():
        yield from _baselines(name, part, folder)
        yield from _grid(name, part, folder)
    if config.stress is not None:
        yield from _stress(config.parts[config.stress.part], config.stress, folder)


def _base(part: Part, folder: Path) -> Tree:
    return merged(read_tree(folder / part.config), part.set)


def _at(part: Part, folder: Path, epsilon: float | None) -> Tree:
    """Return the config of a part at one epsilon."""
    base = _base(part, folder)
    if epsilon is None:
        return merged(merged(base, OFF), part.without_privacy)
    return merged(base, {"privacy": {"epsilon": epsilon, "off": False}})


def _exchange(density: float) -> Tree:
    return {"exchange": {"density": density}}


def _grid(name: str, part: Part, folder: Path) -> Iterator[Draft]:
    for epsilon, density, seed in itertools.product(part.epsilons, part.densities, part.seeds):
        cell = Cell(f"{name}-{_eps(epsilon)}-d{density:g}-s{seed}", "federated", name, epsilon, density, seed, "")
        tree = merged(_at(part, folder, epsilon), {**_exchange(density), "seed": seed})
        beside = (epsilon, density) == (part.paper.epsilon, part.paper.density)
        yield Draft(replace(cell, rule=_rule(tree), paper=beside), tree)


def _baselines(name: str, part: Part, folder: Path) -> Iterator[Draft]:
    if part.centralised is not None:
        for seed in part.seeds:
            cell = Cell(f"{name}-centralised-s{seed}", "centralised", name, None, None, seed, "")
            yield Draft(cell, _baseline_tree(part, part.centralised, folder, {"mode": "centralised", "seed": seed}))
    if part.local is not None:
        for seed in part.seeds:
            cell = Cell(f"{name}-local-s{seed}", "local", name, None, None, seed, "")
            yield Draft(cell, _baseline_tree(part, part.local, folder, {"mode": "local", "seed": seed}))


def _baseline_tree(part: Part, own: Tree, folder: Path, fixed: Tree) -> Tree:
    rest = {key: value for key, value in own.items() if key != "extends"}
    if "extends" in own:
        base = read_tree(folder / str(own["extends"]))
        data = part.set.get("data")
        base = merged(base, {"data": data}) if data else base
    else:
        base = merged(_base(part, folder), OFF)
    return merged(merged(base, rest), fixed)


def _stress(part: Part, tests: StressTests, folder: Path) -> Iterator[Draft]:
    for case, rule in itertools.product((CLEAN, *tests.cases), tests.rules):
        stress = None if case == CLEAN else {"case": case, "sites": [tests.site]}
        tree = merged(_at(part, folder, tests.epsilon), _exchange(part.paper.density))
        tree = {**tree, "stress": stress, "aggregation": {"rule": rule}}
        tree = tree if tests.epsilon is None else merged(tree, {"privacy": {"noise_seed": tests.noise_seed}})
        name = f"stress-{case}-{rule}"
        yield Draft(
            Cell(name, "stress", tests.part, tests.epsilon, part.paper.density, 0, "", case=case, rule=rule), tree
        )


def _legacy(legacy: Legacy, folder: Path) -> Draft:
    tree = merged(read_tree(folder / legacy.config), legacy.set)
    privacy = tree.get("privacy")
    epsilon = privacy.get("epsilon") if isinstance(privacy, dict) else None
    words = ("bench", "legacy", "{config}", "-o", "{dir}/runs", "--held-out", str(legacy.held_out), "--json", "--seeds")
    seeds = tuple(map(str, legacy.seeds))
    cell = Cell("legacy", "legacy", "legacy", epsilon, None, legacy.seeds[0], "", case=legacy.site)
    return Draft(cell, tree, False, ((*words, *seeds),))


def _schedule(part: Part, slow: SlowHospital, folder: Path) -> Iterator[Draft]:
    for epsilon in slow.epsilons:
        tree = merged(_at(part, folder, epsilon), _exchange(part.paper.density))
        words = ("bench", "schedule", "{config}", "-o", "{dir}/runs", "--site", slow.site, "--json")
        more = ("--factor", f"{slow.factor:g}", "--epsilons", "none" if epsilon is None else f"{epsilon:g}", "--seeds")
        name = f"schedule-{_eps(epsilon)}"
        cell = Cell(name, "schedule", slow.part, epsilon, part.paper.density, slow.seeds[0], "", case=slow.site)
        yield Draft(cell, tree, False, ((*words, *more, *map(str, slow.seeds)),))


def _contribution(part: Part, wanted: Contributions, folder: Path) -> Iterator[Draft]:
    for epsilon in wanted.epsilons:
        tree = merged(_at(part, folder, epsilon), _exchange(wanted.density))
        tree = merged(tree, {"contribution": {"store_updates": True}})
        cell = Cell(f"contribution-{_eps(epsilon)}", "contribution", wanted.part, epsilon, wanted.density, 0, "")
        yield Draft(cell, tree, True, (("contribution", "{dir}", *_judges(tree), "--json"),))


def _judges(tree: Tree) -> tuple[str, ...]:
    """Return what judges the contributions: the shards of synthetic patients, else the updates' directions alone."""
    data = tree.get("data") or {}
    if data.get("phantom") is None:
        return ()
    return ("--on", *(str(data["shards"]).replace("{site}", str(site["name"])) for site in data["sites"]))


def _audit(part: Part, name: str, epsilon: float, folder: Path) -> Draft:
    tree = _at(part, folder, epsilon)
    synthetic = (tree.get("data") or {}).get("phantom") is not None
    own = () if synthetic else ("--no-real-patients",)
    words = ("audit", "{config}", "--quick", "--out", "{dir}/audit", *own, "--json")
    return Draft(Cell("audit", "audit", name, epsilon, None, 0, ""), tree, False, (words,))


def _codec(config: StudyConfig, codec: Codec, folder: Path) -> Draft:
    name, part = next(iter(config.parts.items()))
    words = ("bench", "codec", "--size", str(codec.size), "--density", f"{codec.density:g}")
    more = ("--value-bits", str(codec.value_bits), "--bytes-only", "--json")
    return Draft(
        Cell("codec", "codec", name, None, codec.density, 0, ""), _at(part, folder, None), False, ((*words, *more),)
    )


def _eps(epsilon: float | None) -> str:
    """Return an epsilon as part of a name.

    >>> _eps(None), _eps(0.5)
    ('off', 'eps0.5')
    """
    return "off" if epsilon is None else f"eps{epsilon:g}"


def _rule(tree: Tree) -> str:
    section = tree.get("aggregation")
    return str(section.get("rule", MEAN)) if isinstance(section, dict) else MEAN
