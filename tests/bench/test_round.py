"""`run.py bench round`: ratios are to the floor of the same workload, and a ratio that grows beyond noise is found."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from fedhpc.bench.round_report import COMPARED, markdown, read_recorded, record, recorded_of, rows_of, worse
from fedhpc.cli.main import main

MACHINE = {"cores": 2, "memory_gb": 8, "python": "3", "torch": "2"}


def run(way: str, repeat: int, factor: float) -> dict[str, Any]:
    names = ("whole_s", "whole_cpu_s", "best_round_s", "round_s", "round_cpu_s", "first_round_s", "pss_mb")
    figures = {name: 10.0 * factor * (1 + 0.01 * repeat) for name in names}
    phases = {"train": 8.0, "total": 9.0 * factor}
    place = {"workload": "tiny", "way": way, "ranks": 4, "repeat": repeat}
    return {**place, **figures, "phases_s": phases, "auc": 0.75}


def result(factor: float) -> dict[str, Any]:
    ways = (("floor", 1.0), ("full", factor))
    runs = [run(way, repeat, one) for repeat in range(3) for way, one in ways]
    return {"machine": MACHINE, "rounds": {"tiny": 3}, "runs": runs}


def test_ratio_is_to_the_floor() -> None:
    floor, full = rows_of(result(1.2))
    assert set(floor["ratios"].values()) == {1.0}
    assert full["ratios"]["whole_s"] == pytest.approx(1.2)
    assert full["deviations"]["whole_s"] == pytest.approx(0, abs=1e-9)
    assert "| 1.200 (missed) |" in markdown(result(1.2))


def test_check_warns_beyond_noise_only(tmp_path: Path) -> None:
    before = recorded_of(result(1.2))
    assert worse(result(1.2), before) == worse(result(1.25), before) == worse(result(0.9), before) == []
    found = worse(result(1.3), before)
    assert len(found) == len(COMPARED) and all("tiny/full/4" in line for line in found)
    noisy = copy.deepcopy(before)
    for one in noisy["ratios"]["tiny/full/4"].values():
        one["deviation"] = 0.1
    assert worse(result(1.3), noisy) == []
    assert "no ratio" in worse(result(1.2), {"ratios": {}})[0]
    record(result(1.2), tmp_path / "r.json")
    record({**result(1.2), "runs": [{**one, "ranks": 2} for one in result(1.2)["runs"]]}, tmp_path / "r.json")
    assert set(read_recorded(tmp_path / "r.json")["ratios"]) == {"tiny/full/4", "tiny/full/2"}


@pytest.mark.slow
def test_every_way_of_the_smallest_workload_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "round", "-o", str(tmp_path), "--workloads", "tiny", "--ways", "plain", "full", "private"]
    assert main([*words, "--ranks", "2", "--repeats", "1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["way"] for row in found["rows"]] == ["floor", "plain", "full", "private"]
    assert all(row["medians"]["pss_mb"] > 100 and row["medians"]["round_cpu_s"] > 0 for row in found["rows"])
