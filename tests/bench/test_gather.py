"""`run.py bench gather`, `bench secagg` and `bench sparse`: as small as they get."""

import json

import numpy as np
import pytest

from fedhpc.bench import gather, sparse_rounds
from fedhpc.cli.main import main
from fedhpc.compression.codec import decode, encode
from fedhpc.compression.update import SparseVector, Update


def test_readdressed_payload_is_that_of_the_other_sender() -> None:
    entries = SparseVector(9, np.array([1, 4]), np.array([2, -3], np.float32))
    again = gather.readdressed(encode(Update(0, 0, entries)), 7)
    assert again == encode(Update(7, 0, entries))
    assert decode(again, sender=7, round=0, size=9).sender == 7


def test_gather_has_a_row_for_each_number_and_density(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--sites", "2", "5", "--densities", "0.1", "0.5", "--size", "3000", "--rounds", "1", "--predict", "50"]
    assert main(["bench", "gather", *words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(row["sites"], row["density"]) for row in found["rows"]] == [(2, 0.1), (2, 0.5), (5, 0.1), (5, 0.5)]
    for line in found["lines"]:
        assert line["predicted_s"] == pytest.approx(line["fixed_s"] + 50 * line["each_s"])
    assert main(["bench", "gather", *words]) == 0
    assert "50 hospitals" in capsys.readouterr().out


def test_secagg_sum_is_right_with_one_lost_site(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["bench", "secagg", "--sizes", "100", "70000", "--threads", "1", "2", "--width", "3", "--round-s", "100"]
    assert main([*words, "--sites", "3", "--repeats", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["size"], row["threads"]) for row in rows] == [(100, 1), (100, 2), (70000, 1), (70000, 2)]
    assert all(row["right"] and row["up_bytes"] == 3 * row["size"] for row in rows)
    assert all(0 < row["share_of_round"] < 1 for row in rows)
    assert main([*words, "--sites", "2"]) == 2
    assert "--sites 2" in capsys.readouterr().err


def test_sparse_rows_are_differences_from_dense() -> None:
    found = sparse_rounds.measure(2, [0], (sparse_rounds.DENSE, sparse_rounds.Way(0.1, 4, 0.2, 1)))
    dense, sparse = found["rows"]
    assert (dense["less_dense"], dense["bits_up"] >= 32, dense["less_dense_error"]) == ([0, 0], True, [None, None])
    assert sparse["less_dense"] == pytest.approx(
        [one - other for one, other in zip(sparse["auc"], dense["auc"], strict=True)]
    )
    assert 0 < sparse["bits_up"] < sparse["bits_most"] < 4
