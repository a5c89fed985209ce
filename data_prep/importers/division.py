"""Patients to hospitals and splits where labels are of slices: one patient has slices of several classes."""

import numpy as np
import numpy.typing as npt

from data_prep.partition import TEST, TEST_SHARE, TRAIN, VAL, Partition, partition, proportions
from fedhpc.errors import ShardError
from fedhpc.util.arrays import I64
from fedhpc.util.rng import generator

LEAST = 3
"""Patients that a hospital needs: one for each split."""


def divide(labels: I64, patients: npt.NDArray[np.bytes_], plan: Partition) -> tuple[I64, npt.NDArray[np.uint8]]:
    """Return site (int64[n]) and split (uint8[n]) of each image; a patient has one of each.

    A patient counts for the highest class among the images: one lesion makes a patient with a lesion.

    Args:
        labels: int64[n] (private).
        patients: pseudonyms [n] (private).
        plan: how to divide.

    Raises:
        ShardError: too few patients for every hospital to have one in each split.
    """
    names, owner = np.unique(patients, return_inverse=True)
    highest = np.zeros(len(names), np.int64)
    np.maximum.at(highest, owner, labels)
    least = 1 if plan.all_test else LEAST
    if len(names) < least * plan.sites:
        raise ShardError(
            f"{len(names)} patients for {plan.sites} hospitals; allowed: at least {least} each, one for each split. "
            "Import more, take fewer hospitals, or evaluate only (--all-test)",
            code="prepare.too-few-patients",
        )
    if plan.sites > 1 and len(np.unique(highest)) > 1:
        _, classes = np.unique(highest, return_inverse=True)
        site_of, split_of = partition(classes, names, plan)
    else:
        site_of = _by_size(len(names), plan)
        split_of = np.empty(len(names), np.uint8)
        for site in range(plan.sites):
            mine = np.flatnonzero(site_of == site)
            split_of[mine] = _splits(highest[mine], plan, site)
    return site_of[owner], split_of[owner]


def _by_size(count: int, plan: Partition) -> I64:
    """Every hospital has `LEAST` patients, and the rest by the usual sizes."""
    least = 1 if plan.all_test else LEAST
    ends = np.rint(np.cumsum(proportions(plan.sites)) * (count - least * plan.sites)).astype(np.int64)
    sizes = np.diff(ends, prepend=0) + least
    return generator(plan.seed, "sites").permutation(np.repeat(np.arange(plan.sites), sizes))


def _splits(classes: I64, plan: Partition, site: int) -> npt.NDArray[np.uint8]:
    """70, 10 and 20 % of one hospital's patients, at least one each, evenly over its classes."""
    count = len(classes)
    if plan.all_test:
        return np.full(count, TEST, np.uint8)
    order = generator(plan.seed, "splits", site).permutation(count)
    order = order[np.argsort(classes[order], kind="stable")]
    test = _evenly(order, max(1, round(TEST_SHARE * count)))
    rest = order[~np.isin(order, test)]
    split = np.full(count, TRAIN, np.uint8)
    split[test] = TEST
    split[_evenly(rest, max(1, round(plan.val_share * count)))] = VAL
    return split


def _evenly(rows: I64, count: int) -> I64:
    return rows[((np.arange(count) + 0.5) * len(rows) / count).astype(np.int64)]
