"""The report at the end of a sweep, by the command line: a sweep is below the reports that are made of it."""

import subprocess
import sys
from pathlib import Path

from fedhpc.errors import InputError


def write_report(sweep: Path) -> Path:
    """Write report.html, .json and .csv into the directory of a sweep; return the path of the page.

    Raises:
        InputError: the report could not be made.
    """
    out = sweep / "report.html"
    command = [sys.executable, "-m", "fedhpc", "report", str(sweep), "-o", str(out)]
    done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise InputError(
            f"{out}: was not written: {done.stderr.strip()}. Try again: run.py report {sweep} -o {out}",
            code="sweep.report",
        )
    return out
