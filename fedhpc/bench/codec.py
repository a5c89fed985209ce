"""`run.py bench codec`: bytes, seconds and memory of selecting and coding an update, beside what is usually done.

Two updates: independent Gaussian numbers, in whose largest entries neither places nor signs nor sizes have a structure
that a coder could use; and a real one, of densenet121 after one local round on a few phantom images.

Seconds are those of the processor, which other jobs on the machine change little; each is the least of several repeats,
in which everything takes its turn. The entropy bound takes places, signs and levels for independent, as in the Gaussian
update they are. A real one has structure, and its payload can be smaller.
"""

import math
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fedhpc.compression.codec import decode, encode, encode_indices
from fedhpc.compression.error_feedback import CompressionConfig, count_to_send, quantised, select, with_feedback
from fedhpc.compression.float_bits import magnitude_bits
from fedhpc.compression.update import SparseVector, Update
from fedhpc.config.schema import RunConfig
from fedhpc.models.build import build_model
from fedhpc.models.device import Device
from fedhpc.models.task import Task
from fedhpc.models.vector import to_vector
from fedhpc.records.rounds import FLOAT32_BYTES
from fedhpc.run.display import MB
from fedhpc.site.context import SiteContext
from fedhpc.site.data.open_site import open_site
from fedhpc.site.hospital import Hospital
from fedhpc.util.arrays import F32
from fedhpc.util.progress import progress
from fedhpc.util.rng import generator
from fedhpc.util.text import fitted, wrapped

REPEATS = 3
PHANTOM_IMAGES, PHANTOM_SIZE, PHANTOM_SITE = 160, 64, "site1"


@dataclass(frozen=True)
class Job:
    """What to measure: entries of the Gaussian update, how it is coded, threads of torch."""

    size: int
    density: float
    value_bits: int
    threads: int


def bench(job: Job) -> dict[str, Any]:
    """All figures as plain values; those of the Gaussian update at the top, of the real one under `densenet121`."""
    torch.set_num_threads(job.threads)
    coding, gaussian = CompressionConfig(job.density, job.value_bits), _gaussian(job)
    figures = measured(gaussian, coding)
    del gaussian
    setting = {"density": job.density, "value_bits": job.value_bits, "threads": job.threads}
    return {**setting, **figures, "densenet121": measured(densenet121_update(), coding)}


def payload(job: Job) -> dict[str, Any]:
    """Return the bytes of the Gaussian update alone, which is selected and encoded once and not timed."""
    sent = quantised(select(_gaussian(job), CompressionConfig(job.density, job.value_bits)), job.value_bits, None)
    return {
        "size": job.size,
        "density": job.density,
        "value_bits": job.value_bits,
        "dense_bytes": job.size * FLOAT32_BYTES,
        "payload_bytes": len(encode(Update(0, 0, sent))),
    }


def payload_line(found: Mapping[str, Any]) -> str:
    """For a person.

    >>> payload_line({"size": 100, "density": 0.1, "value_bits": 4, "dense_bytes": 400, "payload_bytes": 30})
    '100 entries, density 0.1, 4 bits a value: 30 bytes encoded, 400 dense'
    """
    return (
        f"{found['size']:,} entries, density {found['density']:g}, {found['value_bits']} bits a value: "
        f"{found['payload_bytes']:,} bytes encoded, {found['dense_bytes']:,} dense"
    )


def _gaussian(job: Job) -> F32:
    return generator(0, "bench codec").standard_normal(job.size, np.float32)


def measured(update: F32, coding: CompressionConfig) -> dict[str, Any]:
    """Return the figures of one update f32[d]."""
    sent = quantised(select(update, coding), coding.value_bits, None)
    encoded = encode(Update(0, 0, sent))
    index, value = entropy_bytes(sent)
    dense_bytes = update.size * FLOAT32_BYTES
    return {
        "size": update.size,
        "entries": int(sent.indices.size),
        "dense_bytes": dense_bytes,
        "payload_bytes": len(encoded),
        "entropy_bound_bytes": math.ceil(index + value),
        "index_bytes": sum(map(len, encode_indices(sent)[1])),
        "index_entropy_bytes": math.ceil(index),
        **_timed(update, coding, encoded),
        "peak_extra_over_dense": _peak_bytes(lambda: _site_step(update, coding)) / dense_bytes,
    }


