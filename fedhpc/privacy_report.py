"""`run.py privacy`: what configs will cost before any training, what a run has spent, what a shard's patients have.

Configs and ledgers; a shard is opened only where it is the target, to find its patients in the site ledger.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fedhpc.config import RunConfig
from fedhpc.config_file import load_config
from fedhpc.console import fixed, table
from fedhpc.errors import InputError, PrivacyError
from fedhpc.privacy.accountant import Bounds, Charge, bounds_of, total_of
from fedhpc.privacy.ledger import read_ledger
from fedhpc.privacy.places import Whose, site_ledger_folder
from fedhpc.privacy.plan import PrivacyPlan, epsilon_if_unmasked, plan_privacy
from fedhpc.privacy.site_ledger import SiteLedger, charge_of, exists
from fedhpc.privacy.verdict import Verdict, directions_of, verdict
from fedhpc.rundir import RunDirectory
from fedhpc.site.account import SYNTHETIC, found_ledger, identities_of, told
from fedhpc.site.shard import Shard

SHOWN_ROUNDS = (1, 2, 3, 5, 10, 20, 50, 100, 200, 500, 1000)
OTHER_ROUNDS, OTHER_RATES = (1, 20, 100), (0.05, 0.2, 1.0)


@dataclass(frozen=True)
class Report:
    """The same facts twice: `facts` for a program, `text` for a person."""

    facts: dict[str, Any]
    text: str


def report(targets: Sequence[Path], overrides: list[str]) -> Report:
    """What `targets` cost or have spent: configs (.yaml, together a plan), one run directory, or one shard (.h5).

    Raises:
        InputError: a target of another kind, several of kinds that do not go together, a config without privacy.
    """
    if all(target.suffix in (".yaml", ".yml") for target in targets):
        return report_configs([load_config(target, overrides) for target in targets])
    if len(targets) > 1 or overrides:
        raise InputError("several targets, or --set, go with configs only; give one run directory or one shard")
    target = targets[0]
    if target.suffix == ".h5":
        return report_shard(target)
    if RunDirectory(target).config.exists():
        return report_run(RunDirectory(target))
    raise InputError(f"{target}: is no config (.yaml), run directory or shard (.h5)")


def report_configs(configs: Sequence[RunConfig]) -> Report:
    """The plan of each config, and what they all would have spent together, as a sweep over them would."""
    parts = [_report_config(config) for config in configs]
    facts: dict[str, Any] = {"configs": [part.facts for part in parts]}
    texts = [part.text for part in parts]
    if len(configs) > 1:
        sites = sorted({name for config in configs for name in config.site_names})
        together = {site: _together(site, configs) for site in sites}
        facts["together"] = together
        texts.append(
            "All of these runs on the same patients add up, with what was spent before:\n"
            + "\n".join(f"  {site}: {text}" for site, text in together.items())
        )
    return Report(facts if len(configs) > 1 else parts[0].facts, "\n\n".join(texts))


def _together(site: str, configs: Sequence[RunConfig]) -> str:
    mine = [config for config in configs if site in config.site_names]
    plans = [planned_charges(config, plan_privacy(config)) for config in mine]
    account = found_ledger(mine[0], site)
    if account is None:
        planned = [charge for plan in plans for charge in plan]
        return total_of(planned, max(config.privacy.delta for config in mine)).text
    return f"epsilon {told(account.largest_with(plans))} per {account.terms.unit}"


def planned_charges(config: RunConfig, plan: PrivacyPlan, rounds: int | None = None) -> list[Charge]:
    """The charges of a whole run, or of so many rounds of it."""
    count = config.training.rounds if rounds is None else rounds
    return [replace(plan.charge(round), unit=config.privacy.unit) for round in range(count)]


def _report_config(config: RunConfig) -> Report:
    p = config.privacy
    if p.epsilon is None:
        raise PrivacyError(
            f"config {config.name}: privacy: off: nothing is promised and nothing is charged. Set privacy.epsilon"
        )
    plan = plan_privacy(config)
    whole = bounds_of(planned_charges(config, plan), p.delta)
    facts = {
        "name": config.name,
        "epsilon_target": p.epsilon,
        "delta": p.delta,
        "unit": p.unit,
        "trust": p.trust,
        "mechanism": plan.mechanism,
        "epsilon_if_unmasked": epsilon_if_unmasked(config, plan) if p.trust == "sites" else None,
        "noise_multiplier": plan.noise_multiplier,
        "clip_norm": p.clip_norm,
        "sample_rate": plan.sample_rate,
        "steps_per_round": plan.steps_per_round,
        "rounds": config.training.rounds,
        "steps": plan.steps_per_round * config.training.rounds,
        "noise_per_signal": noise_per_signal(config, plan),
        "verdict": None if (found := judged(config, plan)) is None else found.text,
        "lifetime_epsilon": p.lifetime_epsilon,
        "sites": [_site_facts(config, plan, site.name, whole) for site in config.data.sites],
        "by_round": [_round_facts(config, plan, round) for round in _shown(config.training.rounds)],
        "other_rounds": [_other(config, {"training": {"rounds": n}}) for n in OTHER_ROUNDS],
        "other_sample_rates": [_other(config, {"privacy": {"sample_rate": q}}) for q in OTHER_RATES]
        if p.trust == "aggregator"
        else [],
    }
    return Report(facts, _config_text(facts))


def noise_per_signal(config: RunConfig, plan: PrivacyPlan) -> float:
    """Noise over signal of a whole run, in one parameter of the mean over all sites; smaller learns better.

    The standard deviation of the noise that all steps add to it together, over what all units would add together if
    each had a gradient of clip_norm along it: noise multiplier / (sample rate * sqrt(steps) * units), times the square
    root of the number of sites where each carries its full noise.
    """
    units = sum(site.weight or 0 for site in config.data.sites)
    steps = plan.steps_per_round * config.training.rounds
    shares = len(config.data.sites)
    copies = shares if config.privacy.trust == "aggregator" else shares / config.honest_sites
    return plan.noise_multiplier * math.sqrt(copies) / (plan.sample_rate * math.sqrt(steps) * units)


def judged(config: RunConfig, plan: PrivacyPlan) -> Verdict | None:
    """The verdict on a private config; None where the size of its model is not known before it is built."""
    directions = directions_of(config.model.name, config.model.features, config.model.backbone)
    return None if directions is None else verdict(noise_per_signal(config, plan), directions)


def _site_facts(config: RunConfig, plan: PrivacyPlan, site: str, whole: Bounds) -> dict[str, Any]:
    weight = {s.name: s.weight or 0 for s in config.data.sites}[site]
    planned, account = planned_charges(config, plan), found_ledger(config, site)
    facts = {
        "site": site,
        "weight": weight,
        "expected_batch": weight * plan.sample_rate,
        "epsilon_prv": whole.prv,
        "epsilon_rdp": whole.rdp,
    }
    if account is None:
        after = total_of(planned, config.privacy.delta).text
        return {**facts, "runs_before": 0, "spent_before": "nothing", "spent_after": after, "cap": None}
    unit, before = account.terms.unit, account.largest_with(())
    return {
        **facts,
        "runs_before": len({entry["ledger"] for entry in account.entries("charge")}),
        "spent_before": f"epsilon {told(before)} per {unit}",
        "spent_after": f"epsilon {told(account.largest_with([planned]))} per {unit}",
        "cap": account.terms.cap,
    }


def _shown(rounds: int) -> list[int]:
    return sorted({round for round in SHOWN_ROUNDS if round < rounds} | {rounds})


def _round_facts(config: RunConfig, plan: PrivacyPlan, round: int) -> dict[str, Any]:
    return {"round": round, "epsilon": bounds_of(planned_charges(config, plan, round), config.privacy.delta).epsilon}


def _other(config: RunConfig, change: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the same target would take with one key set otherwise."""
    tree = config.model_dump(mode="json")
    for section, values in change.items():
        tree[section] |= values
    other = RunConfig.model_validate(tree)
    plan = plan_privacy(other)
    changed = {f"{section}.{key}": value for section, values in change.items() for key, value in values.items()}
    return {
        **changed,
        "steps": plan.steps_per_round * other.training.rounds,
        "noise_multiplier": plan.noise_multiplier,
        "noise_per_signal": noise_per_signal(other, plan),
    }


