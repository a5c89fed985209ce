"""No cell of a table is a formula to a spreadsheet, and what was written is read back."""

import csv
import io
import re
from pathlib import PurePath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.inventory import Inventory, LeftOut
from fedhpc.run.finished.predict import Prediction, Scored, scores_csv
from fedhpc.util.csv_text import csv_text
from tests.conftest import REPO

LETTERS = "=+-@\t\r\n\0\uff1d '\",;a1.e"
CELLS = st.one_of(st.none(), st.integers(), st.text(LETTERS, max_size=6), st.floats(-1e9, 1e9))
BEGINS = re.compile("[=+@\t\r\n\0\uff1d-]")
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
FILE = "=HYPERLINK(1).png"


def cells_of(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


@given(st.lists(st.lists(CELLS, min_size=2, max_size=3), min_size=1, max_size=4))
def test_csv_text_has_no_formula_and_is_read_back(rows: list[list[object]]) -> None:
    read = cells_of(csv_text(rows))
    assert len(read) == len(rows)
    for row, cells in zip(rows, read, strict=True):
        for value, cell in zip(row, cells, strict=True):
            assert cell in (text := "" if value is None else str(value), f"'{text}")
            assert NUMBER.fullmatch(cell) or not BEGINS.match(cell.lstrip(" ")), "a spreadsheet would compute it"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_csv_text_keeps_a_separator_within_its_cell(separator: str) -> None:
    """What follows a semicolon is a cell of its own in some countries, and may be a formula there."""
    assert csv_text([[f"a{separator}=1+1", "b"]]) == f'"a{separator}=1+1",b\n'


def test_scores_name_a_file_as_text_and_keep_their_numbers() -> None:
    one = np.array([[-1.5]])
    table = scores_csv(Prediction(("a",), (Scored((FILE,), (0,), one, one, one > 0),), (0.0,), None, None))
    assert cells_of(table)[1] == [f"'{FILE}", "0", "-1.5000", "-1.5000", "0"]


def test_files_of_an_import_are_named_as_text() -> None:
    left = LeftOut(PurePath("@cmd.txt"), "are no images")
    table = Inventory(PurePath("."), [(PurePath(FILE), "-b")], [left]).csv()
    assert cells_of(table)[1:] == [[f"'{FILE}", "taken", "'-b", "1"], ["'@cmd.txt", "left out", "are no images", "1"]]


def test_nothing_else_writes_csv() -> None:
    writes = re.compile(r"csv\.(writer|DictWriter)|to_csv|savetxt")
    sources = [*REPO.glob("fedhpc/**/*.py"), *REPO.glob("data_prep/**/*.py")]
    assert len(sources) > 300
    assert [path.name for path in sources if writes.search(path.read_text(encoding="utf-8"))] == []
