"""The stream of all ranks' payloads, in pure form: however it is cut into waves, the payloads are the same."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.errors import PayloadError
from fedhpc.transport.framing import Pieces, carved, frame_header

RANKS = st.lists(st.lists(st.binary(max_size=50), max_size=4), min_size=1, max_size=5)


def stream_of(ranks: list[list[bytes]]) -> bytes:
    return b"".join(frame_header(payloads) + b"".join(payloads) for payloads in ranks)


@given(ranks=RANKS, wave=st.integers(1, 100))
def test_payloads_come_out_in_order_at_any_length_of_the_waves(ranks: list[list[bytes]], wave: int) -> None:
    stream = stream_of(ranks)
    waves = [memoryview(stream)[at : at + wave] for at in range(0, len(stream), wave)]
    assert list(carved(waves, len(ranks))) == [payload for payloads in ranks for payload in payloads]


@given(ranks=RANKS, wave=st.integers(1, 100), change=st.sampled_from(["cut", "more"]))
def test_a_stream_of_another_length_is_refused(ranks: list[list[bytes]], wave: int, change: str) -> None:
    stream = stream_of(ranks)[:-1] if change == "cut" else stream_of(ranks) + b"x"
    with pytest.raises(PayloadError, match="fewer" if change == "cut" else "more"):
        list(carved([stream[at : at + wave] for at in range(0, len(stream), wave)], len(ranks)))


def test_a_count_that_no_stream_can_hold_takes_no_memory() -> None:
    with pytest.raises(PayloadError, match="fewer bytes"):
        list(carved([(2**60).to_bytes(8, "little") + bytes(100)], 1))


def test_a_payload_is_given_out_before_the_next_wave_is_asked_for() -> None:
    def waves() -> object:
        yield frame_header([b"ab", b"cd"]) + b"ab"
        raise AssertionError("asked for too early")

    assert next(carved(waves(), 1)) == b"ab"  # type: ignore[arg-type]


@given(
    parts=st.lists(st.binary(max_size=20), min_size=1, max_size=6),
    ends=st.tuples(st.integers(0, 60), st.integers(0, 60)),
)
def test_pieces_are_one_string(parts: list[bytes], ends: tuple[int, int]) -> None:
    whole, (low, high) = b"".join(parts), sorted(ends)
    low, high = min(low, len(whole)), min(high, len(whole))
    assert bytes(Pieces(parts).between(low, high)) == whole[low:high]


def test_a_piece_of_one_part_is_not_copied() -> None:
    part = np.zeros(1000, np.uint8).tobytes()
    assert Pieces([b"header", part]).between(100, 900).obj is part  # type: ignore[union-attr]
