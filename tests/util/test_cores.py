"""Threads of a rank: no core is promised to two ranks, whatever binds or limits them."""

from pathlib import Path

import pytest

from fedhpc.util.cores import Cores, cores_of_this_process, node_text, threads_for


def node(count: int) -> tuple[int, ...]:
    return tuple(range(count))


@pytest.mark.parametrize(
    ("cores", "ranks", "threads"),
    [
        (1, 1, 1),
        (1, 4, 1),
        (2, 1, 2),
        (2, 4, 1),
        (4, 1, 4),
        (4, 2, 2),
        (4, 3, 1),
        (64, 1, 64),
        (64, 4, 16),
        (64, 5, 12),
    ],
)
def test_shared_node_is_divided(cores: int, ranks: int, threads: int) -> None:
    assert threads_for([Cores("a", node(cores))] * ranks) == threads


def test_bound_ranks_use_their_own_cores() -> None:
    """srun binds each task to its own: they must not be divided once more by the ranks of the node."""
    bound = [Cores("a", tuple(range(16 * rank, 16 * rank + 16))) for rank in range(4)]
    assert threads_for(bound) == 16
    assert threads_for([*bound, Cores("b", node(8))]) == 8, "the smallest share, since the number is the run's"
    assert node_text(bound) == "4 ranks on 64 cores"


@pytest.mark.parametrize(
    ("limit", "ranks", "threads"), [(2.0, 1, 2), (2.0, 4, 1), (8.5, 2, 4), (0.5, 1, 1), (99.0, 1, 64)]
)
def test_limit_of_the_group_counts(limit: float, ranks: int, threads: int) -> None:
    assert threads_for([Cores("a", node(64), limit)] * ranks) == threads


@pytest.mark.parametrize(
    ("files", "own", "limit"),
    [
        ({"job/cpu.max": "250000 100000"}, "0::/job/step", 2.5),
        ({"job/cpu.max": "max 100000", "job/step/cpu.max": "400000 100000"}, "0::/job/step", 4.0),
        (
            {"cpu/docker/cpu.cfs_quota_us": "150000", "cpu/docker/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/docker",
            1.5,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/", None),
        ({"cpu.max": "100000 100000"}, "0::/not/seen/here", 1.0),
        ({}, "0::/", None),
    ],
)
def test_limit_is_read_from_the_groups(tmp_path: Path, files: dict[str, str], own: str, limit: float | None) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n", encoding="ascii")
    (tmp_path / "own").write_text(f"{own}\n", encoding="ascii")
    assert cores_of_this_process("a", tmp_path, tmp_path / "own").limit == limit
