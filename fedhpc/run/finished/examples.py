"""A few images of each class for the report, from public or synthetic images alone; no shard of a hospital is opened.

Of the built-in cohort new patients are drawn, who are in no shard. Else the public reference is read where it has
labels. Without either nothing is written.
"""

import base64
import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.config.data import PHANTOMS
from fedhpc.config.schema import RunConfig
from fedhpc.records.run_directory import RunDirectory
from fedhpc.util.arrays import U8, Array, middle_slice
from fedhpc.util.rng import generator

SYNTHETIC = "Synthetic patients of the built-in cohort, drawn for this page: none of them exists or is in a shard."
PUBLIC = "From the public reference images of data.public_reference."
EXAMPLE_SEED = 1_000_007
"""No cohort's: the patients are others than those of the shards."""
MOST_CLASSES, TILE = 8, 128


def write_examples(config: RunConfig, directory: RunDirectory) -> None:
    """Write examples.json where there is a public or synthetic image; once for a run directory.

    Raises:
        FileError: it cannot be written.
    """
    if directory.examples.exists():
        return
    found = list(_phantoms(config)) if config.data.phantom else list(_reference(config))
    if found:
        source = SYNTHETIC if config.data.phantom else PUBLIC
        directory.write_json(directory.examples, {"source": source, "images": found})


def _phantoms(config: RunConfig) -> Iterator[dict[str, str]]:
    from data_prep.phantom.cohort import CLASSES, Cohort, draw_patient, patient_images

    wanted = config.data.phantom
    if wanted is None:
        return
    cohort = Cohort(EXAMPLE_SEED, image_size=wanted.image_size, difficulty=wanted.difficulty)
    for site in (name for name in config.site_names if name in cohort.sites):
        for label, name in enumerate(CLASSES):
            rng = generator(EXAMPLE_SEED, site, label, "example")
            patient = draw_patient(rng, cohort, label)
            by_ct = np.array([cohort.sites[site].ct_share > 0.5])
            image = next(iter(patient_images(rng, cohort, site, patient, by_ct)))
            kind = "CT" if by_ct[0] else "MR"
            yield _example(image, f"{name}, {kind} as at {site}")


def _reference(config: RunConfig) -> Iterator[dict[str, str]]:
    from fedhpc.site.data.shard import Shard

    reference = config.data.public_reference
    if reference is None or reference == PHANTOMS or not Path(reference).exists():
        return
    if any(Path(reference).resolve() == config.data.shard_path(site).resolve() for site in config.site_names):
        # A config that calls a hospital's shard public does not make it so.
        return
    with Shard.open(Path(reference), None, in_memory=False, need_train=False) as shard:
        labels = shard.labels
        # A copy of a hospital's shard under another name has its site's name.
        if labels.ndim > 1 or shard.site in config.site_names:
            return
        for label, name in list(enumerate(shard.classes))[:MOST_CLASSES]:
            rows = np.flatnonzero(labels == label)
            if len(rows):
                yield _example(middle_slice(shard.read(rows[:1])[0]), str(name))


def _example(image: Array, caption: str) -> dict[str, Any]:
    """Return an image [H, W] as a grey PNG file of at most TILE pixels a side, scaled to its percentiles."""
    every = -(-max(image.shape) // TILE)
    values = np.asarray(image, np.float64)[::every, ::every]
    low, high = np.percentile(values, (1, 99.5))
    grey = np.clip((values - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    return {"caption": caption, "png": base64.b64encode(grey_png(grey)).decode()}


def grey_png(image: U8) -> bytes:
    """Return uint8[H, W] as a PNG file (ISO/IEC 15948), without a library that a run needs for nothing else."""
    height, width = image.shape
    lines = b"".join(b"\0" + row.tobytes() for row in image)
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(map(_chunk, chunks))


def _chunk(named: Sequence[bytes]) -> bytes:
    name, content = named
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
