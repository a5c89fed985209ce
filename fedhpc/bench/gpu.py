"""`run.py bench gpu`: what this program makes of a GPU, beside a bare PyTorch loop, Opacus and the arithmetic limit.

Times are the device's own (events), medians of steps after a warm-up, on random data. Rows come in order of worth, and
none begins when the time is used up: what was left out is named. It runs on a CPU as well, where tests run it.
"""

import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedhpc.bench.dp import SHIPPED, check_names
from fedhpc.bench.gpu_coder import with_feedback_on_device
from fedhpc.bench.gpu_hospitals import together
from fedhpc.bench.gpu_limits import PRECISIONS, limits, median_seconds, step_flop
from fedhpc.bench.gpu_steps import RandomRows, Work, timed
from fedhpc.compression.codec import decode, encode
from fedhpc.compression.error_feedback import CompressionConfig, quantised, select, with_feedback
from fedhpc.compression.update import Update
from fedhpc.models.device import device_name
from fedhpc.site.data.resident import ResidentSamples, ShippedSamples
from fedhpc.site.data.samples import ImageSamples, Samples
from fedhpc.util.files import write_json
from fedhpc.util.progress import Beat

PARTS = ("limits", "steps", "data", "coder", "hospitals", "compile")
OPACUS_PRECISION = "tf32"
DENSITY, VALUE_BITS = 0.1, 4


@dataclass(frozen=True)
class Job:
    """What to measure: see `run.py bench gpu --help`."""

    models: Sequence[str]
    device: str
    batch: int
    image_size: int
    steps: int
    parameters: int
    hospitals: Sequence[int]
    opacus: Sequence[str]
    parts: Sequence[str]
    minutes: float
    out: Path | None = None

    def work(self, model: str, precision: str = "fp32") -> Work:
        """Steps of one network."""
        device = torch.device(device_name(self.device, 0, torch.cuda.device_count()))
        return Work(model, self.batch, self.image_size, self.steps, device, precision)


@dataclass(frozen=True)
class Row:
    """One measurement: where its figures go in the result, and what makes them."""

    part: str
    name: tuple[str, ...]
    measure: Callable[[], dict[str, Any]]


@dataclass
class Result:
    """What was measured, by part and name; what failed and why; what there was no time for."""

    figures: dict[str, Any] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def take(self, row: Row) -> None:
        """Measure a row; one that fails does not end the benchmark."""
        try:
            found = row.measure()
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            self.failed[" / ".join((row.part, *row.name))] = f"{type(error).__name__}: {first[:300]}"
            return
        place = self.figures
        for name in (row.part, *row.name[:-1]):
            place = place.setdefault(name, {})
        place[row.name[-1]] = found


def run(job: Job) -> dict[str, Any]:
    """Return the whole benchmark as a JSON object.

    Raises:
        InputError: for a part, model or device that there is not.
    """
    for option, given, allowed in (("parts", job.parts, PARTS), ("models", job.models, SHIPPED)):
        check_names(option, given, allowed)
    start, result = time.perf_counter(), Result()
    rows = [row for row in rows_of(job) if row.part in job.parts]
    beat = Beat("bench gpu, rows")
    for done, row in enumerate(rows):
        if time.perf_counter() - start > 60 * job.minutes:
            result.left_out.append(" / ".join((row.part, *row.name)))
            continue
        result.take(row)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        beat.at(done, len(rows))
        if job.out is not None:
            write_json(job.out, _facts(job, result, time.perf_counter() - start))
    return _facts(job, result, time.perf_counter() - start)


def _facts(job: Job, result: Result, seconds: float) -> dict[str, Any]:
    device = job.work("").device
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {platform.machine()}",
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "threads": torch.get_num_threads(),
        "batch": job.batch,
        "image_size": job.image_size,
        "seconds": seconds,
        **result.figures,
        "failed": result.failed,
        "left_out": result.left_out,
    }


