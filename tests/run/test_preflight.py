"""What the preflight makes of the facts of all ranks, the places of pinned hospitals, and paths of shards."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from fedhpc.cli.main import main
from fedhpc.config.data import Phantom
from fedhpc.config.schema import RunConfig
from fedhpc.errors import ConfigError, InputError
from fedhpc.models.device import device_name
from fedhpc.run.preflight.facts import RankFacts
from fedhpc.run.preflight.rules import notes, one_line, problems, rank_table
from fedhpc.run.start.placement import rank_order

CONFIG = RunConfig.model_validate(
    {"name": "tiny", "data": {"shards": "{site}.h5", "sites": [{"name": "site0"}, {"name": "site1"}]}}
)
RIGHT = [
    RankFacts(
        rank=rank,
        local_rank=0,
        host=f"n{rank}",
        tasks=2,
        shards={f"site{rank}": (f"site{rank}.h5", "")},
        device="cuda:0",
        gpu="0",
        given="0",
        launcher="srun --mpi=pmix",
        mpi="Open MPI v5.0.11",
        versions={"torch": "2.13.0"},
        run_dir="",
        free_bytes=10**12,
        clock_s=1000.0 + rank,
    )
    for rank in range(2)
]


def test_where_all_is_right_nothing_is_said() -> None:
    assert problems(RIGHT, CONFIG, "runs/tiny") == []
    assert notes(RIGHT, allocated=2) == []


def test_shards_that_the_run_will_make_are_not_said_to_be_there() -> None:
    built_in = CONFIG.model_copy(update={"data": CONFIG.data.model_copy(update={"phantom": Phantom()})})
    assert one_line(RIGHT, CONFIG).endswith(
        "2 ranks on 2 nodes by srun --mpi=pmix, Open MPI v5.0.11: shard files are there, disk, clocks and versions are "
        "right"
    )
    assert "shard files are there" not in one_line(RIGHT, built_in)
    assert one_line(RIGHT, built_in).endswith("`train` makes what the built-in cohort lacks")


@pytest.mark.parametrize(
    ("wrong", "said", "remedy"),
    [
        (
            {"shards": {"site1": ("x.h5", "no such file")}},
            "site site1: its shard x.h5 cannot be used",
            "data.sites: node",
        ),
        (
            {"run_dir": "is not the one that rank 0 sees"},
            "runs/tiny: is not the one that rank 0 sees on n1",
            "--run-dir",
        ),
        ({"free_bytes": 10**6}, "1 MB free on n1, 200 MB are needed", "Free some"),
        ({"clock_s": 1300.0}, "node n1: its clock is +300 s off that of n0", "chrony"),
        (
            {"versions": {"torch": "2.9.0"}},
            "torch is not the same at all ranks: 2.13.0 at rank 0 on n0; 2.9.0",
            "container",
        ),
        ({"versions": {}}, "torch is not the same at all ranks: 2.13.0 at rank 0 on n0; none at rank 1", "environment"),
        ({"mpi": "MPICH 5"}, "MPI is not the same at all ranks: Open MPI v5.0.11 at rank 0 on n0; MPICH 5", "one"),
        ({"device": "none"}, "rank 1 on n1: runtime.device=cuda, and PyTorch sees no GPU", "--gpus-per-task=1"),
    ],
    ids=["shard", "run-dir", "disk", "clock", "version", "missing", "mpi", "gpu"],
)
def test_every_problem_is_one_message_with_its_remedy(wrong: dict[str, object], said: str, remedy: str) -> None:
    found = problems([RIGHT[0], replace(RIGHT[1], **wrong)], CONFIG, "runs/tiny")
    assert len(found) == 1
    assert said in found[0]
    assert remedy in found[0]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"host": "n0"}, "site0, site1 share GPU 0 of n0"),
        ({"device": "cpu", "gpu": ""}, "rank 1 was given GPU 0 of n1 and computes on the CPU"),
        ({"clock_s": 1005.0}, "the clock of n1 is +5.0 s off that of n0"),
        ({"shards": {"site1": ("a", ""), "site2": ("b", "")}, "gpu": "", "given": ""}, "rank 1 plays site1, site2"),
    ],
    ids=["shared gpu", "cpu", "clock", "several"],
)
def test_what_is_legal_is_noted(wrong: dict[str, object], said: str) -> None:
    facts = [RIGHT[0], replace(RIGHT[1], **wrong)]
    assert problems(facts, CONFIG, "runs/tiny") == []
    (note,) = notes(facts, allocated=2)
    assert said in note


def test_idle_tasks_are_noted_and_the_map_has_every_rank() -> None:
    assert notes(RIGHT, allocated=3) == ["3 tasks were allocated and 2 started: 1 are idle"]
    assert rank_table(RIGHT).splitlines()[1].split() == ["0", "n0", "cuda:0", "0", "site0", "site0.h5"]
    assert rank_table([replace(RIGHT[0], shards={})]).splitlines()[1].split() == ["0", "n0", "cuda:0", "0", "-", "-"]


@pytest.mark.parametrize("visible", [1, 2, 3, 4])
def test_gpus_by_local_rank_where_all_are_visible_and_the_only_one_where_one_is(visible: int) -> None:
    """Each GPU gets as many of the node's ranks as any other, give or take one."""
    taken = [device_name("auto", local_rank, visible) for local_rank in range(4)]
    counts = [taken.count(f"cuda:{index}") for index in range(visible)]
    assert sum(counts) == 4
    assert max(counts) - min(counts) <= 1


def test_seats() -> None:
    assert rank_order(["n1", "n1", "n2"], ["n2", None, "n1"]) == [2, 1, 0]
    assert rank_order(["n2", "n1", "n3"], [None, "n1", "n2"]) == [2, 1, 0], "an aggregator takes what is left"
    with pytest.raises(InputError, match="pinned to n9, and no rank is left for it there; ranks are on n1, n2"):
        rank_order(["n1", "n2"], ["n1", "n9"])
    with pytest.raises(InputError, match="2 ranks for 3 of them"):
        rank_order(["n1", "n2"], ["n1", None, None])
    with pytest.raises(InputError, match="pinned to n2"):
        rank_order(["n1"], ["n1", "n2"])


def test_where_a_shard_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    node = os.uname().nodename.partition(".")[0]
    monkeypatch.setenv("SHARD_DISK", "/local")
    data = CONFIG.data.model_copy(update={"shards": "${SHARD_DISK}/{hostname}/{site}.h5"})
    assert data.shard_path("site1") == Path(f"/local/{node}/site1.h5")
    monkeypatch.delenv("SHARD_DISK")
    with pytest.raises(ConfigError, match=f"SHARD_DISK is not set on {node}"):
        data.shard_path("site1")


def test_the_report_tells_what_is_wrong_and_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A report is sent by people who have a problem, so a problem does not keep it from being made."""
    monkeypatch.setenv("SLURM_JWT", "not for others")
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    config = tmp_path / "tiny.yaml"
    config.write_text(
        f'name: tiny\ndata: {{shards: "{tmp_path}/{{site}}.h5", sites: [{{name: site1}}]}}\nprivacy: off\n',
        encoding="utf-8",
    )
    assert main(["preflight", str(config), "--report", "--run-dir", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    for part in ("== software and machine", "SLURM_JOB_ID=4711", "mpi: ", f"== config {config}", "== df -hPT ."):
        assert part in said
    assert "not for others" not in said
    assert "preflight found 1 problem(s)\nsite site1: its shard" in said
    assert main(["preflight", str(config), "--run-dir", str(tmp_path / "run")]) == 2
