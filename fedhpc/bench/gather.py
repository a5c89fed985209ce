"""`run.py bench gather`: what a round costs rank 0, by the number of hospitals, with synthetic updates.

No hospital trains. Each sends the same Gaussian update under its own number, through the channel of a run: searched for
nothing, logged, sealed where other ranks play it, received in site order, opened, decoded, checked and folded; then the
server's step is made small and goes to all. Alone, all hospitals are in this process and nothing is sealed; under
`mpirun -n 2` rank 0 is a dedicated aggregator and the others play all hospitals.

Seconds are those of rank 0's processor, in which waiting counts for nothing. Memory is the most that rank 0 holds in a
round above what it holds before, in whole vectors f32[d] too. A line `seconds = fixed + hospitals * each` is fitted to
the measurements, and says what more hospitals would cost.
"""

import resource
import shutil
import tempfile
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.algorithms.fedavg import mean_update, next_state, server_round, server_step
from fedhpc.algorithms.round_types import RoundConfig
from fedhpc.algorithms.run_state import RunState
from fedhpc.compression.codec import CRC, FIXED, MAGIC, VERSION, encode
from fedhpc.compression.error_feedback import CompressionConfig, quantised, select
from fedhpc.compression.update import Update
from fedhpc.config.schema import RunConfig
from fedhpc.records.rounds import FLOAT32_BYTES
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.display import Console
from fedhpc.run.start.secure_channel import open_secure_channel, sites_by_rank
from fedhpc.transport import pki
from fedhpc.transport.base import Wire
from fedhpc.transport.channel import Channel
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks
from fedhpc.util.memory import peak_bytes, reset_peak
from fedhpc.util.progress import at_work
from fedhpc.util.rng import generator
from fedhpc.util.text import fitted

GB, MB = 1e9, 1e6


@dataclass(frozen=True)
class GatherBenchmark:
    """What to measure: numbers of hospitals, densities, entries of an update, bits of a value, rounds of each."""

    sites: Sequence[int]
    densities: Sequence[float]
    size: int
    value_bits: int
    rounds: int
    predict: int


def measure(job: GatherBenchmark, wire: Wire) -> dict[str, Any]:
    """Return the rows of all numbers of hospitals, and a fitted line for each density; empty elsewhere than at rank 0.

    Raises:
        InputError: at every rank, where files cannot be written.
    """
    rows = []
    for count in job.sites:
        folder = Path(broadcast_json(wire, lambda: tempfile.mkdtemp(prefix="fedhpc-gather-")))
        with at_work(f"{count} hospitals"):
            channel, start = opened(count, wire, folder)
            found = [_rounds(job, density, count, channel) for density in job.densities]
        if wire.rank == 0:
            rows += [{**start, **_row(job, count, rounds)} for rounds in found]
            shutil.rmtree(folder)
    if wire.rank:
        return {}
    lines = [{"density": one, **fitted_line([row for row in rows if row["density"] == one])} for one in job.densities]
    for line in lines:
        line["predicted_s"] = line["fixed_s"] + job.predict * line["each_s"]
    return {"size": job.size, "ranks": wire.size, "predict": job.predict, "rows": rows, "lines": lines}


def config_of(count: int, folder: Path) -> RunConfig:
    """Return the config of a run of so many hospitals, whose rank 0 is a dedicated aggregator where it can be."""
    sites = [{"name": f"site{number}", "weight": 100} for number in range(count)]
    tree = {
        "name": "gather",
        "data": {"shards": str(folder / "{site}.h5"), "sites": sites},
        "privacy": {"off": True},
        "exchange": {"pki": str(folder / "pki")},
        "federation": {"aggregator_rank": "dedicated"},
    }
    return RunConfig.model_validate(tree)


def opened(count: int, wire: Wire, folder: Path) -> tuple[Channel, dict[str, Any]]:
    """(the channel of a run of so many hospitals: its handshakes and logs; seconds that each part took at this rank).

    By the clock, of the channel also those of this rank's processor; certificates are made once, not in every run.
    """
    began_s = time.monotonic()
    config = config_of(count, folder)
    read_s = time.monotonic()
    run_on_all_ranks(wire, lambda: None if wire.rank else pki.init(folder / "pki", config.site_names))
    certified_s = time.monotonic()
    before_cpu_s = _cpu_s()
    channel = open_secure_channel(config, RunDirectory(folder / "run"), wire, Console(speaks=False))
    spans = {"config_s": read_s - began_s, "certificates_s": certified_s - read_s}
    return channel, {**spans, "channel_s": time.monotonic() - certified_s, "channel_cpu_s": _cpu_s() - before_cpu_s}


@dataclass(frozen=True)
class Rounds:
    """What rounds of a density took at this rank, and the bytes of one payload."""

    density: float
    payload_bytes: int
    figures: Sequence[Mapping[str, float]]


