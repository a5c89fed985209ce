"""A sweep's YAML: an ordinary config with four more sections, `grid`, `baselines`, `slurm` and `local`.

The ordinary keys (with `extends`) are what every point of the grid starts from. A baseline is laid over them too, or
over a config of its own if it `extends` one.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from fedhpc.config.loader import apply_override, checked, merged, read_tree
from fedhpc.config.problems import problems_message, problems_of
from fedhpc.config.schema import RunConfig
from fedhpc.errors import ConfigError
from fedhpc.sweep.grid import Point, Tree, flattened, grid_problems, nested, points
from fedhpc.sweep.resources import Local, Slurm
from fedhpc.util.section import Section
from fedhpc.util.text import first_names

SEED, EPSILON = "seed", "privacy.epsilon"
BaselineName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,30}$")]


class Sections(Section):
    """The sections that a sweep has beside those of a run."""

    grid: dict[str, Any] = Field(
        min_length=1, description="keys and the values that each takes; every combination is a trial"
    )
    baselines: dict[BaselineName, dict[str, Any]] = Field(
        default={},
        description="configs to compare with, by name, each laid over the sweep's own keys or over the config that "
        "it `extends`; each runs once for every seed of the grid",
    )
    slurm: Slurm = Field(default=Slurm(), description="resources of a trial under `--cluster slurm`")
    local: Local = Field(default=Local(), description="resources of a trial under `--cluster local`")


@dataclass(frozen=True)
class Trial:
    """One run of a sweep.

    Attributes:
        name: of its run, its directory, and its line in the lifetime ledgers.
        baseline: which one it is; empty for a point of the grid.
        point: the values of the grid's keys here; of a baseline at most the seed.
        trains: whether it is a run of `config`; else only `commands` are run, in a folder that has `config` as a file.
        commands: the words after `run.py`, run one after another by one process when the training has finished.
    """

    name: str
    baseline: str
    point: Point
    config: RunConfig
    trains: bool = True
    commands: tuple[tuple[str, ...], ...] = ()

    @property
    def rounds(self) -> int:
        """How many rounds it trains."""
        return self.config.training.rounds if self.trains else 0


@dataclass(frozen=True)
class Sweep:
    """A validated sweep: its trials in the order in which they are submitted."""

    name: str
    grid: dict[str, list[Any]]
    slurm: Slurm
    local: Local
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Expansion:
    """A sweep as its config says; it may be run where there are no `problems`. Invalid trials are left out of it."""

    sweep: Sweep
    problems: tuple[str, ...]


def expand(path: Path, overrides: list[str]) -> Expansion:
    """Read, merge, override, expand and validate.

    Args:
        path: the YAML file.
        overrides: `key=value`: of an ordinary key, or of one in a sweep's own sections (`slurm.partition=gpu`,
            `grid.seed=[0]`, `baselines.local.training.rounds=2`).

    Raises:
        ConfigError: where its own sections do not say what the trials are.
    """
    tree = read_tree(path)
    if isinstance(tree.get("grid"), dict):
        tree["grid"] = nested(flattened(tree["grid"]))
    for override in overrides:
        apply_override(tree, override)
    sections = _sections({key: tree.pop(key) for key in Sections.model_fields if key in tree}, path)
    grid = flattened(sections.grid)
    unnamed = [] if isinstance(tree.get("name"), str) else ["name: missing; it must be set"]
    problems = [*unnamed, *grid_problems(grid), *_overridden(grid, overrides)]
    if problems:
        raise ConfigError(problems_message(path, problems))
    drafts = [*_grid_drafts(tree, grid), *_baseline_drafts(tree, sections, grid, path.parent)]
    name = str(tree["name"])
    trials = tuple(_validated(name, drafts, problems))
    problems += _misfits(trials, sections.slurm, sections.local)
    return Expansion(Sweep(name, grid, sections.slurm, sections.local, trials), tuple(problems))


def _sections(tree: Tree, path: Path) -> Sections:
    try:
        return Sections.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(problems_message(path, problems_of(error, Sections, tree))) from None


def _overridden(grid: Point, overrides: list[str]) -> list[str]:
    keys = [override.partition("=")[0] for override in overrides]
    return [
        f"--set {key}: the grid has {key}, which would win; use --set 'grid.{key}=[...]'" for key in keys if key in grid
    ]


@dataclass(frozen=True)
class Draft:
    """A config that is not checked yet: its baseline or nothing, its point, and its tree."""

    baseline: str
    point: Point
    tree: Tree


def _grid_drafts(base: Tree, grid: Point) -> list[Draft]:
    return [Draft("", point, merged(base, _overlay(point))) for point in points(grid)]


def _overlay(point: Point) -> Tree:
    """A point as a tree; among epsilons, null asks by name for the run without privacy."""
    tree = nested(point)
    if EPSILON in point:
        tree["privacy"]["off"] = point[EPSILON] is None
    return tree


def _baseline_drafts(base: Tree, sections: Sections, grid: Point, folder: Path) -> list[Draft]:
    """Each baseline once, or once for each seed of the grid."""
    drafts = []
    for name, own in sections.baselines.items():
        rest = {key: value for key, value in own.items() if key != "extends"}
        under = read_tree(folder / str(own["extends"])) if "extends" in own else base
        for point in points({key: values for key, values in grid.items() if key == SEED}):
            drafts.append(Draft(name, point, merged(merged(under, rest), point)))
    return drafts


def _validated(sweep: str, drafts: list[Draft], problems: list[str]) -> list[Trial]:
    """Return the trials of the drafts that hold; of the others, each problem once with those that have it."""
    trials: list[Trial] = []
    found: dict[str, list[str]] = {}
    for number, draft in enumerate(drafts):
        name = f"{sweep}-{number:03d}"
        config, wrong = checked(merged(draft.tree, {"name": name}))
        if config is not None and not wrong:
            trials.append(Trial(name, draft.baseline, draft.point, config))
        for problem in wrong:
            found.setdefault(problem, []).append(f"{draft.baseline or 'grid'} {number:03d}")
    for problem, where in found.items():
        everywhere = len(where) == len(drafts)
        problems.append(problem if everywhere else f"{problem} (in {first_names(where, 4)})")
    return trials


def _misfits(trials: Sequence[Trial], slurm: Slurm, local: Local) -> list[str]:
    """Return what does not go together between trials, or between them and the resources that all of them get."""
    problems = []
    for key in ("shards", "phantom"):
        different = dict.fromkeys(repr(getattr(trial.config.data, key)) for trial in trials)
        if len(different) > 1:
            problems.append(
                f"data.{key}: differs between trials: {'; '.join(different)}; their results would not compare. Set "
                "it in the baseline that extends another file, or leave out its `extends`: it then inherits the sweep's"
            )
    patience_s = max((trial.config.runtime.patience_s for trial in trials), default=0.0)
    if slurm.signal_s <= patience_s:
        problems.append(
            f"slurm.signal_s={slurm.signal_s}: a site may go on for runtime.patience_s={patience_s:g} after it was "
            "told to stop, and must then still save; make it longer than that"
        )
    limits = {trial.name: most_ranks(trial.config) for trial in trials}
    for key, ranks in (("slurm.ranks", slurm.ranks), ("local.ranks", local.ranks)):
        over = [name for name, most in limits.items() if ranks != "auto" and ranks > most]
        if over:
            problems.append(
                f"{key}={ranks}: too many for {first_names(over, 4)}, which can use {min(limits.values())}; all trials "
                "get the same"
            )
    if slurm.ranks == "auto" and trials and min(limits.values()) % slurm.nodes:
        problems.append(
            f"slurm.nodes={slurm.nodes}: does not divide the {min(limits.values())} ranks of a trial; set "
            "slurm.ranks to a multiple of it"
        )
    return problems


def most_ranks(config: RunConfig) -> int:
    """Return how many ranks a run can use: of a centralised one all but rank 0 sleep, so that it fits any number."""
    return len(config.data.sites) + (config.federation.aggregator_rank == "dedicated")


def ranks_of(sweep: Sweep) -> int:
    """Return the ranks that SLURM starts for each trial."""
    limits = [most_ranks(trial.config) for trial in sweep.trials]
    return min(limits) if sweep.slurm.ranks == "auto" else sweep.slurm.ranks
