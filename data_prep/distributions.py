"""Statistics that hospitals have released, side by side: an odd scanner is seen before a run is spent."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.names import shown
from fedhpc.errors import InputError
from fedhpc.site.statistics import BINS, TABLES, Statistics
from fedhpc.util.arrays import F64
from fedhpc.util.files import read_json, write_text
from fedhpc.util.text import fitted, fixed

FORMAT = "fedhpc statistics 1"


def write_statistics(found: Statistics, path: Path) -> None:
    """Write what a site has released."""
    write_text(path, f"{statistics_text(found)}\n")


def statistics_text(found: Statistics) -> str:
    """Return the JSON of what a site has released."""
    return json.dumps({"format": FORMAT, **asdict(found)}, indent=2, allow_nan=False)


def read_statistics(path: Path) -> Statistics:
    """Read what a site has released.

    Raises:
        InputError: a file that is none.
    """
    try:
        told: Mapping[str, Any] = read_json(path, "Ask the hospital for it again")
        if told["format"] != FORMAT or len(told["intensities"]) != BINS:
            raise ValueError
        low, high = told["pixel_range"]
        tables = {name: {str(k): float(v) for k, v in told[name].items()} for name in ("classes", "modalities")}
        intensities = tuple(float(value) for value in told["intensities"])
        return Statistics(str(told["site"]), float(told["epsilon"]), intensities, **tables, pixel_range=(low, high))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{shown(path)}: is no file of `prepare statistics` ({type(error).__name__})", code="file"
        ) from error


def distributions_text(sites: Sequence[Statistics]) -> str:
    """Return a table: patients by class and modality, and how far a site's intensities are from the others'.

    The distance is the total variation between histograms, 0 alike, 1 disjoint: to half of the other sites it is
    smaller. Noise alone makes some of it, which the column behind it tells.
    """
    classes = list(dict.fromkeys(name for site in sites for name in site.classes))
    kinds = [kind for kind in sites[0].modalities if any(site.modalities[kind] > _noise(site) for site in sites)]
    head = ["site", "epsilon", "noise", *classes, *kinds, "intensity", "by noise"]
    rows = [head]
    for number, site in enumerate(sites):
        others = [_distance(site, one) for place, one in enumerate(sites) if place != number]
        # Of an even number the smaller middle one: beside one odd site the others stay inconspicuous.
        distance = sorted(others)[(len(others) - 1) // 2] if others else None
        rows.append(
            [
                site.site, f"{site.epsilon:g}", f"{_noise(site):.0f}",
                *(f"{site.classes.get(name, 0):.0f}" for name in classes),
                *(f"{site.modalities[kind]:.0f}" for kind in kinds), fixed(distance), fixed(_distance_of_noise(site)),
            ]
        )  # fmt: skip
    return f"{fitted(rows)}\nin patients; `noise`: the standard deviation of each number"


def _noise(site: Statistics) -> float:
    """Standard deviation of the noise of one entry, in patients."""
    return float(np.sqrt(2) * TABLES / site.epsilon)


def _shares(site: Statistics) -> F64:
    counts = np.maximum(np.array(site.intensities), 0)
    return np.asarray(counts / max(float(counts.sum()), 1e-9))


def _distance(one: Statistics, other: Statistics) -> float:
    return float(0.5 * np.abs(_shares(one) - _shares(other)).sum())


def _distance_of_noise(site: Statistics) -> float:
    """What total variation the noise of this site makes by itself: half the sum of mean absolute errors."""
    total = max(sum(site.classes.values()), 1.0)
    return min(1.0, 0.5 * BINS * TABLES / site.epsilon / total)