def _timed(update: F32, coding: CompressionConfig, payload: bytes) -> dict[str, Any]:
    """Seconds of ours, of `torch.topk` alone, and of others' ways to send what it has chosen."""
    magnitudes = torch.from_numpy(np.abs(update))
    k = count_to_send(update.size, coding.density)
    rivals = _rivals(update, torch.topk(magnitudes, k, sorted=False).indices.numpy())
    seconds = least_seconds(
        {
            "topk": lambda: torch.topk(magnitudes, k, sorted=False),
            "topk_sorted": lambda: torch.topk(magnitudes, k),
            "encode": lambda: encode(Update(0, 0, quantised(select(update, coding), coding.value_bits, None))),
            "feedback_and_encode": lambda: _site_step(update, coding),
            "decode": lambda: decode(payload, sender=0, round=0, size=update.size),
            **{f"{name} there": there for name, (there, _) in rivals.items()},
            **{f"{name} back": back for name, (_, back) in rivals.items()},
        }
    )
    others = {
        name: {
            "payload_bytes": len(there()),
            "encode_s": seconds["topk"] + seconds[f"{name} there"],
            "decode_s": seconds[f"{name} back"],
        }
        for name, (there, _) in rivals.items()
    }
    return {
        **{f"{name}_s": seconds[name] for name in ("encode", "decode", "feedback_and_encode", "topk", "topk_sorted")},
        "encode_over_topk": seconds["encode"] / seconds["topk"],
        "encode_over_topk_sorted": seconds["encode"] / seconds["topk_sorted"],
        "rivals": others,
    }


