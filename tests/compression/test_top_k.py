"""Exact top-k: the same set as by a full sort, ties by index, nothing that is not finite."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedhpc.compression.top_k import SAMPLE, Layer, refusal, top_k
from fedhpc.errors import PayloadError
from tests.support.float_vectors import vectors


def by_sort(vector: np.ndarray, k: int) -> np.ndarray:
    order = np.lexsort((np.arange(vector.size), -np.abs(vector)))[:k]
    return np.sort(order[vector[order] != 0])


def check(vector: np.ndarray, k: int) -> None:
    found = top_k(vector, k)
    np.testing.assert_array_equal(found.indices, by_sort(vector, k))
    np.testing.assert_array_equal(found.values, vector[found.indices])
    assert (found.size, found.indices.dtype, found.values.dtype) == (vector.size, np.int64, np.float32)


@given(vectors(), st.integers(1, 220))
def test_same_as_by_sort(vector: np.ndarray, k: int) -> None:
    check(vector, k)


@given(hnp.arrays(np.float32, 40, elements=st.sampled_from([-1.0, 0.0, 1.0])), st.integers(1, 40))
def test_ties_go_to_the_lowest_index_and_zeros_to_nobody(vector: np.ndarray, k: int) -> None:
    check(vector, k)


def large(kind: str) -> np.ndarray:
    """Vectors of more entries than are sampled."""
    rng = np.random.default_rng(3)
    vector = rng.standard_normal(2 * SAMPLE + 17, np.float32)
    if kind == "few values":
        return np.round(vector)
    if kind == "all alike":
        return np.full_like(vector, -2)
    if kind == "mostly zero":
        return np.where(rng.random(vector.size) < 0.97, 0, vector).astype(np.float32)
    if kind == "sample misjudges":
        # What the sample sees is large: the floor that it suggests is reached by far fewer than k.
        vector[np.random.default_rng(0).integers(vector.size, size=SAMPLE)[: SAMPLE // 20]] *= 1000
        vector[np.random.default_rng(0).integers(vector.size, size=SAMPLE)] += np.float32(50)
    return vector


@pytest.mark.parametrize("kind", ["normal", "few values", "all alike", "mostly zero", "sample misjudges"])
@pytest.mark.parametrize("density", [0.001, 0.1, 0.7, 1])
def test_large_vectors(kind: str, density: float) -> None:
    vector = large(kind)
    check(vector, int(vector.size * density))


LAYERS = (Layer("conv.weight", 60), Layer("conv.bias", 40))


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf, 2.0**127])
@pytest.mark.parametrize("index", [3, 99])
def test_what_is_not_finite_is_refused_with_its_layer(bad: float, index: int) -> None:
    vector = np.ones(100, np.float32)
    assert refusal(vector, LAYERS) is None
    vector[index] = bad
    place = "entry 3 of layer conv.weight" if index == 3 else "entry 39 of layer conv.bias"
    with pytest.raises(PayloadError, match=f"{place} is .*below 2"):
        top_k(vector, 5, LAYERS)
    with pytest.raises(PayloadError, match=f"entry {index} is"):
        top_k(vector, 100)


def test_just_below_the_limit_is_sent() -> None:
    vector = np.array([np.nextafter(np.float32(2.0**127), np.float32(0)), 1], np.float32)
    assert top_k(vector, 1).indices.tolist() == [0]
