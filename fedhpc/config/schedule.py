"""The section `schedule`: whether a slow hospital is waited for, has less work planned for it, or may be late."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedhpc.config.data import Site
from fedhpc.util.section import Section

if TYPE_CHECKING:
    from fedhpc.config.schema import RunConfig

LEAST_EFFORT = 0.01
"""Below it a site trains so few images a step that its noise, or the bias of a single step, outweighs what it adds."""
LEAST_SHARE = 0.5
"""Of the effort that a site would have if a step cost its images only."""
DIGITS = 3
"""Significant digits of a planned effort."""

Effort = Annotated[float, Field(ge=LEAST_EFFORT, le=1)]


class Schedule(Section):
    """How long a round takes where hospitals are not equally fast.

    - `wait`: every site does the same work for its size. A round takes as long as the slowest site.
    - `plan`: a site that would take longer than the largest site takes at normal speed does less. Its *effort* is the
      share of its images that it trains on in a round: min(1, ((c + largest weight) x its speed - c) / its weight),
      where c is the work that does not shrink with the effort: with privacy what a step costs whatever its batch,
      step_images / sample_rate; without what a round costs whatever its steps, round_units; but at least half of what
      it would be with c = 0, since c is measured without the reading of images. The efforts are public, fixed
      before the first round, and the same at every later start. With privacy on a slow site draws its units with
      sample_rate x effort, in as many steps as the others, with the noise multiplier that costs the same epsilon; its
      mean gradient is over the expected batch that is left. Without privacy it makes fewer steps, and its update is
      normalised (algorithm.name=fednova).
    - `deadline`: a round ends `deadline_s` seconds after it began, with the updates that are ready; where none is, it
      goes on until one is. A late site sends nothing, goes on training from the model that it began with, and sends in
      the first round that ends after it is done, once, with its weight divided by 1 + the rounds that it is late
      (*staleness*). With privacy on it makes all steps of the round that it began in, with the usual noise; its ledger
      is charged for them as it begins, and comes to less than that of the others. Which rounds a site is late in is
      public, and depends on seconds: on its machine, and a little on how many images its random batches have. The bits
      of such a run depend on these seconds too; `replay` repeats them. What is under way when a start or the run ends
      is given up; its charge stays.

    Speeds are declared (`data.sites: speed`); where no site declares one, they are measured at the first start, on
    random numbers in the place of images, as the median site's seconds a step over the site's.
    `run.py preflight CONFIG --speeds` measures and prints them for the config.
    """

    policy: Literal["wait", "plan", "deadline"] = Field(
        default="wait",
        description="wait for the slowest site, plan less work for slow sites, or end a round after deadline_s, see "
        "above",
    )
    step_images: Annotated[float, Field(ge=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None,
        description="what a private step costs whatever its batch (noise, optimiser), in images, with policy=plan; "
        "null: measured where speeds are, else 0",
    )
    round_units: Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None = Field(
        default=None,
        description="what a round without privacy costs whatever its steps, in units of `data.sites: weight`, with "
        "policy=plan; null: measured where speeds are, else 0",
    )
    deadline_s: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)] | None = Field(
        default=None,
        description="seconds of local training after which a round ends, with policy=deadline; a little more than a "
        "round of the usual sites takes (`run.py preflight --speeds`)",
    )
    replay: str | None = Field(
        default=None,
        description="rounds.jsonl of a run with policy=deadline: each update enters the round that it entered there, "
        "however long the sites take",
    )
    efforts: Mapping[str, Effort] | None = Field(
        default=None,
        description="effort of each site with policy=plan; null: from the speeds, and written to the run's config",
    )


def planned_efforts(sites: Sequence[Site], speeds: Mapping[str, float], fixed_units: float) -> dict[str, float]:
    """Return the effort of each site by name: that of the class's docstring, rounded, and at least LEAST_EFFORT.

    Where some site declares no weight, all count as equally large.

    Args:
        sites: all that are declared.
        speeds: of the sites, 1 where none is known.
        fixed_units: the work that does not shrink with the effort, in units of weight.

    >>> sites = [Site(name="a", weight=400), Site(name="b", weight=100), Site(name="c", weight=400)]
    >>> planned_efforts(sites, {"b": 0.5, "c": 0.1}, fixed_units=0)
    {'a': 1.0, 'b': 1.0, 'c': 0.1}
    >>> planned_efforts(sites, {"b": 0.5, "c": 0.1}, fixed_units=20)
    {'a': 1.0, 'b': 1.0, 'c': 0.055}
    >>> planned_efforts(sites, {"b": 0.5, "c": 0.1}, fixed_units=400)
    {'a': 1.0, 'b': 1.0, 'c': 0.05}
    """
    known = all(site.weight is not None for site in sites)
    weights = {site.name: (site.weight or 1) if known else 1 for site in sites}
    whole = fixed_units + max(weights.values())
    least = {name: LEAST_SHARE * max(weights.values()) * speeds.get(name, 1.0) for name in weights}
    found = {
        name: max(least[name], whole * speeds.get(name, 1.0) - fixed_units) / weight for name, weight in weights.items()
    }
    return {name: float(f"{min(1.0, max(LEAST_EFFORT, effort)):.{DIGITS}g}") for name, effort in found.items()}


@dataclass(frozen=True)
class FixedWork:
    """What a site does whatever its effort, as the config declares it or as it was measured; None: not known.

    Attributes:
        step_images: of a private step, in images.
        round_units: of a round without privacy, in units of weight.
    """

    step_images: float | None
    round_units: float | None

    def units(self, config: "RunConfig") -> float:
        """Return it in units of weight: a private step is over sample_rate of them.

        Without privacy a slow site makes fewer steps, whose number divides all that they cost.
        """
        if config.private:
            return (self.step_images or 0.0) / config.privacy.sample_rate
        return self.round_units or 0.0


def declared_work(config: "RunConfig") -> FixedWork:
    """Return what the config declares of it."""
    return FixedWork(config.schedule.step_images, config.schedule.round_units)


def efforts_of(config: "RunConfig") -> dict[str, float]:
    """Return the effort of each site: what `schedule.efforts` says, or the plan by the speeds that are declared.

    Where speeds are still to be measured every effort is 1.
    """
    schedule, sites = config.schedule, config.data.sites
    if schedule.policy != "plan":
        return {site.name: 1.0 for site in sites}
    if schedule.efforts is not None:
        return dict(schedule.efforts)
    return planned_efforts(sites, declared_speeds(config), declared_work(config).units(config))


def declared_speeds(config: "RunConfig") -> dict[str, float]:
    """Return the speeds that are declared, by site."""
    return {site.name: site.speed for site in config.data.sites if site.speed is not None}


def is_measured(config: "RunConfig") -> bool:
    """Return whether the speeds are to be measured before the plan is known."""
    return config.schedule.policy == "plan" and config.schedule.efforts is None and not declared_speeds(config)


def schedule_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of the section."""
    schedule, names = config.schedule, config.site_names
    plan, efforts = schedule.policy == "plan", schedule.efforts
    return [
        (
            efforts is not None and not plan,
            "schedule.efforts: belong to schedule.policy=plan; remove them, or set schedule.policy=plan",
        ),
        (
            efforts is not None and set(efforts) != set(names),
            f"schedule.efforts: name {', '.join(sorted(efforts or ())) or 'no site'}, and data.sites "
            f"{', '.join(sorted(names))}; give one effort a site, or null",
        ),
        (
            plan and config.mode != "federated",
            f"schedule.policy=plan: mode={config.mode} has no rounds in which sites wait for each other; set it to "
            "wait",
        ),
        (
            plan and config.privacy.trust == "sites",
            "schedule.policy=plan, privacy.trust=sites: the noise is complete only in the sum of equal shares, each of "
            "one step over all units; a site that draws fewer would need another share. Set schedule.policy=wait, or "
            "trust=aggregator",
        ),
        (
            plan and config.private and config.model.feature_mean == "sites",
            "schedule.policy=plan, model.feature_mean=sites: is composed exactly with steps over all units only, and "
            "a slow site draws a share of them; set model.feature_mean=reference, or schedule.policy=wait",
        ),
        (
            schedule.step_images is not None and not plan,
            "schedule.step_images: belongs to schedule.policy=plan; remove it, or set schedule.policy=plan",
        ),
        (
            schedule.round_units is not None and (not plan or config.private),
            "schedule.round_units: belongs to schedule.policy=plan without privacy; remove it, or set "
            "schedule.policy=plan and privacy=off",
        ),
        *_deadline_rules(config),
        (
            plan and not config.private and config.privacy.trust != "sites" and config.algorithm.name != "fednova",
            f"schedule.policy=plan, algorithm.name={config.algorithm.name}: without privacy a slow site makes fewer "
            "steps, so that a plain mean follows the fast sites; set algorithm.name=fednova, which normalises by them",
        ),
    ]


