"""The cohort: from a seed to the arrays of a site, each patient by itself."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.phantom import anatomy, lesions
from data_prep.phantom.anatomy import AnatomyRange
from data_prep.phantom.ct import ct_image
from data_prep.phantom.fields import PixelGrid
from data_prep.phantom.mri import mri_image
from data_prep.phantom.plan import Plan, draw_plan, share_out
from data_prep.phantom.sites import SiteProtocol, default_sites
from data_prep.shard_writer import write_shard
from fedhpc.errors import ConfigError
from fedhpc.util.arrays import F32
from fedhpc.util.files import READABLE
from fedhpc.util.progress import progress
from fedhpc.util.rng import generator

CLASSES = ("benign", "malignant")
PIXEL_RANGE = (0, 255)
CREATED_BY = "data_prep.phantom 1"
DIFFICULTY = 0.26  # as configs/fedavg.yaml: centralised AUC 0.965, set by that baseline alone


@dataclass(frozen=True)
class Cohort:
    """What decides every byte of the phantom images; all of it is public.

    Attributes:
        seed: the cohort's seed. images: total over the sites, 4 to 100000. image_size: rows and columns, 32 to 512.
        difficulty: 0, the classes differ at a glance, to 1, they do not differ at all.
        anatomy: how much heads differ. sites: name -> protocol; sizes are in proportion to `SiteProtocol.images`.

    Raises:
        ConfigError: all values outside their ranges, together.
    """

    seed: int
    images: int = 8000
    image_size: int = 64
    difficulty: float = DIFFICULTY
    anatomy: AnatomyRange = field(default_factory=AnatomyRange)
    sites: Mapping[str, SiteProtocol] = field(default_factory=default_sites)

    def __post_init__(self) -> None:
        fewest = max(4, len(self.sites))
        ranges = {"images": (fewest, 100_000), "image_size": (32, 512), "difficulty": (0, 1)}
        wrong = [
            f"{name}={getattr(self, name)} is not within {low} and {high}"
            for name, (low, high) in ranges.items()
            if not low <= getattr(self, name) <= high
        ]
        if wrong:
            raise ConfigError("; ".join(wrong))


class SiteArrays(NamedTuple):
    """One site's images, in order of patients.

    images uint8 [n, 1, H, W]; labels int64 [n], index into CLASSES; patient S16 [n]; split uint8 [n], 0 train, 1 val,
    2 test; modality S2 [n], MR or CT; stage uint8 [n], 1 = early: lesion under `lesions.EARLY_MM`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    patient: NDArray[np.bytes_]
    split: NDArray[np.uint8]
    modality: NDArray[np.bytes_]
    stage: NDArray[np.uint8]


class Patient(NamedTuple):
    """A head and its lesion: pose, MNI height of the lesion's middle in mm, lesion."""

    pose: anatomy.Pose
    z_mm: float
    lesion: lesions.Lesion


def site_names(cohort: Cohort) -> tuple[str, ...]:
    """The sites in rank order."""
    return tuple(cohort.sites)


def site_arrays(cohort: Cohort, site: str) -> SiteArrays:
    """All images of one site, a function of (cohort, site) alone, whichever process draws it."""
    plan = site_plan(cohort, site)
    starts = np.cumsum(plan.pictures) - plan.pictures
    images = np.empty((len(plan.is_ct), 1, cohort.image_size, cohort.image_size), np.uint8)
    early = np.empty(len(plan.pictures), np.uint8)
    patients = enumerate(zip(starts, plan.pictures, strict=True))
    for number, (start, count) in progress(patients, len(starts), f"phantoms of {site}", unit="patient"):
        rng = generator(cohort.seed, site, number, "phantom")
        patient = draw_patient(rng, cohort, int(plan.label[number]))
        early[number] = patient.lesion.diameter_mm < lesions.EARLY_MM
        mine = slice(start, start + count)
        images[mine, 0] = list(patient_images(rng, cohort, site, patient, plan.is_ct[mine]))
    pseudonyms = np.array([_pseudonym(cohort.seed, site, n) for n in range(len(plan.pictures))], "S16")
    return SiteArrays(
        images,
        np.repeat(plan.label, plan.pictures),
        np.repeat(pseudonyms, plan.pictures),
        np.repeat(plan.split, plan.pictures),
        np.where(plan.is_ct, b"CT", b"MR").astype("S2"),
        np.repeat(early, plan.pictures),
    )


def site_plan(cohort: Cohort, site: str) -> Plan:
    """The site's patients before a pixel is drawn."""
    if site not in cohort.sites:
        raise ConfigError(f"site={site!r} is not in the cohort; its sites are {', '.join(cohort.sites)}", code="config")
    sizes = share_out(cohort.images, [protocol.images for protocol in cohort.sites.values()])
    size = dict(zip(cohort.sites, sizes, strict=True))[site]
    protocol = cohort.sites[site]
    return draw_plan(generator(cohort.seed, site, "plan"), size, protocol.prevalence, protocol.ct_share)


def draw_patient(rng: np.random.Generator, cohort: Cohort, label: int) -> Patient:
    """Head and lesion; the label enters by the lesion's aggressiveness alone."""
    pose = anatomy.draw_pose(rng, cohort.anatomy)
    z_mm = float(rng.uniform(*cohort.anatomy.slice_mm))
    aggressiveness = lesions.draw_aggressiveness(rng, label, cohort.difficulty)
    diameter_mm = lesions.draw_diameter_mm(rng, aggressiveness)
    places_mm = anatomy.brain_places(anatomy.section(z_mm), 0.5 * diameter_mm)
    return Patient(pose, z_mm, lesions.draw_lesion(rng, aggressiveness, diameter_mm, places_mm))


def patient_fractions(rng: np.random.Generator, patient: Patient, grid: PixelGrid, number: int) -> F32:
    """Tissue fractions (10, fine_size, fine_size) in the patient's picture `number`: a section within 3 mm."""
    points = anatomy.template_points(anatomy.reposition(rng, patient.pose), grid)
    healthy = anatomy.warp(anatomy.section(patient.z_mm + float(rng.uniform(-3, 3))), points)
    distance_mm = lesions.outline_distance_mm(points, patient.lesion, number)
    return lesions.add_lesion(healthy, distance_mm, patient.lesion, lesions.lesion_texture(rng, grid))


def patient_images(
    rng: np.random.Generator, cohort: Cohort, site: str, patient: Patient, is_ct: NDArray[np.bool_]
) -> Iterator[NDArray[np.uint8]]:
    """One picture uint8 (image_size, image_size) for each entry of is_ct."""
    grid, protocol = PixelGrid(cohort.image_size), cohort.sites[site]
    for number, by_ct in enumerate(is_ct):
        fractions = patient_fractions(rng, patient, grid, number)
        if by_ct:
            yield ct_image(rng, fractions, grid, protocol.ct)
        else:
            yield mri_image(rng, fractions, grid, protocol.mri)


def write_site(cohort: Cohort, site: str, path: Path) -> None:
    """Write one site's shard to `path`."""
    write_shard(
        path,
        mode=READABLE,
        site=site,
        classes=CLASSES,
        pixel_range=PIXEL_RANGE,
        created_by=CREATED_BY,
        **site_arrays(cohort, site)._asdict(),
    )


def _pseudonym(seed: int, site: str, number: int) -> bytes:
    return hashlib.sha256(repr((seed, site, number, "pseudonym")).encode()).hexdigest()[:16].encode()
