"""The grid as laws: every combination once, nothing but the grid's keys differs, and every problem is told at once."""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.loader import load_config
from fedhpc.errors import ConfigError
from fedhpc.sweep.config import ranks_of
from fedhpc.sweep.grid import flattened, nested, points
from tests.support.tiny_sweeps import load_sweep, tree_of, write_sweep

KEYS = ("seed", "privacy.epsilon", "exchange.density", "training.lr")
grids = st.dictionaries(st.sampled_from(KEYS), st.lists(st.integers(1, 9), min_size=1, max_size=3, unique=True))


@given(grids)
def test_points_are_all_combinations_each_once_in_order(grid: dict[str, list[int]]) -> None:
    found = points(grid)
    assert len(found) == math.prod(map(len, grid.values()))
    assert len({tuple(point.items()) for point in found}) == len(found)
    places = [tuple(grid[key].index(value) for key, value in point.items()) for point in found]
    assert places == sorted(places)


@given(st.dictionaries(st.sampled_from(KEYS), st.integers()))
def test_nested_and_flattened_are_inverse(point: dict[str, int]) -> None:
    assert flattened(nested(point)) == point


def test_trials_differ_from_the_config_in_the_grids_keys_only(tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path), [])
    tree = tree_of(tmp_path)
    alone = {key: value for key, value in tree.items() if key not in ("grid", "baselines")}
    (tmp_path / "alone.yaml").write_text(yaml.safe_dump(alone), encoding="utf-8")
    base = flattened(load_config(tmp_path / "alone.yaml", ["privacy.epsilon=1"]).model_dump(mode="json"))
    assert [trial.name for trial in sweep.trials] == [f"tiny-{number:03d}" for number in range(6)]
    for trial in sweep.trials:
        if not trial.baseline:
            found = flattened(trial.config.model_dump(mode="json"))
            changed = {key for key in found if found[key] != base[key]}
            assert changed <= {"name", "privacy.off", *tree["grid"]}
            assert found["privacy.off"] == (trial.point["privacy.epsilon"] is None)
            assert {key: found[key] for key in tree["grid"]} == trial.point


def test_each_baseline_is_run_once_a_seed_and_knows_no_other_key_of_the_grid(tmp_path: Path) -> None:
    grid = {"privacy.epsilon": [1.0, 2.0], "seed": [4, 5]}
    (tmp_path / "other.yaml").write_text(
        yaml.safe_dump({**{k: v for k, v in tree_of(tmp_path).items() if k not in ("grid", "baselines")}, "seed": 0})
    )
    baselines: dict[str, Any] = {
        "local": {"mode": "local", "privacy": "off"},
        "pooled": {"extends": "other.yaml", "mode": "centralised", "training": {"rounds": 7}, "privacy": "off"},
    }
    sweep = load_sweep(write_sweep(tmp_path, grid=grid, baselines=baselines), ["training.rounds=3"])
    found = [(e.baseline, e.config.seed, e.config.mode, e.config.training.rounds) for e in sweep.trials if e.baseline]
    assert found == [(name, seed, mode, rounds)
                     for name, mode, rounds in (("local", "local", 3), ("pooled", "centralised", 7))
                     for seed in (4, 5)]  # fmt: skip
    assert all(e.config.privacy.epsilon is None for e in sweep.trials if e.baseline)


def test_overrides_reach_the_runs_and_the_sweeps_own_sections(tmp_path: Path) -> None:
    overrides = ["training.lr=0.5", "grid.exchange.density=[0.3]", "slurm.partition=night", "baselines.local.seed=9"]
    sweep = load_sweep(write_sweep(tmp_path), overrides)
    assert [e.point["exchange.density"] for e in sweep.trials if not e.baseline] == [0.3, 0.3]
    assert {e.config.training.lr for e in sweep.trials} == {0.5}
    assert sweep.slurm.partition == "night"
    assert {e.baseline: e.config.seed for e in sweep.trials if e.baseline} == {"centralised": 0, "local": 9}


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({"name": None}, "name: missing; it must be set"),
        ({"grid": {"seed": []}}, "grid.seed=[]: must be a list of one or more values"),
        ({"grid": {"seed": 3}}, "grid.seed=3: must be a list of one or more values"),
        ({"grid": {"seed": [1, 2, 1]}}, "grid.seed=[1, 2, 1]: a value is there twice"),
        ({"grid": {}}, "grid={}: is empty"),
        ({"grid": {"traning.rounds": [1]}}, "traning: unknown key; did you mean training? (in grid 000)"),
        (
            {"privacy": "off", "grid": {"data.shards": ["a/{site}.h5", "b/{site}.h5"]}},
            "data.shards: differs between trials",
        ),
        ({"slurm": {"partitoin": "x"}}, "slurm.partitoin: unknown key; did you mean partition?"),
        ({"slurm": {"extra": {"array": "0-3"}}}, "slurm.extra.array: is set by the sweep itself"),
        ({"slurm": {"ranks": 5}}, "slurm.ranks=5: too many for tiny-000, tiny-001, tiny-002, tiny-003 and 2 more"),
        ({"slurm": {"ranks": 4, "nodes": 3}}, "slurm.ranks=4: must be a multiple of slurm.nodes=3"),
        ({"slurm": {"nodes": 3}}, "slurm.nodes=3: does not divide the 4 ranks of a trial"),
        ({"local": {"ranks": 5}}, "local.ranks=5: too many"),
        ({"slurm": {"signal_s": 60}}, "slurm.signal_s=60: a site may go on for runtime.patience_s=60"),
        ({"baselines": {"local": {"mode": "alone"}}}, "mode='alone': must be 'federated', 'local' or"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, more: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_sweep(write_sweep(tmp_path, **more), [])
    assert expected in str(error.value)


def test_all_problems_of_all_trials_at_once_each_told_once(tmp_path: Path) -> None:
    grid = {"privacy.epsilon": [-1.0, 1.0], "exchange.density": [0.1, 7]}
    with pytest.raises(ConfigError) as error:
        load_sweep(write_sweep(tmp_path, grid=grid, slurm={"ranks": 9}), [])
    text = str(error.value)
    assert "3 problem(s)" in text
    assert "privacy.epsilon=-1.0: must be greater than 0 (in grid 000, grid 001)" in text
    assert "exchange.density=7: must be less than or equal to 1 (in grid 001, grid 003)" in text
    assert "slurm.ranks=9: too many" in text


def test_an_override_that_the_grid_would_undo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"use --set 'grid\.privacy\.epsilon=\[\.\.\.\]'"):
        load_sweep(write_sweep(tmp_path), ["privacy.epsilon=3"])


def test_train_says_what_a_sweep_is_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is a sweep of many runs.*run\.py sweep"):
        load_config(write_sweep(tmp_path))


@pytest.mark.parametrize(("aggregator", "baselines", "ranks"), [("dedicated", {}, 5), ("shared", {}, 4)])
def test_automatic_ranks_are_one_a_hospital(tmp_path: Path, aggregator: str, baselines: Any, ranks: int) -> None:
    more = {"federation": {"aggregator_rank": aggregator}, "baselines": baselines}
    assert ranks_of(load_sweep(write_sweep(tmp_path, **more), [])) == ranks


def test_automatic_ranks_fit_the_trial_that_can_use_fewest(tmp_path: Path) -> None:
    baselines = {"local": {"mode": "local", "privacy": "off", "federation": {"aggregator_rank": "shared"}}}
    more = {"federation": {"aggregator_rank": "dedicated"}, "baselines": baselines}
    assert ranks_of(load_sweep(write_sweep(tmp_path, **more), [])) == 4
