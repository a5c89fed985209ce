"""What the trials of a sweep are given: of a SLURM cluster, or of one machine."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedhpc.util.section import Section

OWNED_FLAGS = {
    *("account", "array", "constraint", "cpus-per-task", "dependency", "error", "gpus-per-task", "gres", "job-name"),
    *("mem-per-cpu", "nodes", "ntasks", "ntasks-per-node", "open-mode", "output", "partition", "qos", "requeue"),
    *("signal", "time", "wckey"),
}
"""The flags of sbatch that the sweep sets itself, by keys of their own or because it depends on them."""
Flag = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$")]


class Slurm(Section):
    """What SLURM is asked for: each trial is a job of an array, with these resources, whatever it trains."""

    partition: str | None = Field(
        default=None, description="partition (sbatch --partition); null: the cluster's default"
    )
    account: str | None = Field(
        default=None, description="account that is charged (sbatch --account); null: the cluster's default"
    )
    qos: str | None = Field(default=None, description="quality of service (sbatch --qos); null: the cluster's default")
    constraint: str | None = Field(default=None, description="node features (sbatch --constraint); null: none")
    gres: str | None = Field(default=None, description="per node, as sbatch takes it, for example gpu:4")
    nodes: Annotated[int, Field(ge=1)] = Field(default=1, description="nodes of a trial")
    ranks: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="MPI ranks of a trial over all its nodes; auto: one for each hospital"
    )
    cpus_per_rank: Annotated[int, Field(ge=1)] = Field(default=1, description="CPU cores of a rank")
    gpus_per_rank: Annotated[int, Field(ge=0)] = Field(default=0, description="GPUs of a rank")
    memory_gb_per_rank: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="memory of a rank in GB; null: the cluster's default"
    )
    time_min: Annotated[int, Field(ge=1)] = Field(default=120, description="time limit of a trial in minutes")
    at_once: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="trials that run at once at most: the %N of the array; null: as many as the cluster allows",
    )
    mpi: Literal["pmix", "pmi2", "mpirun"] = Field(
        default="pmix",
        description="how ranks are started: srun --mpi=pmix or pmi2, or mpirun inside the trial's allocation",
    )
    requeues: Annotated[int, Field(ge=0, le=100)] = Field(
        default=3,
        description="how often a trial that runs out of time, or is preempted, is queued again without being asked",
    )
    signal_s: Annotated[int, Field(ge=1)] = Field(
        default=120,
        description="seconds before its time limit at which a trial gets SIGUSR1: it saves, and is queued again",
    )
    setup: tuple[str, ...] = Field(
        default=(), description="shell lines before the program, such as `module load openmpi`"
    )
    extra: dict[Flag, str | int | Literal[True]] = Field(
        default={}, description="any other flag of sbatch, without its dashes, such as {reservation: night}"
    )

    @model_validator(mode="after")
    def _rules(self) -> "Slurm":
        problems = [
            f"slurm.extra.{flag}: is set by the sweep itself; see the other keys of slurm"
            for flag in sorted(OWNED_FLAGS & self.extra.keys())
        ]
        if self.ranks != "auto" and self.ranks % self.nodes:
            problems.append(f"slurm.ranks={self.ranks}: must be a multiple of slurm.nodes={self.nodes}")
        if problems:
            raise ValueError("\n".join(problems))
        return self


class Local(Section):
    """One machine: how many trials run at once, and what each takes. A trial waits until there is memory for it."""

    at_once: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        default="auto", description="trials that run at once; auto: as many as the cores allow"
    )
    ranks: Annotated[int, Field(ge=1)] = Field(
        default=1, description="MPI ranks of a trial; 1: all sites in one process"
    )
    cpus_per_rank: Annotated[int, Field(ge=1)] = Field(default=1, description="CPU cores of a rank")
    memory_gb_per_rank: Annotated[float, Field(gt=0)] = Field(
        default=1.0, description="memory of a rank in GB: a trial waits until so much is free"
    )