def rows_of(job: Job) -> Iterator[Row]:
    """All rows, the most wanted first."""
    device = job.work("").device
    yield Row("limits", ("device",), lambda: dict(limits(device)))
    for model in job.models:
        yield Row("limits", (model,), lambda model=model: _arithmetic(job.work(model)))  # type: ignore[misc]
    for precision in ("tf32", "bf16"):
        for model in job.models:
            yield from _step_rows(job, job.work(model, precision))
    yield Row("data", ("images",), lambda: _data(job))
    yield Row("coder", ("numpy",), lambda: _numpy_coder(job.parameters))
    yield Row("coder", ("device",), lambda: _device_coder(job.parameters, device))
    for hospitals in job.hospitals:
        work = job.work(job.models[0], "tf32")
        yield Row("hospitals", (str(hospitals),), lambda work=work, n=hospitals: together(work, n))  # type: ignore[misc]
    for model in job.models:
        for kind in ("bare", "fedhpc dp"):
            yield _row(job.work(model, "fp32"), kind, kind)
    for precision in ("bf16", "tf32"):
        for model in job.models:
            yield _row(replace(job.work(model, precision), compiled=True), "fedhpc", "fedhpc compiled", "compile")


def _step_rows(job: Job, work: Work) -> Iterator[Row]:
    for kind in ("bare", "fedhpc", "fedhpc dp"):
        yield _row(work, kind, kind)
    if work.precision == OPACUS_PRECISION:
        for mode in job.opacus:
            yield _row(replace(work, steps=max(3, work.steps // 2)), f"opacus {mode}", f"opacus {mode}")
    else:
        yield _row(replace(work, channels_last=True), "bare", "bare channels_last")


def _row(work: Work, kind: str, name: str, part: str = "steps") -> Row:
    return Row(part, (work.model, work.precision, name), lambda: timed(work, kind))


def _arithmetic(work: Work) -> dict[str, Any]:
    image = torch.randn(1, 1, work.image_size, work.image_size, device=work.device)
    return {"flop_per_sample": step_flop(work.network(), image)}


def _data(job: Job) -> dict[str, Any]:
    """Batches ready on the device, by themselves: from a shard's file, the host's memory and the device's."""
    device, rng, images = job.work("").device, np.random.default_rng(0), 8 * job.batch
    rows = RandomRows(images, job.image_size)

    def rate(samples: Samples) -> float:
        def batch() -> None:
            samples.inputs(rng.choice(images, job.batch, replace=False)).to(device)

        return job.batch / median_seconds(batch, device)

    with tempfile.TemporaryDirectory() as folder, rows.written(Path(folder) / "a.h5") as shard:
        from_file, shipped = rate(ImageSamples(shard)), rate(ShippedSamples(ImageSamples(shard), device))
    host = ImageSamples(rows)
    return {
        "file_samples_per_s": from_file,
        "file_as_stored_samples_per_s": shipped,
        "host_samples_per_s": rate(host),
        "resident_samples_per_s": rate(ResidentSamples(host, device)),
    }


def _numpy_coder(parameters: int) -> dict[str, Any]:
    """Seconds of choosing and encoding, and of decoding, an update that lies in the host's memory."""
    update = np.random.default_rng(0).standard_normal(parameters, np.float32)
    coding = CompressionConfig(DENSITY, VALUE_BITS)
    start = time.perf_counter()
    payload = encode(Update(0, 0, quantised(select(update, coding), coding.value_bits, None)))
    encoded = time.perf_counter()
    decode(payload, sender=0, round=0, size=parameters)
    return {
        "parameters": parameters,
        "payload_bytes": len(payload),
        "encode_s": encoded - start,
        "decode_s": time.perf_counter() - encoded,
    }


def _device_coder(parameters: int, device: torch.device) -> dict[str, Any]:
    """Seconds of choosing and quantising there, until what is sent lies on the host; the host encodes it as ever."""
    update = torch.randn(parameters, device=device)
    residual, coding = torch.zeros_like(update), CompressionConfig(DENSITY, VALUE_BITS)
    host = update.cpu().numpy()
    sent, _ = with_feedback_on_device(update, residual, coding)
    start = time.perf_counter()
    with_feedback(host, np.zeros_like(host), coding)
    selected = time.perf_counter()
    encode(Update(0, 0, sent))
    encoded = time.perf_counter()
    return {
        "parameters": parameters,
        "select_s": median_seconds(lambda: with_feedback_on_device(update, residual, coding), device, 3),
        "select_on_host_s": selected - start,
        "encode_on_host_s": encoded - selected,
    }


def table(result: dict[str, Any]) -> str:
    """Return the result of `run` for people."""
    lines = [
        f"{result['device']}, torch {result['torch']}, batch {result['batch']}, {result['image_size']} pixels a side, "
        f"{result['seconds']:.0f} s"
    ]
    lines += _limit_lines(result)
    for model, by_precision in _steps(result).items():
        flop = result.get("limits", {}).get(model, {}).get("flop_per_sample")
        lines += ["", f"{model}" + (f": {flop / 1e9:.1f} GFLOP a sample" if flop else "")]
        lines += [f"{'':10}{'':24}{'samples/s':>10}{'/ bare':>8}{'/ limit':>9}{'MB':>9}"]
        for precision, rows in by_precision.items():
            lines += [_step_line(result, model, precision, name) for name in rows]
    for part in ("data", "coder", "hospitals"):
        for name, figures in result.get(part, {}).items():
            said = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
            lines += [f"{part} {name}: {said}"]
    lines += [f"failed: {name}: {why}" for name, why in result["failed"].items()]
    lines += [f"no time was left for: {name}" for name in result["left_out"]]
    return "\n".join(lines)


def _steps(result: dict[str, Any]) -> dict[str, dict[str, dict[str, Any]]]:
    """Steps and compiled steps together, by model, precision and name."""
    joined: dict[str, dict[str, dict[str, Any]]] = {}
    for part in ("steps", "compile"):
        for model, by_precision in result.get(part, {}).items():
            for precision, rows in by_precision.items():
                joined.setdefault(model, {}).setdefault(precision, {}).update(rows)
    return {
        model: {precision: rows[precision] for precision in PRECISIONS if precision in rows}
        for model, rows in joined.items()
    }


def _limit_lines(result: dict[str, Any]) -> list[str]:
    found = result.get("limits", {}).get("device")
    if found is None:
        return []
    rates = ", ".join(f"{precision} {found[f'{precision}_flop_per_s'] / 1e12:.3g}" for precision in PRECISIONS)
    copies = ", ".join(
        f"{name} {found[f'{key}_bytes_per_s'] / 1e9:.3g}"
        for name, key in (
            ("on the device", "copy"),
            ("to it", "to_device_pinned"),
            ("to it, not pinned", "to_device_pageable"),
        )
    )
    return [f"matrix products, TFLOP/s: {rates}", f"copies, GB/s: {copies}"]


def _step_line(result: dict[str, Any], model: str, precision: str, name: str) -> str:
    rows = _steps(result)[model][precision]
    figures, bare = rows[name], rows.get("bare")
    over = f"{figures['samples_per_s'] / bare['samples_per_s']:8.2f}" if bare else f"{'-':>8}"
    share = limit_share(result, model, precision, figures["samples_per_s"])
    limit = f"{share:9.1%}" if share is not None else f"{'-':>9}"
    mb = f"{figures['peak_mb']:9.0f}" if figures["peak_mb"] else f"{'-':>9}"
    return f"{precision:10}{name:24}{figures['samples_per_s']:10.1f}{over}{limit}{mb}"


def limit_share(result: dict[str, Any], model: str, precision: str, samples_per_s: float) -> float | None:
    """The share of the measured matrix rate that the multiplications of these steps are; None where it is not known."""
    found = result.get("limits", {})
    if "device" not in found or model not in found:
        return None
    return float(samples_per_s * found[model]["flop_per_sample"] / found["device"][f"{precision}_flop_per_s"])
