"""Error feedback loses nothing: sent + residual == corrected, bit for bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedhpc.exchange.sparsify import count_to_send, top_k, with_feedback
from fedhpc.exchange.update import F32

finite = st.floats(-(2.0**99), 2.0**99, width=32, allow_subnormal=False)
vectors = hnp.arrays(np.float32, st.integers(1, 200), elements=finite)
densities = st.floats(0.001, 1)


@given(vectors, densities, st.randoms())
def test_sent_plus_residual_is_corrected(update: F32, density: float, random: object) -> None:
    residual = np.roll(update, 1) * np.float32(0.25)
    sent, kept = with_feedback(update, residual, density)
    np.testing.assert_array_equal(sent.dense() + kept, update + residual)
    assert not kept[sent.indices].any()


@given(vectors, densities)
def test_exactly_k_of_the_largest_in_ascending_order(vector: F32, density: float) -> None:
    k = count_to_send(vector.size, density)
    sent = top_k(vector, k)
    assert sent.indices.size == k
    assert (np.diff(sent.indices) > 0).all()
    np.testing.assert_array_equal(np.sort(np.abs(sent.values)), np.sort(np.abs(vector))[vector.size - k :])


@given(hnp.arrays(np.float32, 40, elements=st.sampled_from([-1.0, 0.0, 1.0])), st.integers(1, 40))
def test_ties_go_to_the_lowest_index(vector: F32, k: int) -> None:
    order = np.lexsort((np.arange(vector.size), -np.abs(vector)))
    np.testing.assert_array_equal(top_k(vector, k).indices, np.sort(order[:k]))


@pytest.mark.parametrize(("size", "density", "k"), [(10, 1, 10), (10, 0.1, 1), (11, 0.1, 2), (10**6, 0.3, 300_000)])
def test_counts(size: int, density: float, k: int) -> None:
    assert count_to_send(size, density) == k


def test_feedback_delivers_everything_in_the_end() -> None:
    """What is left behind is sent later: over many rounds the sum of what was sent equals the sum of the updates."""
    rng = np.random.default_rng(0)
    updates = rng.integers(-8, 9, (20, 50)).astype(np.float32)
    residual, delivered = np.zeros(50, np.float32), np.zeros(50, np.float32)
    for update in [*updates, *np.zeros((60, 50), np.float32)]:
        sent, residual = with_feedback(update, residual, 0.1)
        delivered += sent.dense()
    np.testing.assert_array_equal(delivered, updates.sum(axis=0))
