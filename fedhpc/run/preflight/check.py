"""The preflight of a run: facts from all ranks, judged at rank 0, the same answer everywhere."""

import os

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.preflight.facts import collect
from fedhpc.run.preflight.rules import notes, one_line, problems, rank_table
from fedhpc.run.rounds.late_updates import replay_problems
from fedhpc.run.rounds.tracking import tracking_problems
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import broadcast_json


def preflight(config: RunConfig, directory: RunDirectory, transport: Transport) -> tuple[str, str]:
    """Check all that can be checked before training.

    Returns:
        (what was found in a line, and a line a note; the map of the ranks as a table).

    Raises:
        InputError: at every rank, with one message a problem, and the map.
    """
    facts = collect(config, directory, transport)

    def judged() -> tuple[str, str]:
        done = len(directory.read_rounds()) if directory.rounds.exists() else 0
        found = [*tracking_problems(config), *replay_problems(config, done)]
        found += problems(facts, config, str(directory.path))
        if found:
            raise InputError(
                "\n".join([f"preflight found {len(found)} problem(s)", *found, rank_table(facts)]), code="preflight"
            )
        noted = notes(facts, int(os.environ.get("SLURM_NTASKS", 0)))
        return "\n".join([one_line(facts, config), *(f"  note: {note}" for note in noted)]), rank_table(facts)

    said, ranks = broadcast_json(transport, judged)
    return said, ranks
