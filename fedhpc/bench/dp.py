"""`run.py bench dp`: what privacy costs in a training step, against plain SGD and every mode of Opacus.

Time: all ways take turns, one step each, by the wall clock and by the CPU time that the process was given; ratios are
of minima, which a busy machine disturbs least, and of medians. Memory: each way in a process of its own, after a first
step on a few images (which loads code and makes the optimiser's state): the most that is resident during three steps,
less what was resident before them. On a GPU it is what PyTorch's allocator held. Noise: the same sum of gradients is
made noisy as in a step, in turn with the steps, and beside it `torch.normal` alone, which is no secure source.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import torch

from fedhpc.bench.dp_steps import FEATURES, IMAGES_A_PATIENT, Place, batch_of, network, noise_of, step_of
from fedhpc.bench.opacus_modes import MODES
from fedhpc.bench.step_memory import memory_mb
from fedhpc.errors import InputError
from fedhpc.models.device import device_name
from fedhpc.models.vector import parameter_count
from fedhpc.util.progress import Beat, progress

DEFAULT_MODELS = ("densenet_small", "conv4", "head")
SHIPPED = ("densenet_small", "densenet121", "resnet18", "resnet50")
WAYS = ("plain", *MODES, "fedhpc", "fedhpc-patients")
LABELS = {
    "plain": "plain SGD",
    **{mode: f"Opacus {mode}" for mode in MODES},
    "hooks+": "Opacus hooks, our samplers",
    "fedhpc": "fedhpc",
    "fedhpc-patients": f"fedhpc, {IMAGES_A_PATIENT} images a patient",
}
NOISES = ("noise", "torch.normal")
WARM_UP, LEAST_STEPS = 2, 3


def run(models: Sequence[str], ways: Sequence[str], place: Place, seconds: float) -> dict[str, Any]:
    """Return the whole benchmark as a JSON object: for each model, the figures of each way.

    Raises:
        InputError: for a model, way or device that there is not.
    """
    check_names("models", models, (*SHIPPED, "conv4", "head"))
    check_names("ways", ways, WAYS)
    device_name(place.device, 0, torch.cuda.device_count())
    torch.set_num_threads(place.threads)
    chosen = [way for way in WAYS if way == "plain" or way in ways]
    return {
        **asdict(place),
        "torch": torch.__version__,
        "models": {
            name: _run_model(name, chosen, place, seconds)
            for name in progress(models, len(models), "bench dp", unit="model")
        },
    }


def check_names(option: str, given: Sequence[str], allowed: Sequence[str]) -> None:
    """Raises InputError where an option of a benchmark has a name that is not allowed."""
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise InputError(
            f"--{option} {' '.join(unknown)}: there is no such; allowed: {', '.join(allowed)}", code="command-line"
        )


def _run_model(name: str, ways: Sequence[str], place: Place, seconds: float) -> dict[str, Any]:
    times, failed = _times(name, ways, place, seconds)
    memory = {way: memory_mb(name, way, place) for way in times if way not in NOISES}
    figures = {way: _figures(way, times, memory) for way in memory}
    noise = _noise_shares(times) if "fedhpc" in times else None
    return {"parameters": parameter_count(network(name, place)), "ways": figures, "failed": failed, "noise": noise}


def _noise_shares(times: "Times") -> dict[str, dict[str, float]]:
    """Return what noise takes of a fedhpc step, by wall and by CPU time, both as ratios of minima."""
    (step_s, step_cpu_s), shares = _minima(times["fedhpc"]), {}
    for name in NOISES:
        wall_s, cpu_s = _minima(times[name])
        shares[name] = {"min_s": wall_s, "of_step": wall_s / step_s, "cpu_of_step": cpu_s / step_cpu_s}
    return shares


class Seconds(NamedTuple):
    """What one step took."""

    wall: float
    cpu: float


def _minima(steps: Sequence[Seconds]) -> Seconds:
    return Seconds(min(step.wall for step in steps), min(step.cpu for step in steps))


Times = dict[str, list[Seconds]]
"""What each step took, by way."""


def _times(name: str, ways: Sequence[str], place: Place, seconds: float) -> tuple[Times, dict[str, str]]:
    """Of all ways that work, and why a way failed where one did."""
    batch = batch_of(name, place, place.batch)
    steps, failed = {}, {}
    for way in ways:
        try:
            step = step_of(way, name, place)
            for _ in range(WARM_UP):
                step(*batch)
            steps[way] = step
        except (RuntimeError, NotImplementedError) as error:
            failed[way] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    if "fedhpc" in steps:
        steps |= {kind: noise_of(kind, name, place) for kind in NOISES}
    times: Times = {way: [] for way in steps}
    start, beat = time.perf_counter(), Beat(f"timing {name}, seconds")
    end = start + seconds
    while time.perf_counter() < end or len(times["plain"]) < LEAST_STEPS:
        for way, step in steps.items():
            times[way].append(_seconds(partial(step, *batch), place.device))
            beat.at(time.perf_counter() - start, seconds)
    return times, failed


def _seconds(work: Callable[[], None], device: str) -> Seconds:
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return Seconds(time.perf_counter() - wall, time.process_time() - cpu)


def _figures(way: str, times: Times, memory: dict[str, float | None]) -> dict[str, float | None]:
    wall, cpu = zip(*times[way], strict=True)
    plain_wall, plain_cpu = zip(*times["plain"], strict=True)
    mb, plain_mb = memory[way], memory["plain"]
    return {
        "steps": len(wall),
        "min_s": min(wall),
        "median_s": statistics.median(wall),
        "time_over_plain": min(wall) / min(plain_wall),
        "median_over_plain": statistics.median(wall) / statistics.median(plain_wall),
        "cpu_over_plain": min(cpu) / min(plain_cpu),
        "memory_mb": mb,
        "memory_over_plain": mb / plain_mb if mb is not None and plain_mb else None,
    }


def table(result: dict[str, Any]) -> str:
    """Return the result of `run` for people."""
    lines = [f"batch {result['batch']}, {result['device']}, {result['threads']} thread(s), torch {result['torch']}"]
    for name, model in result["models"].items():
        size = f"{FEATURES} features" if name == "head" else f"{result['image_size']}x{result['image_size']} pixels"
        steps = model["ways"]["plain"]["steps"]
        lines += ["", f"{name}: {model['parameters']:,} parameters, {size}, {steps} steps each"]
        lines += [f"{'':28}{'ms a step':>10}{'/ plain':>9}{'medians':>9}{'CPU':>7}{'extra MB':>10}{'/ plain':>9}"]
        lines += [_line(way, row) for way, row in model["ways"].items()]
        lines += [f"{LABELS[way]:28}{why}" for way, why in model["failed"].items()]
        for kind, row in (model["noise"] or {}).items():
            shares = f"{row['of_step']:.1%} of a step, {row['cpu_of_step']:.1%} of its CPU time"
            lines += [f"{kind + ' alone':28}{1e3 * row['min_s']:10.2f}  {shares}"]
    return "\n".join(lines)


def _line(way: str, row: dict[str, Any]) -> str:
    times = f"{1e3 * row['min_s']:10.2f}{row['time_over_plain']:9.2f}{row['median_over_plain']:9.2f}"
    mb, over = row["memory_mb"], row["memory_over_plain"]
    memory = f"{'-':>10}{'-':>9}" if mb is None else f"{mb:10.1f}{over:9.2f}"
    return f"{LABELS[way]:28}{times}{row['cpu_over_plain']:7.2f}{memory}"
