"""How unlike the hospitals' images are to a network: before harmonisation, and after each chain of steps.

Two measures on features of a public backbone, of images of one class and modality only, so that a hospital's mix of
cases does not count. The AUC of a classifier that tells two hospitals apart, cross-validated by patient: 0.5 where it
cannot, 1 where one look is enough. And the share of the features' variance that lies between hospitals (eta squared),
which still falls where the AUC is 1.
"""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from time import process_time

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata

from data_prep.shard_writer import UNLABELLED
from fedhpc.config.harmonise import Chain, Clip, Fourier, Nyul, Smooth, Window, ZScore
from fedhpc.errors import ShardError
from fedhpc.models.backbones import Backbone
from fedhpc.site.data.harmonise import harmonise
from fedhpc.site.data.harmonise.foreground import foreground
from fedhpc.site.data.harmonise.intensity import landmarks_of
from fedhpc.site.data.harmonise.spectrum import amplitude_of
from fedhpc.site.data.shard import Shard
from fedhpc.site.data.shard_format import PixelRange
from fedhpc.util.arrays import F32, F64, Images, middle_slice
from fedhpc.util.rng import generator

FOLDS, RIDGE, LEAST = 5, 1.0, 10
BINS = 64
BATCH = 64
FOREGROUND = ZScore(mask="foreground")


@dataclass(frozen=True)
class Drawn:
    """Some images of one shard (private).

    Attributes:
        site: its name.
        images: [n, C, H, W] in the shard's dtype.
        patient: pseudonyms [n].
        stratum: text [n], class and modality.
        pixel_range: the shard's.
    """

    site: str
    images: Images
    patient: npt.NDArray[np.bytes_]
    stratum: npt.NDArray[np.str_]
    pixel_range: PixelRange


@dataclass(frozen=True)
class Shift:
    """What one chain makes of the hospitals.

    Attributes:
        auc: of telling two hospitals apart, the mean over pairs; None where no two share a class and modality.
        pairs: of each pair of hospitals.
        share: of the variance of features that lies between hospitals, the mean over features.
        ms_per_image: CPU time of the chain.
        edges: of the histograms, [BINS + 1].
        histograms: shares [BINS] of each hospital's pixels.
        examples: one image of each hospital, [H, W].
    """

    auc: float | None
    pairs: Mapping[str, float]
    share: float
    ms_per_image: float
    edges: F64
    histograms: Mapping[str, F64]
    examples: Mapping[str, F32]


def draw(paths: Sequence[Path], most: int, seed: int = 0) -> list[Drawn]:
    """Return up to `most` images of each shard, the same for the same seed.

    Raises:
        ShardError: a bad shard, shards of different shapes, or two of one site.
    """
    with ExitStack() as stack:
        shards = [stack.enter_context(Shard.open(path, None, in_memory=False, need_train=False)) for path in paths]
        if len({shard.image_shape for shard in shards}) > 1 or len({shard.site for shard in shards}) < len(shards):
            raise ShardError(
                "these shards have different image shapes, or two are of one site. Compare shards of different sites "
                "that were prepared alike",
                code="shard.differ",
            )
        return [_drawn(shard, most, seed) for shard in shards]


def _drawn(shard: Shard, most: int, seed: int) -> Drawn:
    rows = np.sort(generator(seed, "compare", shard.site).permutation(shard.n)[:most])
    labels = shard.labels if shard.labels.ndim == 1 else shard.labels @ (1 << np.arange(shard.labels.shape[1]))
    stratum = np.array([f"{labels[row]} {shard.modality[row].decode()}" for row in rows])
    return Drawn(shard.site, shard.read(rows), shard.patient[rows], stratum, shard.pixel_range)


def shift(drawn: Sequence[Drawn], chain: Chain, backbone: Backbone, own: Mapping[str, Chain] | None = None) -> Shift:
    """Return what a chain makes of the hospitals' images; `own`: of the sites that have another."""
    chains = {site.site: chain for site in drawn} | dict(own or {})
    start_s = process_time()
    after = [torch.cat([harmonise(part, chains[site.site]) for part in _batches(site.images)]) for site in drawn]
    spent_ms = 1000 * (process_time() - start_s) / sum(len(site.images) for site in drawn)
    features = [
        torch.cat([backbone(images[rows]) for rows in torch.arange(len(images)).tensor_split(_parts(images))])
        .double()
        .numpy()
        for images in after
    ]
    pairs = {}
    for one, other in combinations(range(len(drawn)), 2):
        auc = _pair_auc(drawn[one], drawn[other], features[one], features[other])
        if auc is not None:
            pairs[f"{drawn[one].site} - {drawn[other].site}"] = auc
    values = np.concatenate([images.numpy().reshape(-1)[::7] for images in after])
    low, high = (float(end) for end in np.percentile(values, (0.5, 99.5)))
    edges = np.linspace(low, max(high, low + 1e-6), BINS + 1)
    histograms = {
        site.site: np.histogram(images.numpy(), edges)[0] / images.numel()
        for site, images in zip(drawn, after, strict=True)
    }
    examples = {site.site: middle_slice(images[0].numpy()) for site, images in zip(drawn, after, strict=True)}
    return Shift(
        float(np.mean(list(pairs.values()))) if pairs else None,
        pairs,
        _share_between(drawn, features),
        spent_ms,
        edges,
        histograms,
        examples,
    )