def _rounds(job: GatherBenchmark, density: float, count: int, channel: Channel) -> Rounds:
    coding = CompressionConfig(density, job.value_bits)
    mine = sites_by_rank(config_of(count, Path()), channel.size)[channel.rank]
    update = generator(0, "bench gather").standard_normal(job.size, np.float32) * np.float32(0.01)
    payload = encode(Update(0, 0, quantised(select(update, coding), coding.value_bits, None)))
    del update
    payloads = [readdressed(payload, site) for site in mine]
    names = tuple(f"site{number}" for number in range(count))
    terms = RoundConfig(job.rounds, coding, coding, names, (100,) * count)
    return Rounds(density, len(payload), [_round(payloads, terms, channel, job.size) for _ in range(job.rounds)])


def _row(job: GatherBenchmark, count: int, rounds: Rounds) -> dict[str, Any]:
    best = min(rounds.figures, key=lambda one: one["cpu_s"])
    peak_bytes, dense_bytes = max(one["peak_bytes"] for one in rounds.figures), FLOAT32_BYTES * job.size
    return {
        "sites": count,
        "density": rounds.density,
        "payload_bytes": rounds.payload_bytes,
        **best,
        "peak_bytes": peak_bytes,
        "peak_vectors": peak_bytes / dense_bytes,
        "fold_gb_s": count * dense_bytes / GB / best["fold_cpu_s"],
    }


def readdressed(payload: bytes, sender: int) -> bytes:
    """Return a payload of `encode` with another sender."""
    header = FIXED.pack(MAGIC, VERSION, sender, *FIXED.unpack_from(payload)[3:])
    body = header + payload[FIXED.size : -CRC.size]
    return body + CRC.pack(zlib.crc32(body))


def _round(payloads: Sequence[bytes], terms: RoundConfig, channel: Channel, size: int) -> dict[str, float]:
    """One round without training: what it took at this rank."""
    state, residual = RunState(0, np.zeros(size, np.float32)), np.zeros(size, np.float32)
    before_bytes = reset_peak()
    began, down = (time.monotonic(), _cpu_s()), None
    received = channel.stream(payloads, "update", 1)
    folded = began
    if channel.rank == 0:
        mean = mean_update(received, state, terms).mean
        folded = (time.monotonic(), _cpu_s())
        step, _ = server_step(mean, state, terms)
        down, _ = server_round(step, state, residual, terms)
    next_state(state, channel.broadcast(down, "update", 1), terms)
    return {
        "cpu_s": _cpu_s() - began[1],
        "clock_s": time.monotonic() - began[0],
        "fold_cpu_s": folded[1] - began[1],
        "peak_bytes": peak_bytes() - before_bytes,
    }


def _cpu_s() -> float:
    """User and system seconds of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def fitted_line(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the line of least squares through seconds by hospitals, and its largest relative error there.

    >>> line = fitted_line([{"sites": 4, "cpu_s": 1.4}, {"sites": 16, "cpu_s": 2.6}])
    >>> {key: round(value, 3) for key, value in line.items()}
    {'fixed_s': 1.0, 'each_s': 0.1, 'largest_error': 0.0}
    """
    sites, seconds = (np.array([row[key] for row in rows], np.float64) for key in ("sites", "cpu_s"))
    # Relative errors count: else the largest number of hospitals alone would fix the line.
    each, fixed = np.polyfit(sites, seconds, 1, w=1 / seconds) if len(rows) > 1 else (seconds[0] / sites[0], 0.0)
    errors = np.abs((fixed + each * sites) / seconds - 1)
    return {"fixed_s": float(fixed), "each_s": float(each), "largest_error": float(errors.max())}


def text(found: Mapping[str, Any]) -> str:
    """For a person."""
    head = (
        "hospitals",
        "density",
        "payload MB",
        "round CPU s",
        "fold GB/s",
        "memory MB",
        "vectors",
        "start s",
        "CPU s",
    )
    table = fitted([head, *map(_line, found["rows"])])
    lines = [
        f"density {one['density']:g}: {one['fixed_s']:.2f} s + {1000 * one['each_s']:.1f} ms a hospital (off by "
        f"{one['largest_error']:.0%} at most); {found['predict']} hospitals: {one['predicted_s']:.1f} s"
        for one in found["lines"]
    ]
    return "\n".join([table, *lines])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    numbers = (row["payload_bytes"] / MB, row["cpu_s"], row["fold_gb_s"], row["peak_bytes"] / MB, row["peak_vectors"])
    start_s = row["config_s"] + row["channel_s"]
    return (
        f"{row['sites']}",
        f"{row['density']:g}",
        *(f"{one:.3g}" for one in numbers),
        f"{start_s:.1f}",
        f"{row['channel_cpu_s']:.1f}",
    )
