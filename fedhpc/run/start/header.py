"""What a start of a run prints before its first round: the run's numbers, and what its bytes will be."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fedhpc.compression.codec import encode
from fedhpc.compression.error_feedback import CompressionConfig, with_feedback
from fedhpc.compression.update import AGGREGATOR, Update
from fedhpc.models.vector import parameter_count
from fedhpc.records.rounds import FLOAT32_BYTES
from fedhpc.run.display import header
from fedhpc.run.rounds.round_terms import round_terms, secure_mean
from fedhpc.run.session import Session, session_trust
from fedhpc.run.start.secure_channel import wire_line
from fedhpc.secagg.protocol import round_bytes
from fedhpc.util.rng import generator
from fedhpc.util.text import wrapped

LIKE_ALL = 1 << 20
"""How many entries of an update are drawn to tell how small it will be."""


def introduce(session: Session, first: int, lifetimes: Sequence[str]) -> None:
    """Print the header at rank 0.

    Args:
        session: this rank's.
        first: how many rounds are done.
        lifetimes: what the site ledgers' owners must know, one text a shard.
    """
    if session.transport.rank:
        return
    session.console.say(header(session.config, session.facts, _header_facts(session)))
    for line in lifetimes:
        session.console.say(wrapped(line))
    if first:
        session.console.say(f"resuming after round {first}")
    session.console.start_round(first, session.config.training.rounds, None)


def _header_facts(session: Session) -> dict[str, Any]:
    config, plan, terms = session.config, session.place.plan, round_terms(session)
    d, sites = parameter_count(session.place.model), len(config.data.sites)
    secure = secure_mean(session)
    up, more_down = (_payload_bytes(d, terms.up), 0) if secure is None else round_bytes(secure.terms)
    facts: dict[str, Any] = {
        "threads": config.runtime.threads,
        "precision": config.runtime.precision,
        "parameters": d,
        "sparse_up_bytes": sites * terms.algorithm.vectors * up,
        "sparse_down_bytes": sites * (terms.algorithm.vectors * _payload_bytes(d, terms.down) + more_down),
        "dense_bytes": sites * d * FLOAT32_BYTES,
        "wire": wire_line(config, session.transport.size),
        "absent": session.absent,
        "plans": session.plans,
    }
    if plan is not None:
        facts |= {
            "planned_epsilon": plan.bounds(config.training.rounds, config.privacy.delta).epsilon,
            "noise_multiplier": plan.noise_multiplier,
            "feature_mean_noise": plan.feature_mean_noise,
            "trust": session_trust(session),
        }
    return facts


def _payload_bytes(size: int, coding: CompressionConfig) -> int:
    """About what a payload will take: one of Gaussian numbers does, a million of which stand for all."""
    drawn = min(size, LIKE_ALL)
    update = generator(0, "like an update").standard_normal(drawn, np.float32)
    sent, _ = with_feedback(update, np.zeros_like(update), CompressionConfig(coding.density, coding.value_bits))
    return len(encode(Update(AGGREGATOR, 0, sent))) * size // drawn