def _config_text(facts: Mapping[str, Any]) -> str:
    sites = [
        ("site", "weight", "expected batch", "epsilon PRV", "epsilon RDP", "runs before", "with this run, for life")
    ]
    sites += [
        (
            s["site"],
            str(s["weight"]),
            f"{s['expected_batch']:.1f}",
            fixed(s["epsilon_prv"]),
            fixed(s["epsilon_rdp"]),
            str(s["runs_before"]),
            s["spent_after"],
        )
        for s in facts["sites"]
    ]
    rounds = [("after round", *(str(r["round"]) for r in facts["by_round"]))]
    rounds += [("epsilon", *(fixed(r["epsilon"]) for r in facts["by_round"]))]
    cap = "not set" if facts["lifetime_epsilon"] is None else f"{facts['lifetime_epsilon']:g}"
    return "\n".join(
        [
            f"{facts['name']}: epsilon {facts['epsilon_target']:g} at delta {facts['delta']:g} per {facts['unit']}, "
            f"trust: {facts['trust']}",
            f"{facts['mechanism']} noise multiplier {facts['noise_multiplier']:.3f}, clip norm {facts['clip_norm']:g}, "
            f"sample rate {facts['sample_rate']:g}, {facts['rounds']} rounds of {facts['steps_per_round']} steps; "
            f"privacy.lifetime_epsilon {cap}",
            *_unmasked(facts),
            "",
            table(sites),
            "",
            table(rounds),
            "",
            "The same target with one key set otherwise (noise over signal: smaller learns better):",
            _others_table(facts),
            f"verdict: {facts['verdict'] or 'not known before the backbone is built'}.",
            "exchange.density changes what is sent, after the noise: it costs and saves no epsilon.",
        ]
    )


