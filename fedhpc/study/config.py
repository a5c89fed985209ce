"""A study's YAML: the parts, the tests beside them, the resources, and what smaller sizes lay over all of it."""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from fedhpc.config.loader import apply_override, merged, read_tree
from fedhpc.config.problems import problems_message, problems_of
from fedhpc.errors import ConfigError
from fedhpc.records.study import Size
from fedhpc.sweep.resources import Local, Slurm
from fedhpc.util.section import Section
from fedhpc.util.text import as_written

Tree = dict[str, Any]
Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,20}$")]
Epsilon = Annotated[float, Field(gt=0)] | None
Density = Annotated[float, Field(gt=0, le=1)]
Seed = Annotated[int, Field(ge=0)]
SMALLER: tuple[Size, ...] = ("medium", "quick")
"""Sections of the file that say what is smaller."""


class Point(Section):
    """One point of a part's grid."""

    epsilon: Epsilon = Field(description="target; null: without privacy")
    density: Density = Field(description="share of the update that is sent")


class Part(Section):
    """A model on a cohort: federated over a grid, and its baselines."""

    config: str = Field(description="config of a federated run, relative to the study's file")
    set: Tree = Field(default={}, description="keys laid over it, in all cells of the part")
    without_privacy: Tree = Field(default={}, description="keys laid over the cells whose epsilon is null")
    epsilons: Annotated[tuple[Epsilon, ...], Field(min_length=1)] = Field(description="targets; null: without privacy")
    densities: Annotated[tuple[Density, ...], Field(min_length=1)] = Field(description="shares of the update sent")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(description="one run for each")
    centralised: Tree | None = Field(
        default=None, description="keys of the centralised baseline; `extends` for one of its own; null: none"
    )
    local: Tree | None = Field(default=None, description="keys of the local-only baseline; null: none")
    paper: Point = Field(description="the point whose results stand beside the paper's claims")


class StressTests(Section):
    """One corrupted or hostile site: a run for each case and rule, and the clean run of each rule."""

    part: Name = Field(description="of which part")
    epsilon: Epsilon = Field(description="of all runs")
    cases: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="of stress.case")
    rules: Annotated[tuple[str, ...], Field(min_length=1)] = Field(description="of aggregation.rule")
    site: str = Field(description="the bad one")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(
        default=(0,), description="a run of each case for each, and a clean one; the row of the claims is their mean"
    )
    noise_seed: int = Field(
        default=1,
        description="privacy.noise_seed of the runs of seed 0, one more for each further seed: the runs of a seed have "
        "the same noise, so that it drops out of their differences",
    )


class Legacy(Section):
    """The hospital with the legacy scanner: `bench legacy`."""

    part: Name | None = Field(default=None, description="with which part it is run; null: with any")
    config: str = Field(description="config with personalisation, relative to the study's file")
    set: Tree = Field(default={}, description="keys laid over it")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(description="one cohort for each")
    held_out: Annotated[int, Field(ge=1)] = Field(description="new test images of each site")
    site: str = Field(description="the hospital with that scanner")


class EarlyStage(Section):
    """Early-stage sensitivity against centralised training on many new patients: `bench early`."""

    part: Name = Field(description="of which part; its centralised baseline has keys of its own, not `extends`")
    epsilon: Epsilon = Field(description="of the federated runs; null: without privacy")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(description="a run of each kind for each")
    held_out: Annotated[int, Field(ge=1)] = Field(description="new images of all sites together")


class SlowHospital(Section):
    """A slow hospital that is waited for, and that is planned for: `bench schedule`."""

    part: Name = Field(description="of which part")
    epsilons: Annotated[tuple[Epsilon, ...], Field(min_length=1)] = Field(description="a cell for each")
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)] = Field(description="of the runs of a cell")
    site: str = Field(description="the slow one")
    factor: Annotated[float, Field(gt=1)] = Field(default=10.0, description="how many times slower it is")


class Contributions(Section):
    """Who contributed how much: runs that keep their updates, and `run.py contribution`."""

    part: Name = Field(description="of which part")
    epsilons: Annotated[tuple[Epsilon, ...], Field(min_length=1)] = Field(description="a run for each")
    density: Density = Field(default=1.0, description="of the updates")
    planted_draws: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="draws of the noise of the planted cases (`bench contribution`); null: left out"
    )


class Audit(Section):
    """The privacy audit, quick: `run.py audit --quick`."""

    part: Name = Field(description="of which part")
    epsilon: Annotated[float, Field(gt=0)] = Field(default=1.0, description="that is attacked")


