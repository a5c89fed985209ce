"""Tables as CSV text: the one place that writes it, so that no cell is a formula to the program that opens it.

A spreadsheet computes a cell that begins with `=`, `+`, `-` or `@`, and a formula can read other cells and ask other
hosts. Names of files, classes and runs are chosen by others. As OWASP's ASVS 5.0 asks (requirement 1.2.10), such a text
gets an apostrophe before it. Numbers stay as they are.
"""

import re
from collections.abc import Iterable, Sequence

FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20\t\r\n\0]")
"""How a cell begins that a spreadsheet may compute: the full-width forms of the four are read as they are in some
locales, and white space before them is dropped."""
NUMBER = re.compile(r"[+-]?\d+(\.\d+)?([eE][+-]?\d+)?")
SPECIAL = re.compile(r'[,;"\t\r\n]')
"""What is quoted: a semicolon or a tab separates cells in the spreadsheets of some countries."""


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    r"""Return rows as CSV (RFC 4180, but lines end in \n); None is an empty cell.

    >>> csv_text([("file", "score"), ("=1+1.png", -0.5), ('a "b";c', "-0.25"), (None, True)])
    'file,score\n\'=1+1.png,-0.5\n"a ""b"";c",-0.25\n,True\n'
    """
    return "".join(",".join(map(_cell, row)) + "\n" for row in rows)


def _cell(value: object) -> str:
    text = "" if value is None else str(value)
    if isinstance(value, str) and FORMULA.match(text) and not NUMBER.fullmatch(text):
        text = f"'{text}"
    quoted = text.replace('"', '""')
    return f'"{quoted}"' if SPECIAL.search(text) else text
