"""What sbatch is given: every key of the config is in it, a shell accepts it, and hostile paths stay words."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from fedhpc.cli.main import main
from fedhpc.sweep import slurm
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.environment import outside_of_any_job
from tests.support.tiny_sweeps import load_sweep, write_sweep


def scripts_of(folder: Path, run: Path | None = None, **settings: Any) -> tuple[str, str]:
    sweep = load_sweep(write_sweep(folder, slurm=settings), [])
    array, report = slurm.scripts(SweepDirectory(run or folder / "run"), sweep, len(sweep.trials)).values()
    return array, report


def flags(script: str) -> dict[str, str]:
    """{flag: value} of its #SBATCH lines, read as sbatch does: words of a shell."""
    words = [shlex.split(line.removeprefix("#SBATCH ")) for line in script.splitlines() if line.startswith("#SBATCH ")]
    return {name.removeprefix("--"): value for (word,) in words for name, _, value in [word.partition("=")]}


def command_of(script: str) -> str:
    """The line that starts the program."""
    (command,) = (line for line in script.splitlines() if "submitit.core._submit" in line)
    return command


def test_one_array_of_mpi_jobs_and_a_report_after_all_of_them(tmp_path: Path) -> None:
    array, report = scripts_of(tmp_path, at_once=2)
    found = flags(array)
    assert found["array"] == "0-5%2"
    assert (found["nodes"], found["ntasks-per-node"], found["cpus-per-task"]) == ("1", "4", "1")
    assert found["signal"] == "USR1@120"
    assert "requeue" in found
    assert found["open-mode"] == "append"
    assert flags(report)["dependency"].startswith("afterany:")
    assert (flags(report)["nodes"], flags(report)["ntasks-per-node"]) == ("1", "1")
    command = command_of(array)
    assert command.startswith("srun ")
    assert " --mpi=pmix --kill-on-bad-exit=1 " in command
    assert "export SLURM_PMIX_FENCE=ring" in array
    assert "srun" not in report, "one process, no ranks"
    assert array.index("scontrol requeue") > array.index(command), "when all ranks have ended"
    assert array.splitlines()[-1] == "exit $status", "that of the ranks"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"partition": "gpu", "account": "a1", "qos": "low"}, {"partition": "gpu", "account": "a1", "qos": "low"}),
        ({"constraint": "a100|h100", "gres": "gpu:4"}, {"constraint": "a100|h100", "gres": "gpu:4"}),
        ({"nodes": 2, "ranks": 4, "cpus_per_rank": 8}, {"nodes": "2", "ntasks-per-node": "2", "cpus-per-task": "8"}),
        ({"gpus_per_rank": 1}, {"gpus-per-task": "1"}),
        ({"memory_gb_per_rank": 3, "cpus_per_rank": 2}, {"mem-per-cpu": "1536M"}),
        ({"time_min": 7, "signal_s": 61}, {"time": "7", "signal": "USR1@61"}),
        ({"extra": {"reservation": "a night", "nice": 5}}, {"reservation": "a night", "nice": "5"}),
        ({"extra": {"exclusive": True}}, {"exclusive": ""}),
    ],
)
def test_every_key_reaches_sbatch(tmp_path: Path, settings: dict[str, Any], expected: dict[str, str]) -> None:
    array, report = scripts_of(tmp_path, **settings)
    assert expected.items() <= flags(array).items()
    for flag in ("partition", "account", "qos", "reservation"):
        assert flags(report).get(flag) == flags(array).get(flag)


def test_what_is_not_set_is_left_to_the_cluster(tmp_path: Path) -> None:
    left = {"partition", "account", "qos", "constraint", "gres", "gpus-per-task", "mem-per-cpu", "wckey", "exclusive"}
    assert not left & flags(scripts_of(tmp_path)[0]).keys()


@pytest.mark.parametrize("mpi", ["pmix", "pmi2", "mpirun"])
@pytest.mark.parametrize("folder", ["plain", "with space", "it's $HOME `x`"])
def test_a_shell_accepts_it_whatever_the_paths(tmp_path: Path, mpi: str, folder: str) -> None:
    run = tmp_path / folder
    for script in scripts_of(tmp_path, run=run, mpi=mpi, setup=["module load openmpi"]):
        tool = Path(sys.executable).with_name("shellcheck")
        done = subprocess.run(
            [tool, "--shell=bash", "--severity=warning", "-"], input=script, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stdout
        command = command_of(script)
        assert str(run / "jobs") in shlex.split(command), "one word"
        assert command.startswith("srun ") == (mpi != "mpirun" and "array" in flags(script))
        assert script.index("module load openmpi") < script.index(command)


def test_dry_run_shows_all_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = write_sweep(tmp_path)
    assert main(["sweep", str(config), "--dry-run", "--run-dir", str(tmp_path / "run")]) == 0
    out = capsys.readouterr().out
    assert all(f"tiny-{number:03d}  " in out for number in range(6))
    for script in scripts_of(tmp_path):
        assert script in out
    assert {path.name for path in tmp_path.iterdir()} == {"tiny.yaml"}


def test_without_slurm_it_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = write_sweep(
        tmp_path, grid={"seed": [0]}, privacy="off", data={"shards": "x/{site}.h5", "sites": [{"name": "a"}]}
    )
    assert main(["sweep", str(config), "--run-dir", str(tmp_path / "run")]) == 2
    assert "--cluster local" in capsys.readouterr().err
    assert main(["sweep", "status", str(tmp_path / "run")]) == 2, "nothing was started, so there is no sweep"


def test_a_job_that_is_submitted_from_a_job_does_not_inherit_its_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a process that is started there has in its environment; afterwards it is as it was."""
    of_the_job = {
        "SLURM_JOB_ID": "7",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_MEM_PER_NODE": "100",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "1",
        "SBATCH_MEM_PER_CPU": "1G",
        "SRUN_CPUS_PER_TASK": "8",
        "PMIX_RANK": "1",
        "PMI_SIZE": "4",
        "OMPI_COMM_WORLD_RANK": "1",
        "PRTE_MCA_ess_base_jobid": "x",
    }
    of_the_user = {
        "SLURM_CONF": "/etc/slurm.conf",
        "SBATCH_ACCOUNT": "a1",
        "OMPI_MCA_btl": "self",
        "OMP_NUM_THREADS": "1",
    }
    for name, value in (of_the_job | of_the_user).items():
        monkeypatch.setenv(name, value)
    with outside_of_any_job():
        seen = subprocess.run(["env"], capture_output=True, text=True, check=True, timeout=60).stdout
    names = {line.partition("=")[0] for line in seen.splitlines()}
    assert not of_the_job.keys() & names
    assert of_the_user.keys() <= names
    assert {name: os.environ.get(name) for name in of_the_job} == of_the_job
