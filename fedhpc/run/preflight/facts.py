"""What each rank sees from its own node: the one place of the preflight that touches disks, clocks and GPUs."""

import fcntl
import json
import os
import platform
import re
import secrets
import shutil
import socket
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

import torch
from pydantic import TypeAdapter

from fedhpc import __version__
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError
from fedhpc.models.device import device_name
from fedhpc.records.environment import git_commit
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.start.secure_channel import sites_by_rank
from fedhpc.site.data.shard import NO_FILE, shard_problem
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import outgoing, run_on_all_ranks
from fedhpc.transport.messages import parsed
from fedhpc.transport.mpi_library import library_version
from fedhpc.util.files import PRIVATE

TOKEN = re.compile(rb"\.preflight-[0-9a-f]{16}")
COMPARED = ("torch", "numpy", "opacus", "monai", "h5py", "mpi4py")
"""The packages whose versions must be the same at all ranks: the bits of a result depend on them."""


@dataclass(frozen=True)
class RankFacts:
    """One rank, seen from its own node (public: names, versions, sizes; nothing of any image).

    Attributes:
        rank, local_rank: in the world and on the node.
        tasks: how many tasks SLURM started with this one; 0 outside a SLURM step.
        shards: of each of its sites where the shard lies, and why it cannot be used; "" where it can.
        device, gpu: what PyTorch computes on, and which of the node's GPUs that is; "" for a CPU.
        given: the GPUs that SLURM (or the user) gave to it, as CUDA_VISIBLE_DEVICES says.
        launcher, mpi: what started it, and which MPI it speaks.
        run_dir: why the run directory is not of use to it; "" where it is.
        free_bytes: on the run directory's disk.
        clock_s: seconds since 1970 at the same moment as all other ranks.
    """

    rank: int
    local_rank: int
    host: str
    tasks: int
    shards: Mapping[str, tuple[str, str]]
    device: str
    gpu: str
    given: str
    launcher: str
    mpi: str
    versions: Mapping[str, str]
    run_dir: str
    free_bytes: int
    clock_s: float


RANK_FACTS = TypeAdapter(RankFacts)


def collect(config: RunConfig, directory: RunDirectory, transport: Transport) -> list[RankFacts]:
    """Every rank's facts, in rank order, at rank 0; an empty list elsewhere.

    Raises:
        InputError: at every rank, where rank 0 cannot make the run directory.
    """
    token = directory.path / f".preflight-{secrets.token_hex(8)}"
    run_on_all_ranks(transport, lambda: None if transport.rank else _put_down(token))
    told = token_name(transport.broadcast(token.name.encode() if transport.rank == 0 else None, "control"))
    clock_s = time.time()
    try:
        mine = json.dumps(asdict(_facts(config, directory.path / told, transport, clock_s))).encode()
        payloads = transport.gather([mine], "control")
    finally:
        if transport.rank == 0:
            token.unlink(missing_ok=True)
    return [read_facts(config, transport.size, rank, payload) for rank, payload in enumerate(payloads)]


def token_name(payload: bytes) -> str:
    """Return the name of the token that rank 0 has put down.

    A file of this name is made and removed in the folder of each site: it must not be one that lies there.

    Raises:
        PayloadError: any other name.
    """
    if not TOKEN.fullmatch(payload):
        raise PayloadError("aggregator, control: names no token of this check; nothing was written")
    return payload.decode()


def read_facts(config: RunConfig, ranks: int, rank: int, payload: bytes) -> RankFacts:
    """Return the facts of a rank from its payload.

    Raises:
        PayloadError: no facts, or those of another rank or of sites that it does not play.
    """
    facts = parsed(payload, RANK_FACTS, f"rank {rank}, control")
    own = {config.site_names[i] for i in sites_by_rank(config, ranks)[rank]}
    if facts.rank != rank or set(facts.shards) != own:
        raise PayloadError(f"rank {rank}, control: it speaks for another rank, or for sites that it does not play")
    return facts


