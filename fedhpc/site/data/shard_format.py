"""The format of a shard: names, dtypes and allowed values; see `fedhpc.site.data.shard`."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FORMAT_VERSION = 1
SPLITS = ("train", "val", "test")
MODALITIES = ("MR", "CT", "OT", "CR", "DX", "MG", "NM", "OP", "PT", "RF", "SM", "US", "XA")
IMAGE_DTYPES = (np.dtype("<u1"), np.dtype("<u2"), np.dtype("<f4"))
COLUMNS = {
    name: np.dtype(code)
    for name, code in (("labels", "<i8"), ("patient", "S16"), ("split", "u1"), ("modality", "S2"), ("stage", "u1"))
}
FINDINGS = (np.dtype("u1"), np.dtype("<i8"))
"""Of labels [n, K], one column a finding."""
OPTIONAL = frozenset({"stage"})


class PixelRange(NamedTuple):
    """The two ends of a pixel scale (public)."""

    low: float
    high: float


@dataclass(frozen=True)
class Identity:
    """What the attributes of a shard say (public)."""

    site: str
    classes: tuple[str, ...]
    pixel_range: PixelRange


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with a shard: its kind is public, its text is private."""

    kind: str
    text: str
