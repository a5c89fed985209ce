"""The cluster that all tests here share, and how they submit to it."""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedhpc.transport import pki
from tests.conftest import PRELOADED, REPO, make_stand_in, missing
from tests.mpi.test_federated import SITES, make_shard
from tests.slurm.cluster import Cluster, allowed, install, lacking, until
from tests.support.preloaded import STAND_IN

ROOT_ALLOWED = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
"""What setup.sh puts into .venv/bin/activate."""


SLOW_MODEL = """
import time
from torch import nn

class Pause(nn.Module):
    def __init__(self, pause_s):
        super().__init__()
        self.pause_s = pause_s

    def forward(self, images):
        if self.training:
            time.sleep(self.pause_s)
        return images

def make(task, pause_s):
    layers = nn.Conv2d(task.image_shape[0], 4, 4, stride=4), nn.ReLU(), nn.Flatten()
    return nn.Sequential(Pause(pause_s), *layers, nn.Linear(task.image_shape[1] ** 2 // 4, len(task.classes)))
"""
"""Its steps take time and no work of the cores, so that a round is long enough for a signal and others can compute."""


@dataclass
class Job:
    """A submitted batch job and its output file."""

    id: str
    output: Path
    ask: Callable[..., str]

    @property
    def state(self) -> str:
        """As SLURM calls it: PENDING, RUNNING, COMPLETED ..."""
        return " ".join(self.states)

    @property
    def states(self) -> list[str]:
        """Of each trial, if it is an array."""
        return self.ask("squeue", "-h", "-r", "-t", "all", "-j", self.id, "-o", "%T").split()

    @property
    def text(self) -> str:
        """All that it has said so far."""
        return self.output.read_text(encoding="utf-8", errors="replace") if self.output.exists() else ""

    def facts(self) -> dict[str, str]:
        """What `scontrol show job` knows of it."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", self.id)))

    def wait_for(self, states: str | tuple[str, ...], limit_s: float) -> str:
        """Until it is in one of `states`; fails the test when that takes longer than `limit_s` seconds."""
        wanted = (states,) if isinstance(states, str) else states
        if not until(lambda: self.state in wanted, limit_s, 0.5):
            pytest.fail(f"job {self.id} is {self.state}, not {wanted}, after {limit_s} s\n{self.text[-6000:]}")
        return self.state

    def wait_until_it_says(self, pattern: str, limit_s: float) -> None:
        """Until its output matches."""
        if not until(lambda: re.search(pattern, self.text) is not None, limit_s, 0.02):
            pytest.fail(f"job {self.id} ({self.state}) did not say {pattern!r} within {limit_s} s\n{self.text[-6000:]}")


@dataclass
class Slurm:
    """The cluster as a user sees it from the login node.

    Attributes:
        cluster: for what only its keeper can do.
        folder: shared by all nodes, for the tests' files.
        python: an interpreter whose imports have been done on each node.
    """

    cluster: Cluster
    folder: Path
    python: Path

    def ask(self, *command: str | Path, check: bool = True, limit_s: float = 90) -> str:
        """One of SLURM's commands; what it prints."""
        done = self.run(*command, limit_s=limit_s)
        if check and done.returncode:
            pytest.fail(f"{command}: exit status {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    def run(self, *command: str | Path, limit_s: float = 90) -> subprocess.CompletedProcess[str]:
        """The same, whatever comes of it."""
        env = {**os.environ, **ROOT_ALLOWED, **self.cluster.env(), STAND_IN: str(self.python)}
        env["PATH"] = f"{self.cluster.base / 'bin'}:{Path(sys.executable).parent}:{env['PATH']}"
        words = [str(word) for word in command]
        return subprocess.run(words, cwd=REPO, env=env, capture_output=True, text=True, timeout=limit_s, check=False)

    def submit(
        self,
        name: str,
        *options: str | Path,
        script: str | Path,
        arguments: tuple[str | Path, ...] = (),
        fresh: bool = False,
    ) -> Job:
        """`sbatch OPTIONS SCRIPT ARGUMENTS`, one task a node with one core, and an output file of its own.

        Args:
            script: a file of its own, or the name of one in slurm/.
            fresh: it finds the interpreter of this checkout, and each rank does its own imports. Otherwise the
                interpreter is what slurm/launch.sh knows as a container.
        """
        output = self.folder / f"{name}.out"
        if not fresh:
            options = (f"--export=ALL,container={self.python.with_name('container')}", *options)
        small = ("--cpus-per-task=1", "--mem-per-cpu=500M", "--ntasks-per-node=1", "--output", output)
        said = self.ask("sbatch", "--parsable", *small, *options, Path("slurm") / script, *arguments)
        return Job(said.strip(), output, self.ask)


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Four hospitals and a login node, for as long as the tests run; SLURM is installed first where it is missing."""
    if os.geteuid() != 0:
        missing("a cluster of namespaces needs root")
    if lacking():
        try:
            install()
        except (OSError, subprocess.SubprocessError) as error:
            missing(f"SLURM cannot be installed ({error})")
    if lacking():
        missing(f"not on this machine, even after an install: {', '.join(lacking())}")
    if not allowed():
        missing("this machine allows no namespaces")
    # Short, because of the Unix sockets in it: not pytest's own folder.
    base = Path(tempfile.mkdtemp(prefix="slurm-"))
    made = Cluster(base)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture(scope="session")
def slurm(cluster: Cluster, preloaded: list[str], tmp_path_factory: pytest.TempPathFactory) -> Slurm:
    """See `Slurm`."""
    env = {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    cluster.serve(*preloaded, PRELOADED, "serve-inside", env=env)
    cluster.server(os.uname().nodename).symlink_to(preloaded[-1])
    python = make_stand_in(cluster.base / "venv" / "bin", f"{cluster.base}/servers/$(uname -n)")
    container = python.with_name("container")
    container.write_text(f'#!/bin/sh\n# container python ARGUMENTS\nshift\nexec {python} "$@"\n', encoding="utf-8")
    container.chmod(0o755)
    if not until(lambda: all(cluster.server(node).exists() for node in cluster.hospitals), 120):
        pytest.fail(
            f"not every node has its server of preloaded programs: {list((cluster.base / 'servers').iterdir())}"
        )
    return Slurm(cluster, tmp_path_factory.mktemp("slurm"), python)


@pytest.fixture(scope="session")
def cohort(slurm: Slurm) -> Path:
    """A config of four small hospitals; its shards and certificates lie beside it."""
    folder = slurm.folder / "cohort"
    folder.mkdir()
    pki.init(folder / "pki", SITES)
    for number, site in enumerate(SITES):
        make_shard(folder, site, 60 - 8 * number)
    (folder / "slow.py").write_text(SLOW_MODEL, encoding="utf-8")
    tree = {
        "name": "tiny",
        "model": {"build": "slow.py:make", "args": {"pause_s": 0.04}},
        "data": {"shards": str(folder / "{site}.h5"), "sites": [{"name": name, "weight": 20} for name in SITES]},
        "training": {"rounds": 6, "local_epochs": 8, "batch_size": 16},
        "privacy": "off",
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def params(run_dir: Path, rounds: int) -> np.ndarray:
    """The global parameters after so many rounds."""
    with np.load(run_dir / "state" / f"round-{rounds:04d}.npz") as saved:
        return saved["params"]


@contextlib.contextmanager
def cancelled(job: Job) -> Iterator[Job]:
    """No job outlives its test."""
    try:
        yield job
    finally:
        job.ask("scancel", job.id, check=False)
