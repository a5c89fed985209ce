"""How much memory a training step needs, measured in a process of its own."""

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch

from fedhpc.bench.dp_steps import Place, batch_of, step_of

MEMORY_STEPS = 3
EW_LEAST = 32  # PyTorch's expanded weights fail on a densenet for fewer images


def memory_mb(name: str, way: str, place: Place) -> float | None:
    """Return what `extra_memory_mb` does, measured in a process of its own."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as fresh:
        return fresh.submit(extra_memory_mb, name, way, place).result()


def extra_memory_mb(name: str, way: str, place: Place) -> float | None:
    """Return the most memory that steps need above what is there before them; None where the system does not tell.

    Only in a process of its own: memory that was freed earlier would be used again unseen.
    """
    torch.set_num_threads(place.threads)
    step, batch = step_of(way, name, place), batch_of(name, place, place.batch)
    step(*batch_of(name, place, EW_LEAST if way == "ew" else 2))
    gc.collect()
    if place.device == "cuda":
        return _extra_cuda_mb(partial(step, *batch))
    clear = Path("/proc/self/clear_refs")
    try:
        clear.write_text("5", encoding="ascii")
    except OSError:
        return None
    # Freed memory that the C library has kept would be used again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    before = _status_mb("VmRSS")
    for _ in range(MEMORY_STEPS):
        step(*batch)
    return _status_mb("VmHWM") - before


def _extra_cuda_mb(work: Callable[[], None]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    for _ in range(MEMORY_STEPS):
        work()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 1e6


def _status_mb(key: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{key}:"))
