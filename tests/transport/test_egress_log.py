"""The log says what left, the whitelist what may, and the channel sees to it that both come before the sending."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest

from fedhpc.compression.update import pack_arrays
from fedhpc.errors import FileError, InputError, PayloadError
from fedhpc.transport.base import AloneTransport
from fedhpc.transport.channel import Channel
from fedhpc.transport.egress_log import KINDS, EgressLog, Kind, read_log


class Reading(AloneTransport):
    """Stands for the wire of a rank that is not 0; notes what the logs say when the payloads come to it."""

    rank, size = 1, 2

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.passed: list[tuple[list[bytes], list[int]]] = []

    def stream(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> object:  # type: ignore[override]
        lines = [len(read_log(path)) for path in sorted(self.folder.glob("*.jsonl"))]
        self.passed.append((list(payloads), lines))
        return iter(())


def opened(folder: Path) -> tuple[Channel, Reading]:
    wire = Reading(folder)
    return Channel(wire, {name: EgressLog(folder / f"{name}.jsonl", "aggregator") for name in "ab"}, None), wire


def test_an_entry_says_all_that_is_promised(tmp_path: Path) -> None:
    log = EgressLog(tmp_path / "new" / "log.jsonl", "aggregator")
    log.write_down(b"payload", "update", 3, via="tls", searched=12)
    log.write_down(b"", "control", None)
    log.close()
    first, second = read_log(tmp_path / "new" / "log.jsonl")
    assert datetime.fromisoformat(first.time).tzinfo is not None
    assert (first.round, first.kind, first.bytes, first.to, first.via, first.searched) == (
        3, "update", 7, "aggregator", "tls", 12
    )  # fmt: skip
    assert first.sha256 == hashlib.sha256(b"payload").hexdigest()
    assert (second.round, second.bytes, second.via, second.searched) == (None, 0, "process", None)


def test_it_is_only_ever_added_to(tmp_path: Path) -> None:
    for round in (1, 2):
        EgressLog(tmp_path / "log.jsonl", "aggregator").write_down(b"x", "update", round)
    assert [entry.round for entry in read_log(tmp_path / "log.jsonl")] == [1, 2]


@pytest.mark.parametrize("kind", ["image", "", "Update", "updates", "residual"])
def test_no_other_kind_may_leave(tmp_path: Path, kind: str) -> None:
    channel, wire = opened(tmp_path)
    with pytest.raises(
        PayloadError, match=f"kind='{kind}' must not leave a site; allowed: update, metrics, hello, con"
    ):
        channel.gather([b"x", b"y"], kind)  # type: ignore[arg-type]
    assert wire.passed == []
    assert read_log(tmp_path / "a.jsonl") == []


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_written_down_before_it_is_sent(tmp_path: Path, kind: Kind) -> None:
    channel, wire = opened(tmp_path)
    payloads = [b"of both"] if kind == "control" else [b"of a", b"of b"]
    channel.gather(payloads, kind, 4)
    assert wire.passed == [(payloads, [1, 1])]
    logged = {name: read_log(tmp_path / f"{name}.jsonl")[0] for name in "ab"}
    assert [logged[name].sha256 for name in "ab"] == [
        hashlib.sha256(payloads[min(i, len(payloads) - 1)]).hexdigest() for i in range(2)
    ]
    assert {(entry.kind, entry.round, entry.via) for entry in logged.values()} == {(kind, 4, "clear")}


def test_payloads_that_belong_to_nobody_are_refused(tmp_path: Path) -> None:
    channel, wire = opened(tmp_path)
    for payloads, kind in (([b"x"] * 3, "update"), ([b"x"] * 2, "control")):
        with pytest.raises(ValueError, match="one of each, or one of all"):
            channel.gather(payloads, kind)  # type: ignore[arg-type]
    assert wire.passed == []


def test_where_the_log_cannot_be_written_nothing_is_sent(tmp_path: Path) -> None:
    channel, wire = opened(tmp_path)
    channel.logs["b"].close()
    with pytest.raises(FileError, match=r"b\.jsonl: cannot be written: Bad file descriptor"):
        channel.gather([b"x", b"y"], "update")
    assert wire.passed == []


def test_a_payload_with_pixels_is_neither_sent_nor_logged(tmp_path: Path) -> None:
    channel, wire = opened(tmp_path)
    image = np.random.default_rng(0).integers(0, 256, 64, np.uint8)
    channel.search_for("b", image.view("<u8").reshape(-1, 2))
    channel.gather([image.tobytes(), b"of b"], "update")  # of another site: a does not know this image
    for leak in (image.tobytes(), b"before" + image[16:32].tobytes(), pack_arrays({"histogram": image})):
        with pytest.raises(PayloadError, match=r"site b, metrics payload of \d+ bytes: 16 bytes from \d+ on are those"):
            channel.gather([b"of a", leak], "metrics")
    assert len(wire.passed) == 1
    assert [entry.searched for entry in read_log(tmp_path / "b.jsonl")] == [1]


def test_in_one_process_all_is_logged_and_comes_back_as_it_is(tmp_path: Path) -> None:
    logs = {name: EgressLog(tmp_path / f"{name}.jsonl", "aggregator") for name in "ab"}
    channel = Channel(AloneTransport(), logs, EgressLog(tmp_path / "office.jsonl", "all sites"))
    assert channel.gather([b"1", b"2"], "update", 1) == [b"1", b"2"]
    assert channel.broadcast(b"down", "update", 1) == b"down"
    assert [(entry.bytes, entry.to, entry.via) for entry in read_log(tmp_path / "office.jsonl")] == [
        (4, "all sites", "process")
    ]
    with pytest.raises(ValueError, match="rank 0 must pass"):
        channel.broadcast(None, "update")


WHOLE = {"time": "2026-11-24T09:12:44.125Z", "round": 1, "kind": "update", "bytes": 1, "sha256": ""}
WHOLE |= {"to": "aggregator", "via": "tls", "searched": 1}
FORGED = [{"bytes": "1"}, {"bytes": None}, {"round": 1.5}, {"time": "now"}, {"kind": []}, {"via": {}}, {"more": 1}]


@pytest.mark.parametrize(
    "damage",
    [b'{"time": "now"}\n', b"[]\n", b'{"time": "2026\n', b"\xff\xfe\n"]
    + [json.dumps(WHOLE | one).encode() + b"\n" for one in FORGED],
)
def test_a_damaged_log_is_refused(tmp_path: Path, damage: bytes) -> None:
    EgressLog(tmp_path / "log.jsonl", "aggregator").write_down(b"x", "update", 1)
    with (tmp_path / "log.jsonl").open("ab") as file:
        file.write(damage)
    with pytest.raises(InputError, match=r"log\.jsonl"):
        read_log(tmp_path / "log.jsonl")


def test_torn_last_line_is_reported_and_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "log.jsonl"
    EgressLog(path, "aggregator").write_down(b"x", "update", 1)
    with path.open("ab") as file:
        file.write(b'{"time": "2026')
    assert [entry.round for entry in read_log(path)] == [1]
    assert [(one.levelname, str(path) in one.message) for one in caplog.records] == [("WARNING", True)]
    caplog.clear()
    EgressLog(path, "aggregator").write_down(b"y", "update", 2)
    assert [(one.levelname, str(path) in one.message) for one in caplog.records] == [("WARNING", True)]
    caplog.clear()
    assert [entry.round for entry in read_log(path)] == [1, 2]
    assert caplog.records == []


@pytest.mark.parametrize("replaced", [False, True])
def test_removed_log_stops_sending(tmp_path: Path, replaced: bool) -> None:
    channel, wire = opened(tmp_path)
    (tmp_path / "b.jsonl").unlink()
    if replaced:
        (tmp_path / "b.jsonl").touch()
    with pytest.raises(FileError, match=r"b\.jsonl: cannot be written: .*removed"):
        channel.gather([b"x", b"y"], "update")
    assert wire.passed == []


def test_a_line_is_json(tmp_path: Path) -> None:
    EgressLog(tmp_path / "log.jsonl", "aggregator").write_down(b"x", "update", 1)
    assert set(json.loads((tmp_path / "log.jsonl").read_text())) == {
        "time", "round", "kind", "bytes", "sha256", "to", "via", "searched"
    }  # fmt: skip


class Bringing(AloneTransport):
    """Stands for the wire of rank 0, to which another rank has sent; notes when it is asked."""

    size = 2
    asked = False

    def stream(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> Iterator[bytes]:
        assert not payloads
        self.asked = True
        return iter([b"of b", b"of c"])


def test_rank_0_takes_payloads_in_the_order_of_the_sites(tmp_path: Path) -> None:
    """Its own first one before it asks for the others' (they may still train), and its last one after them."""
    logs = {name: EgressLog(tmp_path / f"{name}.jsonl", "aggregator") for name in "ad"}
    wire = Bringing()
    channel = Channel(wire, logs, EgressLog(tmp_path / "aggregator.jsonl", "all sites"), order=("a", "b", "c", "d"))
    arriving = channel.stream([b"of a", b"of d"], "update", 1)
    assert next(arriving) == b"of a" and not wire.asked
    assert list(arriving) == [b"of b", b"of c", b"of d"]
