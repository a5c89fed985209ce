"""`run.py bench schedule CONFIG`: what a slow hospital costs, waited for, planned for or late.

Four cases for each epsilon: no slow site (`even`), one that is waited for (`wait`), one that is planned for (`plan`),
and one whose updates are late (`deadline`). A round takes as long as its slowest site, or as the timer: the CPU seconds
of each site's own training on the built-in cohort, times the factor of the slow one, as if each site had a core of its
own; the exchange is left out. Rounds of all sites and of both cases take turns, so that a machine whose speed drifts is
as fast for all; the pace is the median over these turns, beside its quartiles. AUC and epsilon are those of whole runs
in one process, for each seed: of `even`, which `wait` gives bit by bit, of `plan`, and of `deadline` by the rounds that
the seconds make each update enter (schedule.replay). A run that is finished in the output folder is not done again, and
what was timed there is not timed again.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from fedhpc.bench.one_run import summary_of_run
from fedhpc.config.loader import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.backbones import Backbone
from fedhpc.models.build import build_model
from fedhpc.models.device import Device, prepare
from fedhpc.models.saved import load_backbone
from fedhpc.models.task import Task
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.privacy.plan import plan_privacy
from fedhpc.run.display import Console
from fedhpc.run.start.built_in_cohort import make_phantoms, make_reference
from fedhpc.run.start.public_features import public_map
from fedhpc.run.start.site_work import measured_cost
from fedhpc.site.data.open_site import open_site_of_run
from fedhpc.site.training.dp_sgd import Units, entropy
from fedhpc.site.training.local_sgd import LocalRound, PrivateWork, train_plain, train_private
from fedhpc.site.training.pace import Bench
from fedhpc.util.files import make_folder, read_json, write_json, write_text
from fedhpc.util.text import fitted

Trained = Literal["even", "plan", "deadline"]
Run = Mapping[str, Any]
SLACK = 1.1
"""Of the timer over what the largest site takes."""
TURNS = 40
"""So many rounds of each site are timed, after one that is not."""


class Cell(NamedTuple):
    """What is trained: an epsilon (None: without privacy), and what is done about the slow site."""

    epsilon: float | None
    case: Trained


@dataclass(frozen=True)
class Experiment:
    """A config with overrides, and the site that is slow.

    Attributes:
        config: the file; of the built-in cohort.
        sets: overrides.
        site: which site is slow.
        factor: how slow it is.
        epsilons: of the runs; None is without privacy, by FedNova.
        seeds: one run for each.
    """

    config: Path
    sets: Sequence[str]
    site: str
    factor: float
    epsilons: Sequence[float | None]
    seeds: Sequence[int]

    def overrides(self, cell: Cell, seed: int) -> list[str]:
        """What to set for one run. Its evaluation is exact, so that its AUC has no noise of its own."""
        own = [*self.sets, f"seed={seed}"]
        private = ["algorithm.name=fedavg", f"privacy.epsilon={cell.epsilon}", "evaluation.epsilon=null"]
        own += ["algorithm.name=fednova", "privacy=off"] if cell.epsilon is None else private
        if cell.case == "plan":
            own += ["schedule.policy=plan", f"data.sites={json.dumps(self._declared())}"]
        return own

    def replayed(self, record: Path) -> list[str]:
        """What to set for a run whose updates enter the rounds of a record."""
        return ["schedule.policy=deadline", f"schedule.replay={record}"]

    def _declared(self) -> list[dict[str, Any]]:
        """The sites of the config, with the speed of the slow one."""
        sites = load_config(self.config, list(self.sets)).data.sites
        plain = [site.model_dump(mode="json", exclude_none=True) for site in sites]
        return [{**site, "speed": 1 / self.factor} if site["name"] == self.site else site for site in plain]


def run(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Time the sites, do all runs that are not done, and give a row for each epsilon and case.

    Raises:
        InputError: a config that cannot be, or is not of the built-in cohort; or a run that failed.
    """
    cells = [Cell(epsilon, case) for epsilon in experiment.epsilons for case in ("even", "plan")]
    configs = {
        (cell, seed): load_config(experiment.config, experiment.overrides(cell, seed))
        for cell, seed in itertools.product(cells, experiment.seeds)
    }
    first = next(iter(configs.values()))
    if first.data.phantom is None or experiment.site not in first.site_names or first.mode != "federated":
        raise InputError(
            f"bench schedule {experiment.config}: is of data.phantom, mode=federated and --site of data.sites only",
            code="command-line",
        )
    rows = []
    for epsilon in experiment.epsilons:
        rows += _rows_at(experiment, epsilon, configs[Cell(epsilon, "even"), experiment.seeds[0]], out)
    told = {"config": str(experiment.config), "set": list(experiment.sets), "seeds": list(experiment.seeds)}
    return {**told, "site": experiment.site, "factor": experiment.factor, "rows": rows}


