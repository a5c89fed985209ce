"""Vectors of a secure sum: what is packed, masked and added is what whole arrays give, by any number of threads."""

from collections.abc import Sequence

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from fedhpc.secagg.masks import SumTerms
from fedhpc.secagg.vectors import BLOCK, Mask, packed, signed, summed, word_of
from fedhpc.util.arrays import U64

SEEDS = [bytes([k]) * 32 for k in (1, 2, 3)]
MASKS = [Mask(SEEDS[0], added=True), Mask(SEEDS[1], added=False), Mask(SEEDS[2], added=True)]


def keystream(seed: bytes, terms: SumTerms) -> U64:
    """PRG(seed), drawn at once."""
    word = word_of(terms.width_bytes)
    stream = Cipher(AES(seed), CTR(bytes(16))).encryptor().update(bytes(terms.size * word.itemsize))
    return np.frombuffer(stream, word).astype(np.uint64)


def drawn(terms: SumTerms, count: int) -> Sequence[U64]:
    return list(np.random.default_rng(terms.width_bytes).integers(0, 2**64, (count, terms.size), np.uint64))


@pytest.mark.parametrize("width", range(1, 9))
@pytest.mark.parametrize("size", [1, 2, 2 * BLOCK + 1])
def test_masked_sum_is_that_of_whole_arrays(width: int, size: int) -> None:
    terms = SumTerms(2, 2, size, width)
    one, other = drawn(terms, 2)
    mask = keystream(SEEDS[0], terms) - keystream(SEEDS[1], terms) + keystream(SEEDS[2], terms)
    whole = (one + mask).astype("<u8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
    total = signed(one + other + 2 * mask, width)
    for threads in (1, 2, 5):
        assert bytes(packed(one, MASKS, terms, threads)) == whole
        found = summed([whole, packed(other, [], terms, threads)], MASKS, terms, threads)
        np.testing.assert_array_equal(found, total)


def test_failure_in_a_thread_is_raised() -> None:
    terms = SumTerms(2, 2, 2 * BLOCK, 3)
    with pytest.raises(ValueError, match="key size"):
        packed(np.zeros(terms.size, np.int64), [Mask(b"short", added=True)], terms, 2)
