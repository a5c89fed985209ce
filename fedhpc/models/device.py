"""The machine under a rank: its GPU, its threads and its precision."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fedhpc.config.schema import Runtime
from fedhpc.errors import InputError
from fedhpc.util.files import is_own, make_own_folder
from fedhpc.util.memory import keep_freed_memory


@dataclass(frozen=True)
class Device:
    """Where the training runs: the device, whether bf16 autocast is on, whether plain training is compiled."""

    device: torch.device
    bf16: bool
    compiled: bool = False

    def autocast(self) -> torch.autocast:
        """Return the precision context of forward and loss."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16)

    def sendable(self, t: Tensor) -> Tensor:
        """Return what `take` copies without waiting: in pinned memory, if it must go from the host to a GPU."""
        return t.pin_memory() if self.device.type == "cuda" and t.is_cpu else t

    def take(self, t: Tensor) -> Tensor:
        """Return a tensor on the device; from pinned memory without waiting for the copy."""
        return t.to(self.device, non_blocking=t.is_cpu and t.is_pinned())

    def forward(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """Return the network as plain training calls it: itself, or `torch.compile` of it.

        PyTorch keeps what it has compiled, so that a second call for the same network costs nothing.
        """
        compiled: Callable[[Tensor], Tensor] = torch.compile(model) if self.compiled else model
        return compiled


def prepare(runtime: Runtime, local_rank: int) -> Device:
    """Set allocator, threads and matrix precision of this process, and choose its device.

    Args:
        runtime: the resolved section; threads is a number.
        local_rank: the rank's place on its node: the GPU that it takes where it sees several.
    """
    keep_freed_memory()
    if runtime.compile:
        _keep_compiled_code_private()
    if isinstance(runtime.threads, int):
        torch.set_num_threads(runtime.threads)
    torch.set_float32_matmul_precision("high" if runtime.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = runtime.precision == "tf32"
    device = torch.device(device_name(runtime.device, local_rank, torch.cuda.device_count()))
    return Device(device, _is_bf16(runtime), runtime.compile)


COMPILED_CODE = "TORCHINDUCTOR_CACHE_DIR"


def _keep_compiled_code_private() -> None:
    """Let PyTorch keep compiled code in this account's own cache.

    Its default is a folder of the account's name in /tmp: another user of the node may have put one there, with code
    in it that this process would load. So may one have where XDG_CACHE_HOME is below /tmp. The variable, where the
    user has set it, holds.
    """
    if COMPILED_CODE in os.environ:
        return
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedhpc" / "compiled"
    try:
        make_own_folder(folder)
        usable = os.access(folder, os.W_OK | os.X_OK) and is_own(folder)
    except OSError:
        usable = False
    os.environ[COMPILED_CODE] = str(folder) if usable else tempfile.mkdtemp(prefix="fedhpc-compiled-")


def _is_bf16(runtime: Runtime) -> bool:
    return runtime.precision == "bf16"


def device_name(wanted: str, local_rank: int, visible: int) -> str:
    """The device of a rank: GPU `local_rank` of those visible, counted round where ranks outnumber them; else the CPU.

    >>> device_name("auto", 3, 4), device_name("auto", 3, 1), device_name("auto", 0, 0), device_name("cpu", 0, 4)
    ('cuda:3', 'cuda:0', 'cpu', 'cpu')

    Raises:
        InputError: where a GPU is demanded and none is visible.
    """
    if wanted == "cpu" or (wanted == "auto" and not visible):
        return "cpu"
    if not visible:
        raise InputError(
            "runtime.device=cuda: no GPU is visible to this rank; ask SLURM for one, or set device=auto",
            code="device.no-gpu",
        )
    return f"cuda:{local_rank % visible}"
