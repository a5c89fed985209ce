"""Whose image is it: the patient of each file, by a table, by its name, or each image for itself (private)."""

import codecs
import csv
import hashlib
import hmac
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from data_prep.names import lookup_key, patient_key, shown
from fedhpc.util.text import first_names

DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Patients:
    """The patient of each file, in the order of the files, and what is wrong with them."""

    names: tuple[str, ...]
    problems: tuple[str, ...] = ()


def pseudonym(patient: str, seed: int) -> str:
    """16 hex digits that stand for `patient` (private); equal for equal (patient, seed)."""
    key, name = f"fedhpc {seed}".encode(), patient.encode("utf-8", "surrogateescape")
    return hmac.new(key, name, hashlib.sha256).hexdigest()[:16]


def each_its_own(files: Sequence[PurePath]) -> Patients:
    """Every image is a patient: the name below the source."""
    return Patients(tuple(path.as_posix() for path in files))


def by_regex(regex: str, files: Sequence[PurePath]) -> Patients:
    """The group `patient` of a regular expression, or else its first group, searched in the file's name."""
    try:
        pattern = re.compile(regex)
    except re.error as error:
        return Patients((), (f"patient_regex={regex!r}: {error}; allowed: a Python regular expression",))
    if not pattern.groups:
        text = f"patient_regex={regex!r} has no group; allowed: (...) or (?P<patient>...) around the patient"
        return Patients((), (text,))
    group: str | int = "patient" if "patient" in pattern.groupindex else 1
    matches = [pattern.search(path.name) for path in files]
    names = tuple(patient_key((match and match[group]) or "") for match in matches)
    lost = [shown(path) for path, name in zip(files, names, strict=True) if not name]
    problem = f"patient_regex={regex!r} finds no patient in the name of {len(lost):,} files: {first_names(lost)}"
    return Patients(names, (problem,) if lost else ())


def by_table(table: Path, files: Sequence[PurePath]) -> Patients:
    """The column `patient` of a CSV file, by the column `file`: a path below the source, or a name that occurs once.

    The delimiter may be a comma, a semicolon or a tab. A name that is not UTF-8 on disk is found by its bytes.
    """
    try:
        rows = table_rows(table.read_bytes())
    except (OSError, csv.Error) as error:
        return Patients((), (f"patient_csv={shown(table)}: {error}",))
    if not rows or not {"file", "patient"} <= set(rows[0]):
        columns = [shown(name) for name in rows[0]] if rows else []
        return Patients((), (f"patient_csv={shown(table)} has the columns {columns}; allowed: file, patient",))
    known, problems = _known(table, rows)
    same_name = Counter(lookup_key(path.name) for path in files)
    names = tuple(_find(known, path, same_name[lookup_key(path.name)] == 1) for path in files)
    lost = [shown(path) for path, name in zip(files, names, strict=True) if not name]
    if lost:
        problems.append(
            f"{first_names(lost)} has no patient in {shown(table)}; allowed: its path below the source, or a name that "
            "occurs once"
        )
    return Patients(names, tuple(problems))


def table_rows(content: bytes) -> list[dict[str, str]]:
    """Return the rows of a table by its first line, in lower case; the delimiter is the commonest one in it."""
    utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    text = content.decode("utf-16", "replace") if utf16 else content.decode("utf-8-sig", "surrogateescape")
    head = text.partition("\n")[0]
    delimiter = max(DELIMITERS, key=head.count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    return [{(key or "").strip().lower(): value or "" for key, value in row.items() if key} for row in reader]


def _known(table: Path, rows: Sequence[Mapping[str, str]]) -> tuple[dict[str, str], list[str]]:
    known: dict[str, str] = {}
    wrong = []
    for row in rows:
        name, patient = lookup_key(row["file"]), patient_key(row["patient"])
        if not patient or known.setdefault(name, patient) != patient:
            wrong.append(f"{shown(name)} has patient {shown(patient)!r} after {shown(known.get(name, ''))!r}")
    if not wrong:
        return known, []
    more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return known, [f"{shown(table)}: {'; '.join(wrong[:3])}{more}; allowed: one patient a file"]


def _find(known: Mapping[str, str], path: PurePath, alone: bool) -> str:
    for name in (path.as_posix(), path.name) if alone else (path.as_posix(),):
        # A table in Latin-1 has the bytes of a Latin-1 name; a file system in UTF-8 has other bytes for the same name.
        latin = lookup_key(name).encode("latin-1", "replace").decode("utf-8", "surrogateescape")
        for key in (lookup_key(name), latin):
            if key in known:
                return known[key]
    return ""
