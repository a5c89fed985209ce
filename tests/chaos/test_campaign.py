"""Chaos: a real run under faults, and that the invariants notice what they are for."""

import json
import os
import random
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedhpc.chaos.blows import KINDS, drawn
from fedhpc.chaos.campaign import small_disk
from fedhpc.chaos.invariants import Snapshot, snapshot, violations
from fedhpc.cli.main import main
from fedhpc.config.schema import RunConfig
from fedhpc.records.checkpoint import save_state
from fedhpc.records.run_directory import RunDirectory
from tests.conftest import Outcome

SITES = {"site1": 25, "site2": 20, "site3": 10, "site4": 8}
Break = Callable[[Path], None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, run_here: Callable[..., Outcome]) -> tuple[Path, RunConfig]:
    """A private run of three rounds."""
    folder = tmp_path_factory.mktemp("chaos")
    tree = {
        "name": "whole",
        "data": {
            "shards": str(folder / "data" / "{site}.h5"),
            "phantom": {"images": 160, "image_size": 32, "difficulty": 0.0},
            "sites": [{"name": name, "weight": weight} for name, weight in SITES.items()],
        },
        "training": {"rounds": 3, "local_epochs": 1, "batch_size": 16},
        "privacy": {"epsilon": 8.0, "sample_rate": 1.0},
        "evaluation": {"epsilon": None},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (folder / "whole.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    done = run_here(["train", folder / "whole.yaml", "--run-dir", folder / "run"])
    assert done.returncode == 0, done.stderr
    return folder / "run", RunConfig.model_validate(tree)


def test_whole_run_violates_nothing(finished: tuple[Path, RunConfig]) -> None:
    path, config = finished
    found, after = violations(RunDirectory(path), config, Snapshot())
    assert found == [] and after.rounds == 3
    assert violations(RunDirectory(path), config, after)[0] == []


def cut_ledger(run: Path) -> None:
    path = run / "sites" / "site2" / "ledger.jsonl"
    path.write_text("".join(path.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")


def edit_ledger(run: Path) -> None:
    path = run / "sites" / "site2" / "ledger.jsonl"
    path.write_text(path.read_text(encoding="utf-8").replace('"round": 1', '"round": 2'), encoding="utf-8")


def record_twice(run: Path) -> None:
    path = run / "rounds.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1]]), encoding="utf-8")


def record_more(run: Path) -> None:
    path = run / "rounds.jsonl"
    last = json.loads(path.read_text(encoding="utf-8").splitlines()[-1])
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**last, "round": 4}) + "\n")


def spoil_model(run: Path) -> None:
    save_state(run / "state", "round", 3, {"params": np.array([1.0, np.nan], np.float32)})


def lose_egress(run: Path) -> None:
    path = run / "sites" / "site1" / "egress.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text("".join(line for line in lines if '"kind": "update"' not in line), encoding="utf-8")


@pytest.mark.parametrize(
    ("spoil", "noticed"),
    [
        (cut_ledger, "ledger of site2: 4 charges before|ledger of site2: 3 charges before"),
        (edit_ledger, "not intact: .*ledger"),
        (record_twice, "not intact: .*is round 3; round 4 belongs there"),
        (record_more, "round 4 is recorded and was not charged"),
        (spoil_model, "is not finite"),
        (lose_egress, "egress, counts"),
    ],
)
def test_lost_or_changed_part_of_a_run_is_noticed(
    finished: tuple[Path, RunConfig], tmp_path: Path, spoil: Break, noticed: str
) -> None:
    path, config = finished
    copy = tmp_path / "run"
    shutil.copytree(path, copy)
    before = snapshot(RunDirectory(copy), config)
    spoil(copy)
    found, _ = violations(RunDirectory(copy), config, before)
    assert re.search(noticed, "\n".join(found)), found


def test_every_kind_of_fault_is_drawn_and_the_seed_repeats_them() -> None:
    kinds = {drawn(random.Random(seed), 4, small_disk=True).kind for seed in range(200)}
    assert kinds == set(KINDS)
    assert "full-disk" not in {drawn(random.Random(seed), 4, small_disk=False).kind for seed in range(200)}
    assert drawn(random.Random(5), 4, small_disk=True) == drawn(random.Random(5), 4, small_disk=True)


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "x"])
def test_chaos_without_time_is_refused(minutes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["chaos", "--minutes", minutes])
    assert end.value.code == 2 and "must be a number above 0" in capsys.readouterr().err


def test_chaos_without_mpirun_is_refused(
    tmp_path: Path, run_here: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    done = run_here(["chaos", "-o", tmp_path / "chaos"])
    assert done.returncode == 2 and "mpirun: is not on PATH" in done.stderr and not (tmp_path / "chaos").exists()


def test_small_disk_is_unmounted_however_a_run_ends(tmp_path: Path) -> None:
    """Its content may not be copied (a full disk), and a rank may still have a file open."""
    with pytest.raises((KeyboardInterrupt, OSError)), small_disk(tmp_path / "run") as (place, _):
        (tmp_path / "run-kept").write_text("no folder can be made here", encoding="utf-8")
        held = (place / "open").open("w", encoding="utf-8")
        raise KeyboardInterrupt
    held.close()
    assert not os.path.ismount(tmp_path / "run")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_nothing_is_lost_in_three_minutes_of_faults(run_python: Callable[..., Outcome], tmp_path: Path) -> None:
    done = run_python(["chaos", "--minutes", "3", "--seed", "20261126", "-o", tmp_path / "chaos"], timeout=1100)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 starts with a violation" in done.stdout
