"""`run.py bench codec`: the real command, small; its figures must agree with each other."""

import json
from collections.abc import Callable

import pytest

from fedhpc.cli.main import BAD_INPUT, main
from fedhpc.config.exchange import Exchange

Run = Callable[..., tuple[int, str, str]]


def test_figures_of_a_small_job(run_python: Run) -> None:
    status, out, err = run_python(["bench", "codec", "--size", "400000", "--json"], timeout=200)
    assert status == 0, err
    assert out.count("\n") == 1, "one JSON object and nothing else"
    found = json.loads(out)
    assert (found["size"], found["entries"], found["dense_bytes"]) == (400_000, 40_000, 1_600_000)
    assert (found["density"], found["value_bits"], found["threads"]) == (0.1, Exchange().value_bits, 1)
    assert found["densenet121"]["size"] == 6_949_634
    for part in (found, found["densenet121"]):
        others = {name: rival["payload_bytes"] for name, rival in part["rivals"].items()}
        k, d = part["entries"], part["size"]
        assert others == {"int64 + fp32": 12 * k, "int32 + fp32": 8 * k, "bitmask + fp32": -(-d // 8) + 4 * k}
        assert part["payload_bytes"] <= 12 / 450 * part["dense_bytes"]
        assert part["encode_over_topk"] == pytest.approx(part["encode_s"] / part["topk_s"])
        assert all(part[f"{name}_s"] > 0 for name in ("encode", "decode", "topk", "topk_sorted"))
    assert found["entropy_bound_bytes"] < found["payload_bytes"] < 1.05 * found["entropy_bound_bytes"]
    assert found["index_entropy_bytes"] < found["index_bytes"] < 1.03 * found["index_entropy_bytes"]


@pytest.mark.parametrize("wrong", [("--size", "0"), ("--density", "0"), ("--density", "1.5"), ("--threads", "0")])
def test_impossible_jobs_are_refused(wrong: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "codec", *wrong]) == BAD_INPUT
    assert " ".join(wrong) in capsys.readouterr().err
