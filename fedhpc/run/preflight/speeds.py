"""`run.py preflight CONFIG --speeds`: what a step takes at each site, as sections for the config (public)."""

import json
from collections.abc import Mapping, Sequence
from functools import partial

from fedhpc.config.schema import RunConfig
from fedhpc.models.build import build_model
from fedhpc.models.device import Device, prepare
from fedhpc.models.saved import load_backbone
from fedhpc.models.task import Task
from fedhpc.privacy.plan import without_noise
from fedhpc.run.display import Console
from fedhpc.run.start.built_in_cohort import make_phantoms
from fedhpc.run.start.network import check_before_cohort
from fedhpc.run.start.secure_channel import sites_by_rank
from fedhpc.run.start.site_speeds import measured_costs, speeds_from, usual_work
from fedhpc.run.start.site_work import measured_cost
from fedhpc.site.data.open_site import open_site_of_run
from fedhpc.site.training.local_sgd import local_steps
from fedhpc.site.training.pace import Bench, StepCost
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.util.text import fitted

SLACK = 1.1
"""Of a deadline over the time that the largest site takes at normal speed: Poisson batches are not equally large."""


def measured_speeds(config: RunConfig, transport: Transport) -> str:
    """Measure at every rank; return sections for the config, and a table, at rank 0.

    Raises:
        InputError: at every rank, where a shard or a network cannot be opened.
    """
    mine = [config.site_names[i] for i in sites_by_rank(config, transport.size)[transport.rank]]
    console = Console(speaks=transport.rank == 0)
    run_on_all_ranks(transport, lambda: check_before_cohort(config, mine))
    run_on_all_ranks(transport, lambda: make_phantoms(config, mine, console))
    device = run_on_all_ranks(transport, lambda: prepare(config.runtime, transport.local_rank))
    costs = measured_costs(config, transport, partial(_cost, config, device))
    return sections(config, costs) if costs else ""


def _cost(config: RunConfig, device: Device, site: str) -> StepCost:
    backbone = load_backbone(config.model.backbone) if config.model.backbone else None
    with open_site_of_run(config, site) as opened:
        shard = opened.shard
        model = build_model(config, Task(shard.classes, shard.image_shape, config.task), backbone).to(device.device)
        shape: Sequence[int] = shard.image_shape if backbone is None else (backbone.dim,)
        images = {site: len(shard.indices("train"))}
    return measured_cost(site, images, Bench(model, shape, config, device))


def sections(config: RunConfig, costs: Mapping[str, StepCost]) -> str:
    """Return what to write into the config for schedule.policy=plan and deadline, and what was measured."""
    speeds = speeds_from({name: cost.usual_step_s for name, cost in costs.items()})
    work = usual_work(costs)
    declared = [site.model_dump(mode="json", exclude_none=True) for site in config.data.sites]
    sites = [{**site, "speed": float(f"{speeds[site['name']]:.2g}")} for site in declared]
    known = {"step_images": work.step_images} if config.private else {"round_units": work.round_units}
    fixed = {name: float(f"{value or 0:.2g}") for name, value in known.items()}
    lines = ["for the config, with schedule.policy=plan:", "data:", "  sites:"]
    lines += [f"    - {json.dumps(site)}" for site in sites]
    lines += [f"schedule: {json.dumps({'policy': 'plan', **fixed})}"]
    rounds = {name: round_s(config, name, cost) for name, cost in costs.items()}
    if None not in rounds.values():
        usual = max(seconds * speeds[name] for name, seconds in rounds.items() if seconds is not None)
        late = {"policy": "deadline", "deadline_s": float(f"{SLACK * usual:.2g}")}
        lines += ["or, with late updates:", f"schedule: {json.dumps(late)}"]
    rows = [("site", "seconds a step", "and an image", "seconds of training a round")]
    for name, cost in costs.items():
        total = rounds[name]
        took = "not known without data.sites: weight" if total is None else f"{total:.2g}"
        rows.append((name, f"{cost.seconds_per_step:g}", f"{cost.seconds_per_image:g}", took))
    return "\n".join([*lines, "", fitted(rows)])


def round_s(config: RunConfig, site: str, cost: StepCost) -> float | None:
    """Return about how long a site trains in a round at full work; None where its size is not declared.

    Reading and harmonising images is not in it.
    """
    weight = {one.name: one.weight for one in config.data.sites}[site]
    if weight is None:
        return None
    if not config.private:
        steps = local_steps(weight, config.training)
        return cost.seconds_per_image * config.training.local_epochs * weight + steps * cost.seconds_per_step
    plan = without_noise(config, site)
    return plan.steps_per_round * (cost.seconds_per_step + cost.seconds_per_image * plan.sample_rate * weight)
