"""What a run has spent, by its ledgers, and what a shard's patients have spent over all runs, by the site ledger."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedhpc.cli.common import Report
from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Charge, bounds_of, total_of
from fedhpc.privacy.ledger import read_ledger
from fedhpc.privacy.ledger_folder import exists
from fedhpc.privacy.places import Whose, site_ledger_folder
from fedhpc.privacy.site_ledger import SiteLedger, charge_of
from fedhpc.records.run_directory import RunDirectory
from fedhpc.site.account import SYNTHETIC, identities_of, told
from fedhpc.site.data.shard import Shard
from fedhpc.util.text import fitted, fixed, wrapped


def report_run(directory: RunDirectory) -> Report:
    """Return what a run has spent at each site, by its ledgers.

    Raises:
        PrivacyError: no privacy, or a ledger that is not intact.
    """
    config = directory.read_config()
    if config is None or config.privacy.epsilon is None:
        raise PrivacyError(
            f"{directory.path}: a run without privacy.epsilon: nothing is promised and nothing charged",
            code="privacy.off",
        )
    paths = sorted(directory.path.glob("sites/*/ledger.jsonl"))
    if not paths:
        raise PrivacyError(f"{directory.path}: has no ledger yet; nothing was spent", code="privacy.ledger-missing")
    delta = config.privacy.delta
    sites = [_spent_facts(*read_ledger(path), delta) for path in paths]
    rows: list[tuple[str, ...]] = [("site", "charges", "replayed", "steps", "epsilon PRV", "epsilon RDP", "evaluation")]
    rows += [_spent_row(s) for s in sites]
    insecure = any(s["insecure"] for s in sites)
    notes = ["INSECURE: noise from a fixed seed; nothing is guaranteed"] if insecure else []
    head = f"{directory.path}: spent of epsilon {config.privacy.epsilon:g} at delta {delta:g} per {config.privacy.unit}"
    facts = {"run": str(directory.path), "delta": delta, "epsilon_target": config.privacy.epsilon, "sites": sites}
    return Report(facts, "\n".join([wrapped(head), *notes, fitted(rows)]))


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
    """Return what all runs have spent on a shard's patients, by the site ledger: the one who has spent most counts.

    Raises:
        ShardError: the shard cannot be read.
        PrivacyError: where there is no site ledger, or it is not intact.
    """
    with Shard.open(shard, None, in_memory=False, need_train=False) as opened:
        synthetic = opened.created_by.startswith(SYNTHETIC)
        folder = site_ledger_folder(Whose(opened.site, shard, synthetic), None)
        if not exists(folder):
            raise PrivacyError(
                f"{folder}: no site ledger there. A run that was charged to another place, by FEDHPC_SITE_LEDGER or "
                f"privacy.site_ledger, is found with that place: FEDHPC_SITE_LEDGER=... run.py privacy {shard}",
                code="privacy.ledger-missing",
            )
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
    head = wrapped(
        f"{shard}: of its patients the one who has spent most: epsilon {told(largest)} per {terms.unit} at delta "
        f"{terms.delta:g}, over all runs ({cap})\nsite ledger: {folder}"
    )
    return Report(facts, f"{head}\n{runs_table(runs, terms.unit)}")


def runs_table(runs: Sequence[Mapping[str, Any]], unit: str) -> str:
    """Return what each run costs by itself, within 80 columns; `unit` is the account's."""
    rows = [("run", "charges", "training", "evaluation")]
    rows += [(one["run"], str(one["charges"]), *alone_cells(one, unit)) for one in runs]
    return f"{fitted(rows)}{without_bound_note(runs)}"


def without_bound_note(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return why an account has no bound, on lines of their own; empty where no run has voided it."""
    if not any(one["insecure"] for one in runs):
        return ""
    text = "without bound: the run had privacy.noise_seed, so that its noise can be repeated and hides nothing"
    return f"\n{wrapped(text)}"


def alone_cells(run: Mapping[str, Any], unit: str) -> tuple[str, str]:
    """Epsilon of one of `runs_of` in training and in evaluation, with its unit where that is not the account's."""
    if run["insecure"]:
        return "without bound", ""
    first, second = (
        ", ".join(fixed(epsilon) + ("" if its == unit else f" per {its}") for its, epsilon in run[key].items()) or "-"
        for key in ("epsilon_training", "epsilon_evaluation")
    )
    return first, second


def runs_of(ledger: SiteLedger) -> list[dict[str, Any]]:
    """Return each run on a site ledger, oldest first: its name, the number of its charges, and what it costs alone.

    A run of pooled sites that have one account is there once for each of them: their patients are not the same.
    """
    entries = ledger.entries("charge")
    found = []
    for key, site in dict.fromkeys((entry["ledger"], entry["site"]) for entry in entries):
        mine = [entry for entry in entries if (entry["ledger"], entry["site"]) == (key, site)]
        charges = [charge_of(entry) for entry in mine]
        total = total_of(charges, ledger.terms.delta)
        found.append(
            {
                "run": mine[0]["run"],
                "ledger": key,
                "charges": len(mine),
                "spent": total.text,
                "epsilon_training": {unit: bounds.epsilon for unit, bounds in total.by_unit.items()},
                "epsilon_evaluation": {unit: bounds.epsilon for unit, bounds in total.evaluation.items()},
                "insecure": total.insecure,
            }
        )
    return found
