"""The section `faults`: what a run does when a hospital's rank ends, hangs or does not come."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedhpc.util.section import Section
from fedhpc.util.text import as_written

if TYPE_CHECKING:
    from fedhpc.config.schema import RunConfig

Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Faults(Section):
    """What happens when the rank of a hospital ends or does not answer.

    A run goes on without a hospital only where `min_sites` allows it, and says so in the header, in rounds.jsonl, in
    summary.json, in the report and by exit status 3. What the hospital has on its disk stays whole: it takes part again
    at the next start. What was charged stays charged.
    """

    on_death: Literal["continue", "requeue", "stop"] = Field(
        default="requeue",
        description="when a rank ends in a round: continue without its hospitals (needs `mpirun --with-ft ulfm`, and "
        "min_sites), requeue (end with exit status 75 within seconds; the same command goes on), or stop (status 1)",
    )
    min_sites: Annotated[int, Field(ge=1)] | None = Field(
        default=None,
        description="the quorum: the fewest hospitals that a round may be made of; null: all that are declared",
    )
    round_timeout_s: Seconds | None = Field(
        default=None,
        description="seconds that rank 0 waits for a rank in a round before it takes it for dead; null: for ever",
    )
    join_timeout_s: Seconds | None = Field(
        default=None,
        description="the same before the first round, from the start of a rank on; null: for ever",
    )
    launcher_patience_s: Seconds | None = Field(
        default=60.0,
        description="seconds after which an `mpirun --with-ft ulfm` that lives on without a rank is ended where one "
        "was lost (Open MPI's may wait for ever; Linux); null: never. Its exit status is then 143 or 137",
    )
    absent: tuple[str, ...] = Field(
        default=(), description="hospitals that this start goes on without; weights are those of the others"
    )


def fault_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of the section."""
    faults, names = config.faults, [site.name for site in config.data.sites]
    unknown = sorted(set(faults.absent) - set(names))
    present = len(names) - len(set(faults.absent))
    needed = len(names) if faults.min_sites is None else faults.min_sites
    return [
        (bool(unknown), f"faults.absent: {', '.join(unknown)}: no such site; allowed: {', '.join(names)}"),
        (
            needed > len(names),
            f"faults.min_sites={faults.min_sites}: more than the {len(names)} sites of data.sites; lower it",
        ),
        (
            bool(faults.absent) and config.mode != "federated",
            f"faults.absent: belongs to mode=federated, not to mode={config.mode}; remove it",
        ),
        (
            bool(faults.absent) and not unknown and present < min(needed, len(names)),
            f"faults.absent={', '.join(faults.absent)}: leaves {present} of {len(names)} sites, and "
            f"faults.min_sites={as_written(faults.min_sites)} asks for {needed}: "
            f"{f'set faults.min_sites to {present} or less, or ' * (present > 0)}bring a site back",
        ),
        (
            faults.on_death == "continue" and needed >= len(names),
            f"faults.on_death=continue: faults.min_sites={as_written(faults.min_sites)} allows no hospital to be "
            f"missing: set it below {len(names)}, or on_death to requeue or stop",
        ),
    ]
