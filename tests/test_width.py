"""What every command prints fits a terminal of 80 columns; only a path, which cannot be cut, may be longer."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhpc.audit.findings import Finding, Law
from fedhpc.audit.report import terminal_table
from fedhpc.bench import codec, splits, wire
from fedhpc.util.text import LEAST_NAME, WIDTH, fitted, table
from tests.conftest import Outcome
from tests.support.tiny_sweeps import tree_of

NAME = "an-experiment-with-a-name-of-some-length-001"
Run = Callable[..., Outcome]


def too_wide(text: str) -> list[str]:
    """The lines that are too wide, though without their paths, too."""
    return [line for line in text.splitlines() if len(re.sub(r"\S*/\S+", "", line)) > WIDTH]


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(WIDTH))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, run_here: Run) -> Path:
    """Two runs of the smallest cohort, private and not, with long names, and their configs."""
    folder = tmp_path_factory.mktemp("width")
    trees = {NAME: {"privacy": {"epsilon": 8.0, "sample_rate": 1.0}}, "second": {"privacy": "off"}}
    for name, more in trees.items():
        tree = {**tree_of(folder, **more), "name": name, "model": {"name": "frozen", "backbone": "phantom"}}
        sweep = {key: tree.pop(key) for key in ("grid", "baselines")}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree, sort_keys=False), encoding="utf-8")
        (folder / f"{name}-sweep.yaml").write_text(yaml.safe_dump({**tree, **sweep}, sort_keys=False), encoding="utf-8")
    return folder


def commands(folder: Path) -> Iterator[list[str | Path]]:
    first, second, shards = folder / f"{NAME}.yaml", folder / "second.yaml", sorted((folder / "data").glob("site?.h5"))
    yield ["privacy", first]
    yield ["privacy", first, first]
    for config in (first, second):
        yield ["train", config, "--run-dir", folder / "runs" / config.stem]
    run, other = folder / "runs" / NAME, folder / "runs" / "second"
    shards = [folder / "data" / f"site{number}.h5" for number in range(1, 5)]
    yield ["train", first, "--run-dir", run]
    yield ["preflight", second, "--run-dir", folder / "third"]
    yield ["prepare", "check", *shards]
    yield ["privacy", run]
    yield ["privacy", shards[0]]
    yield ["budget", "show", folder / "data" / "site1.site-ledger"]
    yield ["evaluate", run, "--shard", shards[0]]
    yield ["egress", run]
    yield ["report", run, other, "-o", folder / "report.html"]
    yield ["pki", "init", second, "-o", folder / "keys"]
    yield ["sweep", folder / "second-sweep.yaml", "--cluster", "local", "--dry-run", "--run-dir", folder / "sweep"]


def test_commands_print_at_most_80_columns(folder: Path, run_here: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # Other rates take seconds each, and no more columns.
    monkeypatch.setattr("fedhpc.cli.privacy_config.OTHER_RATES", (1.0,))
    found = []
    for command in commands(folder):
        status, out, err = run_here(command)
        assert status == 0 and out.strip(), (command, err)
        found += [(command[0], line) for line in too_wide(out)]
    assert not found, "\n".join(map(str, found))


def test_tables_of_long_work_are_at_most_80_columns_wide() -> None:
    attack, setting = "one step, all units, canaries in turn", "noise of another variance"
    finding = Finding(attack, setting, "TPR at FPR 1%", 1 / 3, 1 / 7, 123.456, "ceiling", "claim")
    law = Law(attack, setting, "measured / planned epsilon", 1 / 3, 1 / 7, 1 / 3, 0.25, 0.75)
    assert too_wide(terminal_table([finding, law])) == []
    row: dict[str, object] = {
        "auc": 0.9,
        "share_up": 0.123,
        "share_down": 0.1,
        "share_most": 0.2,
        "less_dense": -0.001,
        "less_dense_error": 0.001,
    }
    row |= {"each_less_dense": [-0.001] * 5}
    assert (
        too_wide(
            wire.text(
                {"rows": [{"density": 0.01, "density_down": 0.25, "warm_up_rounds": 10, "value_bits": 32, **row}]}
            )
        )
        == []
    )
    spread = {f"auc{key}": 0.5 for key in ("", "_sd_of_splits", "_sd_of_noise", "_lowest", "_highest")}
    result = {"rows": [{"reference": "collection", "noise": "shared", "epsilon": 0.5, "splits": 20, **spread}]}
    assert too_wide(splits.text(result)) == []
    seconds = ("encode_s", "decode_s", "topk_s", "topk_sorted_s", "feedback_and_encode_s")
    sizes = (
        "size",
        "entries",
        "dense_bytes",
        "payload_bytes",
        "entropy_bound_bytes",
        "index_bytes",
        "index_entropy_bytes",
    )
    shares = ("encode_over_topk", "encode_over_topk_sorted", "peak_extra_over_dense")
    figures: dict[str, Any] = {**dict.fromkeys((*seconds, *shares), 123.456), **dict.fromkeys(sizes, 112_500_000)}
    figures |= {"rivals": {"float32 values and int32 places": figures}}
    assert (
        too_wide(codec.report({"density": 0.1, "value_bits": 4, "threads": 1, **figures, "densenet121": figures})) == []
    )


@pytest.mark.parametrize("columns", [2, 3, 5, 9, 17])
@pytest.mark.parametrize("cell", ["x" * 9, "word " * 9 + "end", "-"])
def test_table_of_any_shape_fits_and_loses_no_cell(columns: int, cell: str) -> None:
    rows = [[f"name-of-run-{row:03}", *([f"{cell}{row}"] * (columns - 1))] for row in range(3)]
    text = fitted(rows, WIDTH)
    assert max(map(len, text.splitlines())) <= WIDTH
    assert sorted(set(text.split())) == sorted({word for row in rows for one in row for word in one.split()})


def test_table_that_fits_is_left_as_it_is() -> None:
    rows = [("run", "a text of some words"), ("x" * (LEAST_NAME + 5), "1")]
    assert fitted(rows, WIDTH) == table(rows)
