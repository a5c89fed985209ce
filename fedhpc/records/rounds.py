"""From what the sites sent to a `RoundRecord` a round and `summary.json` at the end. Runs at rank 0; sees no image."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PayloadError
from fedhpc.records.calibration import Calibration, exact_calibrations
from fedhpc.records.curves import ALL_SITES, ModelCurves, exact_curves
from fedhpc.records.metrics import METRICS, Metrics, auc, f1_thresholds, metrics
from fedhpc.transport.messages import Name, parsed
from fedhpc.util.arrays import I64

FLOAT32_BYTES = 4
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
HEAD = r"^([0-9a-f]{16})?$"
ACCOUNT_HEAD = r"^([0-9a-f]{16}:[0-9a-f]{16})?$"
Spent = Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)] | None


@checked(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class SiteReport:
    """What a site says of itself after a round: what it has spent, and the head of its ledger (public).

    Attributes:
        site: its name.
        epsilon: of its training patients; None without privacy.
        evaluation_epsilon: of its validation and test patients; None where that is not counted.
        learner, head: whose ledger it is, and the beginning of its last seal; empty without privacy.
        account: the head of the site ledger, "<its id>:<beginning of its last seal>"; empty without privacy.
    """

    site: Name
    epsilon: Spent
    evaluation_epsilon: Spent
    learner: Annotated[str, Field(max_length=255)]
    head: Annotated[str, Field(pattern=HEAD)]
    account: Annotated[str, Field(pattern=ACCOUNT_HEAD)] = ""

    def pack(self) -> bytes:
        """As bytes."""
        return REPORT.dump_json(self)

    @classmethod
    def read(cls, site: str, payload: bytes, learner: str) -> "SiteReport":
        """The inverse of `pack`, of the payload that came from `site`.

        Args:
            site: whose session it came through.
            payload: the bytes.
            learner: whose ledger the site may speak of; empty without privacy.

        Raises:
            PayloadError: no report, one that names another site or ledger, or one without its ledger's head.
        """
        report = parsed(payload, REPORT, f"site {site}, metrics")
        if report.site != site:
            raise PayloadError(f"site {site}, metrics: the report names another site; each speaks for itself")
        if report.learner != learner or bool(report.head) != bool(learner) or (report.epsilon is None) == bool(learner):
            raise PayloadError(f"site {site}, metrics: the report is not about the ledger of {learner or 'nobody'}")
        return report


REPORT = TypeAdapter(SiteReport)


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl. Bytes are sums over the sites of what was really sent.

    `auc_val` is on the validation splits, None in rounds that do not release them; the test splits are measured once,
    at the end (summary.json). `bytes_down` counts the aggregator's payload once for every site that receives it;
    `dropped` names the sites whose update is not in the round's mean, `absent` those that took no part in this start of
    the run, `flags` those whose update the aggregation rule
    found far out (`fedhpc.aggregation.base.Flag`); `late` those whose update was not ready when the timer ended the
    round, and `staleness` says of how many rounds before the model is that each other update was trained from (both
    with schedule.policy=deadline only); `stress` is the case of a stress test; `ledger_heads` stand for the
    learners' whole ledgers (`fedhpc.privacy.ledger`), `account_heads` for the site ledgers
    (`fedhpc.privacy.site_ledger`), for later runs to look for in them; `protects_from_aggregator` is the level of a
    secure sum (`fedhpc.run.sum_identities.TrustModel`).
    """

    round: int
    auc_val: float | None
    per_site: dict[str, dict[str, Any]]
    epsilon: float | None
    evaluation_epsilon: float | None
    bytes_up: int
    bytes_down: int
    seconds: dict[str, float]
    ledger_heads: dict[str, str]
    dropped: tuple[str, ...] = ()
    flags: tuple[dict[str, Any], ...] = ()
    stress: str | None = None
    protects_from_aggregator: str | None = None
    account_heads: dict[str, str] = field(default_factory=dict)
    absent: tuple[str, ...] = ()
    late: tuple[str, ...] = ()
    staleness: Mapping[str, int] = field(default_factory=dict)

    def json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Measured:
    """The metrics over all sites and of each, at F1 thresholds chosen on the pooled validation splits.

    `auc_val` is on the validation splits: what to choose hyperparameters by. `thresholds` are bins of
    `fedhpc.records.metrics.score_histogram`, `interval` is that of the AUC, `reasons` say why a metric is None or what
    else must be known of it, `curves` are those of each site and of all (`fedhpc.records.curves.ALL_SITES`),
    `calibrations` say what the scores of each task mean; none where the validation release does not tell.
    """

    overall: Metrics
    auc_val: float | None
    per_site: dict[str, Metrics]
    thresholds: I64
    interval: tuple[float, float] | None = None
    reasons: Mapping[str, str] = field(default_factory=dict)
    curves: Mapping[str, ModelCurves] = field(default_factory=dict)
    calibrations: tuple[Calibration, ...] = ()


