"""`run.py sweep CONFIG` and `run.py sweep status|resume|cancel DIRECTORY`."""

import json
import os
import signal
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from fedhpc.config.problems import problems_message
from fedhpc.errors import ConfigError, InputError
from fedhpc.run.display import Console
from fedhpc.sweep import slurm
from fedhpc.sweep import slurm_queue as queue
from fedhpc.sweep.config import Sweep, Trial, expand, ranks_of
from fedhpc.sweep.directory import Cluster, SweepDirectory, submission
from fedhpc.sweep.final_report import write_report
from fedhpc.sweep.local import StoppedError, check_memory, run_all
from fedhpc.sweep.status import AT_REST, latest, runs_here, status_text
from fedhpc.util.processes import exists
from fedhpc.util.progress import at_work
from fedhpc.util.text import count_of, first_names, shown, wrapped

FINISHED, FAILED, RESUMABLE = 0, 1, 75
UNDER_WAY = ("pending", "running")
REDRAW_S, POLL_S, GRACE_S = 5.0, 0.2, 30.0
CLEAR_SCREEN = "\x1b[H\x1b[2J"


@dataclass(frozen=True)
class Asked:
    """A sweep to start: its config with overrides, where it runs, and its directory (None: runs/<name>)."""

    config: Path
    overrides: list[str]
    cluster: Cluster
    run_dir: Path | None


def start(asked: Asked, *, dry_run: bool) -> int:
    """Check everything, tell what it costs, then hand all trials over (SLURM) or run them (one machine)."""
    console = Console(speaks=True, is_all=dry_run)
    expansion, cluster = expand(asked.config, asked.overrides), asked.cluster
    directory = SweepDirectory(asked.run_dir or Path("runs") / expansion.sweep.name)
    if not dry_run:
        directory.check_free()
    problems = [*expansion.problems, *affordable(expansion.sweep.trials, (), console)]
    if problems:
        raise ConfigError(problems_message(asked.config, problems))
    sweep = expansion.sweep
    console.say(_introduced(sweep, cluster))
    if dry_run:
        return _show(directory, sweep, cluster, console)
    directory.create(sweep, cluster)
    names = [trial.name for trial in sweep.trials]
    try:
        return hand_over(directory, sweep, names, cluster, console)
    except InputError:
        if not directory.submissions():
            directory.withdraw()
        raise


def resume(path: Path, cluster: Cluster | None) -> int:
    """Run again what is missing or failed, and only that."""
    directory, console = SweepDirectory(path), Console(speaks=True)
    sweep = directory.read()
    found = queue.look(directory, sweep)
    unknown = [line.name for line in found if line.state == "unknown"]
    if unknown:
        raise InputError(
            f"{path}: SLURM does not say whether {len(unknown)} trials still run ({unknown[0]} ...); a trial must "
            "not run twice at a time: try again when `squeue` answers",
            code="slurm.no-answer",
        )
    names = [line.name for line in found if line.state in AT_REST]
    if not names:
        console.say(f"{status_text(sweep, found)}\nnothing to resume")
        return FINISHED
    again = [trial for trial in sweep.trials if trial.name in names]
    own = {ledger for name in names for ledger in directory.trial(name).ledgers()}
    refused = affordable(again, own, console)
    if refused:
        raise ConfigError(problems_message(directory.plan, refused))
    console.say(f"{sweep.name}: {len(names)} of {len(found)} trials run again: {first_names(names, 4)}")
    before = [one.cluster for one in directory.submissions()]
    return hand_over(directory, sweep, names, cluster or (before[-1] if before else "slurm"), console)


def cancel(path: Path) -> int:
    """End what waits or runs, and the report after it."""
    directory = SweepDirectory(path)
    sweep = directory.read()
    found = [line for line in queue.look(directory, sweep) if line.state in (*UNDER_WAY, "unknown")]
    if not found:
        print(f"{sweep.name}: nothing waits or runs")
        return FINISHED
    names = {line.name for line in found}
    mine = [one for name, one in latest(directory.submissions()).items() if name in names]
    jobs = [line.job for line in found if line.job]
    directory.add_cancelled(sorted(names))
    if jobs:
        queue.cancel([*jobs, *dict.fromkeys(one.report for one in mine if one.report)])
    for pid in {one.pid for one in mine if runs_here(one)}:
        _end(pid)
    print(f"{sweep.name}: cancelled {len(found)} trials; `run.py sweep resume {path}` runs them again")
    return FINISHED


def status(path: Path, *, watch: bool, as_json: bool) -> int:
    """The table; with `watch` again and again, until all have ended."""
    directory = SweepDirectory(path)
    sweep = directory.read()
    while True:
        found = queue.look(directory, sweep)
        if as_json:
            print(json.dumps({"name": sweep.name, "trials": [asdict(line) for line in found]}, allow_nan=False))
        else:
            print(f"{CLEAR_SCREEN if watch and sys.stdout.isatty() else ''}{status_text(sweep, found)}", flush=True)
        if not watch or not any(line.state in (*UNDER_WAY, "unknown") for line in found):
            return FINISHED
        time.sleep(REDRAW_S)


