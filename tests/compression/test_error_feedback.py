"""Error feedback loses nothing: sent + residual == corrected, bit for bit, whatever the coding."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.compression.codec import decode, encode
from fedhpc.compression.error_feedback import CompressionConfig, count_to_send, select, with_feedback
from fedhpc.compression.top_k import Layer
from fedhpc.compression.update import Update
from fedhpc.errors import PayloadError
from tests.support.float_vectors import vectors

BITS = (3, 4, 5, 6, 7, 8, 16, 32)
densities = st.floats(0.001, 1)
seeds = st.one_of(st.none(), st.integers(0, 9))


def draws(seed: int | None) -> np.random.Generator | None:
    return None if seed is None else np.random.default_rng(seed)


@given(vectors(), st.data(), densities, st.sampled_from(BITS), seeds)
def test_sent_plus_residual_is_corrected_bit_for_bit(
    update: np.ndarray, data: st.DataObject, density: float, bits: int, seed: int | None
) -> None:
    """Also of what a receiver decodes, and again in the next round with the residual that was left."""
    size = update.size
    residual = data.draw(vectors(size, size)) + np.float32(0)  # no -0.0, as none is ever made
    for _ in range(2):
        corrected = update + residual
        sent, residual = with_feedback(update, residual, CompressionConfig(density, bits), draws(seed))
        arrived = decode(encode(Update(1, 2, sent)), sender=1, round=2, size=size).entries
        np.testing.assert_array_equal((arrived.dense() + residual).view(np.uint32), corrected.view(np.uint32))
        update = residual / np.float32(4)


@given(vectors(), densities, st.sampled_from(BITS))
def test_the_inputs_are_not_touched(update: np.ndarray, density: float, bits: int) -> None:
    residual, before = np.ones_like(update), update.copy()
    with_feedback(update, residual, CompressionConfig(density, bits))
    np.testing.assert_array_equal(update, before)
    assert (residual == 1).all()


@pytest.mark.parametrize("per_tensor", [False, True])
def test_per_tensor_takes_the_density_of_each(per_tensor: bool) -> None:
    """One tensor has entries a thousand times as large: by global selection it takes everything."""
    vector = np.random.default_rng(0).standard_normal(1100).astype(np.float32)
    vector[300:700] *= 1000
    layers = (Layer("a", 300), Layer("b", 400), Layer("c", 399), Layer("d", 1))
    sent = select(vector, CompressionConfig(0.1, layers=layers, per_tensor=per_tensor))
    edges = np.cumsum([0, *(layer.size for layer in layers)])
    counts = np.histogram(sent.indices, edges)[0].tolist()
    assert counts == ([30, 40, 40, 1] if per_tensor else [0, 110, 0, 0])
    assert (np.diff(sent.indices) > 0).all()
    for start, end in pairwise(edges) if per_tensor else []:
        inside = (sent.indices >= start) & (sent.indices < end)
        largest = np.sort(np.abs(vector[start:end]))[-inside.sum() :]
        np.testing.assert_array_equal(np.sort(np.abs(sent.values[inside])), largest)


def test_layers_must_make_up_the_vector() -> None:
    with pytest.raises(ValueError, match="layers of 3 entries for a vector of 4"):
        select(np.ones(4, np.float32), CompressionConfig(1, layers=(Layer("a", 3),), per_tensor=True))


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize(("update", "residual"), [(np.nan, 0), (3e38, 3e38), (np.inf, -np.inf)])
def test_what_is_not_finite_is_never_sent(update: float, residual: float, per_tensor: bool) -> None:
    vectors = np.ones((2, 10), np.float32)
    vectors[:, 7] = update, residual
    coding = CompressionConfig(0.5, layers=(Layer("a", 6), Layer("b", 4)), per_tensor=per_tensor)
    with pytest.raises(PayloadError, match="entry 1 of layer b is"):
        with_feedback(*vectors, coding)


@pytest.mark.parametrize(("size", "density", "k"), [(10, 1, 10), (10, 0.1, 1), (11, 0.1, 2), (10**6, 0.3, 300_000)])
def test_counts(size: int, density: float, k: int) -> None:
    assert count_to_send(size, density) == k


def test_feedback_delivers_everything_in_the_end() -> None:
    """What is left behind is sent later: over many rounds the sum of what was sent equals the sum of the updates."""
    rng = np.random.default_rng(0)
    updates = rng.integers(-8, 9, (20, 50)).astype(np.float32)
    residual, delivered = np.zeros(50, np.float32), np.zeros(50, np.float32)
    for update in [*updates, *np.zeros((60, 50), np.float32)]:
        sent, residual = with_feedback(update, residual, CompressionConfig(0.1))
        delivered += sent.dense()
    np.testing.assert_array_equal(delivered, updates.sum(axis=0))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("seed", [None, 1])
def test_what_is_rounded_away_is_delivered_too(bits: int, seed: int | None) -> None:
    rng = np.random.default_rng(0)
    update = rng.standard_normal(500, np.float32)
    residual, delivered = np.zeros_like(update), np.zeros(500)
    for _ in range(60):
        sent, residual = with_feedback(update, residual, CompressionConfig(0.1, bits), draws(seed))
        delivered += sent.dense()
    np.testing.assert_allclose(delivered + residual, 60 * update.astype(np.float64), atol=1e-4)
    assert np.linalg.norm(residual) < 12 * np.linalg.norm(update)


def test_stochastic_rounding_is_reproducible() -> None:
    update = np.random.default_rng(0).standard_normal(5000, np.float32)
    coding, nothing = CompressionConfig(0.1, 4), np.zeros(5000, np.float32)
    one, two, other = (with_feedback(update, nothing, coding, draws(seed))[0].values for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert (one != other).any()
