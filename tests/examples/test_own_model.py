"""The example of a model of one's own, as a user would run it: with DP on four ranks, in a sweep of two, audited."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fedhpc.config.model_source import COPY
from tests.conftest import REPO, Mpi, Outcome, run_limited

EXAMPLE = REPO / "examples" / "own_model"


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Where the cohort is made, once for all tests here."""
    return f"data.shards={tmp_path_factory.mktemp('shards')}/{{site}}.h5"


@pytest.mark.mpi
def test_example_trains_on_four_ranks(tmp_path: Path, shards: str, mpirun: Callable[..., Outcome]) -> None:
    args = ["run.py", "train", EXAMPLE / "config.yaml", "--run-dir", tmp_path / "run", "--set", shards]
    done = mpirun(4, args, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / COPY).read_bytes() == (EXAMPLE / "my_models.py").read_bytes()
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["stopped"] == "finished"
    assert 0 < summary["epsilon"] <= 8


@pytest.mark.mpi
def test_rank_with_another_source_is_refused(tmp_path: Path, mpi: Mpi, preloaded: list[str]) -> None:
    other = tmp_path / "other"
    other.mkdir()
    for name, more in (("config.yaml", b""), ("my_models.py", b"# edited at one hospital\n")):
        (other / name).write_bytes((EXAMPLE / name).read_bytes() + more)
    shared = ["--run-dir", str(tmp_path / "run")]
    first, second = ([*("run.py", "train", str(folder / "config.yaml")), *shared] for folder in (EXAMPLE, other))
    command = [mpi.launcher, "-n", "1", *preloaded, *first, ":", "-n", "1", *preloaded, *second]
    done = run_limited(command, 120, mpi.start_env())
    assert done.returncode == 2, done.stderr
    assert "rank 1 has read another config than rank 0: model.source_sha256" in done.stderr
    assert not (tmp_path / "run" / COPY).exists()


@pytest.mark.slow
def test_example_in_a_sweep_of_two(tmp_path: Path, shards: str, run_python: Callable[..., Outcome]) -> None:
    args = ["sweep", EXAMPLE / "sweep.yaml", "--cluster", "local", "--run-dir", tmp_path / "sweep", "--set", shards]
    done = run_python(args, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    configs = [path / "config.yaml" for path in sorted((tmp_path / "sweep" / "elements").iterdir())]
    widths = [yaml.safe_load(path.read_text(encoding="utf-8"))["model"]["args"]["width"] for path in configs]
    assert widths == [8, 16]
    for path in configs:
        assert (path.parent / COPY).read_bytes() == (EXAMPLE / "my_models.py").read_bytes()
        assert path.with_name("summary.json").exists()
    assert "width" in (tmp_path / "sweep" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_example_is_audited(tmp_path: Path, shards: str, run_python: Callable[..., Outcome]) -> None:
    args = ["audit", EXAMPLE / "config.yaml", "--quick", "--json", "--out", tmp_path / "audit", "--set", shards]
    done = run_python(args, timeout=280, env={"OMP_NUM_THREADS": str(len(os.sched_getaffinity(0)))}, fresh=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert json.loads(done.stdout)


@pytest.mark.slow
def test_second_function_of_the_example_trains(tmp_path: Path, shards: str, run_python: Callable[..., Outcome]) -> None:
    sets = ["model.build=examples/own_model/my_models.py:make_residual", "model.args={width: 8}", "training.rounds=1"]
    overrides = [word for pair in [shards, *sets] for word in ("--set", pair)]
    done = run_python(["train", EXAMPLE / "config.yaml", "--run-dir", tmp_path / "run", *overrides], timeout=200)
    assert done.returncode == 0, done.stderr
