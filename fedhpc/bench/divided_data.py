"""The same images divided into four hospitals in many ways: by label skew, and by seed or fold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.optimize import brentq

from data_prep.image_job import ImageImport
from data_prep.images import import_images
from data_prep.phantom import Cohort, write_site
from data_prep.phantom.sites import SiteProtocol
from fedhpc.bench.feature_store import Collection, FeatureStore, quietly
from fedhpc.config.data import Phantom
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.saved import load_backbone
from fedhpc.util.arrays import F64
from fedhpc.util.files import write_bytes
from fedhpc.util.rng import generator

SITES = 4
PREVALENCE = (0.05, 0.95)
FROZEN_SIZE, NETWORK_SIZE = 224, 64


@dataclass(frozen=True)
class Division:
    """One way to divide the images.

    Attributes:
        skew: the Dirichlet concentration of the classes over the hospitals; small is skewed.
        seed: of the division; with `folds`, which fold is tested, from 0.
        folds: 0, or in how many parts the images are cut, one of which is the test split.
    """

    skew: float
    seed: int
    folds: int = 0

    @property
    def name(self) -> str:
        """As in the names of folders."""
        part = f"fold{self.seed + 1}of{self.folds}" if self.folds else f"seed{self.seed}"
        return f"skew{self.skew:g}-{part}"

    def fold(self) -> tuple[int, int] | None:
        """As `prepare images --fold` takes it."""
        return (self.seed + 1, self.folds) if self.folds else None


class DividedData:
    """Makes the shards of a config's images for any division, once each, in a folder.

    Args:
        config: its `data.phantom` says which cohort; without, the images come from a folder.
        images: class folders, as for `prepare images`; None where the config has a phantom cohort.
        out: where shards are kept.

    Raises:
        InputError: neither a cohort nor a folder, or both.
    """

    def __init__(self, config: RunConfig, images: Path | None, out: Path) -> None:
        if (config.data.phantom is None) == (images is None):
            raise InputError(
                f"{config.name}: give --images for a config without data.phantom, and none for one with it",
                code="command-line",
            )
        self._phantom, self._images, self._out = config.data.phantom, images, out
        self._backbone = config.model.backbone
        self._features: FeatureStore | None = None

    def shards(self, division: Division) -> Path:
        """Return the folder with the shards of a division."""
        folder = self._out / division.name
        if not (folder / "ready").exists():
            if self._phantom is not None:
                _write_phantoms(self._phantom, division, folder)
            elif self._images is not None:
                self._import(self._images, division, folder)
            write_bytes(folder / "ready", b"")
        return folder

    def _import(self, images: Path, division: Division, folder: Path) -> None:
        size = FROZEN_SIZE if self._backbone else NETWORK_SIZE
        seed = 0 if division.folds else division.seed
        plan = {"sites": SITES, "skew": division.skew, "seed": seed, "fold": division.fold(), "size": size}
        paths = quietly(lambda: import_images(ImageImport(images, folder, **plan)))  # type: ignore[arg-type]
        if self._backbone is None:
            return
        if self._features is None:
            self._features = FeatureStore(Collection(images, size), load_backbone(self._backbone), self._out)
        for path in paths:
            self._features.keep_for(path)


def _write_phantoms(phantom: Phantom, division: Division, folder: Path) -> None:
    """The built-in cohort with its scanners and sizes, and another share of each class at each hospital."""
    whole = Cohort(phantom.seed + division.seed, phantom.images, phantom.image_size, phantom.difficulty)
    cohort = replace(whole, sites=skewed(whole.sites, division))
    for name in cohort.sites:
        quietly(lambda name=name: write_site(cohort, name, folder / f"{name}.h5"))  # type: ignore[misc]


def skewed(sites: Mapping[str, SiteProtocol], division: Division) -> dict[str, SiteProtocol]:
    """Return the protocols with other prevalences, within PREVALENCE, and the same share of positives in the whole.

    Each class is spread over the sites by a Dirichlet(skew) draw; the positives' draw is scaled to their number.
    """
    negative, positive = generator(division.seed, "skewed phantoms").gamma(division.skew, size=(2, len(sites)))
    sizes = np.array([one.images for one in sites.values()], np.float64)
    wanted = float(sizes @ [one.prevalence for one in sites.values()])

    def prevalences(log_scale: float) -> F64:
        share = np.exp(log_scale) * positive / (np.exp(log_scale) * positive + negative)
        clipped: F64 = np.clip(share, *PREVALENCE)
        return clipped

    found = prevalences(brentq(lambda x: float(sizes @ prevalences(x)) - wanted, -200, 200))
    return {name: replace(one, prevalence=float(p)) for (name, one), p in zip(sites.items(), found, strict=True)}
