"""`run.py bench round`: what the framework costs beside the training, as ratios to plain forked processes.

All ways take turns, as whole processes of their own, `repeats` times. Of each run are measured: wall time and CPU time
(user and system, of all its processes) from the command to its end; the time to the end of round 1; wall and CPU time
a round from there to the last round; seconds by phase at rank 0; and the most memory that its processes held together
(PSS: shared pages are counted once). On a machine that others use, the ratios of CPU time are what can be trusted.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.bench.accounts import charged_to
from fedhpc.bench.round_work import FLOOR, WAYS, WORKLOADS, Workload, prepare, write_job
from fedhpc.errors import InputError
from fedhpc.util.processes import total_memory_bytes, tree_cpu_s, tree_pss_bytes
from fedhpc.util.progress import at_work

CHECKOUT = Path(__file__).resolve().parents[2]
LOOK_S, MEMORY_EVERY_S = 0.02, 0.5
LIMIT_S = 1800.0


@dataclass(frozen=True)
class Plan:
    """What is measured: workloads and ways by name, numbers of ranks, how often; `rounds`: None for the workload's."""

    workloads: Sequence[str]
    ways: Sequence[str]
    ranks: Sequence[int]
    repeats: int
    rounds: int | None = None

    def runs(self) -> list[tuple[Workload, str, int]]:
        """One repeat, in its order; the floor is always among the ways."""
        works = [WORKLOADS[name] for name in self.workloads]
        if self.rounds is not None:
            works = [Workload(w.name, w.network, w.images, w.image_size, self.rounds) for w in works]
        ways = [way for way in WAYS if way == FLOOR or way in self.ways]
        return [(work, way, ranks) for work in works for ranks in self.ranks for way in ways]


@dataclass
class Watched:
    """What is seen of a run from outside while it goes on: (wall, CPU) seconds at its rounds' ends, and memory."""

    began_s: float
    ends: list[tuple[float, float]]
    pss_bytes: int = 0


def measure(plan: Plan, folder: Path) -> dict[str, Any]:
    """Do all runs and return every one's figures as plain values.

    Raises:
        InputError: there is no mpirun, a run failed, or fewer than two rounds.
    """
    if shutil.which("mpirun") is None:
        raise InputError("mpirun: is not on PATH: install an MPI, or load its module", code="mpi.launcher-missing")
    found = []
    for repeat in range(plan.repeats):
        for work, way, ranks in plan.runs():
            prepare(work, folder / work.name)
            directory = folder / work.name / f"{way}-{ranks}-{repeat}"
            with at_work(f"{work.name}, {way}, {ranks} ranks, repeat {repeat + 1} of {plan.repeats}"):
                figures = _measured(work, way, ranks, directory)
            found.append({"workload": work.name, "way": way, "ranks": ranks, "repeat": repeat, **figures})
    return {"machine": machine(), "rounds": {work.name: work.rounds for work, _, _ in plan.runs()}, "runs": found}


def machine() -> dict[str, Any]:
    """Return what the figures depend on: cores that may be used, memory, versions."""
    import torch

    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(total_memory_bytes() / 2**30),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }


def _measured(work: Workload, way: str, ranks: int, directory: Path) -> dict[str, Any]:
    shutil.rmtree(directory, ignore_errors=True)
    if way == FLOOR:
        command = [sys.executable, "-m", "fedhpc.bench.round_floor", str(write_job(work, ranks, directory))]
    else:
        config = directory.parent / f"{way}.yaml"
        train = [str(CHECKOUT / "run.py"), "train", str(config), "--run-dir", str(directory)]
        command = ["mpirun", "-n", str(ranks), sys.executable, *train]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with charged_to(directory.parent / "accounts" / directory.name):
        watched, ended_s = _run(command, directory)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    (first_s, first_cpu_s), (last_s, last_cpu_s) = watched.ends[0], watched.ends[-1]
    steps = len(watched.ends) - 1
    return {
        "whole_s": ended_s - watched.began_s,
        "whole_cpu_s": (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime),
        "first_round_s": first_s - watched.began_s,
        "round_s": (last_s - first_s) / steps,
        "round_cpu_s": (last_cpu_s - first_cpu_s) / steps,
        "pss_mb": watched.pss_bytes / 2**20,
        **_told(way, directory),
    }


def _told(way: str, directory: Path) -> dict[str, Any]:
    """What a run says of itself: AUC, the best round but the first, its mean seconds by phase."""
    if way == FLOOR:
        result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        rounds, auc = result["rounds"], result["auc"]
    else:
        lines = (directory / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        rounds = [json.loads(line)["seconds"] for line in lines]
        auc = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["auc"]
    later = rounds[1:]
    phases = {name: sum(one.get(name, 0.0) for one in later) / len(later) for name in later[0]}
    return {"auc": auc, "best_round_s": min(one["total"] for one in later), "phases_s": phases}


def _run(command: Sequence[str], directory: Path) -> tuple[Watched, float]:
    """Run a command to its end; (what was seen of it, when it ended).

    Raises:
        InputError: it failed, did not end, or fewer than two rounds were seen.
    """
    defaults = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMP_NUM_THREADS": "1"}
    environment = {**defaults, **os.environ, "PYTHONPATH": str(CHECKOUT)}
    began_s = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    watched, memory_s = Watched(began_s, []), 0.0
    while process.poll() is None:
        now_s = time.monotonic()
        if now_s - began_s > LIMIT_S:
            process.kill()
        if _lines(directory / "rounds.jsonl") > len(watched.ends):
            watched.ends.append((now_s, tree_cpu_s(process.pid)))
        if now_s - memory_s > MEMORY_EVERY_S:
            watched.pss_bytes, memory_s = max(watched.pss_bytes, tree_pss_bytes(process.pid)), now_s
        time.sleep(LOOK_S)
    ended_s = time.monotonic()
    if process.returncode or len(watched.ends) < 2:
        raise InputError(
            f"{' '.join(command)}: ended with status {process.returncode} after {len(watched.ends)} rounds that were "
            "seen; at least 2 are needed. See what it said above",
            code="bench.failed",
        )
    return watched, ended_s


def _lines(path: Path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0
