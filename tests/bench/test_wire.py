"""`run.py bench wire`: the rows are those of the runs it did, and each run is done once."""

import json
from pathlib import Path

import pytest
import yaml

from fedhpc.bench import wire
from fedhpc.cli.main import main
from fedhpc.errors import InputError


def finished(out: Path, name: str, auc: float, share: float) -> None:
    """A run directory as a finished run of two sites leaves it, of one round."""
    folder = out / name
    for site in ("a", "b"):
        (folder / "sites" / site).mkdir(parents=True)
    tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}, {"name": "b"}]}}
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    (folder / "summary.json").write_text(json.dumps({"auc": auc, "dense_bytes_per_round": 2000}))
    entry = {
        "time": "2026-01-01T00:00:00.000Z",
        "round": 1,
        "kind": "update",
        "bytes": round(1000 * share),
        "sha256": "",
        "to": "aggregator",
        "via": "tls",
    }
    for path in (folder / "egress.jsonl", *folder.glob("sites/*")):
        log = path if path.suffix else path / "egress.jsonl"
        log.write_text(json.dumps({**entry, "searched": 1}) + "\n")


@pytest.fixture
def grid(tmp_path: Path) -> list[str]:
    tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}, {"name": "b"}]}, "privacy": "off"}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(tree))
    for seed, (dense, sparse) in enumerate([(0.9, 0.89), (0.8, 0.82)]):
        finished(tmp_path / "out", f"density1-bits32-seed{seed}", dense, 1.0)
        finished(tmp_path / "out", f"density0.1-bits4-seed{seed}", sparse, 0.025)
    return ["bench", "wire", str(tmp_path / "c.yaml"), "-o", str(tmp_path / "out"), "--densities", "0.1", "--bits", "4"]


def test_differences_are_of_the_same_seed(grid: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*grid, "--seeds", "0", "1", "--json"]) == 0
    dense, sparse = json.loads(capsys.readouterr().out)["rows"]
    assert (dense["less_dense"], dense["share_up"], dense["share_down"]) == (0, 1, 1)
    assert sparse["each_less_dense"] == pytest.approx([-0.01, 0.02])
    assert sparse["less_dense"] == pytest.approx(0.005)
    assert sparse["less_dense_error"] == pytest.approx(0.015)
    assert (sparse["share_up"], sparse["share_down"], sparse["share_most"]) == (0.025, 0.025, 0.025)
    assert main([*grid, "--seeds", "0"]) == 0
    assert "-0.0100" in capsys.readouterr().out


def test_a_value_that_cannot_be_ends_it_before_the_first_run(grid: list[str], tmp_path: Path) -> None:
    assert main([*grid, "2", "--seeds", "0", "1"]) == 2
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_a_run_that_fails_is_named(tmp_path: Path) -> None:
    data = {"shards": f"{tmp_path}/none/{{site}}.h5", "sites": [{"name": "a"}]}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({"name": "x", "data": data, "privacy": "off"}))
    with pytest.raises(InputError, match="density1-bits32-seed7: the run ended with status 2"):
        wire.run(wire.BenchmarkGrid(tmp_path / "c.yaml", (), (1,), (32,), (7,)), tmp_path / "out")