def _deadline_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of schedule.policy=deadline."""
    schedule, on = config.schedule, config.schedule.policy == "deadline"
    key, timeout_s = "schedule.policy=deadline", config.faults.round_timeout_s
    unset = schedule.deadline_s is None and schedule.replay is None
    stress = config.stress
    given = [f"schedule.{name}" for name in ("deadline_s", "replay") if getattr(schedule, name) is not None]
    return [
        (
            not on and bool(given),
            f"{', '.join(given)}: only with schedule.policy=deadline; remove it, or set schedule.policy=deadline",
        ),
        (
            on and unset,
            f"{key}: schedule.deadline_s is missing; set it to a little more than a round of the usual sites takes "
            "(`run.py preflight CONFIG --speeds` measures it)",
        ),
        (
            on and None not in (timeout_s, schedule.deadline_s) and timeout_s <= schedule.deadline_s,  # type: ignore[operator]
            f"schedule.deadline_s={schedule.deadline_s}: a rank that waits for the timer would be taken for dead after "
            f"faults.round_timeout_s={timeout_s}; raise that above it",
        ),
        (
            on and config.mode != "federated",
            f"{key}: mode={config.mode} has no rounds in which sites wait for each other; set it to wait",
        ),
        (
            on and config.privacy.trust == "sites",
            f"{key}, privacy.trust=sites: the masks of a site cancel only in the sum of the round that it began in, "
            "and its share of the noise is complete only with those of all others; a late site has neither. Set "
            "schedule.policy=wait, or trust=aggregator",
        ),
        (
            on and config.aggregation.rule != "mean",
            f"{key}, aggregation.rule={config.aggregation.rule}: compares updates of one model, and a late one is "
            "of an earlier model; set aggregation.rule=mean, or schedule.policy=plan",
        ),
        (
            on and config.algorithm.name not in ("fedavg", "fedprox", "fednova"),
            f"{key}, algorithm.name={config.algorithm.name}: what it keeps at sites and aggregator belongs to rounds "
            "that all make together; set algorithm.name=fedavg, fedprox or fednova",
        ),
        (
            on and (config.rewards.altruism is not None or config.contribution.store_updates),
            f"{key}: rewards.altruism and contribution.store_updates compare the updates of all sites in a round, and "
            "late ones are missing; remove them",
        ),
        (
            on and stress is not None and stress.of_updates,
            f"{key}, stress.case={stress.case if stress else ''}: replaces updates by what it knows of all of a round, "
            "and late ones are missing; set schedule.policy=wait",
        ),
    ]
