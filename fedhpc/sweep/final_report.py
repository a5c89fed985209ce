"""A sweep as its report reads it, and the report at its end."""

from pathlib import Path

from fedhpc.errors import InputError
from fedhpc.records.study import CLAIMS, PLAN
from fedhpc.report.build import Report, write
from fedhpc.report.page import Content
from fedhpc.report.rows import Label, State, groups_of, row_of
from fedhpc.report.sources import of_study
from fedhpc.report.view import view_of
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.environment import run_quietly
from fedhpc.sweep.slurm_queue import look
from fedhpc.util.clock import now


def content_of(path: Path) -> Content:
    """Read a sweep as it stands.

    Raises:
        InputError: no sweep, or a file of it was cut or changed.
    """
    directory = SweepDirectory(path)
    sweep = directory.read()
    rows, views = [], []
    for trial, line in zip(sweep.trials, look(directory, sweep), strict=True):
        run = directory.trial(trial.name).run
        label = Label(trial.name, trial.baseline, trial.point)
        rows.append(row_of(trial.config, run, State(line.state, line.message), label))
        try:
            views.append(view_of(run.path, trial.config, rows[-1]))
        except InputError:
            # Of a trial that failed, perhaps since its directory is another run's: its row says so.
            if line.state == "finished":
                raise
    groups = tuple(groups_of(rows))
    return Content(sweep.name, tuple(sweep.grid), tuple(rows), groups, now(), tuple(views), (str(path),))


def write_report(sweep: Path) -> Path:
    """Write report.html, .json and .csv into the directory of a sweep; return the path of the page.

    Of a study the claims are written before, by the command line: a sweep is below the studies that are made of it.

    Raises:
        InputError: a file of the sweep was cut or changed.
        FileError: the page cannot be written.
    """
    out = sweep / "report.html"
    if (sweep / PLAN).exists():
        _write_claims(sweep)
        write(Report(of_study(sweep)), out)
        return out
    write(Report(content_of(sweep)), out)
    return out


def _write_claims(study: Path) -> None:
    done = run_quietly("study", str(study))
    if done.returncode:
        raise InputError(
            f"{study / CLAIMS}: was not written: {done.stderr.strip()}. Try again: run.py study {study}",
            code="sweep.report",
        )
