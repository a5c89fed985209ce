"""The public map of `model.features`: fitted once, at rank 0, to images that were set aside for good."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from fedhpc.agreement import together
from fedhpc.backbones import Backbone, PublicMap, fit_public_map
from fedhpc.config import RunConfig
from fedhpc.console import Console
from fedhpc.errors import PrivacyError
from fedhpc.exchange.comm import Transport
from fedhpc.exchange.update import Array, pack_arrays, unpack_arrays
from fedhpc.site.samples import FeatureSamples
from fedhpc.site.shard import Shard

REFERENCE_IMAGES = 1000


def make_reference(config: RunConfig, console: Console) -> None:
    """The public reference of a phantom study, at rank 0, where it is missing."""
    wanted, path = config.data.phantom, config.data.public_reference
    if wanted is None or path is None or Path(path).exists():
        return
    from data_prep.phantom.public import write_reference

    console.say(f"making a public reference of {REFERENCE_IMAGES} phantoms ...")
    write_reference(Path(path), REFERENCE_IMAGES, wanted.image_size)


def agreed_map(config: RunConfig, backbone: Backbone, shards: Sequence[Shard], transport: Transport) -> PublicMap:
    """Fitted at rank 0 to the public reference, sent to all; every rank checks that none of its images are in it."""
    fitted = together(transport, lambda: _fitted(config, backbone) if transport.rank == 0 else None)
    arrays = unpack_arrays(transport.broadcast(pack_arrays(fitted) if fitted else None, "hello"))
    public = {row.tobytes() for row in arrays["hashes"]}
    together(transport, lambda: _refuse_private_reference(config, shards, public))
    return PublicMap(arrays["mean"].astype(np.float32), arrays["projection"].astype(np.float32))


def public_map(config: RunConfig, backbone: Backbone) -> PublicMap:
    """The map alone, for a process by itself."""
    arrays = _fitted(config, backbone)
    return PublicMap(arrays["mean"].astype(np.float32), arrays["projection"].astype(np.float32))


def _fitted(config: RunConfig, backbone: Backbone) -> dict[str, Array]:
    path, kept = Path(str(config.data.public_reference)), config.model.features
    with Shard.open(path, None, need_train=False) as shard:
        features = FeatureSamples(shard, backbone, path.parent).inputs(np.arange(shard.n)).numpy()
        hashes = np.frombuffer(b"".join(sorted(shard.image_hashes)), np.uint8).reshape(-1, 32)
    found = fit_public_map(features, int(kept or 0), config.model.whitening)
    return {"mean": found.mean, "projection": found.projection, "hashes": hashes}


def _refuse_private_reference(config: RunConfig, shards: Sequence[Shard], public: set[bytes]) -> None:
    for shard in shards:
        if public & shard.image_hashes:
            # Not how many: that would tell how many of the public images are patients of this site.
            raise PrivacyError(
                f"data.public_reference={config.data.public_reference}: some of its images are in the shard of "
                f"{shard.site}; a public image must not be a patient's of this study: set them aside for good"
            )
