"""`model.feature_mean: sites`: the mean of all sites' whitened features, released once, before the first round.

    each site: charge the ledger, sum the whitened features of its units, add noise   (`site.training.feature_mean`)
    rank 0: the sum over the sites / the declared weights = the mean; keep it in `state/feature_mean-0000.npz`
    all ranks: subtract it from every image's whitened features

With `privacy.trust: sites` rank 0 sees the sum alone, by a secure sum of all sites: none may be missing. The mean is a
private release like a round: what is done with it afterwards costs nothing, and a run that is started again reads it
from the state and charges nothing. If it is lost before the first round is recorded it is made again, and charged
again; after that the run cannot go on without it, since its model belongs to that mean.
"""

from collections.abc import Sequence

import numpy as np

from fedhpc.algorithms.secure_fedavg import SumGroup, masked_sum
from fedhpc.compression.update import ArraySpec, pack_arrays, unpack_arrays
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError
from fedhpc.models.whitening import centre
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.records.checkpoint import ForeignCheckpointError, Owner, load_state, save_state, saved_rounds
from fedhpc.run.rounds.resume import Resumed
from fedhpc.run.session import Session
from fedhpc.secagg.masks import SumTerms
from fedhpc.site.training.secure_contribution import IntegerGrid, plan_grid
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.transport.messages import of_each
from fedhpc.transport.tls import AGGREGATOR_NAME
from fedhpc.util.arrays import F32, F64

STATE = "feature_mean"
SUM_NUMBER = 2**31 - 1
"""Of its secure sum: above all rounds, below all sums of evaluation."""
LARGEST_SUM, LARGEST_MEAN = 1e12, 1e4
"""Of an entry, in lengths of a unit: no site's noisy sum, and no mean, is plausibly larger."""


def centre_features(session: Session, resumed: Resumed) -> None:
    """Set the mean of the model's `Centring` at every rank: the one that was kept, or a new release.

    Raises:
        InputError: at every rank, where the state of a run that goes on lacks it, or a ledger refuses the charge.
        SiteError: a site is missing from the secure sum.
    """
    if session.config.model.feature_mean != "sites":
        return
    transport, size = session.transport, int(session.config.model.features or 0)
    owner = resumed.owners.get(AGGREGATOR_NAME)
    kept = run_on_all_ranks(transport, lambda: None if transport.rank else _kept(session, resumed.first, owner))
    known = transport.broadcast(bytes([kept is not None]) if transport.rank == 0 else None, "control") == b"\x01"
    mean = kept if known else _released(session, size)
    if not known:
        run_on_all_ranks(transport, lambda: None if mean is None else _keep(session, mean, owner))
    received = transport.broadcast(None if mean is None else pack_arrays({"mean": mean}), "features")
    run_on_all_ranks(transport, lambda: centre(session.place.model, _checked_mean(received, size)))


def feature_grid(config: RunConfig, plan: PrivacyPlan | None, weights: Sequence[int]) -> IntegerGrid:
    """Return the integers of the release, and each site's share of the planned noise where they share it."""
    honest = config.honest_sites if config.privacy.trust == "sites" else 1
    noise = config.privacy.feature_mean_noise if plan is None else plan.feature_mean_noise or 0.0
    return plan_grid(noise, int(config.model.features or 0), weights, honest, 1)


def _kept(session: Session, first: int, owner: Owner | None) -> F32 | None:
    """Return the mean of an earlier start of this run; None where there is none and no round was recorded."""
    folder = session.directory.state
    if saved_rounds(folder, STATE):
        try:
            return load_state(folder, STATE, 0, owner)["mean"].astype(np.float32)
        except ForeignCheckpointError:
            if first:
                raise
    elif first:
        raise InputError(
            f"{folder / STATE}-0000.npz: is missing beside the state after round {first}: the model belongs to that "
            "mean of the features. Restore the file, or start in a new --run-dir",
            code="resume.damaged-checkpoint",
        )
    return None


def _keep(session: Session, mean: F32, owner: Owner | None) -> None:
    save_state(session.directory.state, STATE, 0, {"mean": mean}, owner)


def _released(session: Session, size: int) -> F32 | None:
    """Ask all sites; the mean at rank 0, None elsewhere. Each site has charged it before its features are summed."""
    config, transport, weights = session.config, session.transport, session.weights
    grid = feature_grid(config, session.place.plan, weights)
    if config.privacy.trust == "sites":
        shares = run_on_all_ranks(transport, lambda: {one.index: one.feature_share(grid) for one in session.sites})
        colluding, n = config.privacy.colluding_sites or 0, len(weights)
        terms = SumTerms(n, threshold=n, size=size, width_bytes=grid.width_bytes, colluding=colluding)
        group = SumGroup(transport, config.site_names, session.identities)
        total = masked_sum(group, terms, SUM_NUMBER, shares)
        if total is None:
            return None
        shared: F32 = (total / (grid.clip_units * sum(weights))).astype(np.float32)
        return shared
    sums = run_on_all_ranks(transport, lambda: [one.feature_sum(grid) for one in session.sites])
    payloads = transport.gather([pack_arrays({"sum": one}) for one in sums], "features")
    if transport.rank:
        return None
    got = of_each(payloads, config.site_names, "features", lambda site, one: read_sum(site, one, size))
    mean: F32 = (np.sum(got, axis=0) / sum(weights)).astype(np.float32)
    return mean


def read_sum(site: str, payload: bytes, size: int) -> F64:
    """Return a site's noisy sum f64[size].

    Raises:
        PayloadError: another shape or type, or entries that are not finite or beyond LARGEST_SUM.
    """
    try:
        found: F64 = unpack_arrays(payload, {"sum": ArraySpec("<f8", (size,))}, 8 * size)["sum"].astype(np.float64)
    except PayloadError as error:
        raise PayloadError(f"site {site}, features: {error}", code=error.code) from None
    if not (np.abs(found) <= LARGEST_SUM).all():
        raise PayloadError(f"site {site}, features: entries beyond {LARGEST_SUM:g} or not finite")
    return found


def _checked_mean(payload: bytes, size: int) -> F32:
    """Raises PayloadError where the mean from the aggregator is none that could be subtracted."""
    mean = unpack_arrays(payload, {"mean": ArraySpec("<f4", (size,))}, 4 * size)["mean"].astype(np.float32)
    if not (np.abs(mean) <= LARGEST_MEAN).all():
        raise PayloadError(f"aggregator, features: entries beyond {LARGEST_MEAN:g} or not finite")
    return mean
