"""What the facts of all ranks amount to: problems that forbid a run, notes that do not, and the map of ranks. Pure."""

from collections import defaultdict
from collections.abc import Mapping, Sequence

from fedhpc.config.schema import RunConfig
from fedhpc.run.preflight.facts import RankFacts
from fedhpc.util.text import count_of, fitted

LEAST_FREE_BYTES = 200 * 10**6
LARGEST_SKEW_S = 60.0
"""Certificates are valid from a moment on, and a ledger says when something was spent."""
NOTED_SKEW_S = 2.0

Facts = Sequence[RankFacts]


def problems(facts: Facts, config: RunConfig, run_dir: str) -> list[str]:
    """Everything that forbids the run, one message each."""
    return [
        *_shard_problems(facts),
        *_run_dir_problems(facts, run_dir),
        *_disk_problems(facts, config, run_dir),
        *_clock_problems(facts),
        *_version_problems(facts),
        *_device_problems(facts),
    ]


def _shard_problems(facts: Facts) -> list[str]:
    return [
        f"site {site}: its shard {path} cannot be used on its own node {rank.host} (rank {rank.rank}): {problem}. Put "
        "it there (`python run.py prepare ...` makes one), pin the site to the node that has it (data.sites: node), or "
        "correct data.shards"
        for rank in facts
        for site, (path, problem) in rank.shards.items()
        if problem
    ]


def _run_dir_problems(facts: Facts, run_dir: str) -> list[str]:
    by_problem: dict[str, list[str]] = defaultdict(list)
    for rank in facts:
        if rank.run_dir:
            by_problem[rank.run_dir].append(f"{rank.host} (rank {rank.rank})")
    return [
        f"run directory {run_dir}: {problem} on {', '.join(where)}. Give a --run-dir on a file system that all nodes "
        "share and that has locks (Lustre: mounted with flock)"
        for problem, where in by_problem.items()
    ]


def _disk_problems(facts: Facts, config: RunConfig, run_dir: str) -> list[str]:
    phantom = config.data.phantom
    needed = LEAST_FREE_BYTES + (phantom.images * phantom.image_size**2 if phantom else 0)
    least = min(facts, key=lambda rank: rank.free_bytes)
    if least.free_bytes >= needed:
        return []
    return [
        f"run directory {run_dir}: {least.free_bytes / 1e6:.0f} MB free on {least.host}, {needed / 1e6:.0f} MB are "
        "needed. Free some, or give a --run-dir on another disk"
    ]


def _skews(facts: Facts) -> dict[str, float]:
    """By how many seconds each node's clock is ahead of rank 0's."""
    return {rank.host: rank.clock_s - facts[0].clock_s for rank in facts}


def _clock_problems(facts: Facts) -> list[str]:
    return [
        f"node {host}: its clock is {skew:+.0f} s off that of {facts[0].host}; at most {LARGEST_SKEW_S:.0f} s are "
        "allowed. Ask the administrators to synchronise it (chrony, ntp), or leave the node out (sbatch --exclude)"
        for host, skew in _skews(facts).items()
        if abs(skew) > LARGEST_SKEW_S
    ]


def _version_problems(facts: Facts) -> list[str]:
    found = []
    for package in sorted({name for rank in facts for name in (*rank.versions, "MPI")}):
        ranks_of: dict[str, list[str]] = defaultdict(list)
        for rank in facts:
            version = rank.mpi if package == "MPI" else rank.versions.get(package, "none")
            ranks_of[version].append(f"{rank.rank} on {rank.host}")
        if len(ranks_of) > 1:
            said = "; ".join(f"{version} at rank {', '.join(ranks)}" for version, ranks in ranks_of.items())
            found.append(
                f"{package} is not the same at all ranks: {said}. Use one environment on a shared file system, or one "
                "container"
            )
    return found


def _device_problems(facts: Facts) -> list[str]:
    return [
        f"rank {rank.rank} on {rank.host}: runtime.device=cuda, and PyTorch sees no GPU there. Ask for one (sbatch "
        "--gpus-per-task=1), start the container with --nv, or set runtime.device=auto"
        for rank in facts
        if rank.device == "none"
    ]


def notes(facts: Facts, allocated: int) -> list[str]:
    """Return what is legal and worth knowing. `allocated`: the tasks of the SLURM allocation, 0 outside one."""
    return [
        *_shared_gpus(facts),
        *_unused_gpus(facts),
        *_idle(facts, allocated),
        *(
            f"the clock of {host} is {skew:+.1f} s off that of {facts[0].host}"
            for host, skew in _skews(facts).items()
            if abs(skew) > NOTED_SKEW_S
        ),
    ]


def _shared_gpus(facts: Facts) -> list[str]:
    users: Mapping[tuple[str, str], list[str]] = defaultdict(list)
    for rank in facts:
        if rank.gpu:
            users[rank.host, rank.gpu] += rank.shards
    return [
        f"{', '.join(sites)} share GPU {gpu} of {host}: they take turns in its time and must fit its memory together"
        for (host, gpu), sites in users.items()
        if len(sites) > 1
    ]


def _unused_gpus(facts: Facts) -> list[str]:
    return [
        f"rank {rank.rank} was given GPU {rank.given} of {rank.host} and computes on the CPU: PyTorch sees no GPU "
        "(a build without CUDA, no driver, or a container without --nv), or runtime.device=cpu"
        for rank in facts
        if rank.given and rank.device == "cpu"
    ]


def _idle(facts: Facts, allocated: int) -> list[str]:
    several = [f"rank {rank.rank} plays {', '.join(rank.shards)}" for rank in facts if len(rank.shards) > 1]
    more = []
    if allocated > len(facts):
        more.append(f"{allocated} tasks were allocated and {len(facts)} started: {allocated - len(facts)} are idle")
    return ["; ".join(several)] * bool(several and len(facts) > 1) + more


def rank_table(facts: Facts) -> str:
    """Rank, host, GPU, hospitals and their shards."""
    rows = [("rank", "host", "device", "GPU", "site", "shard")]
    for rank in facts:
        here = (str(rank.rank), rank.host, rank.device, rank.gpu or rank.given or "-")
        rows += [(*here, site, path) for site, (path, _) in rank.shards.items()] or [(*here, "-", "-")]
    return fitted(rows)


def one_line(facts: Facts, config: RunConfig) -> str:
    """Return what was found, in short. Shards of the built-in cohort may be missing: the run makes them."""
    hosts, first = {rank.host for rank in facts}, facts[0]
    by = f"{first.launcher}, {first.mpi}" if first.mpi else first.launcher
    where = f"{count_of(len(facts), 'rank')} on {count_of(len(hosts), 'node')} by {by}"
    if config.data.phantom is None:
        return f"preflight: {where}: shard files are there, disk, clocks and versions are right"
    return f"preflight: {where}: disk, clocks and versions are right; `train` makes what the built-in cohort lacks"
