"""What each site's own work is: its share of the images, its noise, and in a stress test how slow it is."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from fedhpc.config.schema import RunConfig
from fedhpc.config.stress import SLOW
from fedhpc.privacy.plan import PrivacyPlan, check_plans, site_plans
from fedhpc.site.context import SiteContext
from fedhpc.site.training.local_sgd import local_steps
from fedhpc.site.training.pace import Bench, StepCost, round_cost_steps, step_cost
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks
from fedhpc.util.progress import at_work


def slowdown(config: RunConfig, site: str) -> float:
    """By which factor a stress test makes each step of a site take longer; 1 without."""
    stress = config.stress
    return stress.amount if stress is not None and stress.case == SLOW and site in stress.sites else 1.0


def measured_cost(site: str, images: Mapping[str, int], bench: Bench) -> StepCost:
    """Return what training takes at a site, on random numbers (`fedhpc.site.training.pace`).

    Args:
        site: its name.
        images: how many sites train on, by name. With privacy on nothing depends on it.
        bench: the network and the device.
    """
    cost = step_cost(bench).times(slowdown(bench.config, site))
    if bench.config.private:
        return cost
    weight = {one.name: one.weight for one in bench.config.data.sites}[site] or images[site]
    return cost.with_round(weight * round_cost_steps(bench) / local_steps(images[site], bench.config.training))


def place_of(site: str, place: SiteContext, plans: Mapping[str, PrivacyPlan]) -> SiteContext:
    """What a site's own work is done with."""
    config = place.config
    return replace(place, plan=plans.get(site), effort=config.effort(site), slowdown=slowdown(config, site))


def run_plan(plans: Mapping[str, PrivacyPlan]) -> PrivacyPlan | None:
    """The noise of the site with the most work: what stands for the run; None without privacy."""
    return max(plans.values(), key=lambda plan: plan.sample_rate, default=None)


def agreed_plans(config: RunConfig, transport: Transport) -> dict[str, PrivacyPlan]:
    """The noise of each site, calibrated at rank 0 alone: it takes seconds of a core that the others' ranks may share.

    Each rank checks those of all sites: noise that is not of a site's sample rate would be charged wrongly.
    """
    if not config.private:
        return {}

    def planned() -> dict[str, Any]:
        with at_work("planning the noise"):
            return {name: asdict(plan) for name, plan in site_plans(config).items()}

    plans = {name: PrivacyPlan(**plan) for name, plan in broadcast_json(transport, planned).items()}
    run_on_all_ranks(transport, lambda: check_plans(config, plans))
    return plans
