"""The environment in which jobs are submitted: without what the job that one sits in has put there.

sbatch, srun and MPI read their options from the environment too. Inside an allocation SLURM sets many of those same
variables to tell a job its own shape (`SLURM_MEM_PER_NODE`, `SLURM_CPU_BIND`, `SLURM_NTASKS`), and sbatch passes its
whole environment on to the new job: a sweep that is submitted from there would run in the shape of the outer job.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SAFE_PATH = {"PYTHONSAFEPATH": "1"}
"""`python -m` looks for every module in the folder that it is started in first, before Python's own. Whoever may write
to that folder, as to one that a project shares, would have code run by all who start a sweep there."""
PER_JOB = ("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "PMI_", "PMI2_", "PMIX_", "OMPI_", "PRTE_", "HYDRA_", "MPI_LOCAL")
KEPT = {
    # How to reach SLURM, and how it answers.
    "SLURM_CONF",
    "SLURM_JWT",
    "SLURM_CLUSTERS",
    "SLURM_TIME_FORMAT",
    # In whose name and where, as a user sets it in a profile. SLURM itself sets none of these.
    "SBATCH_ACCOUNT",
    "SBATCH_PARTITION",
    "SBATCH_QOS",
    "SBATCH_RESERVATION",
    "SBATCH_CLUSTERS",
}
KEPT_BEGINNINGS = ("OMPI_MCA_", "OMPI_ALLOW_RUN_AS_ROOT", "PRTE_MCA_", "PMIX_MCA_")
"""Settings of an MPI library, not of one job ..."""
SET_BY_MPIRUN = ("OMPI_MCA_ess_", "OMPI_MCA_orte_", "OMPI_MCA_prte_", "PRTE_MCA_ess_", "PRTE_MCA_prte_")
"""... but for those that mpirun gives its ranks."""


def without_job(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` without the variables of the job and the MPI program that it may belong to.

    >>> sorted(without_job({"HOME": "/h", "SLURM_CPU_BIND": "x", "SLURM_CONF": "c", "PMIX_RANK": "1"}))
    ['HOME', 'SLURM_CONF']
    """
    return {name: value for name, value in environment.items() if not _of_a_job(name)}


def for_programs(environment: Mapping[str, str]) -> dict[str, str]:
    """Return `environment` for `python -m fedhpc...`: it finds this package, and no module of the folder it is in."""
    path = os.pathsep.join(filter(None, [str(CHECKOUT), environment.get("PYTHONPATH")]))
    return {**environment, **SAFE_PATH, "PYTHONPATH": path}


def run_quietly(*words: str) -> subprocess.CompletedProcess[str]:
    """Run `run.py WORDS` in a process of its own, here; return its status and standard error."""
    return subprocess.run(
        [sys.executable, "-m", "fedhpc", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env=for_programs(os.environ),
    )


def _of_a_job(name: str) -> bool:
    kept = name in KEPT or (name.startswith(KEPT_BEGINNINGS) and not name.startswith(SET_BY_MPIRUN))
    return name.startswith(PER_JOB) and not kept


@contextmanager
def outside_of_any_job() -> Iterator[None]:
    """Take those variables out of this process's environment, for what it starts; put them back afterwards."""
    before = dict(os.environ)
    for name in before.keys() - without_job(before).keys():
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
