"""`run.py bench round`: ratios are to the floor of the same workload, and a ratio that grows beyond noise is found."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from fedhpc.bench.round_report import COMPARED, Ratio, markdown, read_recorded, record, recorded_of, rows_of, worse
from fedhpc.bench.round_turns import Run, take_turns
from fedhpc.cli.main import main
from fedhpc.errors import InputError
from fedhpc.util.processes import born

REPO = Path(__file__).resolve().parents[2]
MACHINE = {"cores": 2, "memory_gb": 8, "python": "3", "torch": "2"}


def run(way: str, repeat: int, factor: float) -> dict[str, Any]:
    figures = {name: 10.0 * factor * (1 + 0.01 * repeat) for name in ("whole_s", "whole_cpu_s", "first_round_s")}
    # The machine is twice as slow in the second turn, for all.
    rounds = [{name: speed * factor for name in ("round_s", "round_cpu_s")} for speed in (1.0, 2.0, 1.1)]
    place = {"workload": "tiny", "way": way, "ranks": 4, "repeat": repeat}
    return {**place, **figures, "rounds": rounds, "phases_s": {"exchange": 0.1}, "auc": 0.75}


def result(factor: float) -> dict[str, Any]:
    ways = (("floor", 1.0), ("full", factor))
    runs = [run(way, repeat, one) for repeat in range(3) for way, one in ways]
    memory = [{"workload": "tiny", "way": way, "ranks": 4, "pss_mb": 100 * one} for way, one in ways]
    return {"machine": MACHINE, "rounds": {"tiny": 3}, "runs": runs, "memory": memory}


def test_ratio_is_to_the_floor() -> None:
    floor, full = rows_of(result(1.2))
    assert {one["median"] for one in floor["ratios"].values()} == {1.0}
    assert full["ratios"]["whole_s"]["median"] == pytest.approx(1.2)
    assert full["ratios"]["pss_mb"] == {"median": 1.2, "low": 1.2, "high": 1.2, "error": None}
    assert full["ratios"]["round_s"]["error"] == pytest.approx(0, abs=1e-9), "a pair sees the same machine"
    assert "| 1.200 (missed) |" in markdown(result(1.2))


def test_ratio_outlier_moves_no_error() -> None:
    even = Ratio.of([1.0, 1.1, 1.2, 1.3, 1.4])
    assert Ratio.of([1.0, 1.1, 1.2, 1.3, 9.0]) == even
    assert even.median == 1.2 and (even.low, even.high) == (1.1, 1.3)
    assert even.error == pytest.approx(1.2533 * 1.4826 * 0.1 / 5**0.5)


def test_parts_alone_have_a_table() -> None:
    both = result(1.2)
    assert "| 120 |" in markdown({**both, "runs": []}).replace(" 120 | -", " 120 |")
    assert set(rows_of({**both, "memory": []})[1]["ratios"]) == {*COMPARED, "first_round_s", "whole_s"} - {"pss_mb"}


def test_check_warns_beyond_noise_only(tmp_path: Path) -> None:
    before = recorded_of(result(1.2))
    assert worse(result(1.2), before) == worse(result(1.25), before) == worse(result(0.9), before) == []
    found = worse(result(1.3), before)
    assert len(found) == len(COMPARED) and all("tiny/full/4" in line for line in found)
    noisy = copy.deepcopy(before)
    for one in noisy["ratios"]["tiny/full/4"].values():
        one["error"] = 0.1
    assert worse(result(1.3), noisy) == []
    assert "no round_s" in worse(result(1.2), {"ratios": {}})[0]
    path = tmp_path / "r.json"
    record({**result(1.2), "memory": []}, path)
    record({**result(1.2), "runs": []}, path)
    assert set(read_recorded(path)["ratios"]["tiny/full/4"]) == set(COMPARED), "parts are kept beside each other"


def command(name: str, rounds: int, work: str, folder: Path) -> Run:
    """A process and a child of it; the child does `work`, a Python statement, and writes a line, in each round."""
    child = f"for i in range({rounds}):\n    {work}\n    open({str(folder / name)!r}, 'a').write('x\\n')"
    whole = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {child!r}]))"
    return Run([sys.executable, "-c", whole], folder / name, folder / f"{name}.log", lambda: dict(os.environ))


SPIN = "import time; end = time.process_time() + 0.05\n    while time.process_time() < end: pass"


def test_turns_count_each_run_alone(tmp_path: Path) -> None:
    runs = [command("a", 4, SPIN, tmp_path), command("b", 4, SPIN.replace("0.05", "0.55"), tmp_path)]
    take_turns(runs, 4)
    (a, b) = ([turn.cpu_s for turn in one.turns] for one in runs)
    assert len(a) == len(b) == 5
    assert sum(a) >= 0.2
    # CPU seconds: of the machine's load only the start of Python, which both have.
    assert sum(b) - sum(a) == pytest.approx(2.0, abs=0.7)


def test_turns_stop_children_between(tmp_path: Path) -> None:
    run = command("a", 10_000, "import time; time.sleep(0.001)", tmp_path)
    try:
        run.to_next_round()
        lines = (tmp_path / "a").read_text()
        time.sleep(0.2)
        assert (tmp_path / "a").read_text() == lines
        while (tmp_path / "a").read_text() == lines:  # it may have made several before it was stopped
            run.to_next_round()
    finally:
        run.kill()


def test_turns_failed_run_ends_others(tmp_path: Path) -> None:
    runs = [command("a", 9, SPIN, tmp_path), command("b", 9, "assert i < 1, 'spoilt'", tmp_path)]
    with pytest.raises(InputError, match="spoilt"):
        take_turns(runs, 9)
    lines = (tmp_path / "a").read_text()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    time.sleep(0.2)
    assert (tmp_path / "a").read_text() == lines, "no process of it is left"


def test_turns_killed_leave_no_process(tmp_path: Path) -> None:
    """SIGKILL, while one command and its child are stopped and another's run."""
    program = f"""
from pathlib import Path
from fedhpc.bench.round_turns import take_turns
from tests.bench.test_round import command
def waiting(name):
    file = {str(tmp_path)!r} + "/" + name + ".pids"
    written = "f'{{os.getppid()}} {{os.getpid()}}'"
    return f"import os, time; open({{file!r}}, 'w').write({{written}}); time.sleep(99 * i)"
take_turns([command(name, 9, waiting(name), Path({str(tmp_path)!r})) for name in "ab"], 9)
"""
    bench = subprocess.Popen([sys.executable, "-c", program], cwd=REPO)
    deadline_s = time.monotonic() + 60
    files = [tmp_path / f"{name}.pids" for name in "ab"]
    while not all(file.exists() and len(file.read_text().split()) == 2 for file in files):
        assert time.monotonic() < deadline_s and bench.poll() is None
        time.sleep(0.01)
    pids = [int(pid) for file in files for pid in file.read_text().split()]
    assert all(map(born, pids))
    bench.kill()
    bench.wait()
    while any(map(born, pids)):
        assert time.monotonic() < deadline_s, "a process is left"
        time.sleep(0.01)


@pytest.mark.slow
def test_every_way_of_the_smallest_workload_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "round", "-o", str(tmp_path), "--workloads", "tiny", "--ways", "plain", "full", "private"]
    assert main([*words, "--ranks", "2", "--repeats", "1", "--json"]) == 0
    rows = {row["way"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert list(rows) == ["floor", "plain", "full", "private"]
    assert all(row["medians"]["pss_mb"] > 100 and row["medians"]["round_cpu_s"] > 0 for row in rows.values())
    assert rows["plain"]["medians"]["auc"] == pytest.approx(rows["floor"]["medians"]["auc"], abs=0.01), "the same model"
