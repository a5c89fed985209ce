"""A sweep that was run to its end on this machine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.support.tiny_sweeps import tree_of, write_sweep


class Ran(NamedTuple):
    """A sweep that has ended: its config, its directory, and what `run.py sweep` printed and returned."""

    config: Path
    directory: Path
    status: int
    out: str


@pytest.fixture(scope="session")
def local_sweep(tmp_path_factory: pytest.TempPathFactory, run_python: Callable[..., tuple[int, str, str]]) -> Ran:
    """All of it by `--cluster local`; trial 001 fails, because its directory holds a round of another config."""
    folder = tmp_path_factory.mktemp("sweep")
    config, directory = write_sweep(folder), folder / "run"
    broken = directory / "elements" / "tiny-001"
    broken.mkdir(parents=True)
    other = {key: value for key, value in tree_of(folder).items() if key not in ("grid", "baselines")}
    (broken / "config.yaml").write_text(yaml.safe_dump({**other, "seed": 99}), encoding="utf-8")
    record = {"round": 1, "per_site": {}, "ledger_heads": {}, "seconds": {"total": 1.0}}
    (broken / "rounds.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    done = run_python(["sweep", config, "--cluster", "local", "--run-dir", directory], timeout=240)
    return Ran(config, directory, done[0], done[1] + done[2])
