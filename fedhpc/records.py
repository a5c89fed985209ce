"""From what the sites sent to a `RoundRecord` a round and `summary.json` at the end. Runs at rank 0; sees no image."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fedhpc.config import RunConfig
from fedhpc.exchange.update import Array, pack_arrays, unpack_arrays
from fedhpc.metrics import I64, Metrics, auc, f1_thresholds, metrics

FLOAT32_BYTES = 4
OUTSIDE_GUARANTEE = ("auc", "auc_val", "auc_ci95", "f1", "sensitivity", "sensitivity_early", "n_test", "f1_thresholds")
"""What is measured on validation and test patients, whom differential privacy does not protect."""


@dataclass(frozen=True)
class SiteReport:
    """What a site releases after a round: two score histograms, what it has spent, and the head of its ledger (public).

    `ledger` is the learner's name and its ledger's head; empty without privacy.
    """

    site: str
    val: I64
    test: I64
    epsilon: float | None
    ledger: tuple[str, str] = ("", "")

    def pack(self) -> bytes:
        """As bytes."""
        spent = np.array([np.nan if self.epsilon is None else self.epsilon])
        arrays: dict[str, Array] = {"site": np.array(self.site), "val": self.val, "test": self.test, "epsilon": spent}
        arrays["ledger"] = np.array(self.ledger)
        return pack_arrays(arrays)

    @classmethod
    def unpack(cls, payload: bytes) -> "SiteReport":
        """The inverse of `pack`."""
        arrays: Mapping[str, Any] = unpack_arrays(payload)
        epsilon = float(arrays["epsilon"][0])
        learner, head = arrays["ledger"]
        spent = None if np.isnan(epsilon) else epsilon
        return cls(str(arrays["site"]), arrays["val"], arrays["test"], spent, (str(learner), str(head)))


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl. Bytes are sums over the sites of what was really sent; metrics are on the test splits.

    `bytes_down` counts the aggregator's payload once for every site that receives it; `dropped` names the sites whose
    update is not in the round's mean; `ledger_heads` stand for the learners' whole ledgers (`fedhpc.privacy.ledger`).
    """

    round: int
    auc: float | None
    auc_val: float | None
    f1: float | None
    sensitivity: float | None
    sensitivity_early: float | None
    per_site: dict[str, dict[str, Any]]
    epsilon: float | None
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float]
    ledger_heads: dict[str, str]
    dropped: tuple[str, ...] = ()

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """The metrics over all sites and of each, at F1 thresholds chosen on the pooled validation splits.

    `auc_val` is on the validation splits: what to choose hyperparameters by.
    """

    overall: Metrics
    auc_val: float | None
    per_site: dict[str, Metrics]
    thresholds: I64


def measure(reports: Sequence[SiteReport], specificity: float) -> Measured:
    """Pool the sites' histograms (exact sums) and measure."""
    val = _total([r.val for r in reports])
    thresholds = f1_thresholds(val)
    overall = metrics(_total([r.test for r in reports]), thresholds, specificity)
    return Measured(overall, auc(val), {r.site: metrics(r.test, thresholds, specificity) for r in reports}, thresholds)


def _total(histograms: Sequence[I64]) -> I64:
    total: I64 = np.sum(histograms, axis=0)
    return total


def measure_separately(reports: Sequence[SiteReport], specificity: float) -> Measured:
    """Each site's own model on its own data, at its own threshold; overall is the plain mean over the sites."""
    alone = {r.site: measure([r], specificity) for r in reports}
    each = [m.overall for m in alone.values()]
    mean = Metrics(
        auc=mean_of([m.auc for m in each]),
        f1=mean_of([m.f1 for m in each]),
        sensitivity=mean_of([m.sensitivity for m in each]),
        sensitivity_early=mean_of([m.sensitivity_early for m in each]),
        n_images=sum(m.n_images for m in each),
    )
    auc_val = mean_of([m.auc_val for m in alone.values()])
    return Measured(mean, auc_val, {site: m.overall for site, m in alone.items()}, alone[reports[0].site].thresholds)


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean; None as soon as one value is."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if len(defined) == len(values) else None


