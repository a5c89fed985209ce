"""`run.py bench schedule`: the pace is that of the slowest site, and the runs are those that were done."""

import pytest

from fedhpc.bench.schedule import Cell, Slow, rows_of


def test_pace_is_that_of_the_slowest_site() -> None:
    """A site that is slowed 10 times, with a quarter of the work where it is planned for, or late."""
    even, plan, late = Cell(1.0, "even"), Cell(1.0, "plan"), Cell(1.0, "deadline")
    whole = {"a": 2.0, "b": 1.0}
    seconds = {even: whole, plan: {"a": 2.0, "b": 0.25}, late: whole}
    spent = {"a": 1.0, "b": 1.0}
    runs = {even: [{"auc": 0.9, "epsilon": spent}], plan: [{"auc": 0.88, "epsilon": {**spent, "b": 0.999}}]}
    runs[late] = runs[plan]
    turns = [
        {cell: {name: drift * s for name, s in one.items()} for cell, one in seconds.items()} for drift in (1, 3, 1)
    ]
    rows = rows_of(Slow("b", 10.0, 2.2), turns, runs)
    assert [row["case"] for row in rows] == ["even", "wait", "plan", "deadline"]
    assert [row["pace"] for row in rows] == pytest.approx([1.0, 0.2, 0.8, 1 / 1.1])
    assert [row["rounds_per_minute"] for row in rows][:3] == pytest.approx([30, 6, 24])
    assert rows[2]["pace_quartiles"] == pytest.approx([0.8, 0.8]), "a machine that is slower for a turn changes no pace"
    assert rows[2]["less_even"] == pytest.approx(-0.02)
    assert rows[2]["spent"] == {"a": 1.0, "b": 0.999}
