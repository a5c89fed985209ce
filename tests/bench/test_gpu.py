"""`run.py bench gpu` on a CPU, as small as it gets: the same code as on a GPU."""

import contextlib
import io
import json
from typing import Any

import pytest

from fedhpc.bench.gpu import limit_share, table
from fedhpc.cli.main import main

TINY = ["--models", "densenet_small", "--device", "cpu", "--batch", "2", "--image-size", "32", "--steps", "1"]
PARTS = ["--parts", "limits", "steps", "data", "coder", "--opacus", "ghost", "--parameters", "1000"]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out, file = io.StringIO(), tmp_path_factory.mktemp("bench") / "gpu.json"
    with contextlib.redirect_stdout(out):
        assert main(["bench", "gpu", *TINY, *PARTS, "--json", "-o", str(file)]) == 0
    parsed: dict[str, Any] = json.loads(out.getvalue())
    assert json.loads(file.read_text()) | {"seconds": 0} == parsed | {"seconds": 0}
    return parsed


def test_every_row_is_measured(result: dict[str, Any]) -> None:
    assert (result["failed"], result["left_out"]) == ({}, [])
    rows = result["steps"]["densenet_small"]
    assert list(rows["tf32"]) == ["bare", "fedhpc", "fedhpc dp", "opacus ghost"]
    assert list(rows["bf16"]) == ["bare", "fedhpc", "fedhpc dp", "bare channels_last"]
    assert list(rows["fp32"]) == ["bare", "fedhpc dp"]
    assert all(row["samples_per_s"] * row["step_s"] == pytest.approx(2) for p in rows.values() for row in p.values())


def test_limit_is_of_the_rate_of_the_precision(result: dict[str, Any]) -> None:
    flop, rates = result["limits"]["densenet_small"]["flop_per_sample"], result["limits"]["device"]
    assert limit_share(result, "densenet_small", "bf16", rates["bf16_flop_per_s"] / flop) == pytest.approx(1)
    assert limit_share({}, "densenet_small", "bf16", 1.0) is None


def test_table_names_every_row(result: dict[str, Any]) -> None:
    text = table(result)
    assert text.count("fedhpc dp") == 3
    assert "coder numpy: parameters 1000, " in text


def test_no_row_begins_when_time_is_used_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "gpu", *TINY, "--minutes", "0"]) == 0
    assert "no time was left for: steps / densenet_small / tf32 / fedhpc dp" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "allowed"), [("--parts", "limits"), ("--models", "densenet_small")])
def test_unknown_name_is_refused(capsys: pytest.CaptureFixture[str], option: str, allowed: str) -> None:
    assert main(["bench", "gpu", "--device", "cpu", option, "magic"]) == 2
    assert f"allowed: {allowed}" in capsys.readouterr().err
