"""`bench algorithms`: the choice among candidates, the table, and whole runs that are not done twice."""

import json
from pathlib import Path

import pytest
import yaml

from data_prep.phantom.sites import default_sites
from fedhpc.api import load_config
from fedhpc.bench import algorithms
from fedhpc.bench.divided_data import Division, skewed
from fedhpc.errors import InputError
from tests.conftest import Outcome

NETWORK = Path(__file__).resolve().parents[2] / "configs" / "network.yaml"


def run_of(auc_val: float, auc: float, rounds: int | None = 3) -> dict[str, float | None]:
    mb = None if rounds is None else rounds * 0.5
    cost = {"rounds_to_target": rounds, "mb_to_target": mb, "cpu_s": 2.0}
    return {"auc_val": auc_val, "auc": auc, "worst_site_auc": auc - 0.1, **cost}


def test_candidate_is_chosen_by_validation() -> None:
    """The other one is better on the test splits."""
    rows = algorithms.rows_of(["fedprox"], [["mine", "training.lr=1"]], first_only=False)
    comparison = algorithms.Comparison([], None, {}, rows)
    low, high = [run_of(0.8, 0.99), run_of(0.8, 0.99)], [run_of(0.9, 0.9), run_of(0.9, 0.92, None)]
    found = {"fedavg": [low], "fedprox": [low, high, low], "mine": [high]}
    by_name = {row["algorithm"]: row for row in algorithms._rows(comparison, found)}
    assert by_name["fedprox"]["set"] == list(algorithms.CANDIDATES["fedprox"][1])
    assert by_name["fedprox"]["auc"] == pytest.approx(0.91)
    assert by_name["fedprox"]["worst_gain"] == pytest.approx(-0.08)
    assert (by_name["fedprox"]["reached"], by_name["fedprox"]["rounds_to_target"]) == (1, None)
    assert by_name["fedavg"]["worst_gain"] == 0
    assert by_name["fedavg"]["mb_to_target"] == 1.5
    result = {"target": 0.93, "tables": [{"config": "c.yaml", "skew": 0.3, "rows": list(by_name.values())}]}
    told = algorithms.text(result).splitlines()
    assert max(map(len, told)) <= 80
    assert any(line.startswith("fedprox 0.1") for line in told)


def test_unknown_row_is_refused() -> None:
    with pytest.raises(InputError, match="--algorithms fedsgd: allowed are centralised, fedavg"):
        algorithms.rows_of(["fedsgd"], [], first_only=True)


def test_smaller_skew_moves_prevalences_apart() -> None:
    def spread(skew: float) -> float:
        shares = [one.prevalence for one in skewed(default_sites(), Division(skew, 0)).values()]
        return max(shares) - min(shares)

    assert spread(0.1) > 0.5 > 0.1 > spread(1000)
    sites, moved = default_sites(), skewed(default_sites(), Division(0.3, 1))
    before, after = (sum(one.images * one.prevalence for one in all_.values()) for all_ in (sites, moved))
    assert after == pytest.approx(before)


def test_runs_are_kept_and_compared(tmp_path: Path, run_here) -> None:
    tree = {
        "name": "small",
        "data": {
            "shards": "x/{site}.h5",
            "sites": [{"name": "site1"}],
            "phantom": {"images": 160, "image_size": 32, "difficulty": 0.0},
        },
        "model": {"name": "densenet_small"},
        "training": {"rounds": 1, "local_epochs": 1},
        "privacy": "off",
        "runtime": {"threads": 1, "device": "cpu"},
    }
    config = tmp_path / "small.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")
    words = ["bench", "algorithms", config, "-o", tmp_path / "out", "--skew", "1", "--seeds", "0"]
    done: Outcome = run_here([*words, "--algorithms", "scaffold", "--json"])
    assert done.returncode == 0, done.stderr
    (table,) = json.loads(done.stdout)["tables"]
    assert [row["algorithm"] for row in table["rows"]] == ["fedavg", "scaffold"]
    again: Outcome = run_here([*words, "--algorithms", "scaffold"])
    assert again.returncode == 0, again.stderr
    assert "runs/" in done.stderr
    assert "runs/" not in again.stderr
    private: Outcome = run_here([*words, "--set", "privacy.epsilon=1", "--set", "data.sites=[{name: a, weight: 9}]"])
    assert (private.returncode, "privacy is on" in private.stderr) == (2, True)


def test_rows_have_their_own_server_step(tmp_path: Path) -> None:
    """Also on a config that has another one, with parameters of its own."""
    tree = {"extends": str(NETWORK), "name": "x", "server": {"optimizer": "fedavgm", "momentum": 0.8}}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    for name, (first, *_) in algorithms.CANDIDATES.items():
        server = load_config(tmp_path / "x.yaml", list(first)).server
        assert server.optimizer == (name if name in ("fedavgm", "fedadagrad", "fedyogi", "fedadam") else "sgd")
