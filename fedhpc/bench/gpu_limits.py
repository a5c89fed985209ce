"""What a device can do at most: the rate of its matrix products and copies, and the arithmetic of a training step.

No network trains faster than its multiplications take at the rate of a large square product. Bytes are another limit;
networks with many small layers (a densenet) are nearer to it.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fedhpc.models.loss import loss

PRECISIONS = ("fp32", "tf32", "bf16")
REPEATS, WARM_UP = 7, 2
SIDE = {"cuda": 8192, "cpu": 256}
COPIED_BYTES = {"cuda": 2**30, "cpu": 2**24}


class StepTimer:
    """Marks on a device's own time line: what was queued between two marks took the time between them."""

    def __init__(self, device: torch.device) -> None:
        self._cuda, self._marks = device.type == "cuda", list[Any]()

    def mark(self) -> None:
        """Mark the end of all that is queued so far."""
        if self._cuda:
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append(event)
        else:
            self._marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Between each mark and the one before it; waits for the device."""
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if not self._cuda:
            return [after - before for before, after in pairs]
        torch.cuda.synchronize()
        return [before.elapsed_time(after) / 1e3 for before, after in pairs]


def median_seconds(work: Callable[[], object], device: torch.device, repeats: int = REPEATS) -> float:
    """Return the median of so many runs, by the device's own clock, after WARM_UP runs."""
    for _ in range(WARM_UP):
        work()
    timer = StepTimer(device)
    timer.mark()
    for _ in range(repeats):
        work()
        timer.mark()
    return statistics.median(timer.seconds())


@contextmanager
def matrix_precision(precision: str) -> Iterator[None]:
    """Set what float32 matrix products and convolutions may use, as `models.device.prepare` does."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


def limits(device: torch.device) -> dict[str, float]:
    """Measured ceilings: FLOP/s of square products by precision; bytes/s of copies on the device and to it."""
    side, size = SIDE[device.type], COPIED_BYTES[device.type]
    rates = {f"{precision}_flop_per_s": 2 * side**3 / _matmul_s(precision, side, device) for precision in PRECISIONS}
    here, there = (torch.empty(size, dtype=torch.uint8, device=device).random_() for _ in range(2))
    host = torch.empty(size // 4, dtype=torch.uint8).random_()
    pinned = host.pin_memory() if device.type == "cuda" else host
    return {
        **rates,
        "copy_bytes_per_s": 2 * size / median_seconds(lambda: there.copy_(here), device),
        "to_device_pinned_bytes_per_s": len(host)
        / median_seconds(lambda: there[: len(host)].copy_(pinned, non_blocking=True), device),
        "to_device_pageable_bytes_per_s": len(host) / median_seconds(lambda: there[: len(host)].copy_(host), device),
    }


def _matmul_s(precision: str, side: int, device: torch.device) -> float:
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    with matrix_precision(precision):
        return median_seconds(lambda: torch.mm(a, b, out=out), device)


def step_flop(model: nn.Module, image: Tensor) -> int:
    """Floating-point operations of the forward and backward pass of one image [1, ...], on the image's device."""
    with FlopCounterMode(display=False) as counter:
        loss(model(image), torch.zeros(1, dtype=torch.int64, device=image.device)).backward()  # type: ignore[no-untyped-call]
    model.zero_grad()
    return int(counter.get_total_flops())
