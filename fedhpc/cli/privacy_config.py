"""What configs will cost before any training, by themselves and together on the same patients. Opens no shard."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedhpc.cli.common import Report
from fedhpc.cli.privacy_tables import config_text
from fedhpc.config.schedule import efforts_of, is_measured
from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Charge, bounds_of
from fedhpc.privacy.evaluation_plan import charges_of_run, plan_evaluation
from fedhpc.privacy.plan import PrivacyPlan, bound_note, epsilon_if_unmasked, plan_privacy, without_noise
from fedhpc.privacy.spending import Limit, Spending, no_set
from fedhpc.privacy.verdict import judged, noise_per_signal
from fedhpc.records.summary import data_digest, data_labels
from fedhpc.site.account import folder_on_this_node, found_ledger, told
from fedhpc.util.progress import at_work
from fedhpc.util.text import wrapped

SHOWN_ROUNDS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
OTHER_ROUNDS, OTHER_RATES = (1, 20, 100), (0.05, 0.2, 1.0)


def report_configs(configs: Sequence[RunConfig]) -> Report:
    """Return the plan of each config, and what those on the same data would have spent together, as a sweep would."""
    with at_work("planning the noise") as begins:
        parts = [_report_config(config, begins) for config in configs]
        if len(configs) == 1:
            return parts[0]
        begins("of all configs together")
        return _report_together(configs, parts)


def _report_together(configs: Sequence[RunConfig], parts: Sequence[Report]) -> Report:
    together = [_together(data, mine) for data, mine in by_data(configs).items()]
    accounts = _shared_accounts(configs) if len(together) > 1 else []
    facts = {"configs": [part.facts for part in parts], "together": together, "shared_accounts": accounts}
    texts = [part.text for part in parts]
    for one in together:
        head = f"On the same patients ({', '.join(one['configs'])}; {one['data']}), with what was spent before:"
        texts.append("\n".join([wrapped(head), *(f"  {site}: {text}" for site, text in one["sites"].items())]))
    for one in accounts:
        line = f"{one['site_ledger']}: the account of all {len(configs)} configs: a patient who is in the data of each "
        texts.append(wrapped(f"{line}would have spent {one['spent_after']}"))
    return Report(facts, "\n\n".join(texts))


def by_data(configs: Sequence[RunConfig]) -> dict[str, list[RunConfig]]:
    """Configs on the same data together, under a name of that data: "site1" of other shards is another site."""
    labels = data_labels(configs)
    found: dict[str, list[RunConfig]] = {}
    for config in configs:
        found.setdefault(labels.get(data_digest(config), config.data.shards), []).append(config)
    return found


def _together(data: str, configs: Sequence[RunConfig]) -> dict[str, Any]:
    sites = sorted({name for config in configs for name in config.site_names})
    spent = {site: _spent_after(configs[0], site, configs) for site in sites}
    return {"data": data, "configs": [config.name for config in configs], "sites": spent}


def _shared_accounts(configs: Sequence[RunConfig]) -> list[dict[str, Any]]:
    """Accounts that every config charges, though their data differ: folds, or new imports, of the same patients."""
    folders: dict[Path, list[tuple[RunConfig, str]]] = {}
    for config in configs:
        for site in config.site_names:
            folders.setdefault(folder_on_this_node(config, site).resolve(), []).append((config, site))
    shared = [users for users in folders.values() if len({id(config) for config, _ in users}) == len(configs)]
    return [
        {
            "site_ledger": str(folder_on_this_node(*users[0])),
            "sites": sorted({site for _, site in users}),
            "spent_after": _spent_after(*users[0], configs, moving=True),
        }
        for users in shared
    ]


def _spent_after(config: RunConfig, site: str, configs: Sequence[RunConfig], *, moving: bool = False) -> str:
    """Return what the patient who has spent most would have spent after all `configs`, on the site ledger of a site.

    `moving`: their data differ, so that a patient may be in another split in each.
    """
    plans = [charges_of_run(one, plan_privacy(one, site if site in one.site_names else None)) for one in configs]
    account = found_ledger(config, site)
    if account is not None:
        return f"epsilon {told(account.largest_with(plans, moving=moving))} per {account.terms.unit}"
    limit = Limit(None, None, min(one.privacy.delta for one in configs))
    return f"epsilon {told(Spending((), no_set).largest_with(plans, limit, moving=moving))} per {config.privacy.unit}"


def planned_charges(config: RunConfig, plan: PrivacyPlan, rounds: int | None = None) -> list[Charge]:
    """Return the charges of a whole run, or of so many rounds of it."""
    count = config.training.rounds if rounds is None else rounds
    return [replace(charge, unit=config.privacy.unit) for charge in plan.charges(count)]


def _report_config(config: RunConfig, begins: Callable[[str], None]) -> Report:
    p = config.privacy
    if p.epsilon is None:
        raise PrivacyError(
            f"config {config.name}: privacy: off: nothing is promised and nothing is charged. Set privacy.epsilon",
            code="privacy.off",
        )
    begins(config.name)
    plan = plan_privacy(config)
    begins(f"{config.name}, the whole run")
    facts = {
        "name": config.name,
        "epsilon_target": p.epsilon,
        "delta": p.delta,
        "unit": p.unit,
        "trust": p.trust,
        "mechanism": plan.mechanism,
        "epsilon_if_unmasked": epsilon_if_unmasked(config, plan) if p.trust == "sites" else None,
        "noise_multiplier": plan.noise_multiplier,
        "feature_mean_noise": plan.feature_mean_noise,
        "clip_norm": p.clip_norm,
        "sample_rate": plan.sample_rate,
        "steps_per_round": plan.steps_per_round,
        "rounds": config.training.rounds,
        "steps": plan.steps_per_round * config.training.rounds,
        "noise_per_signal": noise_per_signal(config, plan),
        "bound_note": bound_note(config),
        "verdict": None if (found := judged(config, plan)) is None else found.text,
        "lifetime_epsilon": p.lifetime_epsilon,
        "schedule": _schedule_note(config),
        "sites": [_site_facts(config, site.name) for site in config.data.sites],
        "by_round": [_round_facts(config, plan, round, begins) for round in _shown(config.training.rounds)],
        "other_rounds": [_other(config, "training.rounds", n, begins) for n in OTHER_ROUNDS],
        "other_sample_rates": [_other(config, "privacy.sample_rate", q, begins) for q in OTHER_RATES]
        if p.trust == "aggregator" and not plan.before_rounds
        else [],
    }
    return Report(facts, config_text(facts))


def _schedule_note(config: RunConfig) -> str | None:
    """Return what of unequal work the plan of the sites depends on; None where all do the same."""
    if config.schedule.policy == "wait":
        return None
    if config.schedule.policy == "deadline":
        return (
            "schedule.policy=deadline: this is what a site costs that is never late; one that is makes fewer rounds, "
            "and costs less"
        )
    if is_measured(config):
        return (
            "schedule.policy=plan: speeds are measured at the first start (config.yaml of the run then has "
            "schedule.efforts); all sites are shown at full work, and epsilon will be the same"
        )
    parts = [f"{site} {effort:g}" for site, effort in efforts_of(config).items()]
    return f"schedule.policy=plan: each site's share of its work: {', '.join(parts)}; steps and epsilon are the same"


def _site_facts(config: RunConfig, site: str) -> dict[str, Any]:
    weight = {s.name: s.weight or 0 for s in config.data.sites}[site]
    account = found_ledger(config, site)
    plan = plan_privacy(config, site)
    facts = {
        "site": site,
        "weight": weight,
        **_whole(config, plan),
        "noise_multiplier": plan.noise_multiplier,
        "expected_batch": weight * plan.sample_rate,
        "spent_after": _spent_after(config, site, [config]),
    }
    if account is None:
        return {**facts, "runs_before": 0, "spent_before": "nothing", "cap": None}
    return {
        **facts,
        "runs_before": len({entry["ledger"] for entry in account.entries("charge")}),
        "spent_before": f"epsilon {told(account.largest_with(()))} per {account.terms.unit}",
        "cap": account.terms.cap,
    }


def _whole(config: RunConfig, plan: PrivacyPlan) -> dict[str, Any]:
    """Return what the run costs by itself at a site."""
    bounds, evaluation = bounds_of(planned_charges(config, plan), config.privacy.delta), plan_evaluation(config)
    released = None if evaluation is None else bounds_of(evaluation.charges, config.privacy.delta).epsilon
    return {
        "sample_rate": plan.sample_rate,
        "epsilon_prv": bounds.prv,
        "epsilon_rdp": bounds.rdp,
        "epsilon_evaluation": released,
    }


def _shown(rounds: int) -> list[int]:
    return sorted({round for round in SHOWN_ROUNDS if round < rounds} | {rounds})


def _round_facts(config: RunConfig, plan: PrivacyPlan, round: int, begins: Callable[[str], None]) -> dict[str, Any]:
    begins(f"{config.name} after round {round}")
    return {"round": round, "epsilon": bounds_of(planned_charges(config, plan, round), config.privacy.delta).epsilon}


def _other(config: RunConfig, key: str, value: float, begins: Callable[[str], None]) -> dict[str, Any]:
    """Return what the same target would take with one key set otherwise; no noise where it would be out of reach."""
    begins(f"{config.name} with {key}={value}")
    other = config.replace({key: value})
    steps = without_noise(other).steps_per_round * other.training.rounds
    try:
        plan = plan_privacy(other)
    except PrivacyError:
        return {key: value, "steps": steps, "noise_multiplier": None, "noise_per_signal": None}
    noise = {"noise_multiplier": plan.noise_multiplier, "noise_per_signal": noise_per_signal(other, plan)}
    return {key: value, "steps": steps, **noise}
