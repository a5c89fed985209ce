"""Who is in a site: patients, their labels, splits, numbers of images and modalities, before a pixel is drawn."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGES_PER_PATIENT = (0.15, 0.28, 0.32, 0.25)  # chance of 1, 2, 3 and 4: 2.67 on average
TRAIN, VAL, TEST = 0, 1, 2
VAL_SHARE, TEST_SHARE = 0.10, 0.20


class Plan(NamedTuple):
    """By patient: pictures int64, label int64, split uint8. By image, patients in order: is_ct bool."""

    pictures: NDArray[np.int64]
    label: NDArray[np.int64]
    split: NDArray[np.uint8]
    is_ct: NDArray[np.bool_]


def share_out(total: int, weights: list[int]) -> list[int]:
    """Whole numbers in proportion to weights that sum to total, each at least 1 (largest remainders).

    >>> share_out(8000, [3200, 2400, 1400, 1000])
    [3200, 2400, 1400, 1000]
    >>> share_out(5, [3200, 2400, 1400, 1000])
    [2, 1, 1, 1]
    """
    spare = total - len(weights)
    exact = np.array(weights) * total / sum(weights) - 1
    exact = np.maximum(exact, 0) * spare / max(np.maximum(exact, 0).sum(), 1e-12)
    whole = np.floor(exact + 1e-9).astype(int)
    for index in np.argsort(whole - exact, kind="stable")[: spare - whole.sum()]:
        whole[index] += 1
    return [int(n) + 1 for n in whole]


def draw_plan(rng: np.random.Generator, images: int, prevalence: float, ct_share: float) -> Plan:
    """A site of `images` images: exact numbers of images, malignant patients and CTs, in random order.

    Every split has both classes where a class has three patients, and both modalities where it has two images.
    """
    count = _draw_counts(rng, images)
    label = _draw_labels(rng, len(count), prevalence)
    split = np.zeros(len(count), np.uint8)
    for value in (0, 1):
        members = np.flatnonzero(label == value)
        split[members] = _draw_split(rng, len(members))
    return Plan(count, label, split, _draw_modalities(rng, np.repeat(split, count), ct_share))


def _draw_counts(rng: np.random.Generator, images: int) -> NDArray[np.int64]:
    drawn = rng.choice(np.arange(1, 5), size=images, p=IMAGES_PER_PATIENT)
    patients = int(np.searchsorted(np.cumsum(drawn), images)) + 1
    count = drawn[:patients].astype(np.int64)
    count[-1] -= count.sum() - images
    return count


def _draw_labels(rng: np.random.Generator, patients: int, prevalence: float) -> NDArray[np.int64]:
    malignant = _between(round(prevalence * patients), patients)
    return rng.permutation((np.arange(patients) < malignant).astype(np.int64))


def _draw_split(rng: np.random.Generator, patients: int) -> NDArray[np.uint8]:
    test = max(round(TEST_SHARE * patients), int(patients >= 2))
    val = max(round(VAL_SHARE * patients), int(patients >= 3))
    order = np.arange(patients)
    return rng.permutation(np.where(order < test, TEST, np.where(order < test + val, VAL, TRAIN)).astype(np.uint8))


def _draw_modalities(rng: np.random.Generator, split: NDArray[np.uint8], ct_share: float) -> NDArray[np.bool_]:
    is_ct = np.zeros(len(split), bool)
    for value in (TRAIN, VAL, TEST):
        members = np.flatnonzero(split == value)
        chosen = _between(round(ct_share * len(members)), len(members))
        is_ct[members] = rng.permutation(np.arange(len(members)) < chosen)
    return is_ct


def _between(wanted: int, total: int) -> int:
    return min(max(wanted, 1), total - 1) if total >= 2 else min(wanted, total)
