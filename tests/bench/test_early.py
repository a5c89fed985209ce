"""`bench early`: both kinds of runs on the same new patients; nothing that is done is done again."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedhpc.bench import early
from fedhpc.errors import InputError
from fedhpc.records.metrics import BINS, EARLY, LATE, NEGATIVE
from tests.support.tiny_sweeps import tree_of

NETWORK = """from torch import nn
def make(task):
    return nn.Sequential(nn.AvgPool2d(4), nn.Flatten(), nn.Linear(64, len(task.classes)))
"""


def config_file(folder: Path, **more: Any) -> Path:
    (folder / "network.py").write_text(NETWORK, encoding="utf-8")
    run = {key: value for key, value in tree_of(folder).items() if key not in ("grid", "baselines")}
    path = folder / "run.yaml"
    path.write_text(
        yaml.safe_dump({**run, "model": {"build": "network.py:make"}, "privacy": "off", **more}), encoding="utf-8"
    )
    return path


def test_both_ways_are_compared_on_the_same_patients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(early, "RESAMPLES", 20)
    out = tmp_path / "out"
    out.mkdir()
    wanted = early.Experiment(config_file(tmp_path), ["training.rounds=1"], ["training.lr=0.02"], (0,), 120)
    found = early.run(wanted, out)
    assert found["held_out"] == 46 + 35 + 22 + 16 and found["early"] > 0, "by the declared weights"
    for row in found["rows"]:
        federated, centralised = (row[way]["mean"] for way in ("federated", "centralised"))
        assert row["difference"]["mean"] == pytest.approx(federated - centralised)
    made = {path: path.stat().st_mtime_ns for path in out.glob("*/summary.json")}
    assert {path.parent.name for path in made} == {"centralised0", "federated0"}
    assert early.run(wanted, out) == found, "the same patients, and the same resamples of them"
    assert {path: path.stat().st_mtime_ns for path in made} == made
    assert "new images" in early.text(found)


def test_config_without_phantoms_is_refused(tmp_path: Path) -> None:
    data = {"shards": f"{tmp_path}/{{site}}.h5", "sites": [{"name": "a", "weight": 10}, {"name": "b", "weight": 10}]}
    with pytest.raises(InputError, match=r"data\.phantom"):
        early.run(early.Experiment(config_file(tmp_path, data=data), (), (), (0,), 100), tmp_path)


def test_early_images_are_found_at_the_site_s_own_threshold() -> None:
    """By hand: ten negatives, of which one may lie above; two of four early positives do."""
    counts = np.zeros((1, 1, 3, BINS), np.int64)
    counts[0, 0, NEGATIVE, 10:20] = 1
    counts[0, 0, EARLY, [5, 12, 19, 30]] = 1
    counts[0, 0, LATE, 40] = 7
    assert early._found_early(counts, 0.9).tolist() == [[2.0, 4.0]]
