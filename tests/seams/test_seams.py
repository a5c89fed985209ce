"""Each seam by a toy that is whole in one file and changes no file of the product."""

import csv
import json
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import yaml

from tests.conftest import Outcome, run_limited
from tests.mpi.test_federated import make_shard

SITES = ("site1", "site2", "site3")


class Toys(NamedTuple):
    """What all commands of all toys have left, run in one process."""

    folder: Path
    statuses: dict[str, int]
    outcome: Outcome

    def params(self, run: str, round: int) -> bytes:
        """The global parameters of a run after a round."""
        with np.load(self.folder / run / "state" / f"round-{round:04d}.npz") as saved:
            return saved["params"].tobytes()


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    """Three small hospitals; three rounds without toys, with the rule, and with the optimiser, whole and in two."""
    folder = tmp_path_factory.mktemp("toys")
    for site in SITES:
        make_shard(folder, site, 40)
    tree = {
        "name": "toys",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": name, "weight": 14} for name in SITES]},
        "privacy": "off",
        "training": {"rounds": 3, "local_epochs": 1, "batch_size": 16},
        "exchange": {"density": 0.1},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    config = folder / "toys.yaml"
    config.write_text(yaml.safe_dump(tree), encoding="utf-8")

    def train(name: str, *more: str) -> list[str]:
        return ["train", str(config), "--run-dir", str(folder / name), *more]

    scaffold = ("--set", "algorithm.name=scaffold")
    momentum = ("--set", "server.optimizer=momentum", *scaffold)
    commands = {
        "plain": train("plain"),
        "rule": train("rule", "--set", "aggregation.rule=midrange"),
        "straight": train("straight", *momentum),
        "first part": train("parts", *momentum, "--stop-after", "1"),
        "second part": train("parts", *momentum),
        "other optimiser": train("parts", *scaffold),
        "unknown rule": train("unknown", "--set", "aggregation.rule=unheard_of"),
        "report": ["report", str(folder / "plain"), "-o", str(folder / "report.html")],
    }
    asked = folder / "asked.json"
    toys = ["toy_rule", "toy_server_optimizer", "toy_metric"]
    asked.write_text(json.dumps({"toys": toys, "commands": list(commands.values())}), encoding="utf-8")
    done = run_limited([sys.executable, "-m", "tests.seams.with_toys", asked], 240, {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    statuses = json.loads(done.stdout.splitlines()[-1])
    return Toys(folder, dict(zip(commands, statuses, strict=True)), done)


def test_toy_rule_is_chosen_by_config(toys: Toys) -> None:
    assert toys.statuses["rule"] == 0, toys.outcome.stderr
    assert toys.params("rule", 3) != toys.params("plain", 3)
    kept = yaml.safe_load((toys.folder / "rule" / "config.yaml").read_text(encoding="utf-8"))
    assert kept["aggregation"] == {"rule": "midrange"}


def test_optimizer_state_survives_resume(toys: Toys) -> None:
    assert (toys.statuses["straight"], toys.statuses["first part"], toys.statuses["second part"]) == (0, 75, 0)
    assert toys.params("parts", 3) == toys.params("straight", 3) != toys.params("plain", 3)
    with np.load(toys.folder / "parts" / "state" / "round-0003.npz") as saved:
        assert saved["server.optimizer.velocity"].any()
        assert saved["server.algorithm.residual"].any()
        assert saved["public.algorithm.control"].any()


def test_other_optimizer_is_refused_at_resume(toys: Toys) -> None:
    assert toys.statuses["other optimiser"] == 2
    assert "server.optimizer ('momentum' there, 'sgd' here)" in toys.outcome.stderr


def test_unknown_rule_names_the_known(toys: Toys) -> None:
    assert toys.statuses["unknown rule"] == 2
    assert "aggregation" in toys.outcome.stderr
    assert "allowed: mean, " in toys.outcome.stderr
    assert ", midrange" in toys.outcome.stderr
    assert not (toys.folder / "unknown").exists()


def test_toy_metric_reaches_every_reader(toys: Toys) -> None:
    summary = json.loads((toys.folder / "plain" / "summary.json").read_text(encoding="utf-8"))
    assert 0 < summary["prevalence"] < 1
    assert set(summary["per_site"]["site1"]) >= {"prevalence", "auc", "f1"}
    assert "prev." in toys.outcome.stdout
    assert toys.statuses["report"] == 0
    report = json.loads((toys.folder / "report.json").read_text(encoding="utf-8"))
    assert report["rows"][0]["prevalence"] == report["groups"][0]["prevalence"] == summary["prevalence"]
    assert "prevalence" in (toys.folder / "report.html").read_text(encoding="utf-8")
    with (toys.folder / "report.csv").open(encoding="utf-8") as lines:
        assert float(next(csv.DictReader(lines))["prevalence"]) == summary["prevalence"]
