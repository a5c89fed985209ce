"""decode(encode(x)) == x, near the entropy; whatever else arrives is a PayloadError that names sender and round."""

import tracemalloc
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.compression.byte_planes import container, deflated, inflated, join, split, width_of
from fedhpc.compression.codec import BITMASK, CRC, EVERY, FIXED, GAPS, RAW, Header, decode, encode, encode_indices
from fedhpc.compression.error_feedback import CompressionConfig, with_feedback
from fedhpc.compression.float_bits import LARGEST_BITS
from fedhpc.compression.update import DenseVector, SparseVector, Update, pack_arrays, unpack_arrays
from fedhpc.config.exchange import Exchange
from fedhpc.errors import PayloadError
from tests.support.payloads import (
    KINDS,
    ROUND,
    SENDER,
    SIZE,
    assembled,
    check_decoded,
    payloads,
    sealed,
    update_of,
    with_header,
)

PAYLOADS = payloads()


def decoded(payload: bytes, size: int = SIZE) -> Update:
    return decode(payload, sender=SENDER, round=ROUND, size=size)


def header_of(payload: bytes) -> Header:
    return Header(*FIXED.unpack_from(payload)[2:])


@given(st.integers(1, 3000), st.floats(0.001, 1), st.sampled_from([3, 4, 8, 16, 32]), st.integers(0, 9))
def test_round_trip(size: int, density: float, bits: int, seed: int) -> None:
    update = update_of(density, bits, size, seed)
    back = decoded(encode(update), size)
    assert (back.sender, back.round, back.entries.size) == (SENDER, ROUND, size)
    assert back.entries.grid == update.entries.grid
    np.testing.assert_array_equal(back.entries.indices, update.entries.indices)
    np.testing.assert_array_equal(back.entries.values.view(np.uint32), update.entries.values.view(np.uint32))


@given(st.sets(st.integers(0, 2**31 - 1), max_size=30))
def test_round_trip_of_any_index_set(chosen: set[int]) -> None:
    indices = np.array(sorted(chosen), np.int64)
    update = Update(SENDER, ROUND, SparseVector(2**31, indices, np.full(indices.size, -0.5, np.float32)))
    np.testing.assert_array_equal(decoded(encode(update), 2**31).entries.indices, indices)


def test_an_update_of_zeros_sends_nothing() -> None:
    zeros = np.zeros(SIZE, np.float32)
    sent, kept = with_feedback(zeros, zeros, CompressionConfig(0.1, 4))
    payload = encode(Update(SENDER, ROUND, sent))
    assert len(payload) < 100
    assert decoded(payload).entries.indices.size == kept.any() == 0


def test_every_kind_of_block_is_among_the_payloads() -> None:
    headers = [header_of(payload) for payload in PAYLOADS]
    assert {header.index_kind for header in headers} == {EVERY, BITMASK, GAPS, RAW}
    assert {header.index_planes for header in headers} >= {0, 1, 2}
    assert {header.level_planes for header in headers} >= {1, 2, 4}


def test_dense_payload_is_the_raw_bytes() -> None:
    """Zeros and the sign of zero too; what a receiver adds is what the sparse form of it adds, bit for bit."""
    values = np.array([0.0, -0.0, 1.5, -3e-39, 1e30], np.float32)
    payload = encode(Update(SENDER, ROUND, DenseVector(values)))
    assert values.tobytes() in payload and len(payload) == values.nbytes + 60
    back = decoded(payload, values.size).entries
    np.testing.assert_array_equal(back.values.view(np.uint32), values.view(np.uint32))
    places = np.flatnonzero(values)
    ours, theirs = np.zeros((2, values.size), np.float32)
    for weight in (1, 3):
        back.add_to(ours, weight)
        SparseVector(values.size, places, values[places]).add_to(theirs, weight)
    np.testing.assert_array_equal(ours.view(np.uint32), theirs.view(np.uint32))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_dense_entry_that_is_not_finite_is_refused(value: float) -> None:
    payload = encode(Update(SENDER, ROUND, DenseVector(np.array([1.0, value], np.float32))))
    with pytest.raises(PayloadError, match="not finite"):
        decoded(payload, 2)


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [(range(1000), EVERY), (range(999), BITMASK), (range(0, 1000, 100), GAPS), (range(500, 510), GAPS)],
)
def test_the_smaller_index_block_is_sent(chosen: range, kind: int) -> None:
    indices = np.array(chosen, np.int64)
    found, planes = encode_indices(SparseVector(1000, indices, np.ones(len(chosen), np.float32)))
    assert found == kind
    assert sum(map(len, planes)) <= (0 if kind == EVERY else 125)


