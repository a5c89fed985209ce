"""What a report says, as values: a row a run, and a group for all seeds of one setting."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.records.metrics import METRICS
from fedhpc.records.run_directory import RunDirectory
from fedhpc.records.summary import absent_rounds, data_digest, data_labels
from fedhpc.report.unlike import settings_of

SEED, EPSILON, DENSITY, DATA, PART = "seed", "privacy.epsilon", "exchange.density", "data", "part"
SETTING = "setting"
FINISHED = "finished"


@dataclass(frozen=True)
class Row:
    """One run. Metrics are None until it has finished; bytes are a round's, over all sites.

    Attributes:
        baseline: empty for a point of the grid.
        point: what sets it apart: the grid's values, or of runs by themselves epsilon, density and seed.
        metrics: by key, all but the AUC.
        stopped: "finished", or "budget" where privacy allowed fewer rounds than were asked for.
        insecure: privacy.noise_seed was set, so that no epsilon holds; `epsilon` is None then.
        absent: the declared hospitals that some rounds were made without, with the number of rounds; empty for none.
        evaluation_epsilon: asked for, of validation and test patients; None of a private run: its metrics are exact.
        stress: the case and the sites of a stress test; empty for none.
        specificity: of the sensitivities.
        unit: whom epsilon protects; None without privacy.
        paper: of a study, whether it is at the point whose results stand beside the paper's claims.
    """

    name: str
    baseline: str
    point: Mapping[str, Any]
    state: str
    message: str
    mode: str
    epsilon_target: float | None
    epsilon: float | None
    delta: float | None
    density: float | None
    seed: int
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    auc_val: float | None = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    bytes_up: float | None = None
    bytes_down: float | None = None
    dense_bytes: float | None = None
    rounds: int = 0
    seconds: float | None = None
    stopped: str | None = None
    git: str | None = None
    protects_from_aggregator: str | None = None
    epsilon_if_unmasked: float | None = None
    insecure: bool = False
    evaluation_epsilon: float | None = None
    absent: str = ""
    stress: str = ""
    specificity: float = 0.9
    unit: str | None = None
    paper: bool = False

    @property
    def released_exactly(self) -> bool:
        """Whether the run was private, and what left the sites of validation and test patients was not."""
        return self.epsilon_target is not None and self.evaluation_epsilon is None


@dataclass(frozen=True)
class Group:
    """All seeds of one setting. Means, and the lowest and highest AUC, are over the runs that finished."""

    baseline: str
    point: Mapping[str, Any]
    runs: int
    finished: int
    auc: float | None
    auc_lowest: float | None
    auc_highest: float | None
    metrics: Mapping[str, float | None]
    epsilon: float | None
    bytes_up: float | None
    aucs: tuple[float, ...]
    paper: bool = False


def facts_of(one: Row | Group) -> dict[str, Any]:
    """As plain values, with a key for each metric."""
    facts = asdict(one)
    found = facts.pop("metrics")
    return facts | {metric.key: found.get(metric.key) for metric in METRICS[1:]}


@dataclass(frozen=True)
class Label:
    """What a run is called in a report: its name, its baseline or nothing, what sets it apart; `paper` as in `Row`."""

    name: str
    baseline: str
    point: Mapping[str, Any]
    paper: bool = False


@dataclass(frozen=True)
class State:
    """How a run stands, and a message of why."""

    name: str
    message: str = ""


def row_of(config: RunConfig, directory: RunDirectory, state: State, label: Label) -> Row:
    """Return the row of a run."""
    private = config.private
    known: dict[str, Any] = {
        "state": state.name,
        "message": state.message,
        "mode": config.mode,
        "epsilon_target": config.privacy.epsilon,
        "delta": config.privacy.delta if private else None,
        "density": config.exchange.density if config.mode == "federated" else None,
        "seed": config.seed,
        "rounds": len(records := directory.read_rounds()),
        "absent": ", ".join(f"{site} ({count} rounds)" for site, count in absent_rounds(records).items()),
        "insecure": config.privacy.noise_seed is not None,
        "evaluation_epsilon": config.evaluation.epsilon if private else None,
        "stress": config.stress.label if config.stress else "",
        "specificity": config.evaluation.specificity,
        "unit": config.privacy.unit if private else None,
    }
    if state.name == FINISHED:
        known |= _measured(directory.read_summary())
    if known["insecure"]:
        known["epsilon"] = None
    return Row(label.name, label.baseline, label.point, paper=label.paper, **{"epsilon": None, **known})


def _measured(summary: Mapping[str, Any]) -> dict[str, Any]:
    low, high = summary["auc_ci95"] or (None, None)
    federated = summary["mode"] == "federated"
    return {
        **{key: summary[key] for key in ("epsilon", "auc", "auc_val", "stopped", "git")},
        "metrics": {metric.key: summary.get(metric.key) for metric in METRICS[1:]},
        "auc_low": low,
        "auc_high": high,
        "bytes_up": summary["bytes_up_per_round"] if federated else None,
        "bytes_down": summary["bytes_down_per_round"] if federated else None,
        "dense_bytes": summary["dense_bytes_per_round"] if federated else None,
        "seconds": summary["seconds"]["total"],
        **{key: summary.get(key) for key in ("protects_from_aggregator", "epsilon_if_unmasked")},
    }


def rows_of_runs(paths: Sequence[Path]) -> list[Row]:
    """Rows of run directories; those that are not federated are baselines.

    Runs on different data are set apart by the key `data`: their figures do not compare. Runs whose configs differ in
    anything else that a result may depend on are set apart by the key `setting`.

    Raises:
        InputError: a path that is no run directory.
    """
    configs = [config_of(path) for path in paths]
    labels = data_labels(configs)
    rows = []
    for path, config, setting in zip(paths, configs, settings_of(configs), strict=True):
        directory = RunDirectory(path)
        state = State(FINISHED if directory.summary.exists() else "unfinished")
        point: dict[str, Any] = {EPSILON: config.privacy.epsilon, DENSITY: config.exchange.density, SEED: config.seed}
        baseline = "" if config.mode == "federated" else config.mode
        if baseline:
            point = {SEED: config.seed}
        if labels:
            point[DATA] = labels[data_digest(config)]
        if setting:
            point[SETTING] = setting
        rows.append(row_of(config, directory, state, Label(path.name, baseline, point)))
    return rows


def config_of(path: Path) -> RunConfig:
    """Return the config of a run directory; InputError where it is none."""
    config = RunDirectory(path).read_config()
    if config is None:
        raise InputError(
            f"{path}: is no run directory, it has no config.yaml; give runs, or one sweep",
            code="run-directory.not-a-run",
        )
    return config


def groups_of(rows: Sequence[Row]) -> list[Group]:
    """Runs that differ in nothing but the seed, together, in the order of the rows."""
    members: dict[str, list[Row]] = {}
    for row in rows:
        members.setdefault(json.dumps([row.baseline, _without_seed(row.point)], sort_keys=True), []).append(row)
    return [_group(together) for together in members.values()]


def _without_seed(point: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in point.items() if key != SEED}


def _group(rows: Sequence[Row]) -> Group:
    done = [row for row in rows if row.state == FINISHED]
    aucs = tuple(row.auc for row in done if row.auc is not None)
    return Group(
        baseline=rows[0].baseline,
        point=_without_seed(rows[0].point),
        runs=len(rows),
        finished=len(done),
        auc=_mean(aucs),
        auc_lowest=min(aucs, default=None),
        auc_highest=max(aucs, default=None),
        metrics={metric.key: _mean([row.metrics.get(metric.key) for row in done]) for metric in METRICS[1:]},
        epsilon=max((row.epsilon for row in done if row.epsilon is not None), default=None),
        bytes_up=_mean([row.bytes_up for row in done]),
        aucs=aucs,
        paper=any(row.paper for row in rows),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return fmean(there) if there and len(there) == len(values) else None
