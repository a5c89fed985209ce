"""Hypothesis strategies for float32 vectors of every magnitude that may be sent, drawn by their bits."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fedhpc.compression.float_bits import SIGN

EVERY, SUBNORMAL, AROUND_THE_SMALLEST_NORMAL = (0, 0x7DFF_FFFF), (0, 3), (0, 0x0180_0000)
AN_OCTAVE, MANY_OCTAVES = (0x3F80_0000, 0x4000_0000), (0x3000_0000, 0x4800_0000)


def _signed(bits: np.ndarray, negative: np.ndarray) -> np.ndarray:
    return (bits | np.where(negative, SIGN, 0)).astype(np.uint32).view(np.float32)


def vectors(most: int = 200, least: int = 1) -> st.SearchStrategy[np.ndarray]:
    """f32[least..most] below 2**125 in magnitude: zeros, subnormals, one octave, or all that there is."""
    kinds = st.sampled_from([EVERY, SUBNORMAL, AROUND_THE_SMALLEST_NORMAL, AN_OCTAVE, MANY_OCTAVES])

    def of(kind: tuple[int, int]) -> st.SearchStrategy[np.ndarray]:
        sizes = st.integers(least, most)
        return sizes.flatmap(
            lambda n: st.builds(
                _signed,
                hnp.arrays(np.uint32, n, elements=st.integers(*kind)),
                hnp.arrays(np.bool_, n),
            )
        )

    return kinds.flatmap(of)