def _put_down(token: Path) -> None:
    try:
        token.parent.mkdir(parents=True, exist_ok=True)
        token.touch()
    except OSError as error:
        raise InputError(
            f"run directory {token.parent}: cannot be written on {socket.gethostname()} ({error.strerror}); give a "
            "--run-dir that the account may write",
            code="file.not-permitted",
        ) from None


def _facts(config: RunConfig, token: Path, transport: Transport, clock_s: float) -> RankFacts:
    sites = [config.site_names[i] for i in sites_by_rank(config, transport.size)[transport.rank]]
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    device = _device(config, transport.local_rank)
    return RankFacts(
        rank=transport.rank,
        local_rank=transport.local_rank,
        host=socket.gethostname(),
        tasks=int(os.environ.get("SLURM_STEP_NUM_TASKS", 0)),
        shards={site: _shard(config, site, transport) for site in sites},
        device=device,
        gpu=gpu_of(device, given),
        given=given,
        launcher=launcher_of(os.environ),
        mpi=library_version() if transport.size > 1 else "",
        versions=_versions(),
        run_dir=_run_dir_problem(token, sites, private=config.private),
        free_bytes=_free_bytes(token.parent),
        clock_s=clock_s,
    )


def _device(config: RunConfig, local_rank: int) -> str:
    try:
        return device_name(config.runtime.device, local_rank, torch.cuda.device_count())
    except InputError:
        return "none"


def gpu_of(device: str, given: str) -> str:
    """Return which of the node's GPUs a device is, by what CUDA_VISIBLE_DEVICES lists.

    >>> gpu_of("cuda:1", "4,6"), gpu_of("cuda:0", ""), gpu_of("cpu", "4")
    ('6', '0', '')
    """
    kind, _, index = device.partition(":")
    if kind != "cuda":
        return ""
    listed = [name for name in given.split(",") if name]
    return listed[int(index)] if int(index) < len(listed) else index


def launcher_of(env: Mapping[str, str]) -> str:
    """Return what started this process, by the variables that it left.

    >>> launcher_of({"SLURM_STEP_NUM_TASKS": "4", "SLURM_MPI_TYPE": "pmix"})
    'srun --mpi=pmix'
    >>> launcher_of({"SLURM_STEP_NUM_TASKS": "2", "PRTE_LAUNCHED": "1"}), launcher_of({})
    ('mpirun', 'no launcher')
    """
    if "PRTE_LAUNCHED" in env or "HYDI_CONTROL_FD" in env:
        return "mpirun"
    if "SLURM_STEP_NUM_TASKS" in env:
        return f"srun --mpi={env.get('SLURM_MPI_TYPE', 'none')}"
    return "mpirun" if "OMPI_COMM_WORLD_SIZE" in env or "PMI_SIZE" in env else "no launcher"


def _shard(config: RunConfig, site: str, transport: Transport) -> tuple[str, str]:
    try:
        path = config.data.shard_path(site)
    except InputError as error:
        return config.data.shards, outgoing(transport, str(error))
    problem = shard_problem(path)
    # The built-in cohort is made where it is missing.
    made = config.data.phantom is not None and problem == NO_FILE
    return outgoing(transport, str(path)), "" if made else problem


def _free_bytes(folder: Path) -> int:
    """Return how much a disk has left; 0 where it does not say, as a node without the folder."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return 0


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "fedhpc": git_commit() or __version__}
    for package in COMPARED:
        with suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def _run_dir_problem(token: Path, sites: Sequence[str], *, private: bool) -> str:
    if not token.exists():
        return "is not the one that rank 0 sees"
    folders = [token.parent / "sites" / site for site in sites]
    try:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            probe = folder / token.name
            # Never a file or a link that is there: rank 0 chose the name, and may have put a link to the site's ledger.
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE)
            try:
                if private:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            finally:
                os.close(descriptor)
                probe.unlink()
    except OSError as error:
        return f"cannot be written{' and locked' if private else ''} ({error.strerror})"
    return ""
