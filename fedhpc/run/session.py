"""A session: one run at one rank, ready to train (`fedhpc.run.start.open_session` opens it)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedhpc.config.schema import RunConfig
from fedhpc.models.origin import Ancestor
from fedhpc.models.task import Task
from fedhpc.privacy.ledger import SiteAccount
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.display import Console
from fedhpc.run.rounds.preemption import StopRequest
from fedhpc.run.start.sum_identities import TrustModel, trust_model
from fedhpc.secagg.signatures import SigningSite
from fedhpc.site.context import SiteContext
from fedhpc.site.hospital import Hospital
from fedhpc.site.training.secure_contribution import IntegerGrid
from fedhpc.transport.base import Transport

POOLED = "pooled"


@dataclass(frozen=True)
class Session:
    """One run at one rank, ready to train.

    Attributes:
        config: resolved, of the sites that take part; the same at all ranks.
        declared: resolved, of all sites: what the run directory keeps.
        sites: this rank's hospitals in site order.
        learners: who trains here: the hospitals, or at rank 0 of a centralised run all of them pooled.
        weights: public weight of every site, by index.
        facts: of every site: name, rank, host, device, weight; only at rank 0.
        grid: of the integers of a secure sum; None where privacy.trust asks for none.
        notice: whether this rank has been told to stop.
        identities: of this rank's sites by index, in a secure sum; else empty.
        shard_digests: of the shards that each learner of this rank trains on (private).
        accounts: on the site ledgers, of this rank's sites; none without privacy.
        absent: the sites that are declared and take no part in this start, in site order.
        plans: the noise of each site, by name in site order; none without privacy.
        synthetic: whether no patient exists, by what all shards say of their origin; a config is no evidence.
        before: the runs that the model goes back to, by its start and by its backbone.
    """

    config: RunConfig
    declared: RunConfig
    transport: Transport
    directory: RunDirectory
    console: Console
    place: SiteContext
    task: Task
    sites: tuple[Hospital, ...]
    learners: tuple[Hospital, ...]
    weights: tuple[int, ...]
    facts: tuple[Mapping[str, Any], ...]
    grid: IntegerGrid | None
    notice: StopRequest = field(default_factory=StopRequest)
    identities: Mapping[int, SigningSite] = field(default_factory=dict)
    shard_digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    accounts: tuple[SiteAccount, ...] = ()
    absent: tuple[str, ...] = ()
    plans: Mapping[str, PrivacyPlan] = field(default_factory=dict)
    synthetic: bool = False
    before: tuple[Ancestor, ...] = ()


def session_trust(session: Session) -> TrustModel | None:
    """Return against whom the secure sum of this session protects; None where privacy.trust asks for none."""
    if session.grid is None or session.place.plan is None:
        return None
    return trust_model(session.config, session.place.plan, session.transport.size)
