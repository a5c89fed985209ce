"""One run of a benchmark as a process of its own: `run.py train`, unless it has finished before."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhpc.errors import InputError
from fedhpc.util.progress import at_work

CHECKOUT = Path(__file__).resolve().parents[2]


def summary_of_run(config: Path, directory: Path, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the summary of a run of `config` with overrides ("key=value"), made now where it is not there.

    Raises:
        InputError: the run failed.
    """
    if not (directory / "summary.json").exists():
        words = [word for override in overrides for word in ("--set", override)]
        train = [str(CHECKOUT / "run.py"), "train", str(config), "--run-dir", str(directory)]
        print(directory, file=sys.stderr, flush=True)
        with at_work(f"run {directory.name}"):
            done = subprocess.run([sys.executable, *train, *words], stdout=subprocess.DEVNULL, check=False)
        if done.returncode:
            raise InputError(
                f"{directory}: the run ended with status {done.returncode}; see what it said above", code="bench.failed"
            )
    summary: dict[str, Any] = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    return summary