def least_seconds(works: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    """Return the processor's seconds of each work: the least of REPEATS rounds in which they take turns."""
    least = dict.fromkeys(works, math.inf)
    for _ in progress(range(REPEATS), REPEATS, "timing", unit="turn"):
        for name, work in works.items():
            start = time.process_time()
            work()
            least[name] = min(least[name], time.process_time() - start)
    return least


def entropy_bytes(sent: SparseVector) -> tuple[float, float]:
    """Entropy of (the index set at its density; signs and levels by their frequencies), as if all were independent.

    >>> entropy_bytes(SparseVector(80, np.arange(40), np.ones(40, np.float32)))
    (10.0, 5.0)
    """
    d, k = sent.size, sent.indices.size
    _, counts = np.unique(sent.grid.levels(magnitude_bits(sent.values)), return_counts=True)
    return d * _entropy_bits(np.array([k, d - k])) / 8, k * (1 + _entropy_bits(counts)) / 8


def _entropy_bits(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(np.sum(shares * -np.log2(shares)))


def _site_step(update: F32, coding: CompressionConfig) -> bytes:
    """Return what a hospital does after training, but for making the residual that it starts from."""
    sent, _ = with_feedback(update, np.broadcast_to(np.float32(0), update.shape), coding)
    return encode(Update(0, 0, sent))


def _peak_bytes(work: Callable[[], object]) -> int:
    tracemalloc.start()
    work()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


class Rival(NamedTuple):
    """Another way to send: to bytes, and back."""

    there: Callable[[], bytes]
    back: Callable[[], object]


def _rivals(update: F32, chosen: np.ndarray) -> dict[str, Rival]:
    """Index and value pairs as others send them: (to bytes, back), given the indices that `torch.topk` has chosen."""

    def pairs(kind: str) -> bytes:
        return b"".join((chosen.astype(kind).tobytes(), update[chosen].tobytes()))

    def bitmask() -> bytes:
        mask = np.zeros(update.size, np.bool_)
        mask[chosen] = True
        return b"".join((np.packbits(mask).tobytes(), update[mask].tobytes()))

    def from_pairs(payload: bytes, kind: str) -> object:
        width = np.dtype(kind).itemsize * chosen.size
        return np.frombuffer(payload[:width], kind).astype(np.int64), np.frombuffer(payload[width:], np.float32).copy()

    def from_bitmask(payload: bytes) -> object:
        width = (update.size + 7) // 8
        mask = np.unpackbits(np.frombuffer(payload[:width], np.uint8), count=update.size)
        return np.flatnonzero(mask), np.frombuffer(payload[width:], np.float32).copy()

    as64, as32, masked = pairs("<i8"), pairs("<i4"), bitmask()
    return {
        "int64 + fp32": Rival(lambda: pairs("<i8"), lambda: from_pairs(as64, "<i8")),
        "int32 + fp32": Rival(lambda: pairs("<i4"), lambda: from_pairs(as32, "<i4")),
        "bitmask + fp32": Rival(bitmask, lambda: from_bitmask(masked)),
    }


def densenet121_update() -> F32:
    """A real update: all trained parameters of densenet121 after one local round on a few phantom images."""
    from data_prep.phantom import Cohort, write_site

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{PHANTOM_SITE}.h5"
        write_site(Cohort(seed=0, images=PHANTOM_IMAGES, image_size=PHANTOM_SIZE), PHANTOM_SITE, path)
        config = RunConfig.model_validate(
            {
                "name": "bench",
                "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": PHANTOM_SITE}]},
                "model": {"name": "densenet121"},
                "training": {"batch_size": 16},
            }
        )
        with open_site(path, PHANTOM_SITE, in_memory=True) as site:
            shard = site.shard
            model = build_model(config, Task(tuple(shard.classes), shard.image_shape, shard.kind))
            place = SiteContext(config, model, Device(torch.device("cpu"), bf16=False), None, lambda done, total: None)
            return Hospital(PHANTOM_SITE, 0, shard.n, site.samples(None), place).train(to_vector(model), 0)


def report(figures: Mapping[str, Any]) -> str:
    """Return the figures of `bench` as text."""
    parts = [
        f"density {figures['density']}, value_bits {figures['value_bits']}, {figures['threads']} thread(s)",
        _part(f"Gaussian update of {figures['size']:,} entries", figures),
        _part(f"densenet121, {figures['densenet121']['size']:,} parameters", figures["densenet121"]),
    ]
    return "\n\n".join(parts)


def _part(title: str, f: Mapping[str, Any]) -> str:
    def row(name: str, size: float, encode_s: float | None, decode_s: float | None) -> tuple[str, ...]:
        seconds = ["-" if s is None else f"{s:.3f}" for s in (encode_s, decode_s)]
        return (name, f"{size / MB:.3f}", f"{8 * size / f['entries']:.2f}", *seconds)

    rows = [
        ("", "MB", "bits an entry", "encode s", "decode s"),
        row("dense fp32", f["dense_bytes"], None, None),
        *(row(name, r["payload_bytes"], r["encode_s"], r["decode_s"]) for name, r in f["rivals"].items()),
        row("fedhpc", f["payload_bytes"], f["encode_s"], f["decode_s"]),
        row("  entropy bound", f["entropy_bound_bytes"], None, None),
        row("  index set", f["index_bytes"], None, None),
        row("  its entropy", f["index_entropy_bytes"], None, None),
    ]
    speed = (
        f"torch.topk alone {f['topk_s']:.3f} s, sorted {f['topk_sorted_s']:.3f} s: the encode takes "
        f"{f['encode_over_topk']:.2f} and {f['encode_over_topk_sorted']:.2f} of it\n"
        f"with error feedback {f['feedback_and_encode_s']:.3f} s; its memory at the peak, without the update and the "
        f"old residual, {f['peak_extra_over_dense']:.2f} times the dense update"
    )
    return f"{title}\n{fitted(rows)}\n{wrapped(speed)}"
