"""`summary.json`: what a run was, took and cost, from its config and the records of its rounds."""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.config.schema import RunConfig
from fedhpc.records.metrics import METRICS
from fedhpc.records.rounds import round_seconds

OUTSIDE_GUARANTEE = (
    *(metric.key for metric in METRICS),
    "per_finding",
    "auc_val",
    "auc_ci95",
    "n_test",
    "f1_thresholds",
    "curves.json",
    "calibration in model.pt",
)
"""What is measured on validation and test patients: with `evaluation.epsilon: null` nothing protects them."""
GIVEN_AWAY = (
    "evaluation.epsilon is null: the exact score histograms of validation and test patients leave each site. Whoever "
    "receives them and knows the score that the model gives a patient learns whether the patient is there, the "
    "diagnosis and the stage"
)


def data_digest(config: RunConfig) -> str:
    """See `fedhpc.config.data.Data.identity`."""
    return config.data.identity


def data_labels(configs: Sequence[RunConfig]) -> dict[str, str]:
    """{data digest: a name for it} where the configs are on different data; empty where all are on the same."""
    shards = {data_digest(config): config.data.shards for config in configs}
    if len(shards) < 2:
        return {}
    names = list(shards.values())
    return {
        digest: name if names.count(name) == 1 else f"{name} #{hashlib.sha256(digest.encode()).hexdigest()[:6]}"
        for digest, name in shards.items()
    }


def summary_of(config: RunConfig, records: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> dict[str, Any]:
    """`summary.json`: the last record, sums over all of them, and `more` (what only the driver knows).

    `dense_bytes_per_round` is what the same updates would take as dense float32, one way: sites x 4 x parameters.
    """
    last, n = records[-1], len(records)
    exact = config.private and not config.private_evaluation
    return {
        "mode": config.mode,
        "sites": list(config.site_names),
        "rounds": n,
        "absent": absent_rounds(records),
        "late": late_rounds(records),
        "per_site": {
            site: {**values, "delta": config.privacy.delta if config.private else None}
            for site, values in last["per_site"].items()
        },
        "epsilon": last["epsilon"],
        "delta": config.privacy.delta if config.private else None,
        "unit": config.privacy.unit if config.private else None,
        "epsilon_target": config.privacy.epsilon,
        "insecure_noise_seed": config.privacy.noise_seed,
        "evaluation_epsilon_target": config.evaluation.epsilon if config.private else None,
        "outside_guarantee": list(OUTSIDE_GUARANTEE) if exact else [],
        "outside_guarantee_means": GIVEN_AWAY if exact else None,
        "bytes_up_per_round": sum(r["bytes_up"] for r in records) / n,
        "bytes_down_per_round": sum(r["bytes_down"] for r in records) / n,
        "seconds": _seconds(records),
        "config_digest": config.digest(),
        "data": data_digest(config),
        "flags": [{"round": r["round"], **flag} for r in records for flag in r.get("flags", ())],
        "stress": config.stress.label if config.stress else None,
        **more,
    }


def late_rounds(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return {site: in how many rounds its update was late}, of those that any was (schedule.policy=deadline).

    >>> late_rounds([{"late": ["b"]}, {"late": ["a", "b"]}, {}])
    {'b': 2, 'a': 1}
    """
    return dict(Counter(site for record in records for site in record.get("late", ())))


def absent_rounds(records: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return {site: how many rounds were made without it}, of those that any was.

    >>> absent_rounds([{"absent": []}, {"absent": ["b"]}, {"absent": ["b"]}, {}])
    {'b': 2}
    """
    return dict(Counter(site for record in records for site in record.get("absent", ())))


def _seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    phases = ("train", "exchange", "aggregate", "evaluate", "checkpoint", "total")
    return {phase: round_seconds(sum(r["seconds"].get(phase, 0.0) for r in records)) for phase in phases}
