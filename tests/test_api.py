"""The Python interface refuses what the command line refuses, at every rank."""

from pathlib import Path

import pytest
import yaml

import fedhpc
from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from tests.conftest import Mpi, run_limited

TREE = {
    "name": "x",
    "data": {"shards": "{site}.h5", "sites": [{"name": "a"}, {"name": "b"}]},
    "privacy": "off",
}
AT_A_RANK = "import sys, fedhpc; fedhpc.train(sys.argv[1], sys.argv[2])"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(TREE), encoding="utf-8")
    return path


@pytest.mark.parametrize("rounds", [0, -1])
def test_stop_after_no_round_is_refused(config: Path, tmp_path: Path, rounds: int) -> None:
    with pytest.raises(InputError, match=f"^stop_after={rounds}: "):
        fedhpc.train(config, tmp_path / "run", stop_after=rounds)
    assert not (tmp_path / "run").exists()


def test_interface_is_offered_before_its_import() -> None:
    """A notebook completes names by `dir`."""
    assert set(fedhpc.__all__) <= set(dir(fedhpc))
    assert all(hasattr(fedhpc, name) for name in fedhpc.__all__)


def test_single_override_may_be_a_string(config: Path) -> None:
    assert fedhpc.load_config(config, "training.rounds=3").training.rounds == 3


@pytest.mark.parametrize("key", ["trainin.rounds", "training.round", "data.phantom.image", "name.x"])
def test_replace_of_an_unknown_key_is_refused(config: Path, key: str) -> None:
    with pytest.raises(ValueError, match="validation error"):
        fedhpc.load_config(config).replace({key: 5})


def test_replace_fills_an_absent_section(config: Path) -> None:
    phantom = fedhpc.load_config(config).replace({"data.phantom.images": 500}).data.phantom
    assert phantom is not None
    assert phantom.images == 500


@pytest.mark.parametrize("part", ["summary", "epsilon", "model"])
def test_part_of_an_unfinished_run_is_refused(config: Path, tmp_path: Path, part: str) -> None:
    directory = RunDirectory(tmp_path / "run")
    directory.write_config(fedhpc.load_config(config))
    run = fedhpc.open_run(directory.path)
    assert run.rounds == []
    with pytest.raises(InputError, match="has not finished"):
        run.model() if part == "model" else getattr(run, part)


@pytest.mark.mpi
def test_rank_without_the_config_ends_all(config: Path, tmp_path: Path, mpi: Mpi, preloaded: list[str]) -> None:
    ranks = [[*preloaded, "-c", AT_A_RANK, str(path), str(tmp_path / "run")] for path in (config, tmp_path / "no")]
    command = [mpi.launcher, "-n", "1", *ranks[0], ":", "-n", "1", *ranks[1]]
    done = run_limited(command, 60, mpi.start_env())
    assert done.returncode != 0
    assert f"{tmp_path / 'no'}: cannot be read" in done.stderr