class Codec(Section):
    """Bytes of one encoded update: `bench codec`."""

    size: Annotated[int, Field(ge=1)] = Field(description="entries of the update that is really encoded")
    density: Density = Field(default=0.1, description="share of the entries that is sent")
    value_bits: Literal[32, 16, 8, 7, 6, 5, 4, 3] = Field(default=4, description="of a sent value")


class StudyConfig(Section):
    """A study, checked."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,40}$")] = Field(description="of the study")
    parts: dict[Name, Part] = Field(min_length=1, description="models and their grids, by name")
    stress: StressTests | None = Field(default=None, description="corrupted and hostile sites; null: none")
    legacy: Legacy | None = Field(default=None, description="the legacy scanner; null: left out")
    legacy_network: Legacy | None = Field(
        default=None, description="the same with another config, such as a network from scratch; null: left out"
    )
    early: EarlyStage | None = Field(default=None, description="early stages on new patients; null: left out")
    schedule: SlowHospital | None = Field(default=None, description="a slow hospital; null: left out")
    contribution: Contributions | None = Field(default=None, description="contributions; null: left out")
    audit: Audit | None = Field(default=None, description="the audit; null: left out")
    codec: Codec | None = Field(default=None, description="bytes of an update of the paper's size; null: left out")
    slurm: Slurm = Field(default=Slurm(), description="resources of a cell under --cluster slurm, as of a sweep")
    local: Local = Field(default=Local(), description="resources of a cell under --cluster local, as of a sweep")

    def part_problems(self) -> list[str]:
        """Return what names a part, or a point of its grid, that there is not."""
        keys = ("stress", "legacy", "legacy_network", "early", "schedule", "contribution", "audit")
        found = {key: getattr(self, key).part for key in keys if getattr(self, key) is not None}
        off_grid = [
            f"parts.{name}.paper: epsilon={as_written(part.paper.epsilon)}, density={part.paper.density:g} is no point "
            "of the grid, so that nothing would stand beside the paper's claims; name values of its epsilons and "
            "densities"
            for name, part in self.parts.items()
            if part.paper.epsilon not in part.epsilons or part.paper.density not in part.densities
        ]
        early = self.parts.get(self.early.part) if self.early is not None else None
        if early is not None and "extends" in (early.centralised or {}):
            off_grid.append("early.part: its centralised baseline has `extends`. Name another part, or set early: null")
        return off_grid + [
            f"{key}.part={part}: there is no such part; name one of {', '.join(self.parts)}"
            for key, part in found.items()
            if part is not None and part not in self.parts
        ]


def load_study(path: Path, overrides: list[str], *, size: Size = "full", parts: Iterable[str] = ()) -> StudyConfig:
    """Read, merge and check a study's file.

    Args:
        path: the YAML file.
        overrides: `key=value`, laid over all else.
        size: lay its section of that name over the others; `full`: none.
        parts: only these parts, with the tests that are of one of them; all where none is named.

    Raises:
        ConfigError: with every problem of the study's own sections, one a line.
    """
    tree = read_tree(path)
    over = {name: tree.pop(name, None) for name in SMALLER}
    if size != "full":
        tree = merged(tree, _smaller(over[size], size, path))
    for override in overrides:
        apply_override(tree, override)
    wanted = set(parts)
    unknown = sorted(wanted - set(_parts(tree)))
    if unknown:
        raise ConfigError(f"--parts {' '.join(unknown)}: {path} has no such part. Name some of {_names(tree)}")
    if wanted:
        tree = _only(tree, wanted)
    try:
        study = StudyConfig.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(problems_message(path, problems_of(error, StudyConfig, tree))) from None
    problems = study.part_problems()
    if problems:
        raise ConfigError(problems_message(path, problems))
    return study


def _smaller(section: object, size: Size, path: Path) -> Tree:
    if not isinstance(section, dict):
        raise ConfigError(f"{path}: --{size} needs a section {size}, which says what is smaller. Add one")
    return section


def _names(tree: Tree) -> str:
    return ", ".join(map(str, _parts(tree))) or "none"


def _parts(tree: Tree) -> Tree:
    """Return the parts by name; none where the file has something else in their place, which validation names."""
    parts = tree.get("parts")
    return parts if isinstance(parts, dict) else {}


def _only(tree: Tree, wanted: set[str]) -> Tree:
    """Return the tree with some of its parts, and without the tests of others."""
    kept = {key: value for key, value in tree.items() if not _is_of_other(value, wanted)}
    return {**kept, "parts": {name: part for name, part in tree["parts"].items() if name in wanted}}


def _is_of_other(section: object, wanted: set[str]) -> bool:
    part = section.get("part") if isinstance(section, dict) else None
    return isinstance(part, str) and part not in wanted