def _unmasked(facts: Mapping[str, Any]) -> list[str]:
    left = facts["epsilon_if_unmasked"]
    if left is None:
        return []
    return [
        f"if the aggregator sees one site's vectors without masks (more sites collude than privacy.colluding_sites, or "
        f"it departs from the protocol where keys are not certified): epsilon {left:.3f}, by that site's own noise"
    ]


def _others_table(facts: Mapping[str, Any]) -> str:
    rows = [("key", "steps", "noise multiplier", "noise over signal")]
    as_is = {"as it is": "", **{key: facts[key] for key in ("steps", "noise_multiplier", "noise_per_signal")}}
    for other in (as_is, *facts["other_rounds"], *facts["other_sample_rates"]):
        (key, value), *_ = other.items()
        label = f"{key}={value}" if value != "" else key
        rows.append((label, str(other["steps"]), fixed(other["noise_multiplier"]), f"{other['noise_per_signal']:.5f}"))
    return table(rows)


def report_run(directory: RunDirectory) -> Report:
    """What a run has spent at each site, by its ledgers.

    Raises:
        PrivacyError: no privacy, or a ledger that is not intact.
    """
    config = directory.read_config()
    if config is None or config.privacy.epsilon is None:
        raise PrivacyError(f"{directory.path}: a run without privacy.epsilon: nothing is promised and nothing charged")
    paths = sorted(directory.path.glob("sites/*/ledger.jsonl"))
    if not paths:
        raise PrivacyError(f"{directory.path}: has no ledger yet; nothing was spent")
    delta = config.privacy.delta
    sites = [_spent_facts(*read_ledger(path), delta) for path in paths]
    rows: list[tuple[str, ...]] = [("site", "charges", "replayed", "steps", "epsilon PRV", "epsilon RDP", "evaluation")]
    rows += [_spent_row(s) for s in sites]
    insecure = any(s["insecure"] for s in sites)
    notes = ["INSECURE: noise from a fixed seed; nothing is guaranteed"] if insecure else []
    head = f"{directory.path}: spent of epsilon {config.privacy.epsilon:g} at delta {delta:g} per {config.privacy.unit}"
    facts = {"run": str(directory.path), "delta": delta, "epsilon_target": config.privacy.epsilon, "sites": sites}
    return Report(facts, "\n".join([head, *notes, table(rows)]))