def measure_counts(sites: Sequence[str], val: Sequence[I64], test: Sequence[I64], specificity: float) -> Measured:
    """Pool the sites' exact histograms and measure."""
    pooled, thresholds = _total(test), f1_thresholds(_total(val))
    overall = metrics(pooled, thresholds, specificity)
    per_site = {site: metrics(one, thresholds, specificity) for site, one in zip(sites, test, strict=True)}
    curves = {site: exact_curves(one, specificity) for site, one in zip(sites, test, strict=True)}
    curves[ALL_SITES] = exact_curves(pooled, specificity)
    calibrations = exact_calibrations(_total(val), specificity)
    return Measured(overall, auc(_total(val)), per_site, thresholds, curves=curves, calibrations=calibrations)


def _total(histograms: Sequence[I64]) -> I64:
    total: I64 = np.sum(histograms, axis=0)
    return total


def mean_of(values: Sequence[float | None]) -> float | None:
    """The mean; None as soon as one value is, or there is none."""
    defined = [value for value in values if value is not None]
    return sum(defined) / len(defined) if defined and len(defined) == len(values) else None


@dataclass(frozen=True)
class Validation:
    """The AUC on the validation splits after a round, over all sites and of each; None where none was released."""

    auc: float | None = None
    by_site: Mapping[str, float | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Traffic:
    """What was exchanged in one round, counted at the aggregator: `len` of every payload.

    Attributes:
        up_bytes: of each site, by index; empty where nothing is exchanged.
        down_bytes: what the aggregator sent to every site.
        down_by_site: of each site, by index, where each was sent something else.
    """

    up_bytes: tuple[int, ...] = ()
    down_bytes: int = 0
    down_by_site: tuple[int, ...] = ()

    def down_to(self, site: int) -> int:
        """What the aggregator sent to a site, in bytes."""
        return self.down_by_site[site] if self.down_by_site else self.down_bytes

    @property
    def down_total(self) -> int:
        """What the aggregator sent to all sites together, in bytes."""
        return sum(self.down_by_site) if self.down_by_site else self.down_bytes * len(self.up_bytes)


@dataclass(frozen=True)
class Arrivals:
    """Whose updates a round is made of where a timer ends it (public); empty where all are waited for.

    Attributes:
        late: the sites whose update was not ready, in site order.
        staleness: of the update of each other site, by name: how many rounds it was under way before this one.
    """

    late: tuple[str, ...] = ()
    staleness: Mapping[str, int] = field(default_factory=dict)


NONE_LATE = Arrivals()


@dataclass(frozen=True)
class RoundEnd:
    """What the sites and their validation splits say after a round, counted from 1."""

    round: int
    reports: Sequence[SiteReport]
    validation: Validation


def record_of(end: RoundEnd, traffic: Traffic, seconds: Mapping[str, float]) -> RoundRecord:
    """Return the record of a finished round, with its seconds by phase."""
    reports, validation = end.reports, end.validation
    up = traffic.up_bytes or [0] * len(reports)
    per_site = {
        r.site: {
            "auc_val": validation.by_site.get(r.site),
            "epsilon": r.epsilon,
            "evaluation_epsilon": r.evaluation_epsilon,
            "bytes_up": sent,
            "bytes_down": traffic.down_to(i),
        }
        for i, (r, sent) in enumerate(zip(reports, up, strict=True))
    }
    return RoundRecord(
        round=end.round,
        auc_val=validation.auc,
        per_site=per_site,
        epsilon=largest([r.epsilon for r in reports]),
        evaluation_epsilon=largest([r.evaluation_epsilon for r in reports]),
        bytes_up=sum(traffic.up_bytes),
        bytes_down=traffic.down_total,
        seconds={name: round_seconds(value) for name, value in seconds.items()},
        ledger_heads={r.learner: r.head for r in reports if r.head},
        account_heads={r.site: r.account for r in reports if r.account},
    )


def round_seconds(value: float) -> float:
    """Milliseconds are enough."""
    return float(f"{value:.3f}")


def largest(spent: Sequence[float | None]) -> float | None:
    """The epsilon of the site that has spent most; None without privacy."""
    return max((epsilon for epsilon in spent if epsilon is not None), default=None)


def data_digest(config: RunConfig) -> str:
    """Tells whether two runs were on the same data: the data section, without how it is read."""
    return json.dumps(config.data.model_dump(mode="json", exclude={"in_memory"}), sort_keys=True)


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
