"""Whole runs of stress tests: the header says so, the records carry it, and the rules of the config hold."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from fedhpc.config.loader import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.config.stress import DATA_CASES, UPDATE_CASES
from tests.conftest import REPO, Outcome
from tests.mpi.test_federated import make_shard

SITES = ("site1", "site2", "site3", "site4")


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A config of four tiny hospitals."""
    folder = tmp_path_factory.mktemp("stress")
    for site in SITES:
        make_shard(folder, site, 20)
    return {
        "name": "tiny",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": name, "weight": 7} for name in SITES]},
        "privacy": {"off": True},
        "training": {"rounds": 2, "local_epochs": 1, "batch_size": 16},
        "exchange": {"density": 1.0},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }


def written(tree: Mapping[str, Any], folder: Path, **sections: Any) -> Path:
    path = folder / "stress.yaml"
    path.write_text(yaml.safe_dump({**tree, **sections}), encoding="utf-8")
    return path


def test_stress_run_says_so_everywhere(run_here: Callable[..., Outcome], tree: dict[str, Any], tmp_path: Path) -> None:
    """NaN from one site under a robust rule: header, console, rounds.jsonl and summary.json name case and site."""
    config = written(tree, tmp_path, stress={"case": "nan", "sites": ["site2"]}, aggregation={"rule": "trimmed_mean"})
    done = run_here(["train", config, "--run-dir", tmp_path / "run"])
    assert done.returncode == 0, done.stderr
    assert "\nSTRESS TEST: nan at site2" in done.stdout
    assert "the declared weights (7, 7, 7, 7) are ignored" in " ".join(done.stdout.split())
    assert "site2 left out (payload: " in done.stdout
    records = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").read_text("utf-8").splitlines()]
    assert [record["stress"] for record in records] == ["nan at site2"] * 2
    assert [record["flags"][0]["site"] for record in records] == ["site2"] * 2
    summary = json.loads((tmp_path / "run" / "summary.json").read_text("utf-8"))
    assert summary["stress"] == "nan at site2"
    assert [(flag["round"], flag["reason"]) for flag in summary["flags"]] == [(1, "payload"), (2, "payload")]


def test_stress_of_data_changes_the_model_and_not_the_shard(
    run_here: Callable[..., Outcome], tree: dict[str, Any], tmp_path: Path
) -> None:
    shard = Path(tree["data"]["shards"].replace("{site}", "site2"))
    before, losses = shard.read_bytes(), {}
    for case in ("clean", "label_flip"):
        stress = None if case == "clean" else {"case": case, "sites": ["site2"]}
        config = written({**tree, "training": {**tree["training"], "rounds": 1}}, tmp_path, stress=stress)
        assert run_here(["train", config, "--run-dir", tmp_path / case]).returncode == 0
        losses[case] = (tmp_path / case / "model.pt").read_bytes()
    assert losses["clean"] != losses["label_flip"]
    assert shard.read_bytes() == before


def test_matrix_has_a_row_a_case_and_a_row_a_rule(
    run_here: Callable[..., Outcome], tree: dict[str, Any], tmp_path: Path
) -> None:
    """The mean is stopped by NaN, the trimmed mean is not; what is done is not done again."""
    config = written({**tree, "training": {**tree["training"], "rounds": 1}}, tmp_path)
    which = ["--cases", "clean", "nan", "--rules", "mean", "trimmed_mean", "--epsilons", "none"]
    command = ["bench", "stress", config, "-o", tmp_path / "matrix", *which]
    first, again = run_here([*command, "--json"]), run_here(command)
    assert first.returncode == 0, first.stderr
    result = json.loads(first.stdout)
    assert result["columns"] == [["none", "mean"], ["none", "trimmed_mean"]]
    cells = {row["case"]: row["less_clean"] for row in result["cases"]}
    assert cells["clean"][0] == 0 and cells["nan"][0] is None and abs(cells["nan"][1]) <= 1
    mean, trimmed = result["rules"]
    assert (mean["stopped"], mean["worst"]) == (["nan"], None)
    assert (trimmed["stopped"], trimmed["worst_case"], trimmed["false_rejection"]) == ([], "nan", 0)
    assert "stopped" in again.stdout and "without legacy" in again.stdout
    assert sorted(cells, key=lambda case: min(value for value in cells[case] if value is not None)) == list(cells)


SECURE = {"epsilon": 1.0, "delta": 1e-3, "trust": "sites", "colluding_sites": 1, "sample_rate": 1.0, "unit": "image"}
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"stress": {"case": "alie", "sites": ["site9"]}}, "site9 is none of"),
    ({"stress": {"case": "alie", "sites": ["site1", "site1"]}}, "named twice"),
    ({"stress": {"case": "alie", "sites": ["site1", "site2", "site3"]}}, "leave two or more"),
    ({"stress": {"case": "label_flip", "sites": ["site1", "site2"]}}, "name one"),
    ({"stress": {"case": "alie", "sites": ["site1"]}, "mode": "local"}, "mode=federated"),
    ({"stress": {"case": "alie", "sites": ["site1"]}, "privacy": SECURE}, "privacy.trust=sites hides"),
    ({"stress": {"case": "label_flip", "sites": ["site1"], "from_round": 2}}, "from the first round on"),
    ({"stress": {"case": "alie", "sites": ["site1"], "from_round": 3}}, "has 2 rounds"),
    ({"aggregation": {"rule": "krum"}}, "5 sites"),
    ({"aggregation": {"rule": "mean", "bounded": True}}, "aggregation.bounded"),
    ({"aggregation": {"rule": "trimmed_mean"}, "exchange": {"density": 0.1}}, "exchange.density=0.1"),
    ({"aggregation": {"rule": "mda"}, "privacy": SECURE}, "aggregation.rule=mda"),
]


@pytest.mark.parametrize(("sections", "named"), REFUSED)
def test_config_that_would_not_test_what_it_says_is_refused(
    tree: dict[str, Any], sections: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValidationError, match=named):
        RunConfig.model_validate({**tree, **sections})


def test_every_case_has_a_config() -> None:
    cases = {path.stem for path in (REPO / "configs" / "stress").glob("*.yaml")}
    assert cases == {*DATA_CASES, *UPDATE_CASES, "collusion"}
    for case in (*DATA_CASES, *UPDATE_CASES):
        stress = load_config(REPO / "configs" / "stress" / f"{case}.yaml").stress
        assert stress is not None and stress.case == case