def affordable(trials: Sequence[Trial], own: Collection[str], console: Console) -> tuple[str, ...]:
    """Tell what the trials cost the patients, or return why some cannot fit.

    Trials on synthetic patients with an account of their own are not counted.
    """
    counted = [trial for trial in trials if trial.trains and trial.config.private and not _has_own_account(trial)]
    if not counted:
        return ()
    # It imports torch, which a sweep without privacy does not need here.
    from fedhpc.sweep.budget import budget_of

    with at_work("adding up what the runs cost"):
        budget = budget_of(counted, own)
    for line in () if budget.refused else budget.told:
        console.say(wrapped(line))
    return budget.refused


def _has_own_account(trial: Trial) -> bool:
    """Return whether its patients are synthetic and it is charged to an account that no other trial is charged to."""
    account = trial.config.privacy.site_ledger
    return trial.config.data.phantom is not None and account is not None and f"/{trial.name}/" in account


def _introduced(sweep: Sweep, cluster: Cluster) -> str:
    baselines = list(dict.fromkeys(trial.baseline for trial in sweep.trials if trial.baseline))
    count = sum(not trial.baseline for trial in sweep.trials)
    others = count_of(len(sweep.trials) - count, "baseline run")
    lines = [f"{sweep.name}: {count_of(count, 'point')} of a grid, {others}"]
    lines += [f"  {key}: {', '.join(map(shown, values))}" for key, values in sweep.grid.items()]
    lines += [f"  baselines: {', '.join(baselines)}"] if baselines else []
    if cluster == "slurm":
        s = sweep.slurm
        lines.append(
            f"each on {count_of(ranks_of(sweep), 'rank')} of {count_of(s.cpus_per_rank, 'core')} over "
            f"{count_of(s.nodes, 'node')}, at most {s.time_min} min, {s.at_once or 'all'} at once"
        )
    return "\n".join(lines)


def _show(directory: SweepDirectory, sweep: Sweep, cluster: Cluster, console: Console) -> int:
    for trial in sweep.trials:
        values = [trial.baseline, *(f"{key}={shown(value)}" for key, value in trial.point.items())]
        console.say(f"  {trial.name}  {' '.join(filter(None, values))}")
    if cluster == "slurm":
        for name, script in slurm.scripts(directory, sweep, len(sweep.trials)).items():
            console.say(f"--- the script of {name}\n{script}")
    console.say("a dry run: nothing was submitted or written")
    return FINISHED


def prepare(sweep: Sweep, cluster: Cluster, console: Console) -> None:
    """Make what the built-in cohort lacks now: trials that start together would all make it at the same place."""
    built_in = [trial.config for trial in sweep.trials if trial.config.data.phantom is not None]
    if not built_in:
        return
    from fedhpc.run.start.built_in_cohort import make_phantoms, make_reference
    from fedhpc.run.start.secure_channel import make_demo

    for config in built_in:
        make_phantoms(config, config.site_names, console)
        make_reference(config, console)
        if config.exchange.tls and (ranks_of(sweep) if cluster == "slurm" else sweep.local.ranks) > 1:
            make_demo(config, console)


def hand_over(directory: SweepDirectory, sweep: Sweep, names: Sequence[str], cluster: Cluster, console: Console) -> int:
    """Make what the built-in cohort lacks, then submit the named trials or run them here; return the exit status."""
    prepare(sweep, cluster, console)
    if cluster == "local":
        return _run_here(directory, sweep, names, console)
    ids = slurm.submit(directory, sweep, names)
    directory.add(submission(cluster, ids))
    report = slurm.submit_report(directory, sweep, ids[names[0]])
    directory.add_report(report)
    jobs = f"jobs {ids[names[0]]} to {ids[names[-1]]}" if len(names) > 1 else f"job {ids[names[0]]}"
    console.say(
        f"submitted {count_of(len(names), 'trial')} as {jobs}; job {report} then makes the report\n"
        f"see how they stand: python run.py sweep status {directory.path}"
    )
    return FINISHED


def _run_here(directory: SweepDirectory, sweep: Sweep, names: Sequence[str], console: Console) -> int:
    check_memory(sweep.local)
    directory.add(submission("local", dict.fromkeys(names, "")))
    try:
        finished = run_all(directory, sweep, names, console)
    except StoppedError as error:
        console.say(f"stopped by {error}; `python run.py sweep resume {directory.path}` goes on")
        return RESUMABLE
    console.say(f"report: {write_report(directory.path)}")
    return FINISHED if finished else FAILED


def _end(pid: int) -> None:
    """SIGTERM to the process that runs a sweep here, and wait for it to end its trials."""
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + GRACE_S
    while exists(pid) and time.monotonic() < until:
        time.sleep(POLL_S)
