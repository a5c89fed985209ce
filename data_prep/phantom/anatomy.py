"""Heads from the MNI152 tissue maps: a section, deformed for each patient.

The maps are the ICBM 152 nonlinear 2009a template (Fonov et al., NeuroImage 54:313, 2011); skull and scalp are layers
of anatomical thickness around its brain, see assets/PROVENANCE.md.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from data_prep.phantom.fields import PixelGrid, draw_coefficients, smooth_fields
from fedhpc.util.arrays import F32

ASSETS = Path(__file__).parent.parent / "assets"

#: Columns of a fraction array: the atlas's six tissues, then what a lesion brings. What is left of 1 is air.
TISSUES = ("scalp", "bone", "marrow", "csf", "grey", "white", "oedema", "solid", "enhancing", "necrosis")
SCALP, BONE, MARROW, CSF, GREY, WHITE, OEDEMA, SOLID, ENHANCING, NECROSIS = range(len(TISSUES))
ATLAS_TISSUES = 6


@dataclass(frozen=True)
class AnatomyRange:
    """How much heads differ: standard deviations, but for the range of slices.

    Attributes:
        slice_mm: MNI z of the lowest and the highest section, within -24..56.
        rotation_deg, scale, shear, shift_mm: affine part. elastic_mm: smooth displacement in each direction.
    """

    slice_mm: tuple[float, float] = (-8.0, 46.0)
    rotation_deg: float = 6.0
    scale: float = 0.04
    shear: float = 0.03
    shift_mm: float = 3.0
    elastic_mm: float = 2.5


@dataclass(frozen=True, eq=False)
class Pose:
    """Template position = matrix @ picture position + shift_mm + elastic field; matrix (2, 2), elastic in mm."""

    matrix: F32
    shift_mm: F32
    elastic: F32


class Atlas(NamedTuple):
    """fraction uint8 (slice, tissue, y, x), 255 = 1; z_mm of the slices; spacing of y and x in mm."""

    fraction: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]
    z_mm: np.ndarray[tuple[int, ...], np.dtype[np.int16]]
    grid_mm: float


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """The packaged tissue maps, read once."""
    with np.load(ASSETS / "mni152_tissue.npz", allow_pickle=False) as file:
        return Atlas(np.ascontiguousarray(file["fraction"].transpose(0, 3, 1, 2)), file["z_mm"], float(file["grid_mm"]))


def section(z_mm: float) -> F32:
    """Tissue fractions 0..1 at MNI height z_mm, between two slices by linear interpolation: float32 (6, y, x)."""
    atlas = load_atlas()
    place = np.clip((z_mm - atlas.z_mm[0]) / atlas.grid_mm, 0, len(atlas.z_mm) - 1.001)
    below, share = int(place), np.float32(place % 1)
    mixed = atlas.fraction[below] * (1 - share) + atlas.fraction[below + 1] * share
    fraction: F32 = (mixed / np.float32(255)).astype(np.float32)
    return fraction


def draw_pose(rng: np.random.Generator, spread: AnatomyRange) -> Pose:
    """A patient's head: affine part about the middle of the picture and elastic part, left and right at random."""
    turn = np.deg2rad(spread.rotation_deg * rng.standard_normal())
    stretch = np.exp(spread.scale * rng.standard_normal(2))
    shear = np.array([[1.0, spread.shear * rng.standard_normal()], [0.0, 1.0]])
    mirror = np.array([1.0, rng.choice([-1.0, 1.0])])
    matrix = _rotation(turn) @ shear * (stretch * mirror)
    shift_mm = spread.shift_mm * rng.standard_normal(2)
    elastic = spread.elastic_mm * draw_coefficients(rng, 2)
    return Pose(matrix.astype(np.float32), shift_mm.astype(np.float32), elastic)


def reposition(rng: np.random.Generator, pose: Pose) -> Pose:
    """The same head in another examination: turned by 2 degrees and moved by 1.5 mm (standard deviations)."""
    turn = _rotation(np.deg2rad(2.0 * rng.standard_normal())).astype(np.float32)
    shift_mm = pose.shift_mm + (1.5 * rng.standard_normal(2)).astype(np.float32)
    return replace(pose, matrix=pose.matrix @ turn, shift_mm=shift_mm)


def _rotation(angle_rad: float) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    sine, cosine = np.sin(angle_rad), np.cos(angle_rad)
    return np.array([[cosine, -sine], [sine, cosine]])


def template_points(pose: Pose, grid: PixelGrid) -> F32:
    """Where each fine pixel lies in the template: float32 (2, fine_size, fine_size), y and x in mm from its middle."""
    place = grid.fine_positions_mm()
    rows, columns = place[:, None], place[None, :]
    affine = [m[0] * rows + m[1] * columns + s for m, s in zip(pose.matrix, pose.shift_mm, strict=True)]
    return np.stack(affine) + smooth_fields(pose.elastic, grid.fine_size)


def warp(tissue: F32, points: F32) -> F32:
    """Sample a section (6, y, x) bilinearly at template points (2, P, P) in mm -> (6, P, P); outside is air."""
    _, size_y, size_x = tissue.shape
    half = np.array([size_y - 1, size_x - 1], np.float32)[:, None, None] / 2
    limit = np.array([size_y - 1.001, size_x - 1.001], np.float32)[:, None, None]
    index = np.clip(points / np.float32(load_atlas().grid_mm) + half, 0, limit)
    corner = index.astype(np.int32)
    (share_y, share_x), flat = index - corner, corner[0] * size_x + corner[1]
    table = tissue.reshape(len(tissue), -1)
    upper, upper_right, lower, lower_right = (table.take(flat + step, axis=1) for step in (0, 1, size_x, size_x + 1))
    upper += share_x * (upper_right - upper)
    lower += share_x * (lower_right - lower)
    warped: F32 = upper + share_y * (lower - upper)
    return warped


def brain_places(tissue: F32, depth_mm: float) -> F32:
    """Template positions (n, 2) in mm, y and x, in grey or white matter at least depth_mm below the brain's surface.

    Where no place is so deep, the deepest ones.
    """
    spacing = load_atlas().grid_mm
    inside = tissue[CSF : WHITE + 1].sum(axis=0) > 0.5
    below_mm = ndimage.distance_transform_edt(inside) * spacing
    solid = tissue[GREY] + tissue[WHITE] > 0.6
    deep = min(depth_mm, 0.9 * float(below_mm[solid].max()))
    places = np.argwhere(solid & (below_mm >= deep)).astype(np.float32)
    middle = (np.array(inside.shape, np.float32) - 1) / 2
    return ((places - middle) * spacing).astype(np.float32)
