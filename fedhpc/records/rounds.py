"""The record of a round, a line of rounds.jsonl, from what the sites sent. Made at rank 0; all of it is public."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedhpc.records.site_report import SiteReport

FLOAT32_BYTES = 4


@dataclass(frozen=True)
class RoundRecord:
    """One line of rounds.jsonl. Bytes are sums over the sites of what was really sent.

    Attributes:
        round: counted from 1.
        auc_val: on the validation splits; None in rounds that do not release it. The test splits are measured once, at
            the end (summary.json).
        per_site: by name, the AUC, epsilons and bytes of each site that takes part.
        epsilon, evaluation_epsilon: the largest of the sites; None without privacy, or where it is not counted.
        bytes_up: what all sites sent.
        bytes_down: the aggregator's payload, once for every site that receives it.
        seconds: by phase, and in all ("total").
        ledger_heads: what stands for each learner's whole ledger (`fedhpc.privacy.ledger`), for later runs to look for.
        dropped: the sites whose update is not in the round's mean.
        flags: of the sites whose update the aggregation rule found far out (`fedhpc.aggregation.base.Flag`).
        stress: the case of a stress test.
        protects_from_aggregator: the level of a secure sum (`fedhpc.run.start.sum_identities.TrustModel`).
        account_heads: as `ledger_heads`, of the site ledgers (`fedhpc.privacy.site_ledger`).
        absent: the sites that took no part in this start of the run.
        late: those whose update was not ready when the timer ended the round (schedule.policy=deadline).
        staleness: of each other site, how many rounds before the model is that its update was trained from (the same).
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
        """Return what the aggregator sent to a site, in bytes."""
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
    """Return the epsilon of the site that has spent most; None without privacy."""
    return max((epsilon for epsilon in spent if epsilon is not None), default=None)
