"""Public phantoms: heads and machines of no hospital of the cohort, labelled by measurements only.

They stand for the public images that a real study would find: other seeds, anatomy that varies more, sixteen machines
drawn at random. Nobody's class is among their targets. A lesion's aggressiveness, which a class label of the cohort is
drawn from, varies freely here (difficulty 1, where label and lesion have nothing to do with each other).
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.phantom.anatomy import ENHANCING, NECROSIS, OEDEMA, SOLID, AnatomyRange
from data_prep.phantom.cohort import PIXEL_RANGE, Cohort, draw_patient, patient_fractions, site_plan
from data_prep.phantom.ct import CtProtocol, ct_image
from data_prep.phantom.fields import PixelGrid
from data_prep.phantom.lesions import Lesion
from data_prep.phantom.mri import MriProtocol, mri_image
from data_prep.phantom.sites import SiteProtocol
from data_prep.shard_writer import UNLABELLED, write_shard
from fedhpc.util.arrays import F32
from fedhpc.util.files import READABLE
from fedhpc.util.progress import progress
from fedhpc.util.rng import generator

ANATOMY = AnatomyRange(slice_mm=(-18.0, 52.0), rotation_deg=12.0, scale=0.07, shear=0.05, shift_mm=5.0, elastic_mm=4.0)
MACHINES = 16
TRAINING_SEED, REFERENCE_SEED = 1_000_003, 1_000_004
MEASUREMENTS = (
    "log_oedema_mm2",
    "log_solid_mm2",
    "log_enhancing_mm2",
    "log_necrosis_mm2",
    "necrosis_share",
    "enhancing_share",
    "log_oedema_over_lesion",
    "outline_deviation",
    "outline_roughness",
    "margin_mm",
    "log_diameter_mm",
    "texture",
    "is_ct",
)


@dataclass(frozen=True)
class PublicImages:
    """images uint8 [n, 1, H, W]; measurements float32 [n, 13], in the order of MEASUREMENTS; modality S2 [n]."""

    images: NDArray[np.uint8]
    measurements: F32
    modality: NDArray[np.bytes_]


def public_cohort(seed: int, images: int, image_size: int) -> Cohort:
    """The plan of a public cohort."""
    sites = {f"public{number:02}": _machines(seed, number) for number in range(MACHINES)}
    return Cohort(seed, images, image_size, difficulty=1.0, anatomy=ANATOMY, sites=sites)


def public_images(cohort: Cohort, processes: int = 1) -> PublicImages:
    """All images of a public cohort; the same for any number of processes."""
    draw = partial(_site_images, cohort)
    if processes == 1:
        parts = list(map(draw, cohort.sites))
    else:
        with ProcessPoolExecutor(processes) as pool:
            parts = list(pool.map(draw, cohort.sites))
    return PublicImages(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def write_reference(path: Path, images: int, image_size: int) -> None:
    """A shard of public images without labels (each is 0), for `data.public_reference`."""
    drawn = public_images(public_cohort(REFERENCE_SEED, images, image_size))
    n = len(drawn.images)
    write_shard(
        path,
        mode=READABLE,
        site=path.stem,
        classes=UNLABELLED,
        pixel_range=PIXEL_RANGE,
        created_by="data_prep.phantom.public 1",
        images=drawn.images,
        labels=np.zeros(n, np.int64),
        patient=np.array([f"public{number:08}" for number in range(n)], "S16"),
        split=np.zeros(n, np.uint8),
        modality=drawn.modality,
    )


def _machines(seed: int, number: int) -> SiteProtocol:
    """A scanner and a CT drawn at random: T1- or T2-weighted, from 0.35 to 7 T."""
    rng = generator(seed, number, "public machines")
    t1_weighted = rng.random() < 0.5
    mri = MriProtocol(
        field_t=float(rng.choice([0.35, 1.0, 1.5, 3.0, 7.0])),
        tr_ms=float(rng.uniform(350, 800) if t1_weighted else rng.uniform(1800, 6000)),
        te_ms=float(rng.uniform(8, 30) if t1_weighted else rng.uniform(25, 120)),
        gadolinium_mmol=float(rng.uniform(0, 0.8)),
        snr=float(rng.uniform(12, 60)),
        psf_fwhm_mm=float(rng.uniform(1.2, 5.0)),
        bias=float(rng.uniform(0.05, 0.25)),
    )
    ct = CtProtocol(
        iodine_hu=float(rng.uniform(10, 50)),
        noise_hu=float(rng.uniform(1.5, 6.0)),
        kernel_per_mm=float(rng.uniform(0.06, 0.14)),
        psf_fwhm_mm=float(rng.uniform(1.8, 5.0)),
        window_hu=float(rng.uniform(70, 180)),
        level_hu=float(rng.uniform(30, 55)),
    )
    return SiteProtocol(1000, prevalence=0.5, ct_share=float(rng.uniform(0.2, 0.7)), mri=mri, ct=ct)


def _site_images(cohort: Cohort, site: str) -> tuple[NDArray[np.uint8], F32, NDArray[np.bytes_]]:
    plan, grid, machines = site_plan(cohort, site), PixelGrid(cohort.image_size), cohort.sites[site]
    starts = np.cumsum(plan.pictures) - plan.pictures
    images = np.empty((len(plan.is_ct), 1, cohort.image_size, cohort.image_size), np.uint8)
    measured = np.empty((len(plan.is_ct), len(MEASUREMENTS)), np.float32)
    patients = enumerate(zip(starts, plan.pictures, strict=True))
    for patient_number, (start, count) in progress(patients, len(starts), f"public phantoms of {site}", unit="patient"):
        rng = generator(cohort.seed, site, patient_number, "phantom")
        patient = draw_patient(rng, cohort, int(plan.label[patient_number]))
        for number, by_ct in enumerate(plan.is_ct[start : start + count]):
            fractions = patient_fractions(rng, patient, grid, number)
            drawn = (
                ct_image(rng, fractions, grid, machines.ct) if by_ct else mri_image(rng, fractions, grid, machines.mri)
            )
            images[start + number, 0] = drawn
            measured[start + number] = [*_measure(fractions, patient.lesion, number, grid), by_ct]
    return images, measured, np.where(plan.is_ct, b"CT", b"MR").astype("S2")


def _measure(fractions: F32, lesion: Lesion, number: int, grid: PixelGrid) -> list[float]:
    """What a radiologist could measure in the picture `number` of a lesion."""
    areas = fractions[[OEDEMA, SOLID, ENHANCING, NECROSIS]].sum(axis=(1, 2)) * grid.fine_pixel_mm**2
    oedema, solid, enhancing, necrosis = (float(area) for area in areas)
    mass = solid + enhancing + necrosis + 1e-3
    outline = lesion.log_profiles[number % len(lesion.log_profiles)]
    return [
        *np.log1p(areas).tolist(),
        necrosis / mass,
        enhancing / mass,
        float(np.log1p(oedema / mass)),
        float(outline.std()),
        float(np.abs(np.diff(outline)).mean()),
        lesion.margin_mm,
        float(np.log(lesion.diameter_mm)),
        lesion.texture,
    ]
