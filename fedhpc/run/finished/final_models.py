"""The final models of the baselines, from the ranks that trained them to every rank."""

from collections.abc import Mapping

import numpy as np

from fedhpc.compression.update import ArraySpec, pack_arrays, unpack_arrays
from fedhpc.errors import PayloadError
from fedhpc.models.vector import parameter_count
from fedhpc.run.session import POOLED, Session
from fedhpc.transport.messages import of_each
from fedhpc.util.arrays import F32


def shared_models(session: Session, models: Mapping[str, F32]) -> dict[str, F32]:
    """Send every learner's final model to every rank, dense: the baselines are measured on all sites' test splits.

    Args:
        session: this rank's.
        models: those of this rank's learners by name, f32[d].

    Returns:
        all learners' models by name, f32[d].

    Raises:
        PayloadError: at rank 0, naming a site whose message is no model.
    """
    packed = session.transport.gather([pack_arrays({name: params}) for name, params in models.items()], "update")
    size = parameter_count(session.place.model)
    names = list(session.config.site_names) if session.config.mode == "local" else [POOLED]
    merged: dict[str, F32] = {}
    if packed:
        for one in of_each(packed, names, "update", lambda name, payload: read_model(name, payload, size)):
            merged |= one
    payload = pack_arrays(merged) if session.transport.rank == 0 else None
    received = session.transport.broadcast(payload, "update")
    everybody = unpack_arrays(received, dict.fromkeys(names, ArraySpec("<f4", (size,))), 4 * size * len(names))
    return {name: params.astype(np.float32, copy=False) for name, params in everybody.items()}


def read_model(name: str, payload: bytes, size: int) -> dict[str, F32]:
    """Return {name: parameters f32[size]} of a learner's final model from its payload.

    Raises:
        PayloadError: another name, type or size, or values that are not finite.
    """
    try:
        params = unpack_arrays(payload, {name: ArraySpec("<f4", (size,))}, 4 * size)[name].astype(np.float32)
    except PayloadError as error:
        raise PayloadError(f"site {name}, update: {error}", code=error.code) from None
    if not np.isfinite(params).all():
        raise PayloadError(f"site {name}, update: its model has entries that are not finite", code="payload.not-finite")
    return {name: params}
