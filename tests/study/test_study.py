"""A study run to its end on this machine: a cell fails, the same command runs it again, then nothing; claims follow."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fedhpc.cli.main import main
from fedhpc.records.study import StudyDirectory
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.sweep.pace import expected_s, time_left
from tests.support.tiny_sweeps import tree_of

Run = Callable[..., tuple[int, str, str]]
REPO = Path(__file__).resolve().parents[2]


def write_study(folder: Path) -> Path:
    """A study of one cell: a federated run of the smallest cohort."""
    run = {key: value for key, value in tree_of(folder).items() if key not in ("grid", "baselines")}
    (folder / "run.yaml").write_text(yaml.safe_dump({**run, "privacy": "off"}), encoding="utf-8")
    point = {"epsilon": None, "density": 1.0}
    part = {"config": "run.yaml", "epsilons": [None], "densities": [1.0], "seeds": [0], "paper": point}
    study = {"name": "tiny", "parts": {"net": part}}
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study), encoding="utf-8")
    return path


def test_failed_cell_is_run_again_and_finished_kept(
    tmp_path: Path, run_python: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["study", write_study(tmp_path), "-o", out, "--cluster", "local", "--no-calibration"]
    broken = out / "elements" / "net-off-d1-s0"
    broken.mkdir(parents=True)
    (broken / "run.json").write_text("{", encoding="utf-8")
    status, said, err = run_python(words, timeout=240)
    assert status == 1, said + err
    states = {cell.name: cell.status for cell in StudyDirectory(out).read().cells}
    assert states == {"net-off-d1-s0": "failed"}
    assert "not finished: net-off-d1-s0 (failed)" in " ".join(said.split())

    (broken / "run.json").unlink()
    status, said, err = run_python(words, timeout=240)
    assert status == 0, said + err
    assert "finished and kept: 0 of 1 cells net-off-d1-s0: " in " ".join(said.split())
    claims = {one.name: one for one in StudyDirectory(out).read_claims()}
    assert claims["data residency"].verdict == "met" and claims["AUC federated, net"].value is not None
    assert all((out / f"claims.{ending}").exists() for ending in ("json", "csv", "md"))

    before = (broken / "outcome.json").read_bytes()
    assert main(list(map(str, words))) == 0
    assert "finished and kept: 1 of 1 cells\nto run: nothing" in capsys.readouterr().out
    assert (broken / "outcome.json").read_bytes() == before, "a finished cell was run again"
    assert main([*map(str, words), "--set", "parts.net.seeds=[1]"]) == 2
    assert "[study.other]" in capsys.readouterr().err


def test_output_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "out"
    file.write_text("mine", encoding="utf-8")
    for more in ([], ["--dry-run"]):
        words = ["study", str(REPO / "configs" / "study.yaml"), "-o", str(file), "--quick", "--cluster", "local"]
        assert main([*words, *more]) == 2
        assert "is a file" in capsys.readouterr().err and file.read_text(encoding="utf-8") == "mine"


def test_time_left_follows_what_cells_took(tmp_path: Path) -> None:
    from fedhpc.study.config import load_study
    from fedhpc.study.plan import plan_study

    path = REPO / "configs" / "study.yaml"
    planned = plan_study(load_study(path, [], parts=["network"]), path, tmp_path, size="full")
    sweep, names = planned.sweep, [trial.name for trial in planned.sweep.trials if trial.trains]
    dense, sparse = "network-off-d1-s0", "network-off-d0.1-s0"
    calibrated = dict.fromkeys(names, 100.0)
    assert {expected_s(sweep, {}, calibrated)[name] for name in names} == {100.0}
    # Twice what was expected: the other densities by their own kind; the six baselines by as much, together.
    found = expected_s(sweep, {dense: 200.0}, calibrated)
    baselines = [name for name in names if "-off-" not in name]
    assert {found[name] for name in names if name not in baselines} == {200.0}
    assert [found[name] for name in baselines] == pytest.approx([100.0 * (200 + 600) / (100 + 600)] * 6)
    assert found["codec"] is None
    directory = SweepDirectory(tmp_path)
    assert time_left(directory, sweep, [dense, sparse, "codec"], 2).text() == "time left not known yet"
    directory.write_calibration(calibrated)
    left = time_left(directory, sweep, [dense, sparse, "codec"], 2)
    assert (left.seconds, left.unknown) == (100.0, 1)


def test_calibration_counts_what_the_schedule_trains() -> None:
    from fedhpc.bench.schedule import TURNS
    from fedhpc.study.calibration import ROUNDS_OF_SCHEDULE

    assert ROUNDS_OF_SCHEDULE == 2 * TURNS


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_quick_study_ends_with_every_cell(tmp_path: Path, run_python: Run) -> None:
    out = tmp_path / "study"
    status, said, err = run_python(
        ["study", REPO / "configs" / "study.yaml", "-o", out, "--quick", "--cluster", "local"], timeout=1400
    )
    assert status == 0, said + err
    assert {cell.status for cell in StudyDirectory(out).read().cells} == {"finished"}
    assert not [one.name for one in StudyDirectory(out).read_claims() if one.verdict == "not measured"]
    assert json.loads((out / "report.json").read_text(encoding="utf-8"))
