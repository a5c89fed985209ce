"""How ranks are started and placed: the launcher, the preflight's messages, GPUs, hospitals where their shards are."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import REPO
from tests.mpi.test_federated import SITES
from tests.slurm.conftest import Job, Slurm, cancelled

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
START = "cd {repo}; set -euo pipefail; . slurm/launch.sh; find_program; set_environment; choose_launcher"


@pytest.fixture(scope="session")
def scattered(slurm: Slurm, cohort: Path) -> tuple[str, ...]:
    """Two hospitals, whose shards lie on the disks of two nodes, the first one's on the second node."""
    folder = slurm.folder / "disks"
    for site, node in zip(SITES[:2], ("hosp2", "hosp1"), strict=True):
        (folder / node).mkdir(parents=True)
        shutil.copy(cohort.parent / f"{site}.h5", folder / node)
    return ("--set", f"data.shards={folder}/{{hostname}}/{{site}}.h5", "--run-dir", str(slurm.folder / "preflight"))


def preflight(slurm: Slurm, cohort: Path, *options: str, ranks: int = 2, nodes: str = "hosp[1-2]") -> tuple[int, str]:
    """Exit status and all output of `srun ... run.py preflight`."""
    start = ("srun", "--quiet", "--mpi=pmix", f"--nodelist={nodes}", f"--ntasks={ranks}", "--gpus-per-task=1")
    done = slurm.run(*start, slurm.python, "run.py", "preflight", cohort, *options)
    return done.returncode, done.stdout + done.stderr


def sites(*pins: str | None) -> tuple[str, str]:
    named = [f"{{name: {site}, weight: 20, node: {pin or 'null'}}}" for site, pin in zip(SITES, pins, strict=False)]
    return ("--set", f"data.sites=[{', '.join(named)}]")


def test_a_shard_that_is_not_on_its_own_node(slurm: Slurm, cohort: Path, scattered: tuple[str, ...]) -> None:
    status, said = preflight(slurm, cohort, *scattered, *sites(None, None))
    assert status == 2, said
    assert len(re.findall(r"^error: ", said, re.MULTILINE)) == 1
    assert "preflight found 2 problem(s)" in said
    assert re.search(r"site site1: its shard \S+/hosp1/site1\.h5 cannot be used on its own node hosp1 \(rank 0\)", said)
    assert re.search(r"site site2: its shard \S+/hosp2/site2\.h5 cannot be used on its own node hosp2 \(rank 1\)", said)
    assert "pin the site to the node that has it (data.sites: node)" in said


def test_pinned_hospitals_find_their_shards_and_gpus(slurm: Slurm, cohort: Path, scattered: tuple[str, ...]) -> None:
    """The GPUs are SLURM's choice and only stand-ins, on which PyTorch cannot compute: that is said."""
    status, said = preflight(slurm, cohort, *scattered, *sites("hosp2", "hosp1"))
    assert status == 0, said
    said = " ".join(said.split())
    assert " 0 hosp2 cpu 0 site1 1 hosp1 cpu 0 site2 " in said
    assert re.search(r" 0 \S*/hosp2/site1\.h5 1 \S*/hosp1/site2\.h5 ", said)
    assert "preflight: 2 ranks on 2 nodes by srun --mpi=pmix, Open MPI" in said
    assert "rank 0 was given GPU 0 of hosp2 and computes on the CPU" in said


def test_two_hospitals_on_one_node_get_a_gpu_each_and_a_third_task_is_too_many(slurm: Slurm, cohort: Path) -> None:
    status, said = preflight(slurm, cohort, *sites(None, None), nodes="hosp1")
    assert status == 0, said
    assert " 0 hosp1 cpu 0 site1 1 hosp1 cpu 1 site2 " in " ".join(said.split())
    status, said = preflight(slurm, cohort, *sites(None, None), ranks=3)
    assert status == 2, said
    assert "3 ranks for 2 sites: use at most 2 (mpirun -n 2, --ntasks=2)" in said


def test_without_pmix_mpirun_starts_the_ranks(slurm: Slurm, repo_root: Path) -> None:
    """A site whose SLURM has no plugin for PMIx: the preflight says what it tried."""
    conf = slurm.cluster.base / "slurm.conf"
    plugins = slurm.cluster.base / "plugins"
    plugins.mkdir()
    for plugin in plugin_folder().iterdir():
        if not plugin.name.startswith("mpi_pmi"):
            (plugins / plugin.name).symlink_to(plugin)
    poor = slurm.cluster.base / "poor.conf"
    poor.write_text(f"{conf.read_text(encoding='utf-8')}PluginDir={plugins}\n", encoding="utf-8")
    script = slurm.folder / "poor.sh"
    script.write_text(
        f"#!/bin/bash\nexport SLURM_CONF={poor}\n{START.format(repo=repo_root)}\n"
        '"${launcher[@]}" python run.py world\n',
        encoding="utf-8",
    )
    output = slurm.folder / "poor.out"
    command = ("sbatch", "--parsable", "--ntasks=2", "--ntasks-per-node=1", f"--output={output}", script)
    with cancelled(Job(slurm.ask(*command).strip(), output, slurm.ask)) as job:
        job.wait_for(("COMPLETED", "FAILED"), 150)
    said = output.read_text(encoding="utf-8")
    assert "srun --mpi=pmix does not fit this MPI" in said
    assert "srun --mpi=pmi2 does not fit this MPI" in said
    assert "mpirun: every one of 2 ranks sees all of them" in said
    assert said.split()[-2:] == ["2", "2"]


def plugin_folder() -> Path:
    """Where SLURM's plugins lie."""
    return next(Path("/usr").glob("lib*/**/mpi_pmix.so")).parent


def test_never_inside_a_step(slurm: Slurm) -> None:
    done = slurm.run("srun", "--quiet", "--ntasks=1", "bash", "slurm/fedavg.sbatch")
    assert done.returncode == 2
    assert "already inside a job step" in done.stderr
    assert "HINT: submit this file with sbatch" in done.stderr


@pytest.mark.parametrize("script", sorted((REPO / "slurm").glob("*.sbatch")), ids=lambda path: path.stem)
def test_submitted_from_another_folder_it_says_from_where(script: Path, tmp_path: Path) -> None:
    env = {**os.environ, "SLURM_SUBMIT_DIR": str(tmp_path)}
    done = subprocess.run(["bash", script], env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert done.stderr == (
        f"{tmp_path}: is not the top of the checkout. Submit there: sbatch {script.relative_to(REPO)}\n"
    )
