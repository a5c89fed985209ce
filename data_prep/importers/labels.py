"""A table of labels, joined to images by study, series, patient or file (private)."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.importers.volume import Series
from data_prep.names import is_class_name, lookup_key, patient_key, shown
from data_prep.patients import table_rows
from fedhpc.errors import ShardError

JOINS = ("file", "series", "study", "patient")
"""Columns that a table may be joined by, the finest first."""

IDENTITY = re.compile(r"\^|\d{5}|\b\d{1,4}([-./])\d{1,2}\1\d{1,4}\b")
"""Of a label: DICOM's mark between parts of a name, a long number, a date."""

MOST_CLASSES = 20
"""More kinds of labels than this are rather a column of names, and class names get into a shard."""


@dataclass(frozen=True)
class Labels:
    """Labels by one kind of key.

    Attributes:
        join: one of `JOINS`.
        values: label of each key.
        classes: names in the order of their numbers.
    """

    join: str
    values: dict[str, str]
    classes: tuple[str, ...]

    def of(self, series: Series, row: int) -> int | None:
        """Return the number of the class of one frame; None where the table does not know it."""
        file = series.frames[row].file
        keys = {
            "file": (lookup_key(file), lookup_key(Path(file).name)),
            "series": (series.series,),
            "study": (series.study,),
            "patient": (patient_key(series.patient),),
        }[self.join]
        found = next((self.values[key] for key in keys if key in self.values), None)
        return None if found is None else self.classes.index(found)


def read_labels(table: Path, classes: Sequence[str] | None) -> Labels:
    """Return the labels of a CSV table: a column `label` and one of file, series, study, patient.

    Args:
        table: comma, semicolon or tab between columns; UTF-8 or UTF-16.
        classes: in order; None: those of the table, sorted.

    Raises:
        ShardError: it cannot be read, lacks a column, tells two labels of one key, or one that is no class. Rows are
            told by their number: a key may be a name.
    """
    try:
        rows = table_rows(table.read_bytes())
    except (OSError, csv.Error) as error:
        raise _refused(table, f"cannot be read ({type(error).__name__}). Give a CSV table") from error
    columns = set(rows[0]) if rows else set()
    join = [name for name in JOINS if name in columns]
    if "label" not in columns or len(join) != 1:
        raise _refused(table, f"needs the column label and one of {', '.join(JOINS)}")
    values: dict[str, str] = {}
    wrong = []
    for number, row in enumerate(rows, 2):
        key, label = row[join[0]].strip(), row["label"].strip()
        key = {"file": lookup_key, "patient": patient_key}.get(join[0], str)(key)
        if not key or not label or values.setdefault(key, label) != label:
            wrong.append(number)
    if wrong:
        raise _refused(table, f"empty, or another label than an earlier line, in {_lines(wrong)}. Correct them")
    named = tuple(classes or sorted(set(values.values())))
    strange = [number for number, row in enumerate(rows, 2) if row["label"].strip() not in named]
    if classes is None and len(named) > MOST_CLASSES:
        raise _refused(
            table,
            f"has {len(named)} different labels. Class names are public: is it the right column? If so, name all by "
            "--classes",
        )
    if not all(map(is_class_name, named)):
        raise _refused(table, "has a label that is not printable, not UTF-8 or over 100 letters long. Correct it")
    if len(named) < 2:
        raise _refused(table, "has one class only. Give a table of two or more")
    if strange:
        raise _refused(table, f"labels that are no class, in {_lines(strange)}. Name all by --classes, all named")
    return Labels(join[0], values, named)


def check_no_names(table: Path, labels: Labels, series: Sequence[Series]) -> None:
    """Refuse labels that may be names, dates or numbers of patients: class names get into a shard, and are public.

    Each label must be of two patients, and none may be a patient's id or look like a name of DICOM, a date or a number
    of five digits.

    Args:
        table: the file that the labels are from.
        labels: of it, with the classes that it has itself.
        series: what is taken.

    Raises:
        ShardError: one of them may be. The message repeats no label.
    """
    patients: dict[int, set[str]] = {}
    for one in series:
        for row in range(len(one.frames)):
            if (number := labels.of(one, row)) is not None:
                patients.setdefault(number, set()).add(one.patient)
    everyone = {patient_key(one.patient) for one in series}
    alone = sum(len(found) == 1 for found in patients.values())
    named = sum(patient_key(name) in everyone or bool(IDENTITY.search(name)) for name in labels.classes)
    for count, problem in ((alone, "of one patient only"), (named, "like a patient's name, date or number")):
        if count:
            raise _refused(
                table,
                f"{count} of its {len(labels.classes)} labels {'is' if count == 1 else 'are'} {problem}. Class names "
                "are public: is it the right column? If so, name all by --classes",
            )


def _lines(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - 3} more" if len(numbers) > 3 else ""
    return f"line {', '.join(map(str, numbers[:3]))}{more}"


def _refused(table: Path, problem: str) -> ShardError:
    return ShardError(f"labels={shown(table)}: {problem}", code="prepare")
