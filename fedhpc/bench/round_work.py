"""The workload of `run.py bench round`: synthetic images of four sites, two networks, and the ways to train on them."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.shard_writer import write_shard
from fedhpc.bench import round_networks
from fedhpc.config.strict_yaml import dump_yaml
from fedhpc.transport import pki
from fedhpc.util.arrays import I64, U8
from fedhpc.util.files import make_folder, write_bytes, write_text
from fedhpc.util.rng import generator

VALIDATION, TEST = 40, 160
"""Images of these splits at every site."""
SIGNAL, NOISE = 14.0, 40.0
"""Grey levels: of the disc that class `yes` shows, and the standard deviation of each pixel."""
LR, MOMENTUM, BATCH, LOCAL_EPOCHS = 0.02, 0.9, 64, 3
WEIGHT_DECAY, SEED = 1e-4, 0

FLOOR = "floor"
WAYS: Mapping[str, str] = {
    FLOOR: "plain forked processes, shared memory",
    "plain": "fedhpc, dense float32, no TLS",
    "sparse": "fedhpc, density 0.1 at 4 bits, no TLS",
    "full": "fedhpc, density 0.1 at 4 bits, TLS, payloads searched",
    "dense-full": "fedhpc, dense float32, TLS, payloads searched",
    "default": "fedhpc, the exchange of a config that says nothing",
    "private": "fedhpc, as full, with DP-SGD",
}
_DENSE = {"density": 1.0, "value_bits": 32}
_SPARSE = {"density": 0.1, "value_bits": 4}
_OPEN = {"tls": False, "search": False}
EXCHANGE: Mapping[str, dict[str, Any]] = {
    "plain": {**_DENSE, **_OPEN},
    "sparse": {**_SPARSE, **_OPEN},
    "full": _SPARSE,
    "dense-full": _DENSE,
    "default": {},
    "private": _SPARSE,
}


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        name: of the workload.
        network: "conv4" or "resnet18".
        images: for training, of each site.
        image_size: pixels a side.
        rounds: how many.
    """

    name: str
    network: str
    images: tuple[int, ...]
    image_size: int
    rounds: int

    @property
    def sites(self) -> list[str]:
        """The names of the sites."""
        return [f"site{number}" for number in range(1, len(self.images) + 1)]


SMALL = Workload("small", "conv4", (1200, 900, 600, 300), 64, 10)
LARGE = Workload("large", "resnet18", (64, 64, 64, 64), 64, 5)
TINY = Workload("tiny", "conv4", (48, 32, 32, 16), 16, 3)
WORKLOADS: Mapping[str, Workload] = {one.name: one for one in (SMALL, LARGE, TINY)}


def prepare(work: Workload, folder: Path) -> None:
    """Write the shards, the floor's images and a config for each way into `folder`, where they are not there."""
    make_folder(folder)
    arrays: dict[str, NDArray[np.generic]] = {}
    for number, (site, images) in enumerate(zip(work.sites, work.images, strict=True)):
        rng = generator(0, "bench round", site)
        parts = {split: _drawn(n, work.image_size, rng) for split, n in _sizes(images).items()}
        for split, (pixels, labels) in parts.items():
            arrays |= {f"{number}.{split}.pixels": pixels, f"{number}.{split}.labels": labels}
        if not (folder / f"{site}.h5").exists():
            _write(folder / f"{site}.h5", site, list(parts.values()))
    if not (folder / "floor.npz").exists():
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **arrays)
        write_bytes(folder / "floor.npz", buffer.getbuffer())
    if not (folder / "pki").exists():
        pki.init(folder / "pki", work.sites)
    for way in EXCHANGE:
        write_text(folder / f"{way}.yaml", dump_yaml(config(work, way, folder)))


