"""The verbs `run.py sweep` and `run.py report`. What they use is imported when they run, so that `--help` is quick."""

import argparse
import json
from pathlib import Path

from fedhpc.errors import InputError

GOES_WITH = {"status": {"watch", "json"}, "resume": {"cluster"}, "cancel": set[str]()}
"""The options of each action on a sweep that was started."""
OF_A_START = {"cluster", "dry_run", "set", "run_dir"}


def add_sweep(sweep: argparse.ArgumentParser) -> None:
    """The arguments of `run.py sweep`."""
    sweep.add_argument("what", metavar="CONFIG|status|resume|cancel", help="a sweep's config to start; or what to do")
    sweep.add_argument("directory", nargs="?", type=Path, metavar="DIR", help="of status, resume, cancel: the sweep's")
    sweep.add_argument("--cluster", choices=("slurm", "local"), help="default: slurm; of resume: where it ran last")
    sweep.add_argument("--dry-run", action="store_true", help="show elements and scripts; submit and write nothing")
    sweep.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    sweep.add_argument("--run-dir", type=Path, metavar="DIR", help="default: runs/<name>")
    sweep.add_argument("--watch", action="store_true", help="of status: again and again, until all have ended")
    sweep.add_argument("--json", action="store_true", help="of status: one JSON object and nothing else")
    sweep.set_defaults(verb=_sweep)


def _sweep(options: argparse.Namespace) -> int:
    action = options.what if options.what in GOES_WITH else "a config"
    allowed = GOES_WITH.get(action, OF_A_START)
    given = {key for key in {*OF_A_START, "watch", "json"} if getattr(options, key)}
    if given - allowed:
        strange = ", ".join(f"--{key.replace('_', '-')}" for key in sorted(given - allowed))
        raise InputError(f"sweep {options.what}: {strange} does not go with {action}; see run.py sweep --help")
    if (options.directory is None) == (action != "a config"):
        raise InputError("use: run.py sweep CONFIG, or run.py sweep status|resume|cancel DIR")
    from fedhpc.sweep import commands as verb

    if action == "status":
        return verb.status(options.directory, watch=options.watch, as_json=options.json)
    if action == "resume":
        return verb.resume(options.directory, options.cluster)
    if action == "cancel":
        return verb.cancel(options.directory)
    asked = verb.Asked(Path(options.what), options.set, options.cluster or "slurm", options.run_dir)
    return verb.start(asked, dry_run=options.dry_run)


def add_report(report: argparse.ArgumentParser) -> None:
    """The arguments of `run.py report`."""
    report.add_argument("targets", type=Path, nargs="+", metavar="SWEEP|RUN", help="one sweep, or any number of runs")
    report.add_argument("-o", "--out", type=Path, metavar="FILE.html", help="default: report.html in the directory")
    report.add_argument("--json", action="store_true", help="one JSON object on standard output and nothing else")
    report.set_defaults(verb=_report)


def _report(options: argparse.Namespace) -> int:
    from fedhpc.report.build import report, write

    found = report(options.targets)
    out = options.out or (options.targets[0] / "report.html" if len(options.targets) == 1 else None)
    if out is None:
        raise InputError(f"{len(options.targets)} runs: say where the report goes: -o report.html")
    write(found, out)
    print(json.dumps(found.facts(), allow_nan=False) if options.json else found.told(out))
    return 0
