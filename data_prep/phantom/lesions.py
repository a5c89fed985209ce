"""Lesions with outlines drawn by radiologists: the label enters a picture through `Lesion.aggressiveness` alone.

Outlines: LIDC-IDRI (Armato et al., Med Phys 38:915, 2011), nodules rated 1 or 2 (unlikely malignant) and 4 or 5
(suspicious). The signs are those by which gliomas and metastases are told from benign masses: irregular outline,
blurred margin, ring enhancement around necrosis, uneven texture, vasogenic oedema that follows the white matter.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

from data_prep.phantom.anatomy import ASSETS, ENHANCING, GREY, NECROSIS, OEDEMA, SOLID, TISSUES, WHITE
from data_prep.phantom.fields import PixelGrid, speckle
from fedhpc.util.arrays import F32

EARLY_MM = 25.0  # a lesion of smaller diameter is in the early stage
DIAMETER_MM = (10.0, 60.0)
MAX_SEPARATION = 8.0  # distance of the classes in standard deviations of aggressiveness at difficulty 0


class Outlines(NamedTuple):
    """log_profile float32 (n, 64): log radius by angle, of unit area radius; first and sections of each nodule."""

    log_profile: F32
    first: NDArray[np.int64]
    sections: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Lesion:
    """One patient's lesion; positions in template mm.

    Attributes:
        centre_mm: (2,). diameter_mm: of the circle of equal area, in the largest section.
        aggressiveness: 0..1, what the label decides (blurred by `difficulty`) and what decides all signs below.
        log_profiles: (sections, 64), log of radius over mean radius.
        margin_mm: blur of the edge. rim_mm: thickness of living tissue around the core.
        necrosis, enhancement, texture: fractions 0..1. oedema_mm: its reach beyond the outline.
    """

    centre_mm: F32
    diameter_mm: float
    aggressiveness: float
    log_profiles: F32
    margin_mm: float
    rim_mm: float
    necrosis: float
    enhancement: float
    texture: float
    oedema_mm: float


@lru_cache(maxsize=2)
def load_outlines(suspicious: bool) -> Outlines:
    """The packaged outlines rated 4 to 5 (`suspicious`) or 1 to 2, read once."""
    with np.load(ASSETS / "lidc_outlines.npz", allow_pickle=False) as file:
        rated = (file["malignancy"] > 3) == suspicious
        profile = file["log_profile_percent"][rated].astype(np.float32) / 100
        _, first, count = np.unique(file["annotation"][rated], return_index=True, return_counts=True)
    return Outlines(profile, first, count)


def draw_aggressiveness(rng: np.random.Generator, label: int, difficulty: float) -> float:
    """Logistic of a normal value whose mean differs by MAX_SEPARATION * (1 - difficulty) between the labels.

    No reader, human or network, can beat AUC = Phi(separation / sqrt 2): 1 at difficulty 0, 0.5 at difficulty 1.
    """
    separation = MAX_SEPARATION * (1.0 - difficulty)
    return float(expit((label - 0.5) * separation + rng.standard_normal()))


def draw_diameter_mm(rng: np.random.Generator, aggressiveness: float) -> float:
    """Log-normal, median 29 mm for the mildest and 33 mm for the most aggressive, clipped to DIAMETER_MM."""
    return float(np.clip((29.0 + 4.0 * aggressiveness) * np.exp(0.33 * rng.standard_normal()), *DIAMETER_MM))


def draw_lesion(rng: np.random.Generator, aggressiveness: float, diameter_mm: float, places_mm: F32) -> Lesion:
    """A lesion of given aggressiveness and size at one of places_mm (n, 2)."""
    outlines = load_outlines(bool(rng.random() < aggressiveness))
    nodule = rng.integers(len(outlines.first))
    sections = outlines.log_profile[outlines.first[nodule] :][: outlines.sections[nodule]]
    turned = np.roll(sections, rng.integers(sections.shape[1]), axis=1)
    wobble = rng.standard_normal(4)
    return Lesion(
        centre_mm=places_mm[rng.integers(len(places_mm))],
        diameter_mm=diameter_mm,
        aggressiveness=aggressiveness,
        log_profiles=turned * np.float32(0.5 + 1.1 * aggressiveness),
        margin_mm=float(0.7 + 0.9 * aggressiveness + 0.2 * rng.random()),
        rim_mm=float(np.clip(0.17 * diameter_mm, 3.0, 6.0)),
        necrosis=float(np.clip(0.9 * aggressiveness + 0.12 * wobble[0], 0, 1)),
        enhancement=float(rng.uniform(0.5, 1.0)),
        texture=float(np.clip(0.05 + 0.3 * aggressiveness + 0.06 * wobble[1], 0, 0.6)),
        oedema_mm=float(np.clip(1.0 + 15.0 * aggressiveness + 2.5 * wobble[2], 0, 22)),
    )


def outline_distance_mm(points: F32, lesion: Lesion, number: int) -> F32:
    """Distance (P, P) in mm of template points (2, P, P) from outline `number` along the ray; negative is inside."""
    y, x = points - lesion.centre_mm[:, None, None]
    profile = lesion.log_profiles[number % len(lesion.log_profiles)]
    place = np.arctan2(y, x) * np.float32(len(profile) / (2 * np.pi)) % len(profile)
    below = place.astype(np.int32) % len(profile)
    share = (place - np.floor(place)).astype(np.float32)
    log_radius = profile[below] * (1 - share) + np.append(profile[1:], profile[0])[below] * share
    distance: F32 = np.hypot(x, y) - np.float32(lesion.diameter_mm / 2) * np.exp(log_radius)
    return distance


def add_lesion(fractions: F32, distance_mm: F32, lesion: Lesion, texture: F32) -> F32:
    """Replace healthy tissue by lesion and oedema.

    Args:
        fractions: (6, P, P), atlas tissues. distance_mm: (P, P) from `outline_distance_mm`.
        texture: (P, P), unit variance, smooth.

    Returns:
        (len(TISSUES), P, P); each pixel's sum is as before where it was 1.
    """
    mass = expit(-distance_mm / np.float32(lesion.margin_mm))
    living = expit((distance_mm + np.float32(lesion.rim_mm)) / np.float32(0.8))
    dead = np.clip(lesion.necrosis + lesion.texture * texture, 0, 1) * (1 - living)
    uptake = np.clip(lesion.enhancement * (1 + lesion.texture * texture), 0, 1)
    result = np.zeros((len(TISSUES), *mass.shape), np.float32)
    np.multiply(fractions, 1 - mass, out=result[: len(fractions)])
    reach = np.float32(lesion.oedema_mm) * (1 + np.float32(0.35) * texture)
    wet = expit((reach - distance_mm) / np.float32(1.5)) * min(1.0, lesion.oedema_mm / 4)
    for tissue, share in ((WHITE, 0.85), (GREY, 0.25)):  # oedema follows the white matter
        soaked = result[tissue] * wet * np.float32(share)
        result[tissue] -= soaked
        result[OEDEMA] += soaked
    result[NECROSIS] = mass * dead
    result[ENHANCING] = mass * (1 - dead) * uptake
    result[SOLID] = mass * (1 - dead) * (1 - uptake)
    return result


def lesion_texture(rng: np.random.Generator, grid: PixelGrid) -> F32:
    """The unevenness of one lesion section: speckle of 3 mm, (fine_size, fine_size)."""
    return speckle(rng, grid, 3.0)
