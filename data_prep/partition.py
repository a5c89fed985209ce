"""Which patient goes to which hospital, and into which split: by patient, with label skew, the same for the same seed.

How the hospitals differ:

- in size: four hospitals hold 40, 30, 17.5 and 12.5 % of the patients; with another number, each holds 0.7 times as
  many as the one before;
- in their mix of classes: each class is spread over the hospitals by a Dirichlet(`skew`) draw, which is then fitted to
  the sizes (iterative proportional fitting), so that skew and size do not disturb each other.

Whatever the draw, every hospital first gets three patients of each of two classes, one for each split. So no split of
any hospital is empty, and an AUC can be computed everywhere.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fedhpc.errors import ShardError
from fedhpc.util.arrays import I64
from fedhpc.util.rng import generator

TRAIN, VAL, TEST = 0, 1, 2
ALL = -1
SPLIT_WORDS = {ALL: "", TRAIN: "training split: ", VAL: "validation split: ", TEST: "test split: "}
VAL_SHARE, TEST_SHARE = 0.1, 0.2


@dataclass(frozen=True)
class Partition:
    """How to divide a cohort.

    Attributes:
        sites: number of hospitals.
        skew: the Dirichlet concentration, > 0; small is skewed (0.1: nearly one class a hospital); None: no skew.
        seed: of every draw (public).
        all_test: no training: everything is in the test split.
        val_share: of a hospital's patients that are in the validation split.
        fold: (number from 1, how many): the test split is this part of each hospital's patients instead of 20 %; over
            all folds every patient is tested once.
    """

    sites: int = 4
    skew: float | None = None
    seed: int = 0
    all_test: bool = False
    val_share: float = VAL_SHARE
    fold: tuple[int, int] | None = None


def partition(
    labels: I64, patients: npt.NDArray[Any], plan: Partition, given: I64 | None = None
) -> tuple[I64, npt.NDArray[np.uint8]]:
    """The site (int64[n], 0 to sites - 1) and the split (uint8[n]) of each image; a patient has one of each.

    Args:
        labels: int64[n], 0 to K - 1 (private).
        patients: [n], any sortable ids (private).
        plan: how to divide.
        given: int64[n], the split of each image where it is given; every patient has one (private). Without patients
            for validation, plan.val_share of those for training become them.

    Raises:
        ShardError: too few patients for every hospital to get two classes in every split.
    """
    _, owner = np.unique(patients, return_inverse=True)
    votes = np.zeros((owner.max() + 1, labels.max() + 1), np.int64)
    np.add.at(votes, (owner, labels), 1)
    main_class = votes.argmax(axis=1)  # a patient with images of several classes counts for the commonest
    random = generator(plan.seed, "partition", plan.sites)
    draw = _draw(votes.shape[1], plan, random)
    site_of, split_of = np.empty(len(votes), np.int64), np.empty(len(votes), np.uint8)
    whole = np.full(len(votes), ALL)
    if given is not None:
        whole[owner] = given
    for part in np.unique(whole).tolist():
        counts_of = np.bincount(main_class[whole == part], minlength=votes.shape[1])
        try:
            table = site_table(counts_of, draw, plan, _least(plan, part))
        except ShardError as error:
            raise ShardError(f"{SPLIT_WORDS[part]}{error}", code=error.code) from None
        for label, counts in enumerate(table):
            members = random.permutation(np.flatnonzero((main_class == label) & (whole == part)))
            site_of[members] = np.repeat(np.arange(plan.sites), counts)
            split_of[members] = np.concatenate([_splits(count, plan, part) for count in counts])
    return site_of[owner], split_of[owner]


def _least(plan: Partition, part: int) -> int:
    """Patients of each of two classes that every site gets of one part of the cohort: of all of it, or of one split."""
    if part == ALL:
        return 1 if plan.all_test else 3
    return 2 if part == TRAIN and plan.val_share else 1


def proportions(sites: int) -> npt.NDArray[np.float64]:
    """The share of the patients that each of `sites` hospitals holds, largest first; float64[sites], sum 1."""
    shares = np.array([0.40, 0.30, 0.175, 0.125]) if sites == 4 else 0.7 ** np.arange(sites)
    return np.asarray(shares / shares.sum())


def _draw(classes: int, plan: Partition, random: np.random.Generator) -> npt.NDArray[np.float64]:
    """How much of each class each site would have of it: float64[K, sites]."""
    shape = (classes, plan.sites)
    return np.maximum(np.ones(shape) if plan.skew is None else random.gamma(plan.skew, size=shape), 1e-9)


def site_table(counts: I64, draw: npt.NDArray[np.float64], plan: Partition, least: int) -> I64:
    """Patients by class and site: int64[K, sites] with rows that sum to `counts` (int64[K], patients a class)."""
    reserved = _reserve(counts, draw, least)
    left = counts - reserved.sum(axis=1)
    sizes = np.maximum(proportions(plan.sites) * counts.sum() - reserved.sum(axis=0), 0)
    return reserved + _round_rows(_fit(draw, left, sizes), left)


def _reserve(counts: I64, draw: npt.NDArray[np.float64], least: int) -> I64:
    """`least` patients of two classes for every site, of the classes that it would have most of."""
    reserved = np.zeros(draw.shape, np.int64)
    for site in range(draw.shape[1]):
        left = counts - reserved.sum(axis=1)
        # By what remains too, so that the first sites do not empty a class that a later one needs.
        order = [label for label in np.argsort(-draw[:, site] * left, kind="stable") if left[label] >= least]
        if len(order) < 2:
            raise ShardError(
                f"patients per class {counts.tolist()} are too few for {draw.shape[1]} sites; allowed: at least "
                f"{least} patients of two classes at every site (patients are divided, not images). Remedy: fewer "
                "sites, or more patients",
                code="prepare.too-few-patients",
            )
        reserved[order[:2], site] = least
    return reserved


def _fit(draw: npt.NDArray[np.float64], counts: I64, sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """`draw` scaled to row sums `counts` and, as nearly as 200 rounds bring it, to column sums like `sizes`."""
    table = draw.copy()
    wanted = (sizes + 1e-9) / (sizes + 1e-9).sum() * counts.sum()
    for _ in range(200):
        table *= wanted / np.maximum(table.sum(axis=0), 1e-300)
        table *= (counts / np.maximum(table.sum(axis=1), 1e-300))[:, None]
    return table


def _round_rows(table: npt.NDArray[np.float64], counts: I64) -> I64:
    ends = np.rint(np.cumsum(table, axis=1)).astype(np.int64)
    ends[:, -1] = counts
    return np.diff(np.minimum(ends, counts[:, None]), axis=1, prepend=0)


def _splits(count: int, plan: Partition, part: int) -> npt.NDArray[np.uint8]:
    """Splits for `count` patients of one class at one site: 70/10/20 %, each at least once from three patients on.

    Given splits stay as they are, but for the share of the training split that becomes the validation split.
    """
    if part in (VAL, TEST):
        return np.full(count, part, np.uint8)
    tested = _tested(count, plan) if part == ALL else np.zeros(count, bool)
    rest = count - int(tested.sum())
    wanted = not plan.all_test and plan.val_share > 0
    val = max(round(plan.val_share * count), int(rest >= 2)) if wanted else 0
    split = np.full(count, TEST, np.uint8)
    split[~tested] = np.repeat(np.array([TRAIN, VAL], np.uint8), [rest - val, val])
    return split


def _tested(count: int, plan: Partition) -> npt.NDArray[np.bool_]:
    if plan.fold is not None:
        number, folds = plan.fold
        tested: npt.NDArray[np.bool_] = np.arange(count) % folds == number - 1
        return tested
    test = count if plan.all_test else max(round(TEST_SHARE * count), int(count >= 2))
    last: npt.NDArray[np.bool_] = np.arange(count) >= count - test
    return last
