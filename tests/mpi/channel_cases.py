"""Run under mpirun: opens the secure channel as each case of a file says, passes payloads, and notes how it went.

    python -m tests.mpi.channel_cases CONFIG CASES OUT

CASES is a JSON object of name -> case, OUT a folder for <rank>.json.

A case may set config keys (`set`), make the TLS of this program's rank 1 an old one (`old`), and put somebody between
the ranks and the wire (`up`, `down`: a key of CHANGES).
"""

import json
import ssl
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.compression.codec import encode
from fedhpc.compression.update import SparseVector, Update
from fedhpc.config.loader import load_config
from fedhpc.errors import InputError, PayloadError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.display import Console
from fedhpc.run.start.secure_channel import open_secure_channel
from fedhpc.transport.base import Transport
from fedhpc.transport.channel import Channel
from fedhpc.transport.egress_log import Kind
from fedhpc.transport.mpi import connect
from fedhpc.transport.tls import Credentials
from fedhpc.util.rng import generator

D = 20_000
Change = Callable[[list[bytes], list[bytes]], list[bytes]]


def flipped(payload: bytes) -> bytes:
    """The same but for one bit, in the middle."""
    at = len(payload) // 2
    return payload[:at] + bytes([payload[at] ^ 1]) + payload[at + 1 :]


# (what was sent the time before, what is to be sent) -> what the wire is given.
CHANGES: dict[str, Change] = {
    "flip": lambda before, now: [*now[:-1], flipped(now[-1])],
    "replay": lambda before, now: before,
    "swap": lambda before, now: now[::-1],
    "drop": lambda before, now: now[:-1],
    "more": lambda before, now: [*now, now[-1]],
    "cut": lambda before, now: [*now[:-1], now[-1][:-1]],
}


class Between:
    """A wire with somebody in it, who changes the second updates that this rank sends."""

    def __init__(self, wire: Transport, change: Change) -> None:
        self.rank, self.size, self.local_rank, self.local_size = wire.rank, wire.size, wire.local_rank, wire.local_size
        self._wire, self._change = wire, change
        self._before: list[bytes] = []

    def _changed(self, payloads: Sequence[bytes], kind: Kind) -> list[bytes]:
        if kind != "update" or not payloads:
            return list(payloads)
        before, self._before = self._before, list(payloads)
        return self._change(before, self._before) if before else self._before

    def stream(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> Iterator[bytes]:
        return self._wire.stream(self._changed(payloads, kind), kind, round)

    def gather(self, payloads: Sequence[bytes], kind: Kind, round: int | None = None) -> list[bytes]:
        return list(self.stream(payloads, kind, round))

    def deliver_by_site(self, ranks: Sequence[int]) -> None:
        self._wire.deliver_by_site(ranks)

    def broadcast(self, payload: bytes | None, kind: Kind, round: int | None = None) -> bytes:
        sent = None if payload is None else self._changed([payload], kind)[0]
        return self._wire.broadcast(sent, kind, round)


def known_update(number: int) -> bytes:
    """The coded update that a sender sends: the same in every run."""
    values = generator(0, number, "known update").uniform(0.5, 1, D).astype(np.float32)
    return encode(Update(number, 0, SparseVector(D, np.arange(D), values)))


def known_image(number: int) -> bytes:
    """64 x 64 pixels: the same in every run."""
    return generator(0, number, "known image").integers(0, 256, (64, 64), dtype=np.uint8).tobytes()


def old_context(new: Callable[..., ssl.SSLContext]) -> Callable[..., ssl.SSLContext]:
    """`Credentials.context` of a program that speaks nothing newer than TLS 1.2."""

    def context(self: Credentials, *, server: bool) -> ssl.SSLContext:
        made = new(self, server=server)
        made.minimum_version = made.maximum_version = ssl.TLSVersion.TLSv1_2
        return made

    return context


def opened(config: Path, run: Path, case: dict[str, Any], wire: Transport) -> Channel:
    sets = [f"{key}={value}" for key, value in case.get("set", {}).items()]
    new = Credentials.context
    if case.get("old") and wire.rank == 1:
        Credentials.context = old_context(new)  # type: ignore[method-assign]
    try:
        return open_secure_channel(load_config(config, sets), RunDirectory(run), wire, Console(speaks=False))
    finally:
        Credentials.context = new  # type: ignore[method-assign]


def passed(channel: Channel, names: Sequence[str], case: dict[str, Any]) -> dict[str, Any]:
    """Two rounds up and down; what came out at this rank, or who was refused. A session ends with what it refuses."""
    mine = [known_update(number) for number, name in enumerate(names) if name in channel.logs]
    told: dict[str, Any] = {"came": []}
    for round in (1, 2):
        try:
            up = channel.gather(mine, "update", round)
        except PayloadError as error:
            told["up"], up = str(error), []
        if round == 2 and "up" in case:
            return told
        try:
            down = channel.broadcast(known_update(99) if channel.rank == 0 else None, "update", round)
        except PayloadError as error:
            told["down"], down = str(error), b""
        told["came"].append([[len(p) for p in up], down == known_update(99)])
        told["right"] = channel.rank > 0 or up == [known_update(number) for number in range(len(names))]
    if "down" not in case:
        channel.gather([known_image(number) for number, name in enumerate(names) if name in channel.logs], "metrics")
    return told


def main() -> None:
    config, cases, out = (Path(word) for word in sys.argv[1:4])
    wire, told = connect(), {}
    names = load_config(config).site_names
    for name, case in json.loads(cases.read_text()).items():
        change = CHANGES.get(case.get("up" if wire.rank else "down", ""))
        try:
            channel = opened(config, out / name, case, Between(wire, change) if change else wire)
        except InputError as error:
            told[name] = {"refused": str(error)}
            continue
        told[name] = passed(channel, names, case)
    (out / f"{wire.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