def _rows_at(experiment: Experiment, epsilon: float | None, config: RunConfig, out: Path) -> list[dict[str, Any]]:
    """The rows of one epsilon."""
    name = f"epsilon{epsilon or 'none'}"
    make_folder(out)
    work = _kept(out / f"{name}-fixed.json", lambda: fixed_work(config))
    planned = [f"schedule.{key}={value}" for key, value in work.items()]
    even, plan, late = (Cell(epsilon, case) for case in ("even", "plan", "deadline"))
    first = experiment.seeds[0]
    plan_config = load_config(experiment.config, [*experiment.overrides(plan, first), *planned])
    kept = _kept(out / f"{name}-turns.json", lambda: {"turns": timed_turns(config, plan_config)})
    turns = [{even: one["even"], plan: {**one["even"], **one["plan"]}, late: one["even"]} for one in kept["turns"]]
    usual = medians([turn[even] for turn in turns])
    slowed = {one: s * (experiment.factor if one == experiment.site else 1) for one, s in usual.items()}
    pace = late_rounds(slowed, SLACK * max(usual.values()), config.training.rounds)
    record = (out / f"{name}-late.jsonl").resolve()
    write_text(record, "".join(json.dumps(one) + "\n" for one in pace.records))
    more = {even: [], plan: planned, late: experiment.replayed(record)}
    runs = {
        cell: [_trained(experiment, cell, seed, out, more[cell]) for seed in experiment.seeds]
        for cell in (even, plan, late)
    }
    return rows_of(Slow(experiment.site, experiment.factor, pace.mean_s), turns, runs)


def _kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured, now or by an earlier call."""
    if not path.exists():
        write_json(path, measure())
    return read_json(path, "Remove it")


def fixed_work(config: RunConfig) -> dict[str, float]:
    """What is done on this machine whatever the effort, at the first site, as keys of `schedule`."""
    _make_cohort(config)
    backbone, device = _machine(config)
    with open_site_of_run(config, config.site_names[0]) as opened:
        model = build_model(config, Task(opened.shard.classes, opened.shard.image_shape), backbone)
        shape = opened.shard.image_shape if backbone is None else (backbone.dim,)
        images = {opened.shard.site: len(opened.shard.indices("train"))}
        cost = measured_cost(config.site_names[0], images, Bench(model, shape, config, device))
    if config.private:
        return {"step_images": float(f"{cost.step_images:.2g}")}
    return {"round_units": cost.round_units}


@dataclass(frozen=True)
class LateRounds:
    """The rounds that a timer ends: their records, as rounds.jsonl has them, and how long one takes."""

    records: tuple[dict[str, Any], ...]
    mean_s: float


def late_rounds(seconds: Mapping[str, float], deadline_s: float, rounds: int) -> LateRounds:
    """Return what schedule.policy=deadline makes of sites that train for so many seconds.

    >>> made = late_rounds({"a": 1.0, "b": 2.5}, 1.0, 3)
    >>> [(one["late"], one["staleness"]) for one in made.records], made.mean_s
    ([(['b'], {'a': 0}), (['b'], {'a': 0}), ([], {'a': 0, 'b': 2})], 1.0)
    """
    now, began, until, records = 0.0, dict.fromkeys(seconds, 0), dict(seconds), []
    for number in range(rounds):
        ends = now + deadline_s
        while min(until.values()) > ends:
            ends += deadline_s
        ends = min(ends, max(until.values()))
        ready = [name for name in seconds if until[name] <= ends]
        staleness = {name: number - began[name] for name in ready}
        records.append({"round": number + 1, "late": [n for n in seconds if n not in ready], "staleness": staleness})
        began |= dict.fromkeys(ready, number + 1)
        until |= {name: ends + seconds[name] for name in ready}
        now = ends
    return LateRounds(tuple(records), now / rounds)


def _make_cohort(config: RunConfig) -> None:
    console = Console(speaks=True, out=sys.stderr)
    make_phantoms(config, config.site_names, console)
    make_reference(config, console)


def _machine(config: RunConfig) -> tuple[Backbone | None, Device]:
    device = prepare(config.runtime.model_copy(update={"device": "cpu", "threads": 1}), 0)
    return load_backbone(config.model.backbone) if config.model.backbone else None, device


def timed_turns(even: RunConfig, plan: RunConfig) -> list[dict[str, dict[str, float]]]:
    """CPU seconds of each site's own training in a round, by case and site, of rounds that take turns.

    Sites that do the same work in both cases are in `even` only.
    """
    _make_cohort(even)
    with ExitStack() as stack:
        rounds = [("even", name, _work(even, name, stack)) for name in even.site_names]
        rounds += [("plan", name, _work(plan, name, stack)) for name in plan.site_names if plan.effort(name) < 1]
        turns: list[dict[str, dict[str, float]]] = []
        for _ in range(TURNS + 1):
            turns.append({"even": {}, "plan": {}})
            for case, name, train in rounds:
                turns[-1][case][name] = train()
    return turns[1:]


def _work(config: RunConfig, name: str, stack: ExitStack) -> Callable[[], float]:
    """What trains a round at a site, from the same parameters each time, and returns the CPU seconds that it took."""
    backbone, device = _machine(config)
    opened = stack.enter_context(open_site_of_run(config, name))
    model = build_model(config, Task(opened.shard.classes, opened.shard.image_shape), backbone)
    if backbone is not None and config.model.features is not None:
        public_map(config, backbone, opened.shard.image_shape[-1]).load_into(model)
    where = (name, 0, device, lambda *_: None)
    local = LocalRound(model, opened.samples(backbone), config, *where, effort=config.effort(name))
    start, p = to_vector(model), config.privacy
    weight = {site.name: site.weight for site in config.data.sites}[name] or 1
    plan = plan_privacy(config, name) if config.private else None
    units = Units.of(local.samples, p.unit, p.max_images_per_patient)

    def trained_s() -> float:
        begun_s = time.process_time()
        from_vector(model, start)
        if plan is None:
            train_plain(local)
        else:
            train_private(local, PrivateWork(units, plan, entropy(None, name, 0), weight))
        return time.process_time() - begun_s

    return trained_s


def medians(turns: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each key over some mappings with the same keys.

    >>> medians([{"a": 1.0}, {"a": 9.0}, {"a": 2.0}])
    {'a': 2.0}
    """
    return {key: statistics.median(one[key] for one in turns) for key in turns[0]}


