"""Without privacy, or with `evaluation.epsilon: null`: exact score histograms, and an interval by DeLong."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from fedhpc.compression.update import pack_arrays, unpack_arrays
from fedhpc.errors import PayloadError
from fedhpc.records.intervals import Placements, delong_interval
from fedhpc.records.measured import Measured, measure_counts
from fedhpc.records.metrics import BINS
from fedhpc.run.evaluation.answers import read_array, tasks_of
from fedhpc.run.session import Session
from fedhpc.transport.framing import SMALL_BROADCAST_BYTES
from fedhpc.transport.messages import of_each
from fedhpc.util.arrays import F32, I64

LARGEST_COUNT = 2**40


def exact_counts(session: Session, params_of: Callable[[str], F32], split: str, round: int | None) -> list[I64]:
    """Return every site's exact histogram int64[T, 3, BINS] of a split, in site order, at rank 0; empty elsewhere.

    Raises:
        PayloadError: at rank 0, naming a site whose histogram is none.
    """
    mine = [pack_arrays({"counts": site.evaluator.exact_counts(params_of(site.name), split)}) for site in session.sites]
    payloads = session.transport.gather(mine, "metrics", round)
    if session.transport.rank:
        return []
    shape = (tasks_of(session), 3, BINS)
    return of_each(payloads, session.config.site_names, "metrics", lambda site, got: read_counts(site, got, shape))


def read_counts(site: str, payload: bytes, shape: tuple[int, ...]) -> I64:
    """Return the exact histogram int64[T, 3, BINS] that a site's payload must be.

    Raises:
        PayloadError: another shape or type, a negative or impossible count, or tasks with different numbers of images.
    """
    counts = read_array(site, payload, shape, LARGEST_COUNT)
    if (counts < 0).any() or len(set(counts.sum(axis=(1, 2)).tolist())) > 1:
        raise PayloadError(f"site {site}, metrics: counts below zero, or other numbers of images in other tasks")
    return counts


def read_influence(site: str, payload: bytes) -> float:
    """Return the one number that a site's payload must be: finite and not negative.

    Raises:
        PayloadError: where it is not.
    """
    value = np.frombuffer(payload, "<f8") if len(payload) == 8 else np.array([np.nan])
    if not (np.isfinite(value[0]) and 0 <= value[0] <= 1e6):
        raise PayloadError(f"site {site}, metrics: its part of the variance is no number from 0 to 1e6")
    return float(value[0])


def _variance(session: Session, params_of: Callable[[str], F32], pooled: I64 | None) -> float:
    """Of the pooled AUC, at rank 0, from each site's sum over its patients."""
    transport = session.transport
    told = None if pooled is None else pack_arrays(vars(Placements.of(pooled)))
    arrays: dict[str, Any] = unpack_arrays(transport.broadcast(told, "metrics"), limit_bytes=SMALL_BROADCAST_BYTES)
    placed = Placements(**arrays)
    mine = [
        np.array([site.evaluator.squared_influence(params_of(site.name), placed)], "<f8").tobytes()
        for site in session.sites
    ]
    payloads = transport.gather(mine, "metrics")
    return sum(of_each(payloads, session.config.site_names, "metrics", read_influence)) if payloads else 0.0


def measure_exactly(session: Session, params_of: Callable[[str], F32]) -> Measured | None:
    """Measure a final model by all sites' exact histograms; at rank 0, None elsewhere.

    Args:
        session: this rank's.
        params_of: gives each site's model by its name, f32[d].

    Raises:
        PayloadError: at rank 0, naming a site whose message is none.
    """
    val, test = (exact_counts(session, params_of, split, None) for split in ("val", "test"))
    pooled = np.sum(test, axis=0) if test else None
    variance = _variance(session, params_of, pooled)
    if not test:
        return None
    measured = measure_counts(session.config.site_names, val, test, session.config.evaluation.specificity)
    return replace(measured, interval=delong_interval(measured.overall.auc, variance))
