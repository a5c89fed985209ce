"""`run.py study CONFIG -o DIR` and `run.py study DIR`: plan, estimate, run what is missing, compare with claims."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fedhpc.config.problems import problems_message
from fedhpc.errors import ConfigError, InputError
from fedhpc.records.study import Size, Study, StudyDirectory
from fedhpc.run.display import Console
from fedhpc.study.calibration import calibrate
from fedhpc.study.claims import claims_of
from fedhpc.study.claims_table import claims_text, write_claims
from fedhpc.study.config import load_study
from fedhpc.study.plan import Planned, plan_study
from fedhpc.sweep import slurm_queue as queue
from fedhpc.sweep.commands import affordable, hand_over, prepare
from fedhpc.sweep.commands import resume as resume_sweep
from fedhpc.sweep.directory import Cluster, SweepDirectory
from fedhpc.sweep.local import at_once
from fedhpc.sweep.pace import time_left
from fedhpc.sweep.status import AT_REST
from fedhpc.util.text import wrapped

FINISHED, FAILED = 0, 1


@dataclass(frozen=True)
class Asked:
    """What the command line asks for.

    Attributes:
        config: the study's file.
        overrides: `key=value`.
        out: the study's folder.
        cluster: where it runs.
        size: of its cohorts and grids.
        parts: only these; empty: all.
        dry_run: show cells and the time they take; run none.
        calibrate: whether to time short runs first.
    """

    config: Path
    overrides: list[str]
    out: Path
    cluster: Cluster
    size: Size = "full"
    parts: Sequence[str] = ()
    dry_run: bool = False
    calibrate: bool = True


def start(asked: Asked) -> int:
    """Start a study, or go on with it where its folder has one; return the exit status."""
    console = Console(speaks=True, is_all=asked.dry_run)
    if asked.out.exists() and not asked.out.is_dir():
        raise InputError(f"-o {asked.out}: is a file. Give the study's folder, or a new one", code="command-line")
    config = load_study(asked.config, asked.overrides, size=asked.size, parts=asked.parts)
    planned = plan_study(config, asked.config, asked.out, size=asked.size)
    directory, records = SweepDirectory(asked.out), StudyDirectory(asked.out)
    if records.exists():
        _check_same(records, planned.study, asked.out)
        return _go_on(asked, directory, console)
    if directory.plan.exists():
        raise InputError(f"{asked.out}: holds a sweep that is no study; choose another folder", code="study.other")
    refused = affordable(planned.sweep.trials, (), console)
    if refused:
        raise ConfigError(problems_message(asked.config, refused))
    console.say(introduced(planned.study))
    names = [trial.name for trial in planned.sweep.trials]
    if asked.dry_run:
        for cell in planned.study.cells:
            console.say(f"  {cell.name}")
        console.say("a dry run: nothing was run or written")
        return FINISHED
    directory.create(planned.sweep, asked.cluster)
    records.write(planned.study)
    return _run(asked, planned, names, console)


def _run(asked: Asked, planned: Planned, names: Sequence[str], console: Console) -> int:
    """Estimate, and hand all cells over."""
    directory = SweepDirectory(asked.out)
    prepare(planned.sweep, asked.cluster, console)
    if asked.calibrate:
        _estimate(asked, directory, planned, names, console)
    status = hand_over(directory, planned.sweep, names, asked.cluster, console)
    return _closed(asked, directory, status, console)


def _estimate(
    asked: Asked, directory: SweepDirectory, planned: Planned, names: Sequence[str], console: Console
) -> None:
    """Time a short run of each kind, keep what the cells will take, and say how long all of them will."""
    where = " (the login node)" if asked.cluster == "slurm" else ""
    console.say(wrapped(f"how long it will take, by short runs on this machine{where}; --no-calibration: none"))
    directory.write_calibration(calibrate(directory, planned.sweep, names, console))
    console.say(_estimate_line(directory, planned.sweep.name, names, asked.cluster))


def _estimate_line(directory: SweepDirectory, name: str, names: Sequence[str], cluster: Cluster) -> str:
    sweep = directory.read()
    places = at_once(sweep.local) if cluster == "local" else sweep.slurm.at_once or len(names)
    left = time_left(directory, sweep, names, places)
    waits = "" if cluster == "local" else ", if SLURM starts so many and its nodes are as fast as this one"
    return wrapped(f"{name}: {len(names)} cells to run, {places} at a time{waits}: {left.text()}")


def _check_same(records: StudyDirectory, study: Study, out: Path) -> None:
    """Refuse to go on with another plan: the cells of both would be mixed.

    Raises:
        InputError: the folder has another study.
    """
    kept = records.read()
    plain = replace(kept, cells=tuple(replace(cell, status="pending") for cell in kept.cells))
    if plain != study:
        differ = sorted({cell.name for cell in kept.cells} ^ {cell.name for cell in study.cells})
        what = f"cells differ: {', '.join(differ[:4])}" if differ else "its cells have the same names and other values"
        raise InputError(
            f"{out}: holds a study of another plan ({what}); choose another folder, or go on with the same config, "
            "--quick or --medium, --parts and --set",
            code="study.other",
        )


def _go_on(asked: Asked, directory: SweepDirectory, console: Console) -> int:
    """Run what has failed or is missing; of finished cells nothing is done again."""
    sweep = directory.read()
    found = queue.look(directory, sweep)
    counts = Counter(line.state for line in found)
    failed = [f"  {line.name}: {line.message.splitlines()[0]}" for line in found if line.message]
    console.say(f"{sweep.name}: going on; finished and kept: {counts['finished']} of {len(found)} cells")
    for line in failed:
        console.say(wrapped(line))
    names = [line.name for line in found if line.state in AT_REST]
    if asked.dry_run or not names:
        console.say(f"to run: {', '.join(names) or 'nothing'}")
        return FINISHED if asked.dry_run else _closed(asked, directory, FINISHED, console)
    if asked.calibrate and not directory.calibration():
        directory.write_calibration(calibrate(directory, sweep, names, console))
    console.say(_estimate_line(directory, sweep.name, names, asked.cluster))
    return _closed(asked, directory, resume_sweep(asked.out, asked.cluster), console)


def _closed(asked: Asked, directory: SweepDirectory, status: int, console: Console) -> int:
    """Show the claims where all cells ended on this machine; a SLURM job writes them otherwise."""
    if asked.cluster == "slurm":
        console.say(f"the claims are written when all cells have ended; see how it goes: run.py watch {directory.path}")
        return status
    if status in (FINISHED, FAILED):
        show_claims(directory.path, console)
    return status


def show_claims(path: Path, console: Console) -> int:
    """Write and print the claims of a study from the cells that have finished.

    Raises:
        InputError: there is no study.
    """
    records = StudyDirectory(path)
    study = records.read()
    claims = claims_of(records, study)
    write_claims(records, study, claims)
    console.say(claims_text(study, claims))
    unfinished = [cell for cell in study.cells if cell.status != "finished"]
    if unfinished:
        console.say(wrapped(f"not finished: {', '.join(f'{cell.name} ({cell.status})' for cell in unfinished)}"))
    console.say(f"{records.claims}, .csv and .md")
    return FINISHED


def introduced(study: Study) -> str:
    """Return how many cells of each kind a study has.

    >>> introduced(Study("s", "quick", ()))
    's (quick): 0 cells'
    """
    counts = Counter(cell.kind for cell in study.cells)
    kinds = "".join(f", {count} {kind}" for kind, count in counts.items())
    return wrapped(f"{study.name}{f' ({study.size})' if study.size != 'full' else ''}: {len(study.cells)} cells{kinds}")