def _trained(experiment: Experiment, cell: Cell, seed: int, out: Path, more: Sequence[str]) -> dict[str, Any]:
    """What one run came to: AUC, and the epsilon of each site's ledger."""
    directory = out / f"epsilon{cell.epsilon or 'none'}-{cell.case}-seed{seed}"
    summary = summary_of_run(experiment.config, directory, [*experiment.overrides(cell, seed), *more])
    return {"auc": summary["auc"], "epsilon": {name: site["epsilon"] for name, site in summary["per_site"].items()}}


@dataclass(frozen=True)
class Slow:
    """The slow site, how slow it is, and how long a round takes that a timer ends."""

    site: str
    factor: float
    late_s: float


def rows_of(
    slow: Slow, turns: Sequence[Mapping[Cell, Mapping[str, float]]], runs: Mapping[Cell, Sequence[Run]]
) -> list[dict[str, Any]]:
    """Return the four cases of one epsilon.

    Args:
        slow: the slow site.
        turns: seconds of a round by site, as if none were slow, for `even`, `plan` and `deadline` in this order, in
            each of several turns.
        runs: of each of them, by seed.
    """
    even, plan, late = turns[0]
    rows = []
    for case, cell in (("even", even), ("wait", even), ("plan", plan), ("deadline", late)):
        factors = {} if case == "even" else {slow.site: slow.factor}
        took = [{name: s * factors.get(name, 1.0) for name, s in turn[cell].items()} for turn in turns]
        round_s = [slow.late_s if cell is late else max(one.values()) for one in took]
        paces = [max(turn[even].values()) / one_s for turn, one_s in zip(turns, round_s, strict=True)]
        less = [one["auc"] - other["auc"] for one, other in zip(runs[cell], runs[even], strict=True)]
        row = {
            "epsilon": even.epsilon,
            "case": case,
            "site_seconds": medians(took),
            "rounds_per_minute": 60 / statistics.median(round_s),
            "pace": statistics.median(paces),
            "pace_quartiles": [float(one) for one in np.quantile(paces, (0.25, 0.75))],
            "auc": statistics.fmean(one["auc"] for one in runs[cell]),
            "less_even": statistics.fmean(less),
            "each_less_even": less,
            "spent": runs[cell][0]["epsilon"],
        }
        rows.append(row)
    return rows


def text(result: Mapping[str, Any]) -> str:
    """For a person."""
    head = (
        "epsilon",
        "case",
        "rounds a minute",
        "pace",
        "quartiles",
        "AUC",
        "less even",
        "epsilon spent: least and most",
    )
    lines = fitted([head, *(_line(row) for row in result["rows"])])
    return f"{result['site']} is slowed {result['factor']:g} times; pace: share of the run without a slow site\n{lines}"


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    epsilon, spent = row["epsilon"], row["spent"].values()
    return (
        "none" if epsilon is None else f"{epsilon:g}",
        row["case"],
        f"{row['rounds_per_minute']:.1f}",
        f"{row['pace']:.2f}",
        " ".join(f"{one:.2f}" for one in row["pace_quartiles"]),
        f"{row['auc']:.4f}",
        f"{row['less_even']:+.4f}",
        "-" if epsilon is None else f"{min(spent):.4f} {max(spent):.4f}",
    )
