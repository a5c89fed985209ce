"""The weighted mean: three numbers by hand, and the order of folding."""

import numpy as np
import pytest

from fedhpc.aggregation.mean import WeightedMean
from fedhpc.compression.update import SparseVector


def sparse(values: list[float]) -> SparseVector:
    vector = np.array(values, np.float32)
    indices = np.flatnonzero(vector)
    return SparseVector(vector.size, indices, vector[indices])


def test_three_sites_by_hand() -> None:
    mean = WeightedMean(3)
    for values, weight in (([6, 0, 0], 1), ([0, 3, 0], 2), ([1, 1, 4], 3)):
        mean.add(0, sparse(values), weight)
    # (6 + 3) / 6, (6 + 3) / 6, 12 / 6
    assert mean.result().tolist() == [1.5, 1.5, 2.0]


def test_equals_the_dense_mean() -> None:
    rng = np.random.default_rng(0)
    updates, weights = rng.normal(size=(5, 100)).astype(np.float32), [3, 1, 4, 1, 5]
    mean = WeightedMean(100)
    for update, weight in zip(updates, weights, strict=True):
        mean.add(0, SparseVector(100, np.arange(100), update), weight)
    np.testing.assert_allclose(mean.result(), np.average(updates, axis=0, weights=weights), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("weight", "size"), [(0, 3), (-1, 3), (1, 4)])
def test_bad_weight_or_size(weight: int, size: int) -> None:
    with pytest.raises(ValueError, match="allowed"):
        WeightedMean(3).add(0, sparse([1] * size), weight)


def test_mean_of_nothing() -> None:
    with pytest.raises(ValueError, match="no update"):
        WeightedMean(3).result()
