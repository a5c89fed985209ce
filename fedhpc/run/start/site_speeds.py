"""The plan of unequal work: settled once, kept in `schedule.json` of the run directory, the same at every start.

All that leaves a site for it are numbers of two significant digits: its seconds an image and a step, and without
privacy what a round costs whatever its steps, all on random numbers.
"""

import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from fedhpc.config.data import Site
from fedhpc.config.schedule import Effort, FixedWork, declared_speeds, declared_work, is_measured, planned_efforts
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError
from fedhpc.records.run_directory import RESTORE, RunDirectory
from fedhpc.run.start.membership import Membership
from fedhpc.run.start.secure_channel import sites_by_rank
from fedhpc.site.training.pace import StepCost
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks
from fedhpc.transport.messages import Name, of_each, parsed
from fedhpc.util.files import read_json, write_json


class SiteSpeed(TypedDict):
    """What a site says of its speed (public)."""

    site: Name
    seconds_per_step: Annotated[float, Field(ge=0, lt=1e6, allow_inf_nan=False)]
    seconds_per_image: Annotated[float, Field(gt=0, lt=1e6, allow_inf_nan=False)]
    round_units: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]


SITE_SPEED = TypeAdapter(SiteSpeed)
EFFORTS: TypeAdapter[dict[str, float]] = TypeAdapter(dict[str, Effort])


def with_schedule(
    members: Membership,
    directory: RunDirectory,
    transport: Transport,
    weights: Mapping[str, int],
    measure: Callable[[str], StepCost],
) -> Membership:
    """Return `members` whose configs hold the effort of each site; unchanged but with schedule.policy=plan.

    Args:
        members: who takes part; the config of all that are declared has efforts where the run has finished rounds.
        directory: of the run.
        transport: between the ranks.
        weights: of the sites that take part, as they count in the mean: the same at every rank.
        measure: gives what a step takes at a site of this rank, by name.

    Raises:
        InputError: at every rank, where the plan cannot be read or written, or is not of what this rank's config
            declares.
    """
    declared = members.declared
    if declared.schedule.policy != "plan" or declared.schedule.efforts is not None:
        return members
    sites = _weighed(declared.data.sites, weights)
    costs = None
    if broadcast_json(transport, lambda: is_measured(declared) and _kept(directory, declared) is None):
        costs = measured_costs(members.config, transport, measure)
    efforts = broadcast_json(transport, lambda: _settled(directory, declared, sites, costs))
    run_on_all_ranks(transport, lambda: _check(declared, sites, efforts))
    whole = declared.replace({"schedule.efforts": efforts})
    return replace(members, declared=whole, config=whole.without(members.absent))


def _weighed(sites: Sequence[Site], weights: Mapping[str, int]) -> list[Site]:
    """Return the sites with the weights that they count with, where they declare none."""
    return [site.model_copy(update={"weight": site.weight or weights.get(site.name)}) for site in sites]


def measured_costs(config: RunConfig, transport: Transport, measure: Callable[[str], StepCost]) -> dict[str, StepCost]:
    """Return what a step takes at each site that takes part, by name, at rank 0; empty elsewhere."""
    names = [config.site_names[i] for i in sites_by_rank(config, transport.size)[transport.rank]]
    mine = run_on_all_ranks(
        transport, lambda: [json.dumps({"site": name, **asdict(measure(name))}).encode() for name in names]
    )
    payloads = transport.gather(mine, "hello")
    return dict(of_each(payloads, config.site_names, "hello", _read)) if payloads else {}


def _read(site: str, payload: bytes) -> tuple[str, StepCost]:
    speed = parsed(payload, SITE_SPEED, f"site {site}, hello")
    if speed["site"] != site:
        raise PayloadError(f"site {site}, hello: it speaks for another site")
    return site, StepCost(speed["seconds_per_step"], speed["seconds_per_image"], speed["round_units"])


def speeds_from(seconds: Mapping[str, float]) -> dict[str, float]:
    """Return each site's speed, at most 1: the median site's seconds a step (the lower of two) over its own.

    >>> speeds_from({"a": 0.5, "b": 1.0, "c": 1.0, "d": 10.0})
    {'a': 1.0, 'b': 1.0, 'c': 1.0, 'd': 0.1}
    """
    normal = statistics.median_low(seconds.values())
    return {name: min(1.0, normal / took) for name, took in seconds.items()}


def usual_work(costs: Mapping[str, StepCost]) -> FixedWork:
    """Return what is done whatever the effort at the median site (the lower of two)."""
    step_images = statistics.median_low(cost.step_images for cost in costs.values())
    return FixedWork(step_images, statistics.median_low(cost.round_units for cost in costs.values()))


def _settled(
    directory: RunDirectory, declared: RunConfig, sites: Sequence[Site], costs: Mapping[str, StepCost] | None
) -> dict[str, float]:
    """Return the efforts by site, at rank 0: those that are kept, or a plan that is kept from now on."""
    kept = _kept(directory, declared)
    if kept is not None:
        return kept
    seconds = None if costs is None else {name: cost.seconds_per_image for name, cost in costs.items()}
    usual_s = {name: cost.usual_step_s for name, cost in (costs or {}).items()}
    speeds = speeds_from(usual_s) if usual_s else declared_speeds(declared)
    work = declared_work(declared)
    if costs:
        usual = usual_work(costs)
        work = FixedWork(
            usual.step_images if work.step_images is None else work.step_images,
            usual.round_units if work.round_units is None else work.round_units,
        )
    efforts = planned_efforts(sites, speeds, work.units(declared))
    measured = {"seconds_per_image": seconds, **asdict(work)}
    content = {"declared": _declared(declared), **measured, "efforts": efforts}
    write_json(directory.schedule, content)
    return efforts


def _kept(directory: RunDirectory, declared: RunConfig) -> dict[str, float] | None:
    """Return the efforts that an earlier start has planned from the same declared sites; None where there are none."""
    if not directory.schedule.exists():
        return None
    content = read_json(directory.schedule, RESTORE)
    if content.get("declared") != _declared(declared) and not directory.has_rounds():
        return None
    try:
        return EFFORTS.validate_python(content.get("efforts"))
    except ValidationError:
        raise InputError(
            f"{directory.schedule}: holds no effort for each site; it was cut or changed. {RESTORE}",
            code="file.damaged",
        ) from None


def _declared(config: RunConfig) -> dict[str, Any]:
    """Return what a plan depends on, of the config."""
    return {site.name: [site.weight, site.speed] for site in config.data.sites}


def _check(declared: RunConfig, sites: Sequence[Site], efforts: Mapping[str, float]) -> None:
    """Check a plan that came from the aggregator; of measured speeds it is free, and a site charges what it does.

    Raises:
        InputError: other sites, or another plan than the declared speeds give.
    """
    wanted = planned_efforts(sites, declared_speeds(declared), declared_work(declared).units(declared))
    # Of an absent site that declares no weight none is known, where an earlier start may have known it.
    known = declared_speeds(declared) and all(site.weight is not None for site in declared.data.sites)
    same = efforts == wanted if known else set(efforts) == set(wanted)
    if not same:
        raise InputError(
            f"schedule: the efforts from rank 0 are {dict(efforts)}, and this rank's config gives {wanted}; give all "
            "ranks the same file",
            code="config.ranks-differ",
        )
