"""Which sites take part in a start of a run, and who goes on where a rank is lost.

Under `mpirun --with-ft ulfm` (User-Level Failure Mitigation, MPI 5.0 draft; Open MPI 5) the ranks that are left revoke
the communicator, shrink it, and open the run again from the last round that is whole on all of their disks, as a
resumed run does: the round that was under way is done again without the lost sites and is charged again. So the run has
the bits of one that is resumed with the same sites in `faults.absent`. With other launchers, or where `faults` does not
allow it, this start ends and can be resumed.

A lost site keeps its residual, ledger and shard, and takes part again at the next start.
"""

import logging
import time
from dataclasses import dataclass

from pydantic import ValidationError

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, RankLostError, SilentRankError, SiteError
from fedhpc.run.start.placement import place_sites
from fedhpc.run.start.secure_channel import sites_by_rank
from fedhpc.transport.base import Wire
from fedhpc.transport.collectives import all_agree, run_on_all_ranks
from fedhpc.transport.launcher_guard import start_guard
from fedhpc.transport.mpi import MpiTransport
from fedhpc.transport.mpi_library import is_fault_tolerant
from fedhpc.util.text import as_written

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Membership:
    """The ranks that are there and the sites that take part.

    Attributes:
        declared: the config of all sites.
        config: the config of those that take part.
        wire: between the ranks that are there.
        news: what has happened since the start, for the logs; empty where nothing has.
        lost_s: the monotonic time at which this rank learned of the last rank that was lost; None for none.
    """

    declared: RunConfig
    config: RunConfig
    wire: Wire
    news: str = ""
    lost_s: float | None = None

    @property
    def absent(self) -> tuple[str, ...]:
        """The sites that are declared and take no part, in site order."""
        return tuple(name for name in self.declared.site_names if name not in self.config.site_names)


def start_membership(declared: RunConfig, wire: Wire) -> Membership:
    """Return who takes part at the start: all declared sites but those of `faults.absent`.

    Raises:
        InputError: at every rank, where the sites that are left break a rule of the config, or do not fit the nodes.
    """
    config = run_on_all_ranks(wire, lambda: without(declared, declared.faults.absent))
    if declared.faults.on_death == "continue" and wire.size > 1 and not is_fault_tolerant() and wire.rank == 0:
        LOG.warning(
            "faults.on_death=continue: this launcher ends all ranks where one ends; the run then goes on at its next "
            "start. `mpirun --with-ft ulfm` (Open MPI 5) lets the others go on"
        )
    return Membership(declared, config, place_sites(config, wire))


def members_left(members: Membership, lost: RankLostError) -> Membership:
    """Return who goes on after a rank was lost; every rank that is left calls this.

    Raises:
        RankLostError: where this start ends and can be resumed.
        SiteError: where `faults.on_death` is stop.
    """
    declared, wire, lost_s = members.declared, members.wire, time.monotonic()
    guard_launcher(declared, wire)
    if isinstance(lost, SilentRankError) or not (is_fault_tolerant() and isinstance(wire, MpiTransport)):
        raise _ended(declared, str(lost))
    shrunk, alive = wire.shrunk()
    names = [name for rank in range(wire.size) if rank not in alive for name in _sites_of(members.config, wire, rank)]
    what = f"lost the rank(s) of {', '.join(names) or 'no site'}"
    if 0 not in alive:
        raise _ended(declared, f"{what}: it was the aggregator's")
    absent = [name for name in declared.site_names if name in (*names, *members.absent)]
    left = len(declared.site_names) - len(absent)
    if declared.faults.on_death != "continue":
        raise _ended(declared, f"{what}, and faults.on_death={declared.faults.on_death}")
    if left < (declared.faults.min_sites or len(declared.site_names)):
        raise _ended(
            declared, f"{what}: {left} sites are left, and faults.min_sites={as_written(declared.faults.min_sites)}"
        )
    try:
        config = without(declared, absent)
    except InputError as error:
        raise _ended(declared, f"{what}, and the run cannot go on: {error}") from None
    news = f"{what}: going on with {left} of {len(declared.site_names)} sites from the last round that was saved"
    return Membership(declared, config, shrunk, news, lost_s)


def guard_launcher(declared: RunConfig, wire: Wire) -> None:
    """Have the launcher ended where it lives on after its ranks; a rank calls this that has learned of a lost one.

    Nothing is done on a host without rank 0: there ranks on other hosts may go on after all of this one's.
    """
    if is_fault_tolerant() and isinstance(wire, MpiTransport) and wire.shares_host(0):
        start_guard(declared.faults.launcher_patience_s)


def leave_together(members: Membership) -> None:
    """Wait for all ranks at the end of a run: one that left early would be taken for lost by those that finish it."""
    if not is_fault_tolerant() or members.wire.size == 1:
        return
    try:
        all_agree(members.wire, True)
    except RankLostError as error:
        guard_launcher(members.declared, members.wire)
        LOG.warning("a rank ended after the run: %s", error)


def without(declared: RunConfig, absent: "list[str] | tuple[str, ...]") -> RunConfig:
    """Return the config of the other sites.

    Raises:
        InputError: a rule of the config that they break.
    """
    try:
        return declared.without(absent)
    except ValidationError as error:
        problems = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors())
        raise InputError(f"without {', '.join(absent)} (faults): {problems}", code="config") from None


def _sites_of(config: RunConfig, wire: Wire, rank: int) -> list[str]:
    return [config.site_names[i] for i in sites_by_rank(config, wire.size)[rank]]


def _ended(declared: RunConfig, what: str) -> Exception:
    if declared.faults.on_death == "stop":
        return SiteError(f"{what}; the run is stopped", code="mpi.rank-lost")
    return RankLostError(f"{what}; this start ends, and the same command goes on after the last saved round")
