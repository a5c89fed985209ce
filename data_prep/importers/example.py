"""From the planes of one series to examples: the only values of a file that go on from here (private).

An example is pixels, label, early or not, and the number of its frame. Patient, study, series and file stay behind as
codes of the site's secret. So whatever else a file says cannot reach a shard: default deny.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from data_prep.importers.blocks import blocks
from data_prep.importers.intensity import HOUNSFIELD_RANGE, Scale, percentile_scale, windows
from data_prep.importers.lesions import LesionRule, thinned
from data_prep.importers.patches import beside, cut_out, sides_of
from data_prep.importers.planes import CONSTANT, NO_PATCH, SMALL_LESION, THINNED, Draft, Planes
from data_prep.importers.recipe import Recipe
from data_prep.importers.volume import EVEN_SHARE, ImportFault, Reader, Series
from fedhpc.util.arrays import F32, Images


@dataclass(frozen=True)
class Examples:
    """What one series gave (private).

    Attributes:
        images: uint8 or float32 [n, C, size, size], or [n, C, D, size, size].
        frames: int64[n], rows of `Series.frames`.
        labels: int64[n], 0 and 1 by lesions; zeros where a table labels.
        early: uint8[n], 1 with a small lesion.
        rejects: rows of `Series.frames` that gave none, with the reason.
    """

    images: Images
    frames: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]
    early: npt.NDArray[np.uint8]
    rejects: tuple[tuple[int, str], ...] = ()


def examples(series: Series, reader: Reader, recipe: Recipe) -> Examples:
    """Return the examples of one series; memory is that of its squares, never of its whole planes.

    A plane that cannot be taken becomes a reject, whatever a decoder raises.
    """
    try:
        if recipe.depth is not None:
            draft = blocks(series, Planes(series, reader, recipe), recipe)
        elif recipe.lesion is not None and recipe.lesion.patch_mm is not None:
            draft = _patches(series, reader, recipe, recipe.lesion)
        else:
            draft = _slices(series, reader, recipe)
    except ImportFault as fault:
        draft = Draft(rejects=[(row, str(fault)) for row in range(len(series.frames))])
    return _scaled(series, draft, recipe)


def _slices(series: Series, reader: Reader, recipe: Recipe) -> Draft:
    draft = Draft()
    whole = Planes(series, reader, recipe)
    wanted, left = _wanted(series, recipe)
    draft.rejects += [(row, THINNED) for row in left]
    labels = _slice_labels(whole, recipe.lesion, wanted, draft) if recipe.lesion else dict.fromkeys(wanted, (0, False))
    for row, (label, early) in labels.items():
        square = whole.stacked(row)
        if isinstance(square, str):
            draft.rejects.append((row, square))
        else:
            draft.add(square, row, label, early)
    return draft


def _wanted(series: Series, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Rows to take, and those that are thinned out."""
    rows = list(range(len(series.frames)))
    if series.is_volume and recipe.every_mm > 0:
        positions, kept = series.positions_mm, [0]
        for row in rows[1:]:
            if positions[row] - positions[kept[-1]] >= recipe.every_mm * (1 - EVEN_SHARE):
                kept.append(row)
        rows = kept
    if recipe.max_slices is not None and recipe.lesion is None:
        rows = thinned(rows, recipe.max_slices)
    chosen = set(rows)
    return rows, [row for row in range(len(series.frames)) if row not in chosen]


def _slice_labels(whole: Planes, rule: LesionRule, wanted: Sequence[int], draft: Draft) -> dict[int, tuple[int, bool]]:
    """The label of each wanted slice, and whether all of its lesions are early."""
    lesions = whole.lesions()
    labels: dict[int, tuple[int, bool]] = {}
    for row in wanted:
        found = lesions.of_row(row)
        area_mm2 = sum(spot.area_mm2 for spot, _ in found)
        if 0 < area_mm2 < rule.least_mm2:
            draft.rejects.append((row, SMALL_LESION))
        else:
            labels[row] = (int(area_mm2 > 0), bool(found) and max(mm for _, mm in found) <= rule.early_mm)
    if rule.negatives is None:
        return labels
    empty = [row for row, (label, _) in labels.items() if not label]
    keep = set(thinned(empty, round(rule.negatives * (len(labels) - len(empty)))))
    draft.rejects += [(row, THINNED) for row in empty if row not in keep]
    return {row: label for row, label in labels.items() if label[0] or row in keep}


def _patches(series: Series, reader: Reader, recipe: Recipe, rule: LesionRule) -> Draft:
    """Squares of `patch_mm` around each lesion, and as many in the same slices that hold none."""
    draft = Draft()
    whole = Planes(series, reader, recipe)
    lesions, side_mm = whole.lesions(), rule.patch_mm or 0.0
    for row in range(len(series.frames)):
        spots = [(spot, mm) for spot, mm in lesions.of_row(row) if spot.area_mm2 >= rule.least_mm2]
        plane = whole.plane(row) if spots else THINNED
        if isinstance(plane, str):
            draft.rejects.append((row, plane))
            continue
        for spot, diameter_mm in spots:
            square = cut_out(plane, spot.centre, side_mm, recipe.square.size)
            draft.add(square[None], row, 1, diameter_mm <= rule.early_mm)
        wanted = len(spots) if rule.negatives is None else round(rule.negatives * len(spots))
        mask = reader.lesion(row)
        taken = np.zeros(plane.pixels.shape, bool) if mask is None else mask.pixels.copy()
        centres = list(beside(plane, taken, sides_of(plane, side_mm), wanted))
        for centre in centres:
            draft.add(cut_out(plane, centre, side_mm, recipe.square.size)[None], row)
        if len(centres) < wanted:
            draft.rejects.append((row, NO_PATCH))
    return draft


def _scaled(series: Series, draft: Draft, recipe: Recipe) -> Examples:
    """Put squares on the pixel scale: by window for CT, else by percentiles of the volume, or of each single image."""
    keep: list[int] = list(range(len(draft.squares)))
    scales = windows(recipe.window)
    if series.modality == "CT":
        images = [_windowed(square, scales) for square in draft.squares]
    else:
        whole = percentile_scale(np.stack(draft.squares)) if series.is_volume and draft.squares else None
        by_image = [whole if series.is_volume else percentile_scale(square) for square in draft.squares]
        keep = [number for number, scale in enumerate(by_image) if scale is not None]
        images = [scale.apply(square) for square, scale in zip(draft.squares, by_image, strict=True) if scale]
        draft.rejects += [(draft.frames[n], CONSTANT) for n in range(len(by_image)) if by_image[n] is None]
    channels = recipe.stack * (max(1, len(scales)) if series.modality == "CT" else 1)
    empty = np.empty((0, channels, *recipe.shape), np.uint8 if scales else np.float32)
    return Examples(
        np.stack(images) if images else empty,
        np.array(draft.frames, np.int64)[keep],
        np.array(draft.labels, np.int64)[keep],
        np.array(draft.early, np.uint8)[keep],
        tuple(sorted(set(draft.rejects))),
    )


def _windowed(square: F32, scales: Sequence[Scale]) -> Images:
    """Channels of one example: each slice of the stack through each window; without windows Hounsfield units."""
    if not scales:
        return np.clip(square, *HOUNSFIELD_RANGE)
    return np.concatenate([scale.apply(square) for scale in scales])
