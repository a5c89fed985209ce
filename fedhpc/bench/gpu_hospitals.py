"""Several hospitals on one device: processes that train at the same time, as ranks of a node with one GPU do."""

import contextlib
import queue
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from typing import Any

import torch

from fedhpc.bench.gpu_limits import matrix_precision
from fedhpc.bench.gpu_steps import WARM_UP_STEPS, Work, local_round
from fedhpc.site.training.local_sgd import train_plain

START_S = 90


@dataclass(frozen=True)
class Span:
    """When one process made its timed steps, by a clock that all processes share; `images` is how many it trained on.

    `failed` says why it did not; empty where it did.
    """

    start: float
    end: float
    images: int
    peak_mb: float
    failed: str = ""


def together(work: Work, hospitals: int) -> dict[str, Any]:
    """Samples a second of so many processes in all, from the first one's start to the last one's end.

    Raises:
        RuntimeError: a process failed; says why.
    """
    context = get_context("spawn")
    gate, found = context.Barrier(hospitals), context.Queue()
    processes = [context.Process(target=_train, args=(work, gate, found)) for _ in range(hospitals)]
    start = time.perf_counter()
    for process in processes:
        process.start()
    try:
        spans = [_reported(found, processes) for _ in processes]
    finally:
        for process in processes:
            process.join(timeout=5)
            process.kill()
    failed = [span.failed for span in spans if span.failed]
    if failed:
        raise RuntimeError(failed[0])
    lasted = max(span.end for span in spans) - min(span.start for span in spans)
    return {
        "hospitals": hospitals,
        "samples_per_s": sum(span.images for span in spans) / lasted,
        "peak_mb_each": max(span.peak_mb for span in spans),
        "seconds": time.perf_counter() - start,
    }


def _reported(found: "Queue[Span]", processes: Sequence[BaseProcess]) -> Span:
    end = time.monotonic() + START_S
    while time.monotonic() < end:
        with contextlib.suppress(queue.Empty):
            return found.get(timeout=1)
        codes = [process.exitcode for process in processes if process.exitcode]
        if codes:
            raise RuntimeError(f"a process ended with exit status {codes[0]}")
    raise RuntimeError(f"nothing was measured within {START_S} s")


def _train(work: Work, gate: Barrier, found: "Queue[Span]") -> None:
    torch.set_num_threads(1)
    cuda, marks = work.device.type == "cuda", list[float]()

    def on_step(done: int, steps: int) -> None:
        if done in (WARM_UP_STEPS, steps):
            if cuda:
                torch.cuda.synchronize()
            if done == WARM_UP_STEPS:
                gate.wait(START_S)
            marks.append(time.monotonic())

    try:
        with matrix_precision(work.precision):
            train_plain(local_round(work, on_step))
        peak = torch.cuda.max_memory_reserved() / 1e6 if cuda else 0.0
        found.put(Span(marks[0], marks[-1], work.batch * work.steps, peak))
    except Exception as error:
        gate.abort()
        found.put(Span(0, 0, 0, 0, f"{type(error).__name__}: {error}"))