@pytest.mark.parametrize(("density", "excess"), [(0.001, 0.03), (0.01, 0.06), (0.03, 0.03), (0.1, 0.03), (0.5, 0.01)])
def test_index_set_is_near_its_entropy(density: float, excess: float) -> None:
    rng, d = np.random.default_rng(0), 2_000_000
    indices = np.sort(rng.choice(d, int(d * density), replace=False))
    taken = sum(map(len, encode_indices(SparseVector(d, indices, np.ones(indices.size, np.float32)))[1]))
    entropy = -d * (density * np.log2(density) + (1 - density) * np.log2(1 - density)) / 8
    assert entropy < taken < (1 + excess) * entropy


def test_less_than_the_entropy_where_density_changes_along_the_vector() -> None:
    """Layers of density 0.4 and 0.01: their own entropies add up to less than that of their mean density."""
    rng, part = np.random.default_rng(0), 200_000
    mask = np.concatenate([rng.random(part) < density for density in (0.4, 0.01) * 4])
    indices = np.flatnonzero(mask)
    taken = sum(map(len, encode_indices(SparseVector(mask.size, indices, np.ones(indices.size, np.float32)))[1]))
    p = indices.size / mask.size
    assert taken < -0.8 * mask.size * (p * np.log2(p) + (1 - p) * np.log2(1 - p)) / 8


@pytest.mark.parametrize(
    ("density", "bits", "largest_share"),
    [(0.1, Exchange().value_bits, 12 / 450), (0.1, 8, 18 / 450), (0.1, 32, 44 / 450), (0.5, 5, 48 / 450)],
)
def test_bytes_of_a_gaussian_update(density: float, bits: int, largest_share: float) -> None:
    """In the default setting 12 MB of 450, in that of configs/network.yaml 48; nothing there has a structure."""
    assert len(encode(update_of(density, bits, 500_000))) < largest_share * 4 * 500_000


def peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_of_a_sites_step() -> None:
    """At its peak 1.5 times the dense update: with the corrected vector, what is sent, and the payload."""
    size = 10_000_000
    vector, nothing = np.random.default_rng(0).standard_normal(size, np.float32), np.zeros(size, np.float32)
    payloads: list[bytes] = []

    def step() -> None:
        sent, _ = with_feedback(vector, nothing, CompressionConfig(0.1, 4))
        payloads.append(encode(Update(SENDER, ROUND, sent)))

    assert peak_bytes(step) < 1.5 * vector.nbytes
    assert peak_bytes(lambda: decoded(payloads[0], size)) < 0.6 * vector.nbytes


def changed(payload: bytes, at: int, flip: int) -> bytes:
    return payload[:at] + bytes([payload[at] ^ flip]) + payload[at + 1 :]


@given(st.sampled_from(PAYLOADS), st.data())
def test_one_flipped_byte_is_refused(payload: bytes, data: st.DataObject) -> None:
    broken = changed(payload, data.draw(st.integers(0, len(payload) - 1)), data.draw(st.integers(1, 255)))
    with pytest.raises(PayloadError, match="sender 2 in round 8"):
        decoded(broken)


@given(
    st.one_of(
        st.binary(max_size=200),
        st.binary(max_size=200).map(sealed),
        st.sampled_from(PAYLOADS).flatmap(lambda p: st.integers(0, len(p) - 1).map(lambda n: p[:n])),
    )
)
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(PayloadError, match="sender 2 in round 8"):
        decoded(payload)


