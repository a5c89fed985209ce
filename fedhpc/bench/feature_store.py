"""The features of a frozen backbone for one folder of images, computed once for every division of it into hospitals."""

import contextlib
import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from data_prep.image_job import ImageImport
from data_prep.images import import_images
from fedhpc.models.backbones import Backbone
from fedhpc.site.data.open_site import open_site
from fedhpc.site.data.shard import Shard
from fedhpc.util.files import write_atomically

T = TypeVar("T")


@dataclass(frozen=True)
class Collection:
    """Class folders, as for `prepare images`, and pixels a side of the stored images."""

    images: Path
    size: int


class FeatureStore:
    """The backbone's features of every image of a collection, found by the SHA-256 of the image.

    Args:
        collection: the images.
        backbone: the frozen network.
        out: where the whole collection and its features are kept, as `all.h5` and beside it.
    """

    def __init__(self, collection: Collection, backbone: Backbone, out: Path) -> None:
        whole = out / "all.h5"
        if not whole.exists():
            job = ImageImport(collection.images, whole, size=collection.size, sites=1, all_test=True)
            quietly(lambda: import_images(job))
        self._backbone = backbone
        with open_site(whole) as site:
            self._features = site.samples(backbone).inputs(np.arange(site.shard.n)).numpy()
            self._row_of = {digest: row for row, digest in enumerate(_hashes(site.shard))}

    def keep_for(self, path: Path) -> None:
        """Put the features of the images of a shard beside it, where a run looks for them."""
        with open_site(path) as site:
            rows = [self._row_of[digest] for digest in _hashes(site.shard)]
            kept = site.features_path(self._backbone)
            write_atomically(kept, lambda out: np.save(out, self._features[rows], allow_pickle=False))


def _hashes(shard: Shard) -> Iterator[bytes]:
    for row in range(shard.n):
        yield hashlib.sha256(np.ascontiguousarray(shard.read(np.array([row]))).tobytes()).digest()


def quietly(work: Callable[[], T]) -> T:
    """Return what `work` gives, without what it prints to standard output, which belongs to `--json`."""
    with contextlib.redirect_stdout(io.StringIO()):
        return work()
