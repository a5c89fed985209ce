"""The grid: neighbours by nearest or unbiased rounding, exact differences, as many levels as the bits allow."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fedhpc.compression.float_bits import magnitude_bits, smallest_bits
from fedhpc.compression.quantization import EXACT, OCTAVE, QuantizationGrid, grid_for, rounded
from tests.support.float_vectors import vectors

BITS = st.sampled_from([3, 4, 5, 6, 7, 8, 16, 32])
LOG_SCALED = (3, 4, 5, 6, 7, 8)


@given(vectors(), BITS, st.one_of(st.none(), st.integers(0, 9)))
def test_every_value_is_sent_as_a_neighbour_and_the_difference_is_exact(
    values: np.ndarray, bits: int, seed: int | None
) -> None:
    values = values[values != 0]
    grid = grid_for(values, bits)
    assert 1 <= grid.step <= OCTAVE
    sent = rounded(values, grid, None if seed is None else np.random.default_rng(seed))
    assert np.isfinite(sent).all()
    assert sent.all()
    np.testing.assert_array_equal(np.signbit(sent), np.signbit(values))
    apart = magnitude_bits(sent).astype(np.int64) - magnitude_bits(values)
    assert (np.abs(apart) < grid.step).all()
    assert ((magnitude_bits(sent) - np.uint32(grid.lowest)) % np.uint32(grid.step) == 0).all()
    exact = values.astype(np.float64) - sent
    np.testing.assert_array_equal((values - sent).astype(np.float64), exact)
    np.testing.assert_array_equal((sent + (values - sent)).view(np.uint32), values.view(np.uint32))


@example(np.array([1, 32772], np.uint32).view(np.float32), 4)  # half a step is no float32 here
@given(vectors(), st.sampled_from(LOG_SCALED))
def test_nearest_is_nearest(values: np.ndarray, bits: int) -> None:
    values = values[values != 0]
    grid = grid_for(values, bits)
    values = np.abs(values)
    error = np.abs(values.astype(np.float64) - rounded(values, grid, None))
    low = grid.levels(magnitude_bits(values))
    for level in (low, low + np.uint32(1)):
        assert (error <= np.abs(values.astype(np.float64) - grid.magnitudes(level))).all()


@pytest.mark.parametrize("bits", LOG_SCALED)
def test_nearest_is_within_a_third_of_a_normal_number(bits: int) -> None:
    """At the fewest bits and over the widest range the step is an octave."""
    values = np.geomspace(1e-37, 1e37, 5000).astype(np.float32)
    grid = QuantizationGrid(smallest_bits(values), OCTAVE)
    assert grid_for(values, bits).step <= OCTAVE
    assert np.abs(rounded(values, grid, None) / values - 1).max() <= 1 / 3


@pytest.mark.parametrize("bits", LOG_SCALED)
def test_there_are_as_many_levels_as_bits_allow(bits: int) -> None:
    values = np.geomspace(1, 7.9, 900).astype(np.float32)
    sent = rounded(values, grid_for(values, bits), None)
    assert 2 ** (bits - 2) < np.unique(sent).size <= 2 ** (bits - 1)


def test_an_outlier_does_not_widen_the_steps() -> None:
    values = np.geomspace(1, 4, 5000).astype(np.float32)
    alone, beside = grid_for(values, 4), grid_for(np.append(values, np.float32(1e20)), 4)
    assert beside.step == alone.step
    np.testing.assert_allclose(rounded(np.array([1e20], np.float32), beside, None), 1e20, rtol=0.1)


def test_sixteen_bits_are_those_of_fp16_within_its_range_and_reach_beyond() -> None:
    values = np.random.default_rng(0).standard_normal(20_000, np.float32)
    values = values[np.abs(values) > 2.0**-14]
    values[(values.view(np.uint32) & 0x1FFF) == 0x1000] = 1  # ties, which fp16 rounds to even
    sent = rounded(values, grid_for(values, 16), None)
    np.testing.assert_array_equal(sent, values.astype(np.float16).astype(np.float32))
    wide = np.array([1e-30, 1e30], np.float32)
    np.testing.assert_allclose(rounded(wide, grid_for(wide, 16), None), wide, rtol=2**-11)


def test_32_bits_are_lossless() -> None:
    values = np.array([1e-45, -3.3, 1e38], np.float32)
    assert grid_for(values, 32) == EXACT
    assert rounded(values, EXACT, None) is values


@pytest.mark.parametrize("bits", [3, 5, 8, 16])
def test_stochastic_rounding_has_the_value_as_its_mean(bits: int) -> None:
    """Of 200,000 draws at each of six places between two levels; five standard errors."""
    n = 200_000
    spread = np.geomspace(1, 6, 40).astype(np.float32)
    grid = grid_for(spread, bits)
    levels = grid.magnitudes(np.array([3, 4], np.uint32)).astype(np.float64)
    for share in (0, 0.01, 0.3, 0.5, 0.9, 0.999):
        value = np.float32(levels[0] + share * (levels[1] - levels[0]))
        sent = rounded(np.full(n, value), grid, np.random.default_rng(7)).astype(np.float64)
        assert set(np.unique(sent)) <= set(levels)
        error = max(sent.std(), 1e-3 * (levels[1] - levels[0])) / np.sqrt(n)
        assert abs(sent.mean() - value) <= 5 * error


@pytest.mark.parametrize("bits", LOG_SCALED)
@pytest.mark.parametrize("draw", ["standard_normal", "laplace"])
def test_the_levels_of_a_top_tenth_begin_at_its_smallest(bits: int, draw: str) -> None:
    vector = getattr(np.random.default_rng(0), draw)(size=200_000)
    top = np.sort(np.abs(vector).astype(np.float32))[-20_000:]
    levels = np.unique(rounded(top[:-20], grid_for(top, bits), None))
    assert 2 ** (bits - 2) < levels.size <= 2 ** (bits - 1)


@pytest.mark.parametrize("bits", [4, 5, 8])
def test_the_smallest_of_everything_do_not_widen_the_steps(bits: int) -> None:
    """At density 1: the squared error is much less than with the levels over everything."""
    values = np.random.default_rng(0).standard_normal(100_000, np.float32)
    smallest, top = smallest_bits(values), int(np.quantile(magnitude_bits(values), 0.999))
    over_all = QuantizationGrid(smallest, min((top - smallest) // (2 ** (bits - 1) - 1), OCTAVE))
    ours, theirs = (np.sum(np.square(values - rounded(values, g, None))) for g in (grid_for(values, bits), over_all))
    assert ours < 0.4 * theirs