def _spent_facts(site: str, recorded: Sequence[Charge], delta: float) -> dict[str, Any]:
    charges = [charge for charge in recorded if charge.population == "train"]
    evaluations = [charge for charge in recorded if charge.population == "evaluation"]
    bounds = bounds_of(charges, delta)
    return {
        "site": site,
        "charges": len(charges),
        "replayed": len(charges) - len({charge.round for charge in charges}),
        "steps": sum(charge.steps for charge in charges),
        "epsilon_prv": bounds.prv,
        "epsilon_rdp": bounds.rdp,
        "epsilon": bounds.epsilon,
        "epsilon_evaluation": bounds_of(evaluations, delta).epsilon if evaluations else None,
        "insecure": any(charge.insecure for charge in recorded),
    }


def _spent_row(s: Mapping[str, Any]) -> tuple[str, ...]:
    counts = (str(s[key]) for key in ("charges", "replayed", "steps"))
    return (s["site"], *counts, fixed(s["epsilon_prv"]), fixed(s["epsilon_rdp"]), fixed(s["epsilon_evaluation"]))


def report_shard(shard: Path) -> Report:
    """What all runs have spent on a shard's patients, by the site ledger: the one who has spent most counts.

    Raises:
        ShardError: the shard cannot be read.
        PrivacyError: where there is no site ledger, or it is not intact.
    """
    with Shard.open(shard, None, in_memory=False, need_train=False) as opened:
        synthetic = opened.created_by.startswith(SYNTHETIC)
        folder = site_ledger_folder(Whose(opened.site, shard, synthetic), None)
        if not exists(folder):
            raise PrivacyError(f"{folder}: no site ledger: no private run was charged to {shard} on this node")
        ledger = SiteLedger(folder)
        largest = ledger.spent_by(identities_of(opened, ("train", "val", "test")))
    terms = ledger.terms
    runs = runs_of(ledger)
    facts = {
        "shard": str(shard),
        "site_ledger": str(folder),
        "unit": terms.unit,
        "delta": terms.delta,
        "cap": terms.cap,
        "epsilon": largest if math.isfinite(largest) else None,
        "runs": runs,
    }
    cap = "no cap is set" if terms.cap is None else f"cap {terms.cap:g}"
    head = (
        f"{shard}: of its patients the one who has spent most: epsilon {told(largest)} per {terms.unit} at delta "
        f"{terms.delta:g}, over all runs ({cap})\nsite ledger: {folder}"
    )
    rows = [("run", "charges", "alone"), *((r["run"], str(r["charges"]), r["spent"]) for r in runs)]
    return Report(facts, f"{head}\n{table(rows)}")


def runs_of(ledger: SiteLedger) -> list[dict[str, Any]]:
    """Each run on a site ledger, oldest first: its name, the number of its charges, and what it costs alone."""
    entries = ledger.entries("charge")
    found = []
    for key in dict.fromkeys(entry["ledger"] for entry in entries):
        mine = [entry for entry in entries if entry["ledger"] == key]
        charges = [charge_of(entry) for entry in mine]
        spent = total_of(charges, ledger.terms.delta).text
        found.append({"run": mine[0]["run"], "ledger": key, "charges": len(mine), "spent": spent})
    return found
