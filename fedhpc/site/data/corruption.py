"""A site whose images or labels are wrong on purpose: the data cases of a stress test, applied as rows are read.

The shard on disk stays as it is. Training and validation images are corrupted, each by itself and the same at every
read; the test split is not, so that metrics can be compared with those of a clean run.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhpc.config.stress import Stress
from fedhpc.site.data.shard import Shard
from fedhpc.util.arrays import F64, I64, U8, Images
from fedhpc.util.rng import generator

AIR = 0.1
"""Of the pixel range: what is darker is no tissue."""
SPIKES = 3


class CorruptedShard:
    """What samples read of a shard, with the case of a stress test applied (private).

    Args:
        shard: open.
        stress: the case.
        seed: of what is drawn.
    """

    def __init__(self, shard: Shard, stress: Stress, seed: int) -> None:
        self._shard, self._stress, self._seed = shard, stress, seed
        self.site, self.n, self.in_memory = shard.site, shard.n, shard.in_memory
        self.patient: npt.NDArray[np.bytes_] = shard.patient
        self.stage: U8 = shard.stage
        self._spared = shard.indices("test")
        self._image_case = IMAGE_CASES.get(stress.case)
        self.labels: I64 = shard.labels if self._image_case else self._wrong_labels()
        key = f"{shard.digest} {stress.case} {stress.amount} {seed}" if self._image_case else shard.digest
        self.digest = hashlib.sha256(key.encode()).hexdigest() if self._image_case else key

    def indices(self, split: str) -> I64:
        """See `Shard`."""
        return self._shard.indices(split)

    def read(self, rows: npt.ArrayLike) -> Images:
        """See `Shard`; same shape and dtype, within the pixel range."""
        images = self._shard.read(rows)
        if self._image_case is None:
            return images
        low, high = self._shard.pixel_range
        out = images.copy()
        for place, row in enumerate(np.asarray(rows, np.int64).reshape(-1)):
            if row in self._spared:
                continue
            rng = generator(self._seed, self.site, int(row), "corrupted image")
            wrong = self._image_case((images[place].astype(np.float64) - low) / (high - low), self._stress.amount, rng)
            out[place] = _stored(low + (high - low) * np.clip(wrong, 0, 1), images.dtype)
        return out

    def _wrong_labels(self) -> I64:
        rng = generator(self._seed, self.site, "corrupted labels")
        labels, classes = self._shard.labels, len(self._shard.classes)
        if labels.ndim == 2:
            wrong = 1 - labels
        elif self._stress.case == "label_flip":
            wrong = classes - 1 - labels
        else:
            wrong = (labels + rng.integers(1, classes, labels.shape)) % classes
        struck = rng.random(len(labels)) < self._stress.amount
        struck[self._spared] = False
        out: I64 = np.where(struck[:, None] if labels.ndim == 2 else struck, wrong, labels)
        return out


def _stored(image: F64, dtype: np.dtype[Any]) -> Images:
    return (np.rint(image) if np.issubdtype(dtype, np.integer) else image).astype(dtype)


def inverted_contrast(image: F64, strength: float, rng: np.random.Generator) -> F64:
    """Dark is bright. Images are [C, H, W] or [C, D, H, W] on a scale from 0 to 1, as in all cases."""
    return 1 - image


def noise_images(image: F64, strength: float, rng: np.random.Generator) -> F64:
    """Uniform noise."""
    return rng.random(image.shape)


def swapped_modality(image: F64, strength: float, rng: np.random.Generator) -> F64:
    """Return the order of brightness turned round above air, as T2 shows fluid bright that T1 shows dark."""
    return np.where(image < AIR, image, 1 + AIR - image)


def constant_images(image: F64, strength: float, rng: np.random.Generator) -> F64:
    """Gray."""
    return np.full_like(image, 0.5)


def kspace_spikes(image: F64, strength: float, rng: np.random.Generator) -> F64:
    """Spikes in k-space, at random places outside its center: stripes over the whole image."""
    space = np.fft.fft2(image)
    height, width = image.shape[-2:]
    for _ in range(SPIKES):
        row, column = int(rng.integers(1, height)), int(rng.integers(1, width))
        space[..., row, column] += strength * np.abs(space).max(axis=(-2, -1)) / SPIKES
    return np.asarray(np.fft.ifft2(space).real)


IMAGE_CASES: dict[str, Callable[[F64, float, np.random.Generator], F64]] = {
    "inverted_contrast": inverted_contrast,
    "noise_images": noise_images,
    "swapped_modality": swapped_modality,
    "constant_images": constant_images,
    "kspace_spikes": kspace_spikes,
}
"""By the name of the case; those of labels are in `CorruptedShard`."""