def record_of(
    round: int, reports: Sequence[SiteReport], traffic: tuple[Sequence[int], int], config: RunConfig, seconds: Any
) -> RoundRecord:
    """The record of a finished round from the sites' reports, the bytes up by site and down, and the stopwatch."""
    how = measure_separately if config.mode == "local" else measure
    measured = how(reports, config.evaluation.specificity)
    return RoundRecord(
        round=round,
        auc=measured.overall.auc,
        auc_val=measured.auc_val,
        f1=measured.overall.f1,
        sensitivity=measured.overall.sensitivity,
        sensitivity_early=measured.overall.sensitivity_early,
        per_site=per_site(measured, reports, traffic),
        epsilon=largest_epsilon(reports),
        bytes_up=sum(traffic[0]),
        bytes_down=traffic[1] * len(traffic[0]),
        seconds={name: round_seconds(value) for name, value in seconds.items()},
        ledger_heads={learner: head for learner, head in (r.ledger for r in reports) if head},
    )


def round_seconds(value: float) -> float:
    """Milliseconds are enough."""
    return float(f"{value:.3f}")


def per_site(
    measured: Measured, reports: Sequence[SiteReport], traffic: tuple[Sequence[int], int]
) -> dict[str, dict[str, Any]]:
    """{site: its metrics, epsilon and bytes}."""
    up = list(traffic[0]) or [0] * len(reports)
    return {
        r.site: {
            "auc": measured.per_site[r.site].auc,
            "f1": measured.per_site[r.site].f1,
            "n_test": measured.per_site[r.site].n_images,
            "epsilon": r.epsilon,
            "bytes_up": sent,
            "bytes_down": traffic[1],
        }
        for r, sent in zip(reports, up, strict=True)
    }


def largest_epsilon(reports: Sequence[SiteReport]) -> float | None:
    """The epsilon of the site that has spent most; None without privacy."""
    spent = [r.epsilon for r in reports if r.epsilon is not None]
    return max(spent) if spent else None


def data_digest(config: RunConfig) -> str:
    """Tells whether two runs were on the same data: the data section, without how it is read."""
    return json.dumps(config.data.model_dump(mode="json", exclude={"in_memory"}), sort_keys=True)


def summary_of(config: RunConfig, records: Sequence[Mapping[str, Any]], more: Mapping[str, Any]) -> dict[str, Any]:
    """`summary.json`: the last record, sums over all of them, and `more` (what only the driver knows).

    `dense_bytes_per_round` is what the same updates would take as dense float32, one way: sites x 4 x parameters.
    """
    last, n = records[-1], len(records)
    return {
        "mode": config.mode,
        "sites": list(config.site_names),
        "rounds": n,
        "auc": last["auc"],
        "auc_val": last["auc_val"],
        "auc_ci95": None,
        "f1": last["f1"],
        "sensitivity": last["sensitivity"],
        "sensitivity_early": last["sensitivity_early"],
        "per_site": {
            site: {**values, "delta": config.privacy.delta if config.private else None}
            for site, values in last["per_site"].items()
        },
        "epsilon": last["epsilon"],
        "delta": config.privacy.delta if config.private else None,
        "unit": config.privacy.unit if config.private else None,
        "epsilon_target": config.privacy.epsilon,
        "insecure_noise_seed": config.privacy.noise_seed,
        "outside_guarantee": list(OUTSIDE_GUARANTEE) if config.private else [],
        "bytes_up_per_round": sum(r["bytes_up"] for r in records) / n,
        "bytes_down_per_round": sum(r["bytes_down"] for r in records) / n,
        "seconds": _seconds(records),
        "config_digest": config.digest(),
        "data": data_digest(config),
        **more,
    }


def _seconds(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    phases = ("train", "exchange", "aggregate", "evaluate", "checkpoint", "total")
    return {phase: round_seconds(sum(r["seconds"].get(phase, 0.0) for r in records)) for phase in phases}
