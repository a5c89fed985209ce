"""Whoever may write to the folder of all runs: a summary.json beside a finished run ends it with no error."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedhpc.config.schema import RunConfig
from fedhpc.records.run_directory import SUMMARY_KEYS
from fedhpc.records.summary import data_digest
from fedhpc.run.display import closing
from fedhpc.run.finished.finish import beside

CONFIG = RunConfig.model_validate({"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}]}})
LOCAL = dict.fromkeys(SUMMARY_KEYS) | {"mode": "local", "auc": 0.7, "epsilon": None, "data": data_digest(CONFIG)}


def planted(folder: Path, **changed: Any) -> Path:
    (folder / "other").mkdir()
    (folder / "other" / "summary.json").write_text(json.dumps(LOCAL | changed), encoding="utf-8")
    return folder / "run"


def test_run_of_another_mode_beside_is_shown(tmp_path: Path) -> None:
    assert "local" in closing(beside(planted(tmp_path), CONFIG))


@pytest.mark.parametrize(
    "changed",
    [
        {"auc": "x"},
        {"auc_ci95": 7},
        {"auc_ci95": ["a", "b"]},
        {"mode": ["local"]},
        {"mode": {}},
        {"mode": "federated ", "bytes_up_per_round": "many"},
        {"epsilon": {}},
        {"f1": [1]},
        {"auc": 10**400},
    ],
)
def test_rubbish_beside_a_run_ends_none(tmp_path: Path, changed: dict[str, Any]) -> None:
    closing([*beside(planted(tmp_path, **changed), CONFIG)])
