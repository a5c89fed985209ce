"""Where a result came from: versions, host, GPUs and commit."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

RECORDED = ("torch", "numpy", "opacus", "monai", "mpi4py", "h5py", "openmpi", "mpich")


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
    """Return the commit of the code, with `-dirty` where files differ; None outside a git checkout."""
    here = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