def survives(payload: bytes) -> None:
    """Refused by name, or an update that can be folded."""
    try:
        check_decoded(payload)
    except PayloadError as error:
        assert "sender 2 in round 8" in str(error)


@given(st.sampled_from(PAYLOADS), st.data())
def test_changes_under_the_right_checksum(payload: bytes, data: st.DataObject) -> None:
    """Flips, cuts and insertions that reach the checks behind the checksum."""
    body = bytearray(payload[: -CRC.size])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        length = data.draw(st.integers(0, 8))
        body[at : at + length] = data.draw(st.binary(max_size=8))
    survives(sealed(bytes(body)))


@given(st.sampled_from(PAYLOADS), st.data())
def test_any_header_under_the_right_checksum(payload: bytes, data: st.DataObject) -> None:
    limits = {"index_kind": 8, "index_planes": 8, "level_planes": 8, "lowest": 32, "step": 32, "entries": 64}
    names = data.draw(st.sets(st.sampled_from(sorted(limits)), min_size=1))
    numbers = {
        name: data.draw(st.one_of(st.integers(0, 5), st.integers(0, 2 ** limits[name] - 1)), name) for name in names
    }
    survives(with_header(payload, **numbers))


@given(st.data())
def test_any_planes_under_the_right_lengths(data: st.DataObject) -> None:
    """Well-formed throughout, but planes of any bytes and any length."""
    kind = data.draw(st.sampled_from([EVERY, BITMASK, GAPS]))
    index_planes = {EVERY: 0, BITMASK: 1}.get(kind, data.draw(st.integers(1, 4)))
    level_planes = data.draw(st.integers(1, 4))
    k = SIZE if kind == EVERY else data.draw(st.integers(0, 12))
    lowest, step = data.draw(st.integers(1, LARGEST_BITS)), data.draw(st.integers(1, 2**23))
    header = Header(SENDER, ROUND, SIZE, k, kind, index_planes, level_planes, lowest, step)
    lengths = st.sampled_from([k, (k + 7) // 8, (SIZE + 7) // 8, 0, k + 1])
    planes = [
        deflated(np.frombuffer(data.draw(st.binary(min_size=n, max_size=n)), np.uint8))
        for n in (data.draw(lengths) for _ in range(index_planes + 1 + level_planes))
    ]
    survives(assembled(header, planes))


@pytest.mark.parametrize("wrong", [{"sender": 1}, {"round": 6}, {"size": 999}])
def test_other_sender_round_or_size_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(PayloadError, match="expected"):
        decode(PAYLOADS[1], **{"sender": SENDER, "round": ROUND, "size": SIZE, **wrong})


def bomb(size: int) -> bytes:
    """A plane of far more zeros than it should have, in few bytes."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(stream.compress(bytes(1 << 20)) for _ in range(size >> 20)) + stream.flush()


@pytest.mark.parametrize("kind", [EVERY, BITMASK, GAPS])
def test_a_decompression_bomb_takes_no_memory(kind: int) -> None:
    plane = bomb(1 << 26)
    index_planes = {EVERY: 0, BITMASK: 1, GAPS: 4}[kind]
    header = Header(SENDER, ROUND, SIZE, SIZE if kind == EVERY else 10, kind, index_planes, 4, 1, 1)
    payload = assembled(header, [plane] * (index_planes + 5))

    def refused() -> None:
        with pytest.raises(PayloadError, match=r"is not \d+ bytes deflated"):
            decoded(payload)

    assert peak_bytes(refused) < len(payload) + (1 << 20)


def with_planes(change: Callable[[list[bytes]], list[bytes]]) -> bytes:
    """A payload of two entries, 3 and 1 of 8, -1 and 2 on a grid of whole octaves, with other planes."""
    gaps, signs, levels = ([1, 1], [0b01], [0, 1])
    header = Header(SENDER, ROUND, 8, 2, GAPS, 1, 1, 0x3F80_0000, 2**23)
    return assembled(header, change([deflated(np.array(plane, np.uint8)) for plane in (gaps, signs, levels)]))


def test_planes_by_hand() -> None:
    entries = decoded(with_planes(lambda planes: planes), 8).entries
    assert entries.indices.tolist() == [1, 3]
    assert entries.values.tolist() == [-1, 2]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda p: [deflated(np.array([1, 6], np.uint8)), *p[1:]], "the gaps lead to entry 8 of 8"),
        (lambda p: [*p[:2], deflated(np.array([0, 128], np.uint8))], "level 128 of .* is not a finite value"),
        (lambda p: [deflated(np.array([1], np.uint8)), *p[1:]], "a plane is not 2 bytes deflated"),
        (lambda p: [p[0] + b"x", *p[1:]], "a plane is not 2 bytes deflated"),
        (lambda p: [p[0][:-1], *p[1:]], "a plane"),
        (lambda p: [b"\xff" * 4, *p[1:]], "a plane cannot be inflated"),
        (lambda p: [*p, b""], "its 3 planes would end at"),
        (lambda p: p[:2], "its 3 planes would end at"),
    ],
)
def test_each_check_behind_the_header(change: Callable[[list[bytes]], list[bytes]], told: str) -> None:
    with pytest.raises(PayloadError, match=f"sender 2 in round 8: .*{told}"):
        decoded(with_planes(change), 8)


@pytest.mark.parametrize(
    "fields",
    [
        {"entries": SIZE + 1},
        {"index_kind": 3},
        {"index_planes": 0},
        {"index_planes": 5},
        {"level_planes": 0},
        {"level_planes": 5},
        {"lowest": 0},
        {"lowest": LARGEST_BITS + 1},
        {"step": 0},
        {"step": 2**23 + 1},
        {"index_kind": EVERY, "index_planes": 0},
        {"index_kind": BITMASK, "index_planes": 2},
    ],
)
def test_each_check_of_the_header(fields: dict[str, int]) -> None:
    with pytest.raises(PayloadError, match="cannot be"):
        decoded(with_header(PAYLOADS[KINDS.index((0.1, 4))], **fields))


@pytest.mark.parametrize("indices", [[3, 1], [1, 1], [2, 320], [-1, 2]])
def test_indices_out_of_order_or_range_are_not_encoded(indices: list[int]) -> None:
    entries = SparseVector(320, np.array(indices), np.ones(2, np.float32))
    with pytest.raises(ValueError, match="not ascending from 0 to below 320"):
        encode(Update(SENDER, ROUND, entries))


@given(st.integers(1, 4), st.integers(0, 400), st.randoms(use_true_random=False))
def test_planes_round_trip(width: int, count: int, random: object) -> None:
    numbers = np.random.default_rng(random.getrandbits(32)).integers(0, 256**width, count).astype(container(width))  # type: ignore[attr-defined]
    planes = [memoryview(plane) for plane in split(numbers, width)]
    assert len(planes) == width
    np.testing.assert_array_equal(join(planes, count), numbers)


@pytest.mark.parametrize("size", [1000, 400_000])
@pytest.mark.parametrize(("plane", "bits_a_byte"), [("random", 8.1), ("skewed", 1.3), ("runs", 0.1), ("repeats", 0.7)])
def test_each_strategy_where_it_is_best(size: int, plane: str, bits_a_byte: float) -> None:
    rng = np.random.default_rng(0)
    numbers = {
        "random": rng.integers(0, 256, size),
        "skewed": rng.geometric(0.8, size),
        "runs": np.repeat([5, 0], size // 2),
        "repeats": np.resize(rng.integers(0, 256, 60), size),
    }[plane].astype(np.uint8)
    block = deflated(numbers)
    assert len(block) <= bits_a_byte * size / 8 + 12
    np.testing.assert_array_equal(inflated(memoryview(block), size), numbers)


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


def test_widths() -> None:
    assert [width_of(2**bits - 1) for bits in (0, 8, 9, 16, 24, 32)] == [1, 1, 2, 2, 3, 4]