def config(work: Workload, way: str, folder: Path) -> dict[str, Any]:
    """Return the config of a way, as plain values; validation only after the last round, as at the floor."""
    network = {"build": f"{Path(round_networks.__file__)}:conv4"} if work.network == "conv4" else {"name": work.network}
    rate = min(1.0, BATCH / max(work.images))
    privacy = {"epsilon": 8.0, "unit": "image", "sample_rate": rate, "delta": 1e-5}
    weights = [{"name": site, "weight": images} for site, images in zip(work.sites, work.images, strict=True)]
    return {
        "name": f"{work.name}-{way}",
        "data": {"shards": str(folder / "{site}.h5"), "sites": weights},
        "model": network,
        "training": {
            "rounds": work.rounds,
            "local_epochs": LOCAL_EPOCHS,
            "batch_size": BATCH,
            "lr": LR,
            "lr_schedule": "constant",
            "momentum": MOMENTUM,
            "weight_decay": WEIGHT_DECAY,
        },
        "seed": SEED,
        "privacy": privacy if way == "private" else {"off": True},
        "exchange": EXCHANGE[way],
        "evaluation": {"every": work.rounds, "epsilon": None},
        "runtime": {"threads": 1, "device": "cpu"},
    }


def floor_job(work: Workload, ranks: int, folder: Path) -> dict[str, Any]:
    """Return the job of `fedhpc.bench.round_floor` in the directory `folder`, two below the images' own.

    Sites are dealt to processes longest first.
    """
    return {
        "images": str(folder.parents[1] / "floor.npz"),
        "sites": work.sites,
        "weights": list(work.images),
        "placement": balanced(work.images, ranks),
        "network": work.network,
        "rounds": work.rounds,
        "local_epochs": LOCAL_EPOCHS,
        "batch_size": BATCH,
        "lr": LR,
        "momentum": MOMENTUM,
        "weight_decay": WEIGHT_DECAY,
        "seed": SEED,
        "progress": str(folder / "rounds.jsonl"),
        "out": str(folder / "result.json"),
    }


def write_job(work: Workload, ranks: int, folder: Path) -> Path:
    """Write the floor's job; return its file."""
    make_folder(folder)
    write_text(folder / "job.json", json.dumps(floor_job(work, ranks, folder)))
    return folder / "job.json"


def balanced(images: Sequence[int], ranks: int) -> list[list[int]]:
    """Deal sites to ranks: the largest first, each to the rank with the fewest images so far.

    >>> balanced((1200, 900, 600, 300), 2)
    [[0, 3], [1, 2]]
    """
    dealt: list[list[int]] = [[] for _ in range(ranks)]
    for site in sorted(range(len(images)), key=lambda one: (-images[one], one)):
        min(dealt, key=lambda own: sum(images[one] for one in own)).append(site)
    return [sorted(own) for own in dealt]


def _sizes(images: int) -> dict[str, int]:
    return {"train": images, "val": VALIDATION, "test": TEST}


class _Drawn(NamedTuple):
    """Images u8[n, 1, size, size] and their labels i64[n] (synthetic)."""

    pixels: U8
    labels: I64


def _drawn(count: int, size: int, rng: np.random.Generator) -> _Drawn:
    """Noise images, half of them with a faint disc."""
    labels = np.arange(count) % 2
    y, x = np.mgrid[:size, :size]
    centre, radius = rng.uniform(0.25 * size, 0.75 * size, (2, count, 1, 1)), size / 8
    disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2
    grey = 128 + NOISE * rng.standard_normal((count, size, size)) + SIGNAL * disc * labels[:, None, None]
    return _Drawn(np.clip(grey, 0, 255).astype(np.uint8)[:, None], labels.astype(np.int64))


def _write(path: Path, site: str, parts: Sequence[_Drawn]) -> None:
    counts = [len(labels) for _, labels in parts]
    write_shard(
        path,
        site=site,
        classes=("no", "yes"),
        images=np.concatenate([pixels for pixels, _ in parts]),
        labels=np.concatenate([labels for _, labels in parts]),
        patient=[f"p{number}" for number in range(sum(counts))],
        split=np.repeat(np.arange(len(parts)), counts),
        modality=["OT"] * sum(counts),
        pixel_range=(0.0, 255.0),
        created_by="fedhpc bench round",
    )
