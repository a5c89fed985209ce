"""What to send when asking for help: software, job, disk and GPUs of this node, the config. No secrets, no patients."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import yaml

from fedhpc.config.loader import load_config
from fedhpc.errors import InputError
from fedhpc.records.environment import environment
from fedhpc.transport.mpi_library import library_version

TOLD = re.compile(
    r"^(SLURM|OMPI|PMIX|PMI|PRTE|MPI|UCX|NCCL|OMP|CUDA|HIP|ROCR|HDF5|FEDHPC)_|^(LOADEDMODULES|VIRTUAL_ENV)$"
)
SECRET = re.compile(r"JWT|TOKEN|SECRET|KEY|PASS|CRED", re.IGNORECASE)
COMMANDS = (
    "sinfo --version",
    "srun --mpi=list",
    "mpirun --version",
    "apptainer --version",
    "nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv",
    "df -hPT .",
)
LIMIT_S = 20


def report(config: Path, overrides: list[str]) -> str:
    """Everything as one text, in sections."""
    parts = {
        "software and machine": yaml.safe_dump({**environment(), "mpi": library_version()}, sort_keys=False),
        "variables": "\n".join(told(os.environ)),
        **{command: _answer(command) for command in COMMANDS},
        f"config {config}": _config(config, overrides),
    }
    return "\n".join(f"== {title}\n{text.strip()}" for title, text in parts.items())


def told(variables: Mapping[str, str]) -> list[str]:
    """NAME=value of those about the job and MPI; never one that may be a secret.

    >>> told({"SLURM_JOB_ID": "7", "SLURM_JWT": "eyJ", "HOME": "/h", "OMPI_MCA_pml": "ucx"})
    ['OMPI_MCA_pml=ucx', 'SLURM_JOB_ID=7']
    """
    return [
        f"{name}={value}" for name, value in sorted(variables.items()) if TOLD.search(name) and not SECRET.search(name)
    ]


def _answer(command: str) -> str:
    words = command.split()
    if shutil.which(words[0]) is None:
        return "not on this machine"
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {LIMIT_S} s"
    return done.stdout + done.stderr


def _config(config: Path, overrides: list[str]) -> str:
    try:
        return yaml.safe_dump(load_config(config, overrides).model_dump(mode="json"), sort_keys=False)
    except InputError as error:
        return str(error)
