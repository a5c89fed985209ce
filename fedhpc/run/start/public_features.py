"""The public map of `model.features`: fitted once, at rank 0, to images that were set aside for good."""

from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from fedhpc.compression.update import pack_arrays, unpack_arrays
from fedhpc.config.data import PHANTOMS, REFERENCE_PHANTOMS
from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.models.backbones import Backbone
from fedhpc.models.build import blocks_of
from fedhpc.models.whitening import PublicMap, fit_public_map, in_blocks
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.start.built_in_cohort import write_phantoms
from fedhpc.site.account import SYNTHETIC
from fedhpc.site.data.open_site import open_site
from fedhpc.site.data.shard import Shard
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.transport.framing import SMALL_BROADCAST_BYTES
from fedhpc.util.arrays import Array


@dataclass(frozen=True)
class MapPlace:
    """Where a rank agrees on the map: its open shards, its run directory, and the way to the other ranks.

    `image_size`: rows and columns of all sites' images.
    """

    shards: Sequence[Shard]
    directory: RunDirectory
    transport: Transport
    image_size: int


def agreed_map(config: RunConfig, backbone: Backbone, place: MapPlace) -> PublicMap:
    """Fitted at rank 0 to the public reference, sent to all; no image of it stays among a hospital's own.

    With privacy such images are left out, each by itself, and only the site's own log says so: whether an image is in a
    shard must not show. Without privacy they are refused.

    Raises:
        PrivacyError: without privacy, an image of the reference in a shard.
    """
    transport = place.transport
    fitted = run_on_all_ranks(
        transport, lambda: _fitted(config, backbone, place.image_size) if transport.rank == 0 else None
    )
    received = transport.broadcast(pack_arrays(fitted) if fitted else None, "hello")
    arrays = unpack_arrays(received, limit_bytes=SMALL_BROADCAST_BYTES)
    public = {row.tobytes() for row in arrays["hashes"]}
    keep_apart = _leave_out if config.private else _refuse_private_reference
    run_on_all_ranks(transport, lambda: keep_apart(config, place, public))
    return PublicMap(arrays["mean"].astype(np.float32), arrays["projection"].astype(np.float32))


def public_map(config: RunConfig, backbone: Backbone, image_size: int) -> PublicMap:
    """Return the map alone, for a process by itself."""
    arrays = _fitted(config, backbone, image_size)
    return PublicMap(arrays["mean"].astype(np.float32), arrays["projection"].astype(np.float32))


def _fitted(config: RunConfig, backbone: Backbone, image_size: int) -> dict[str, Array]:
    path, kept = Path(str(config.data.reference_path(image_size))), config.model.features
    if config.data.public_reference == PHANTOMS and not path.exists():
        write_phantoms(path, REFERENCE_PHANTOMS, image_size)
    with open_site(path, chain=config.harmonise) as site:
        raw = site.samples(reference_backbone(site.shard.created_by, backbone)).inputs(np.arange(site.shard.n))
        hashes = np.frombuffer(b"".join(sorted(site.shard.image_hashes)), np.uint8).reshape(-1, 32)
    features = in_blocks(raw, blocks_of(backbone, config.model)).numpy()
    found = fit_public_map(features, int(kept or 0), config.model.whitening)
    return {"mean": found.mean, "projection": found.projection, "hashes": hashes}


def reference_backbone(created_by: str, backbone: Backbone) -> Backbone:
    """What sees the reference: phantoms are drawn to fill the image, and are not cropped (0.008 of AUC better)."""
    return backbone.without_crops() if created_by.startswith(SYNTHETIC) else backbone


def _leave_out(config: RunConfig, place: MapPlace, public: Set[bytes]) -> None:
    for shard in place.shards:
        count = shard.leave_out(public)
        if count:
            place.directory.log(shard.site, place.transport.rank).write(
                "INFO",
                f"data.public_reference={config.data.public_reference}: {count} of its images are in this shard and "
                "were left out of all splits. Public images have no protection: set them aside for good",
            )


def _refuse_private_reference(config: RunConfig, place: MapPlace, public: Set[bytes]) -> None:
    for shard in place.shards:
        if public & shard.image_hashes:
            raise PrivacyError(
                f"data.public_reference={config.data.public_reference}: some of its images are in the shard of "
                f"{shard.site}; a public image must not be a patient's of this study: set them aside for good",
                code="privacy.not-public",
            )
