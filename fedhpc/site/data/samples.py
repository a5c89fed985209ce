"""What the training loop reads: images or cached features of one site, or of all sites pooled, row by row."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from fedhpc.config.harmonise import DEFAULT, Chain
from fedhpc.errors import FileError, ShardError
from fedhpc.models.backbones import Backbone
from fedhpc.site.data.feature_file import FeatureFile
from fedhpc.site.data.harmonise import chain_key, harmonise
from fedhpc.util.arrays import I64, U8, Images
from fedhpc.util.files import PRIVATE, make_folder, replacing
from fedhpc.util.memory import fits_in_memory
from fedhpc.util.progress import progress_in_tenths

READ_AT_ONCE = 32
EXTRACTION = "3"
"""Of the features' code: raise it where it gives other bits, so that features cached by the old code are left."""


class Samples(Protocol):
    """n labelled inputs (private)."""

    labels: I64
    patient: NDArray[np.bytes_]
    early: NDArray[np.bool_]

    def indices(self, split: str) -> I64:
        """Return the rows of a split, ascending."""

    def inputs(self, rows: I64) -> Tensor:
        """float32 [k, ...], ready for the network."""


class Rows(Protocol):
    """What samples need of a shard (private): a `Shard`, or one whose images or labels are wrong on purpose."""

    site: str
    n: int
    digest: str
    labels: I64
    patient: NDArray[np.bytes_]
    stage: U8

    def indices(self, split: str) -> I64:
        """See `Shard`."""

    def read(self, rows: ArrayLike) -> Images:
        """See `Shard`."""


class ImageSamples:
    """Harmonised images of one shard, read as they are asked for."""

    def __init__(self, shard: Rows, chain: Chain = DEFAULT) -> None:
        self._shard, self.chain = shard, chain
        self.labels, self.patient, self.early = shard.labels, shard.patient, shard.stage == 1

    def indices(self, split: str) -> I64:
        """See `Samples`."""
        return self._shard.indices(split)

    @property
    def stored_dtype(self) -> np.dtype[Any]:
        """Of the images in the shard."""
        return self._shard.read(np.zeros(0, np.int64)).dtype

    @property
    def streamed(self) -> bool:
        """Whether the images are read from the shard's file as they are asked for."""
        return not getattr(self._shard, "in_memory", True)

    def stored(self, rows: I64) -> Images:
        """Return images as they are in the shard, [k, C, H, W]."""
        return self._shard.read(rows)

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`."""
        return harmonise(self._shard.read(rows), self.chain)


def reads_files(samples: "Samples") -> bool:
    """Return whether `inputs` reads from a file, of any part."""
    if isinstance(samples, PooledSamples):
        return any(map(reads_files, samples.parts))
    return isinstance(samples, ImageSamples) and samples.streamed


def feature_path(shard: Rows, backbone: Backbone, cache: Path, chain: Chain) -> Path:
    """The file in the folder `cache` that keeps the features of a shard; another for any other image, weight or chain.

    Args:
        shard: whose images they are of.
        backbone: that computes them.
        cache: the folder.
        chain: the steps that harmonise the images.
    """
    parts = (EXTRACTION, shard.digest, backbone.digest, chain_key(chain))
    key = hashlib.sha256(" ".join(filter(None, parts)).encode()).hexdigest()[:16]
    return cache / f"{shard.site}.features-{key}.npy"


class FeatureSamples(ImageSamples):
    """Features of a frozen backbone: computed once per shard, kept beside it, and read from a `FeatureFile`.

    Each image goes through the backbone by itself. In a batch its features are rounded by the batch's size: one patient
    more would move the last bits of other patients' features, and with them more than one clip norm of a step, or all
    counts of an evaluation at an edge that an aggregator has put there.
    """

    def __init__(self, shard: Rows, backbone: Backbone, cache: Path, chain: Chain = DEFAULT) -> None:
        super().__init__(shard, chain)
        path = feature_path(shard, backbone, cache, chain)
        if not path.exists():
            self._extract(backbone, path)
        rows, dim = shard.n, backbone.dim
        self._kept = fits_in_memory(4 * rows * dim)
        self._features = FeatureFile(path, rows, dim, shard.site, keep=self._kept)

    @property
    def streamed(self) -> bool:
        """Whether the features are read from their file as they are asked for."""
        return not self._kept

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`."""
        return torch.from_numpy(self._features.read(rows))

    def _extract(self, backbone: Backbone, path: Path) -> None:
        device = next(backbone.parameters()).device
        starts = range(0, self._shard.n, READ_AT_ONCE)
        head = io.BytesIO()
        shape = (self._shard.n, backbone.dim)
        np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": shape})
        try:
            make_folder(path.parent)
            # Written, not mapped: a map of a sparse file ends in SIGBUS where the disk is full.
            with replacing(path, mode=PRIVATE) as write:
                write(head.getvalue())
                for start in progress_in_tenths(starts, len(starts), f"features of {self._shard.site}"):
                    rows = np.arange(start, min(start + READ_AT_ONCE, self._shard.n))
                    for image in torch.split(super().inputs(rows).to(device), 1):
                        features = backbone(image).cpu().numpy()
                        self._check_finite(features)
                        write(np.ascontiguousarray(features, "<f4").tobytes())
        except FileError as error:
            site, needed_mb = self._shard.site, shape[0] * shape[1] * 4 / 1e6
            cause = error.__cause__.strerror if isinstance(error.__cause__, OSError) else str(error)
            raise ShardError(
                f"site {site}: cannot keep the features of the backbone beside the shard: {cause}. Make room there",
                private=f"{path}: cannot keep the features of site {site}: {cause}; {needed_mb:.1f} MB are needed. "
                "Make room, or move the shard",
                code="shard.features",
            ) from error

    def _check_finite(self, features: NDArray[np.float32]) -> None:
        if not np.isfinite(features).all():
            raise ShardError(
                f"site {self._shard.site}: the backbone makes features that are not finite of its images; they may be "
                "too small for it. Prepare them with --size 32 or more, or set another model.backbone",
                code="shard.features",
            )


class PooledSamples:
    """All sites' samples as one, for the centralised baseline only: residency is ignored here."""

    def __init__(self, parts: Sequence[Samples]) -> None:
        self.parts = parts
        sizes = [len(part.labels) for part in parts]
        self._starts = np.concatenate(([0], np.cumsum(sizes)))
        self.labels = np.concatenate([part.labels for part in parts])
        # Equal pseudonyms at two hospitals are two people: as one unit they would be clipped and weighed together, and
        # to take one away would move the sum by more than one clip norm.
        self.patient = np.concatenate([np.char.add(f"{k}:".encode(), part.patient) for k, part in enumerate(parts)])
        self.early = np.concatenate([part.early for part in parts])

    def indices(self, split: str) -> I64:
        """See `Samples`."""
        return np.concatenate(
            [part.indices(split) + start for part, start in zip(self.parts, self._starts, strict=False)]
        )

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`."""
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        blocks = [(owner == k).nonzero()[0] for k in range(len(self.parts))]
        read = [
            part.inputs(rows[at] - start) for part, at, start in zip(self.parts, blocks, self._starts, strict=False)
        ]
        return torch.cat(read)[torch.from_numpy(np.argsort(np.concatenate(blocks)))]
