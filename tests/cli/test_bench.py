"""The benchmarks as a user starts them, as small as they get."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fedhpc.bench.dp import table
from fedhpc.cli.main import main

NOISE_LINES = ["noise alone", "torch.normal alone"]


@pytest.fixture(scope="module")
def result(run_python: Callable[..., Any]) -> dict[str, Any]:
    small = ["--batch", "2", "--image-size", "128", "--seconds", "0.5"]
    done = run_python(["bench", "dp", "--models", "densenet_small", "--ways", "ew", "fedhpc", *small, "--json"])
    assert done.returncode == 0, done.stderr
    parsed: dict[str, Any] = json.loads(done.stdout)
    return parsed


def test_ratios_are_to_plain_sgd(result: dict[str, Any]) -> None:
    assert (result["batch"], result["device"], result["threads"]) == (2, "cpu", 1)
    model = result["models"]["densenet_small"]
    assert model["parameters"] == 36_610
    plain, ours = model["ways"]["plain"], model["ways"]["fedhpc"]
    assert plain["time_over_plain"] == plain["memory_over_plain"] == plain["cpu_over_plain"] == 1
    assert ours["time_over_plain"] == pytest.approx(ours["min_s"] / plain["min_s"])
    assert ours["memory_over_plain"] == pytest.approx(ours["memory_mb"] / plain["memory_mb"])
    assert ours["steps"] >= 3
    assert min(ours["memory_mb"], plain["memory_mb"]) > 1


def test_noise_is_a_share_of_our_step(result: dict[str, Any]) -> None:
    model = result["models"]["densenet_small"]
    for row in model["noise"].values():
        assert 0 < row["of_step"] == pytest.approx(row["min_s"] / model["ways"]["fedhpc"]["min_s"])
        # CPU seconds: of the wall's few steps all may be disturbed.
        assert 0 < row["cpu_of_step"] < 1


def test_a_way_that_fails_says_why(result: dict[str, Any]) -> None:
    """PyTorch's expanded weights don't work on this network for a batch of two."""
    assert list(result["models"]["densenet_small"]["ways"]) == ["plain", "fedhpc"]
    assert "view size is not compatible" in result["models"]["densenet_small"]["failed"]["ew"]


def test_table_has_a_line_for_each_way(result: dict[str, Any]) -> None:
    lines = table(result).splitlines()
    assert "densenet_small: 36,610 parameters, 128x128 pixels" in lines[2]
    assert [line.split("  ")[0] for line in lines[4:]] == ["plain SGD", "fedhpc", "Opacus ew", *NOISE_LINES]
    assert len({len(line) for line in lines[3:6]}) == 1


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--models", "vgg"], "allowed: densenet_small"),
        (["--ways", "magic"], "allowed: plain"),
        (["--device", "cuda"], "GPU"),
    ],
)
def test_bad_options_are_told(capsys: pytest.CaptureFixture[str], option: list[str], message: str) -> None:
    assert main(["bench", "dp", *option]) == 2
    assert message in capsys.readouterr().err