def _share_between(drawn: Sequence[Drawn], features: Sequence[F64]) -> float:
    """Sums of squares between hospitals over all, inside strata; hospitals count by their images."""
    values = np.concatenate(features)
    site = np.repeat(np.arange(len(drawn)), [len(one) for one in features])
    stratum = np.concatenate([one.stratum for one in drawn])
    between, total = np.zeros(values.shape[1]), np.zeros(values.shape[1])
    for name in np.unique(stratum):
        mine = stratum == name
        centre = values[mine].mean(axis=0)
        total += ((values[mine] - centre) ** 2).sum(axis=0)
        for number in np.unique(site[mine]):
            part = values[mine & (site == number)]
            between += len(part) * (part.mean(axis=0) - centre) ** 2
    known = total > 1e-12
    return float((between[known] / total[known]).mean()) if known.any() else 0.0


def _parts(images: torch.Tensor) -> int:
    return -(-len(images) // BATCH)


def _batches(images: Images) -> list[Images]:
    return [images[first : first + BATCH] for first in range(0, len(images), BATCH)]


def _pair_auc(one: Drawn, other: Drawn, first: F64, second: F64) -> float | None:
    """Cross-validated by patient, compared inside strata that both have enough images of."""
    features = np.concatenate([first, second])
    target = np.repeat([1.0, -1.0], [len(first), len(second)])
    patient = np.concatenate([np.char.add(b"a", one.patient), np.char.add(b"b", other.patient)])
    fold = np.array([_fold(name) for name in patient.tolist()])
    scores = np.zeros(len(target))
    for number in range(FOLDS):
        train, test = fold != number, fold == number
        if test.any() and len(np.unique(target[train])) == 2:
            scores[test] = _ridge(features[train], target[train], features[test])
    stratum = np.concatenate([one.stratum, other.stratum])
    strata = [mine for name in np.unique(stratum) if _enough(target[mine := stratum == name])]
    found = [_auc(scores[mine], target[mine] > 0) for mine in strata]
    return float(np.average(found, weights=[int(mine.sum()) for mine in strata])) if found else None


def _fold(patient: bytes) -> int:
    """The same in every comparison."""
    return int.from_bytes(hashlib.sha256(patient).digest()[:4], "little") % FOLDS


def _enough(target: F64) -> bool:
    return min(int((target > 0).sum()), int((target < 0).sum())) >= LEAST


def _ridge(features: F64, target: F64, wanted: F64) -> F64:
    """Least squares on standardised features: Fisher's discriminant, shrunken."""
    mean, scale = features.mean(axis=0), features.std(axis=0)
    kept = scale > 1e-9
    x, z = (features - mean)[:, kept] / scale[kept], (wanted - mean)[:, kept] / scale[kept]
    # Both hospitals count alike, however many images each has.
    weight = np.where(target > 0, 0.5 / (target > 0).mean(), 0.5 / (target < 0).mean())
    gram = (x * weight[:, None]).T @ x + RIDGE * len(x) * 0.01 * np.eye(x.shape[1])
    return np.asarray(z @ np.linalg.solve(gram, x.T @ (weight * target)))


def _auc(scores: F64, positive: npt.NDArray[np.bool_]) -> float:
    ranks = rankdata(scores)
    ones = int(positive.sum())
    return float((ranks[positive].sum() - ones * (ones + 1) / 2) / (ones * (len(scores) - ones)))


def reference_steps(path: Path, frequencies: int) -> tuple[Nyul, Fourier]:
    """Return the steps whose numbers come from a public reference: means over its images.

    Raises:
        ShardError: a bad shard, or one with labels, which is a hospital's.
    """
    with Shard.open(path, None, in_memory=False, need_train=False) as shard:
        if shard.classes != UNLABELLED:
            raise ShardError(
                f"{path}: has labels, so it is a hospital's shard. What these numbers are made of becomes public. Give "
                "a public reference (`prepare images --reference`, or the phantoms of a config)",
                code="privacy.not-public",
            )
        images = shard.read(np.arange(shard.n)).astype(np.float32)
    landmarks = landmarks_of(images, foreground(images)).mean(axis=(0, 1))
    # One amplitude for all classes of images: the geometric mean, as of spectra.
    amplitude = np.exp(np.log(amplitude_of(images, frequencies) + 1e-6).mean(axis=(0, 1)))
    symmetric = (amplitude + amplitude[::-1, ::-1]) / 2
    rows = tuple(tuple(round(value, 4) for value in row) for row in symmetric.tolist())
    return Nyul(landmarks=tuple(round(value, 3) for value in landmarks.tolist())), Fourier(amplitude=rows)


def usual_chains(pixel_range: PixelRange, reference: Sequence[Nyul | Fourier] = ()) -> dict[str, Chain]:
    """Return the chains to compare, by name; those of a reference only where there is one.

    N4 is none of them, since it takes longer than all others together: compare it by a config.
    """
    low, high = pixel_range
    whole = Window(centre=(low + high) / 2, width=high - low)
    chains: dict[str, Chain] = {
        "none": (whole,),
        "zscore": (ZScore(),),
        "zscore in foreground": (FOREGROUND,),
        "clip, zscore": (Clip(), ZScore()),
        "smooth, zscore": (Smooth(), ZScore()),
    }
    for step in reference:
        chains[f"{step.step}, zscore"] = (step, ZScore())
    return chains
