"""The search for pixels: finds every stretch of an image that holds a block, and nothing else."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.shard_writer import write_shard
from fedhpc.compression.codec import encode
from fedhpc.compression.quantization import EXACT
from fedhpc.compression.update import SparseVector, Update, pack_arrays
from fedhpc.errors import PayloadError
from fedhpc.site.data.pixel_blocks import image_blocks
from fedhpc.site.data.shard import Shard
from fedhpc.transport.pixel_scan import DISTINCT, STRIDE_BYTES, ImageSearch

BLOCKS = np.random.default_rng(0).integers(0, 2**63, (500, 2), dtype=np.uint64)
SEARCH = ImageSearch(BLOCKS)


def finds(payload: bytes, search: ImageSearch = SEARCH) -> bool:
    try:
        search.refuse(payload, "here")
    except PayloadError:
        return True
    return False


@given(before=st.integers(0, 40), after=st.integers(0, 40), row=st.integers(0, 499))
def test_a_block_is_found_wherever_it_is(before: int, after: int, row: int) -> None:
    block = BLOCKS[row].tobytes()
    assert finds(bytes(before) + block + bytes(after))
    for at in (0, 7, 8, 15):
        changed = block[:at] + bytes([block[at] ^ 1]) + block[at + 1 :]
        assert not finds(bytes(before) + changed + bytes(after))


@pytest.mark.parametrize("place", [-16, -15, -8, -1, 0, 1, 7])
def test_also_across_the_border_of_two_strides(place: int) -> None:
    payload = bytearray(np.random.default_rng(1).bytes(2 * STRIDE_BYTES + 100))
    at = STRIDE_BYTES + place
    assert not finds(bytes(payload))
    payload[at : at + 16] = BLOCKS[3].tobytes()
    assert finds(bytes(payload))


def test_the_place_is_told() -> None:
    with pytest.raises(PayloadError, match="site1: 16 bytes from 1003 on are those of an image of this site"):
        SEARCH.refuse(bytes(1003) + BLOCKS[0].tobytes(), "site1")


@pytest.mark.parametrize("payload", [b"", b"x", bytes(15), bytes(16), b"PK\x03\x04 is no archive"])
def test_short_and_odd_payloads_pass(payload: bytes) -> None:
    assert not finds(payload)


def test_dull_blocks_are_not_looked_for() -> None:
    """Black borders are in any payload; a block counts from DISTINCT different bytes on."""
    dull, telling = (np.resize(np.arange(n, dtype=np.uint8), 16) for n in (DISTINCT - 1, DISTINCT))
    search = ImageSearch(np.concatenate([dull, telling, np.zeros(16, np.uint8)]).view("<u8").reshape(-1, 2))
    assert search.count == 1
    assert not finds(dull.tobytes() * 3, search)
    assert finds(telling.tobytes(), search)


def test_no_blocks_at_all() -> None:
    search = ImageSearch(np.empty((0, 2), np.uint64))
    assert search.count == 0
    assert not finds(bytes(1000), search)


def test_what_is_deflated_in_a_payload_is_looked_into() -> None:
    """Packed arrays, and an update whose levels are pixels: only inflated are they what they were."""
    rng, size = np.random.default_rng(2), 16_000
    pixels = rng.integers(0, 12, size).astype(np.uint8)
    search = ImageSearch(pixels.view("<u8").reshape(-1, 2))
    values = (EXACT.lowest + 0x3F800000 + pixels.astype(np.uint32)).astype(np.uint32).view(np.float32)
    for payload in (pack_arrays({"val": pixels}), encode(Update(0, 0, SparseVector(size, np.arange(size), values)))):
        assert not any(pixels[at : at + 16].tobytes() in payload for at in range(0, size, 16))
        assert finds(payload, search)
    noise = rng.standard_normal(size, np.float32)
    assert not finds(encode(Update(0, 0, SparseVector(size, np.arange(size), noise))), search)


@pytest.mark.parametrize(("dtype", "side"), [("<u1", 32), ("<u2", 48), ("<f4", 64)])
def test_any_stretch_of_any_image_of_a_shard(tmp_path: Path, dtype: str, side: int) -> None:
    """Of every image, from twice the spacing of the blocks on, at any place."""
    rng, n = np.random.default_rng(3), 12
    images = rng.uniform(0, 250 if dtype == "<u1" else 65_000, (n, 1, side, side)).astype(dtype)
    write_shard(
        tmp_path / "site1.h5",
        site="site1",
        classes=("a", "b"),
        images=images,
        labels=np.arange(n, dtype=np.int64) % 2,
        patient=np.array([f"p{i}".encode() for i in range(n)], "S16"),
        split=np.repeat([0, 1, 2], 4).astype(np.uint8),
        modality=np.full(n, b"MR", "S2"),
        pixel_range=(0, 65_535),
        created_by="tests",
    )
    with Shard.open(tmp_path / "site1.h5", "site1") as shard:
        search = ImageSearch(image_blocks(shard))
    raw = images.reshape(n, -1).view(np.uint8)
    spacing = max(16, -(-raw.shape[1] // 256))
    stretch = spacing + 16
    for image in raw:
        for at in (0, 1, 17, raw.shape[1] // 2 + 3, raw.shape[1] - stretch):
            assert finds(b"xyz" + image[at : at + stretch].tobytes(), search)
    assert not finds(rng.bytes(100_000), search)
