"""`run.py bench round`: what the framework costs beside the training, as ratios to plain forked processes.

All ways of a workload take turns, a round each (`fedhpc.bench.round_turns`), as whole processes of their own, `repeats`
times. Of each run are kept: wall and CPU seconds (user and system, of all its processes) of every round, while it was
not stopped; of the whole command; and to the end of round 1. Each round is compared with the floor's of the same turn.

Memory is measured apart, of each run by itself, since pages that runs share would count in part only: the most that
its processes held together (PSS: a page that several of them share is counted once) in a run of `MEMORY_ROUNDS` rounds.
"""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from fedhpc.bench.accounts import charged_to
from fedhpc.bench.round_turns import Run, failed, take_turns
from fedhpc.bench.round_work import FLOOR, WAYS, WORKLOADS, Workload, prepare, write_job
from fedhpc.errors import InputError
from fedhpc.sweep.environment import SAFE_PATH
from fedhpc.util.files import make_folder
from fedhpc.util.processes import total_memory_bytes, tree_pss_bytes
from fedhpc.util.progress import at_work

CHECKOUT = Path(__file__).resolve().parents[2]
LOOK_S, MEMORY_ROUNDS = 0.25, 2
PARTS = ("rounds", "memory")


@dataclass(frozen=True)
class Plan:
    """What is measured: workloads and ways by name, numbers of ranks, how often; `rounds`: None for the workload's."""

    workloads: Sequence[str]
    ways: Sequence[str]
    ranks: Sequence[int]
    repeats: int
    rounds: int | None = None
    parts: Sequence[str] = PARTS

    def groups(self) -> list[tuple[Workload, int]]:
        """(workload, number of ranks) of all that is compared with one floor, in order."""
        works = [WORKLOADS[name] for name in self.workloads]
        works = works if self.rounds is None else [replace(work, rounds=self.rounds) for work in works]
        return [(work, ranks) for work in works for ranks in self.ranks]

    @property
    def all_ways(self) -> list[str]:
        """The floor is always among them."""
        return [way for way in WAYS if way == FLOOR or way in self.ways]


def measure(plan: Plan, folder: Path) -> dict[str, Any]:
    """Do all runs and return every one's figures as plain values.

    Raises:
        InputError: there is no mpirun, a run failed, or fewer than two rounds.
    """
    if shutil.which("mpirun") is None:
        raise InputError("mpirun: is not on PATH: install an MPI, or load its module", code="mpi.launcher-missing")
    runs, memory = [], []
    for work, ranks in plan.groups():
        own, place = folder / work.name, {"workload": work.name, "ranks": ranks}
        for repeat in range(plan.repeats if "rounds" in plan.parts else 0):
            with at_work(f"{work.name}, {ranks} ranks, repeat {repeat + 1} of {plan.repeats}"):
                runs += [{**place, "repeat": repeat, **one} for one in _side_by_side(work, plan.all_ways, ranks, own)]
        for way in plan.all_ways if "memory" in plan.parts else ():
            with at_work(f"{work.name}, {ranks} ranks, memory: {way}"):
                memory.append({**place, "way": way, "pss_mb": _memory_mb(work, way, ranks, own)})
    rounds = {work.name: work.rounds for work, _ in plan.groups()}
    return {"machine": machine(), "rounds": rounds, "runs": runs, "memory": memory}


def machine() -> dict[str, Any]:
    """Return what the figures depend on: cores that may be used, memory, versions."""
    import torch

    return {
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(total_memory_bytes() / 2**30),
        "python": sys.version.split()[0],
        "torch": torch.__version__,
    }


def _side_by_side(work: Workload, ways: Sequence[str], ranks: int, folder: Path) -> list[dict[str, Any]]:
    """Run all ways turn about; the figures of each."""
    prepare(work, folder)
    with _fresh(folder / "turns") as inside:
        places = {way: inside / f"{way}-{ranks}" for way in ways}
        runs = [
            Run(_command(work, way, ranks, place), place / "rounds.jsonl", inside / f"{place.name}.log", _environment)
            for way, place in places.items()
        ]
        take_turns(runs, work.rounds)
    return [{"way": way, **_figures(run), **_told(way, places[way])} for way, run in zip(ways, runs, strict=True)]


def _command(work: Workload, way: str, ranks: int, place: Path) -> list[str]:
    """Return the command of a run in the directory `place`, which is not there yet."""
    if way == FLOOR:
        return [sys.executable, "-m", "fedhpc.bench.round_floor", str(write_job(work, ranks, place))]
    train = [str(CHECKOUT / "run.py"), "train", str(place.parents[1] / f"{way}.yaml"), "--run-dir", str(place)]
    return ["mpirun", "-n", str(ranks), sys.executable, *train]


def _environment() -> dict[str, str]:
    defaults = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe", "OMP_NUM_THREADS": "1"}
    return {**defaults, **os.environ, **SAFE_PATH, "PYTHONPATH": str(CHECKOUT)}


def _figures(run: Run) -> dict[str, Any]:
    """Seconds of a run: of the whole of it, to the end of its first round, and of each round after."""
    return {
        "whole_s": sum(turn.wall_s for turn in run.turns),
        "whole_cpu_s": sum(turn.cpu_s for turn in run.turns),
        "first_round_s": run.turns[0].wall_s,
        "rounds": [{"round_s": turn.wall_s, "round_cpu_s": turn.cpu_s} for turn in run.turns[1:-1]],
    }


def _told(way: str, directory: Path) -> dict[str, Any]:
    """Return what a run says of itself: AUC, and the median of its seconds a round, by phase.

    Not of training: the clock that measures that goes on while the run is stopped.
    """
    if way == FLOOR:
        result = json.loads((directory / "result.json").read_text(encoding="utf-8"))
        rounds, auc = result["rounds"], result["auc"]
    else:
        lines = (directory / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        rounds = [json.loads(line)["seconds"] for line in lines]
        auc = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["auc"]
    names = [name for name in rounds[1] if name not in ("train", "total")]
    return {"auc": auc, "phases_s": {name: median(one.get(name, 0.0) for one in rounds[1:]) for name in names}}


def _memory_mb(work: Workload, way: str, ranks: int, folder: Path) -> float:
    """Run a way by itself for a few rounds; the most memory that its processes were seen to hold together, in MB.

    Raises:
        InputError: it failed.
    """
    short = replace(work, rounds=MEMORY_ROUNDS)
    prepare(short, folder)
    found = 0
    with _fresh(folder / "memory") as inside, (log := inside / "log").open("wb") as errors:
        command = _command(short, way, ranks, inside / f"{way}-{ranks}")
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors, env=_environment())
        while process.poll() is None:
            found = max(found, tree_pss_bytes(process.pid))
            time.sleep(LOOK_S)
    if process.returncode:
        raise failed(command, f"ended with status {process.returncode}", log)
    return found / 2**20


@contextmanager
def _fresh(folder: Path) -> Iterator[Path]:
    """Give an empty folder; what private runs spend is charged to site ledgers in it."""
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder)
    with charged_to(folder / "accounts", own_shards=True):
        yield folder
