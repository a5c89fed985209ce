"""`run.py bench schedule CONFIG`: what a slow hospital costs, waited for or planned for.

Three cases for each epsilon: no slow site (`even`), one that is waited for (`wait`), and one that is planned for
(`plan`). A round takes as long as its slowest site: the CPU seconds of each site's own training on the built-in cohort,
times the factor of the slow one, as if each site had a core of its own; the exchange is left out. AUC and epsilon are
those of whole runs in one process, for each seed: of `even`, which `wait` gives bit by bit, and of `plan`. A run
that is finished in the output folder is not done again.
"""

import itertools
import json
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fedhpc.bench.one_run import summary_of_run
from fedhpc.config.loader import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.build import build_model
from fedhpc.models.device import prepare
from fedhpc.models.saved import load_backbone
from fedhpc.models.task import Task
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.privacy.plan import plan_privacy
from fedhpc.run.display import Console
from fedhpc.run.public_features import make_reference, public_map
from fedhpc.run.session import make_phantoms
from fedhpc.site.data.open_site import open_site_of_run
from fedhpc.site.training.dp_sgd import Units, entropy
from fedhpc.site.training.local_sgd import LocalRound, PrivateWork, train_plain, train_private
from fedhpc.util.text import fitted

Trained = Literal["even", "plan"]
Run = Mapping[str, Any]
TIMED, TIMED_S = 3, 1.0
"""So many rounds of each site, and so many CPU seconds, are timed at least, after one round that is not."""


class Cell(NamedTuple):
    """What is trained: an epsilon (None: without privacy), with or without a plan for the slow site."""

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
        even, plan = (Cell(epsilon, "even"), Cell(epsilon, "plan"))
        seconds = {cell: site_seconds(configs[cell, experiment.seeds[0]]) for cell in (even, plan)}
        runs = {cell: [_trained(experiment, cell, seed, out) for seed in experiment.seeds] for cell in (even, plan)}
        rows += rows_of(experiment.site, experiment.factor, seconds, runs)
    told = {"config": str(experiment.config), "set": list(experiment.sets), "seeds": list(experiment.seeds)}
    return {**told, "site": experiment.site, "factor": experiment.factor, "rows": rows}


def site_seconds(config: RunConfig) -> dict[str, float]:
    """CPU seconds of one round of each site's own training, by name: the median of several, on the built-in cohort."""
    console = Console(speaks=True, out=sys.stderr)
    make_phantoms(config, config.site_names, console)
    make_reference(config, console)
    device = prepare(config.runtime.model_copy(update={"device": "cpu", "threads": 1}), 0)
    backbone = load_backbone(config.model.backbone) if config.model.backbone else None
    found = {}
    for name in config.site_names:
        with open_site_of_run(config, name) as opened:
            model = build_model(config, Task(opened.shard.classes, opened.shard.image_shape), backbone)
            if backbone is not None and config.model.features is not None:
                public_map(config, backbone, opened.shard.image_shape[-1]).load_into(model)
            local = LocalRound(
                model, opened.samples(backbone), config, name, 0, device, lambda *_: None, effort=config.effort(name)
            )
            found[name] = _timed(local)
    return found


def _timed(local: LocalRound) -> float:
    """CPU seconds of a round from the same parameters; what it trains is thrown away."""
    start, p = to_vector(local.model), local.config.privacy
    weight = {site.name: site.weight for site in local.config.data.sites}[local.site] or 1
    plan = plan_privacy(local.config, local.site) if local.config.private else None
    units = Units.of(local.samples, p.unit, p.max_images_per_patient)
    took: list[float] = []
    while len(took) <= TIMED or sum(took) < TIMED_S:
        from_vector(local.model, start)
        begun_s = time.process_time()
        if plan is None:
            train_plain(local)
        else:
            train_private(local, PrivateWork(units, plan, entropy(None, local.site, 0), weight))
        took.append(time.process_time() - begun_s)
    return statistics.median(took[1:])


def _trained(experiment: Experiment, cell: Cell, seed: int, out: Path) -> dict[str, Any]:
    """What one run came to: AUC, and the epsilon of each site's ledger."""
    directory = out / f"epsilon{cell.epsilon or 'none'}-{cell.case}-seed{seed}"
    summary = summary_of_run(experiment.config, directory, experiment.overrides(cell, seed))
    return {"auc": summary["auc"], "epsilon": {name: site["epsilon"] for name, site in summary["per_site"].items()}}


def rows_of(
    slow: str, factor: float, seconds: Mapping[Cell, Mapping[str, float]], runs: Mapping[Cell, Sequence[Run]]
) -> list[dict[str, Any]]:
    """Return the three cases of one epsilon.

    Args:
        slow: the slow site.
        factor: how slow it is.
        seconds: of a round by site, as if none were slow, for `even` and `plan` in this order.
        runs: of each of them, by seed.
    """
    even, plan = seconds
    usual = max(seconds[even].values())
    rows = []
    for case, cell in (("even", even), ("wait", even), ("plan", plan)):
        times = {slow: 1.0 if case == "even" else factor}
        took = {name: s * times.get(name, 1.0) for name, s in seconds[cell].items()}
        less = [one["auc"] - other["auc"] for one, other in zip(runs[cell], runs[even], strict=True)]
        row = {
            "epsilon": even.epsilon,
            "case": case,
            "site_seconds": took,
            "rounds_per_minute": 60 / max(took.values()),
            "pace": usual / max(took.values()),
            "auc": statistics.fmean(one["auc"] for one in runs[cell]),
            "less_even": statistics.fmean(less),
            "each_less_even": less,
            "spent": runs[cell][0]["epsilon"],
        }
        rows.append(row)
    return rows


def text(result: Mapping[str, Any]) -> str:
    """For a person."""
    head = ("epsilon", "case", "rounds a minute", "pace", "AUC", "less even", "epsilon spent: least and most")
    lines = fitted([head, *(_line(row) for row in result["rows"])])
    return f"{result['site']} is slowed {result['factor']:g} times; pace: share of the run without a slow site\n{lines}"


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    epsilon, spent = row["epsilon"], row["spent"].values()
    return (
        "none" if epsilon is None else f"{epsilon:g}",
        row["case"],
        f"{row['rounds_per_minute']:.1f}",
        f"{row['pace']:.2f}",
        f"{row['auc']:.4f}",
        f"{row['less_even']:+.4f}",
        "-" if epsilon is None else f"{min(spent):.4f} {max(spent):.4f}",
    )
