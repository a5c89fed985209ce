"""The machine under a rank: its GPU, its threads, its precision, and a record of what it was."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

from fedhpc.config.schema import Runtime
from fedhpc.errors import InputError
from fedhpc.site.training.local_sgd import Bench

RECORDED = ("torch", "numpy", "opacus", "monai", "mpi4py", "h5py", "openmpi", "mpich")


def prepare(runtime: Runtime, local_rank: int) -> Bench:
    """Set threads and matrix precision of this process, and choose its device.

    Args:
        runtime: the resolved section; threads is a number.
        local_rank: the rank's place on its node: the GPU that it takes where it sees several.
    """
    if isinstance(runtime.threads, int):
        torch.set_num_threads(runtime.threads)
    torch.set_float32_matmul_precision("high" if runtime.precision == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = runtime.precision == "tf32"
    return Bench(torch.device(device_name(runtime.device, local_rank, torch.cuda.device_count())), _is_bf16(runtime))


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
        raise InputError("runtime.device=cuda: no GPU is visible to this rank; ask SLURM for one, or set device=auto")
    return f"cuda:{local_rank % visible}"


def environment() -> dict[str, object]:
    """Versions, host and commit: what is needed to say where a result came from."""
    return {
        "host": platform.node(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in RECORDED if (version := _version(name))},
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cores": len(os.sched_getaffinity(0)),
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
        "git": git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the code, with `-dirty` where files differ; None outside a git checkout."""
    here = Path(__file__).resolve().parents[1]
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
