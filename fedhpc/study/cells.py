"""From a study's config to the drafts of its cells: each a config that is not checked yet, and the commands to run."""

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from fedhpc.config.loader import merged, read_tree
from fedhpc.records.study import Cell
from fedhpc.study.config import (
    Codec,
    Contributions,
    EarlyStage,
    Legacy,
    Part,
    SlowHospital,
    StressTests,
    StudyConfig,
    Tree,
)

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


def drafts_of(config: StudyConfig, folder: Path) -> Iterator[Draft]:
    """Yield what was never timed first, then by part: so the estimate of the time left is whole early."""
    if config.audit is not None:
        yield _audit(config.parts[config.audit.part], config.audit.part, config.audit.epsilon, folder)
    if config.codec is not None:
        yield _codec(config, config.codec, folder)
    if config.legacy is not None:
        yield _legacy("legacy", config.legacy, folder)
    if config.legacy_network is not None:
        yield _legacy("legacy-network", config.legacy_network, folder)
    if config.early is not None:
        yield _early(config.parts[config.early.part], config.early, folder)
    if config.schedule is not None:
        yield from _schedule(config.parts[config.schedule.part], config.schedule, folder)
    if config.contribution is not None:
        yield from _contribution(config.parts[config.contribution.part], config.contribution, folder)
        yield from _planted(config.parts[config.contribution.part], config.contribution, folder)
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
    density = part.paper.density
    for seed, case, rule in itertools.product(tests.seeds, (CLEAN, *tests.cases), tests.rules):
        stress = None if case == CLEAN else {"case": case, "sites": [tests.site]}
        tree = merged(_at(part, folder, tests.epsilon), {**_exchange(density), "seed": seed})
        tree = {**tree, "stress": stress, "aggregation": {"rule": rule}}
        tree = tree if tests.epsilon is None else merged(tree, {"privacy": {"noise_seed": tests.noise_seed + seed}})
        name = f"stress-{case}-{rule}" + (f"-s{seed}" if len(tests.seeds) > 1 else "")
        yield Draft(Cell(name, "stress", tests.part, tests.epsilon, density, seed, "", case=case, rule=rule), tree)


def _legacy(name: str, legacy: Legacy, folder: Path) -> Draft:
    tree = merged(read_tree(folder / legacy.config), legacy.set)
    privacy = tree.get("privacy")
    epsilon = privacy.get("epsilon") if isinstance(privacy, dict) else None
    words = ("bench", "legacy", "{config}", "-o", "{dir}/runs", "--held-out", str(legacy.held_out), "--json", "--seeds")
    seeds = tuple(map(str, legacy.seeds))
    cell = Cell(name, "legacy", legacy.part or "legacy", epsilon, None, legacy.seeds[0], "", case=legacy.site)
    return Draft(cell, tree, trains=False, commands=((*words, *seeds),))


def _early(part: Part, early: EarlyStage, folder: Path) -> Draft:
    tree = merged(_at(part, folder, early.epsilon), _exchange(part.paper.density))
    words = ("bench", "early", "{config}", "-o", "{dir}/runs", "--held-out", str(early.held_out), "--json", "--seeds")
    keys = tuple(_overrides(part.centralised or {}))
    own = ("--centralised", *keys) if keys else ()
    cell = Cell("early", "early", early.part, early.epsilon, part.paper.density, early.seeds[0], "")
    return Draft(cell, tree, trains=False, commands=((*words, *map(str, early.seeds), *own),))


def _overrides(tree: Tree, above: str = "") -> Iterator[str]:
    """Yield the keys of a tree as the command line takes them.

    >>> list(_overrides({"training": {"lr": 4.0}, "seed": 1}))
    ['training.lr=4.0', 'seed=1']
    """
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _overrides(value, f"{above}{key}.")
        else:
            yield f"{above}{key}={json.dumps(value)}"


def _schedule(part: Part, slow: SlowHospital, folder: Path) -> Iterator[Draft]:
    for epsilon in slow.epsilons:
        tree = merged(_at(part, folder, epsilon), _exchange(part.paper.density))
        words = ("bench", "schedule", "{config}", "-o", "{dir}/runs", "--site", slow.site, "--json")
        more = ("--factor", f"{slow.factor:g}", "--epsilons", "none" if epsilon is None else f"{epsilon:g}", "--seeds")
        name = f"schedule-{_eps(epsilon)}"
        cell = Cell(name, "schedule", slow.part, epsilon, part.paper.density, slow.seeds[0], "", case=slow.site)
        yield Draft(cell, tree, trains=False, commands=((*words, *more, *map(str, slow.seeds)),))


def _contribution(part: Part, wanted: Contributions, folder: Path) -> Iterator[Draft]:
    for epsilon in wanted.epsilons:
        tree = merged(_at(part, folder, epsilon), _exchange(wanted.density))
        tree = merged(tree, {"contribution": {"store_updates": True}})
        cell = Cell(f"contribution-{_eps(epsilon)}", "contribution", wanted.part, epsilon, wanted.density, 0, "")
        yield Draft(cell, tree, commands=(("contribution", "{dir}", *_judges(tree), "--json"),))


def _planted(part: Part, wanted: Contributions, folder: Path) -> Iterator[Draft]:
    """Yield the cell of hospitals whose contribution is known beforehand; its runs are replicas, not of the config."""
    epsilons = [f"{one:g}" for one in wanted.epsilons if one is not None]
    if wanted.planted_draws is None or not epsilons:
        return
    words = ("bench", "contribution", "--draws", str(wanted.planted_draws), "--json", "--epsilons", *epsilons)
    yield Draft(
        Cell("planted", "planted", wanted.part, None, None, 0, ""),
        _at(part, folder, None),
        trains=False,
        commands=(words,),
    )


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
    return Draft(Cell("audit", "audit", name, epsilon, None, 0, ""), tree, trains=False, commands=(words,))


def _codec(config: StudyConfig, codec: Codec, folder: Path) -> Draft:
    name, part = next(iter(config.parts.items()))
    words = ("bench", "codec", "--size", str(codec.size), "--density", f"{codec.density:g}")
    more = ("--value-bits", str(codec.value_bits), "--bytes-only", "--json")
    return Draft(
        Cell("codec", "codec", name, None, codec.density, 0, ""),
        _at(part, folder, None),
        trains=False,
        commands=((*words, *more),),
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
