"""A study on a real cluster: a run of two ranks and a command beside it as one array, and the claims after both."""

import json
import sys

import pytest
import yaml

from fedhpc.records.study import StudyDirectory
from tests.slurm.cluster import until
from tests.slurm.conftest import Path, Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(400)]


def test_array_of_unlike_cells_ends_with_claims(slurm: Slurm, cohort: Path) -> None:
    folder = slurm.folder / "a study"
    folder.mkdir()
    point = {"epsilon": None, "density": 1.0}
    part = {"config": str(cohort), "epsilons": [None], "densities": [1.0], "seeds": [0], "paper": point}
    part["set"] = {"training": {"rounds": 2, "local_epochs": 1}}
    slurm_section = {"ranks": 2, "nodes": 2, "time_min": 5, "at_once": 2, "memory_gb_per_rank": 1}
    study = {"name": "studied", "parts": {"net": part}, "codec": {"size": 1000}, "slurm": slurm_section}
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    words = ("run.py", "study", folder / "study.yaml", "-o", folder / "run", "--no-calibration")
    said = slurm.ask(sys.executable, *words, limit_s=120)
    assert "submitted 2 trials as jobs" in said
    records = StudyDirectory(folder / "run")
    assert until(lambda: (folder / "run" / "report.json").exists(), 300, 1.0), slurm.ask("squeue")
    assert {cell.name: cell.status for cell in records.read().cells} == {
        "codec": "finished",
        "net-off-d1-s0": "finished",
    }
    assert {one.name: one.verdict for one in records.read_claims()}["data residency"] == "met"
    assert json.loads((folder / "run" / "elements" / "codec" / "result.json").read_text())["size"] == 1000
