"""decode(encode(x)) == x; whatever else arrives is a PayloadError that names sender and round."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.errors import PayloadError
from fedhpc.exchange.codec import BITMASK, DENSE, HEADER, UINT32, decode, encode
from fedhpc.exchange.sparsify import top_k
from fedhpc.exchange.update import SparseVector, Update, pack_arrays, unpack_arrays


def update_of(size: int, k: int, seed: int = 0) -> Update:
    vector = np.random.default_rng(seed).normal(size=size).astype(np.float32)
    return Update(2, 7, top_k(vector, k))


@given(st.integers(1, 3000), st.floats(0, 1), st.integers(0, 9))
def test_round_trip(size: int, share: float, seed: int) -> None:
    update = update_of(size, max(1, int(size * share)), seed)
    back = decode(encode(update), sender=2, round=7, size=size)
    assert (back.sender, back.round, back.entries.size) == (2, 7, size)
    np.testing.assert_array_equal(back.entries.indices, update.entries.indices)
    np.testing.assert_array_equal(back.entries.values, update.entries.values)


@pytest.mark.parametrize(
    ("k", "kind", "index_bytes"), [(1000, DENSE, 0), (100, BITMASK, 125), (31, UINT32, 124), (32, BITMASK, 125)]
)
def test_cheapest_index_block(k: int, kind: int, index_bytes: int) -> None:
    payload = encode(update_of(1000, k))
    assert HEADER.unpack_from(payload)[-1] == kind
    assert len(payload) == HEADER.size + index_bytes + 4 * k + 4


PAYLOADS = [encode(update_of(1000, k)) for k in (1000, 100, 10)]


@given(st.sampled_from(PAYLOADS), st.data())
def test_one_flipped_byte_is_refused(payload: bytes, data: st.DataObject) -> None:
    at, flip = data.draw(st.integers(0, len(payload) - 1)), data.draw(st.integers(1, 255))
    broken = payload[:at] + bytes([payload[at] ^ flip]) + payload[at + 1 :]
    with pytest.raises(PayloadError, match="sender 2 in round 7"):
        decode(broken, sender=2, round=7, size=1000)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.sampled_from(PAYLOADS).flatmap(lambda p: st.integers(0, len(p) - 1).map(lambda n: p[:n])),
    )
)
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(PayloadError):
        decode(payload, sender=2, round=7, size=1000)


@pytest.mark.parametrize("wrong", [{"sender": 1}, {"round": 6}, {"size": 999}])
def test_other_sender_round_or_size_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(PayloadError, match="expected"):
        decode(PAYLOADS[1], **{"sender": 2, "round": 7, "size": 1000, **wrong})


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    entries = SparseVector(4, np.array([1]), np.array([value], np.float32))
    with pytest.raises(PayloadError, match="finite"):
        decode(encode(Update(0, 0, entries)), sender=0, round=0, size=4)


@pytest.mark.parametrize("indices", [[3, 1], [1, 1], [2, 9]])
def test_indices_out_of_order_or_range_are_refused(indices: list[int]) -> None:
    entries = SparseVector(8 * 40, np.array(indices), np.ones(2, np.float32))
    payload = encode(Update(0, 0, entries))
    size = 8 * 40 if indices != [2, 9] else 8
    with pytest.raises(PayloadError):
        decode(payload, sender=0, round=0, size=size)


def test_arrays_round_trip_and_garbage_is_refused() -> None:
    arrays = {"a": np.arange(5), "b": np.ones((2, 3), np.float32), "name": np.array("site1")}
    back = unpack_arrays(pack_arrays(arrays))
    assert all(np.array_equal(back[key], arrays[key]) for key in arrays)
    with pytest.raises(PayloadError):
        unpack_arrays(b"PK\x03\x04 no archive")


def test_pickled_objects_are_refused() -> None:
    import io

    buffer = io.BytesIO()
    np.savez(buffer, bad=np.array([{"a": 1}], dtype=object))
    with pytest.raises(PayloadError):
        unpack_arrays(buffer.getvalue())
