"""Text as wide as the terminal (80 columns where standard output is none): numbers, sizes, wrapped lines and tables."""

import itertools
import reprlib
import shutil
import sys
import textwrap
from collections.abc import Sequence

WIDTH, LEAST_WIDTH = 80, 40
"""Columns of what is no terminal, and the fewest that lines are fitted to."""
LEAST_NAME, LEAST_TEXT = 11, 16
GAP = 2
Row = Sequence[str]


def fixed(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none. What would round to 0 and is not has two significant digits.

    >>> fixed(0.96512), fixed(None), fixed(1e-7), fixed(0.0)
    ('0.965', '-', '1e-07', '0.000')
    """
    if value is None:
        return "-"
    text = f"{value:.{digits}f}"
    return f"{value:.2g}" if value and not float(text) else text


def shown(value: object) -> str:
    """A value of a config in a table.

    >>> shown(None), shown(0.1), shown("sgd"), shown(True)
    ('none', '0.1', 'sgd', 'true')
    """
    if value is None or isinstance(value, bool):
        return "none" if value is None else str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def as_written(value: object) -> str:
    """A value of a config in a message, in short: null, true and false as YAML has them.

    >>> as_written(None), as_written(True), as_written("on"), as_written(3)
    ('null', 'true', "'on'", '3')
    """
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return reprlib.repr(value)


def count_of(number: int, what: str) -> str:
    """A number and what is counted, in the singular for one.

    >>> count_of(1, "file"), count_of(2500, "file")
    ('1 file', '2,500 files')
    """
    return f"{number:,} {what}" if number == 1 else f"{number:,} {what}s"


def data_size(count: float) -> str:
    """Bytes as B, kB or MB (1 kB = 1,000 B), with as many digits as are worth reading.

    >>> data_size(48_000_000), data_size(52_345), data_size(999.6), data_size(312)
    ('48.0 MB', '52.3 kB', '1.0 kB', '312 B')
    """
    if round(count) < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 999_950 else f"{count / 1e6:.1f} MB"


def capital(text: str) -> str:
    """Return a text with its first letter large.

    >>> capital("early-stage sensitivity"), capital("F1"), capital("")
    ('Early-stage sensitivity', 'F1', '')
    """
    return text[:1].upper() + text[1:]


def percent(share: float, digits: int = 1) -> str:
    """Return a share as a percentage.

    >>> percent(0.107), percent(0.9, 0)
    ('10.7 %', '90 %')
    """
    return f"{100 * share:.{digits}f} %"


def terminal_width() -> int:
    """Return the columns that standard output shows: of COLUMNS, of the terminal, or WIDTH."""
    return max(LEAST_WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)


def printable(text: str) -> str:
    r"""Return a text that cannot move a terminal, as one from another rank or in somebody else's files could.

    >>> printable("lost\x1b[2J\r disk\n")
    'lost?[2J? disk\n'
    """
    return "".join(one if one == "\n" or one.isprintable() else "?" for one in text)


def wrapped(text: str, width: int = WIDTH) -> str:
    """Break each line of a text at words so that it fits `width`; what belongs to a line is indented below it.

    >>> print(wrapped("one two three", 9))
    one two
      three
    """
    wrapper = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapper.fill(line) for line in text.splitlines())


def for_stderr(text: str) -> str:
    """Return a message as standard error shows it best: wrapped on a terminal, else as it is, a line a problem."""
    return wrapped(text, min(WIDTH, terminal_width())) if sys.stderr.isatty() else text


def first_names(names: Sequence[str], shown: int = 3) -> str:
    """Return the first `shown` names of a list, and how many more there are.

    >>> first_names(["a", "b", "c", "d"], 2), first_names(["a", "b"], 2)
    ('a, b and 2 more', 'a, b')
    """
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")


def table(rows: Sequence[Row]) -> str:
    """Left-aligned columns, two spaces apart, however wide.

    >>> print(table([("site", "auc"), ("site1", "0.9")]))
    site   auc
    site1  0.9
    """
    widths = _widths(rows)
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def fitted(rows: Sequence[Row], width: int | None = None, names: int = 1) -> str:
    """Return the `table` of rows within `width` (default: `terminal_width`).

    Where it is wider, the first of these steps that is enough is taken: text is broken at words within its column; the
    first cells, names, are cut in the middle; the columns are shown in several tables, each with the first `names`
    columns.

    >>> print(fitted([("run", "auc"), ("a_very_long_name-003", "0.9")], 16))
    run          auc
    a_ve...-003  0.9
    >>> print(fitted([("site", "images", "patients"), ("site1", "1200", "900")], 16))
    site   images
    site1  1200
    <BLANKLINE>
    site   patients
    site1  900
    """
    most = terminal_width() if width is None else width
    if not rows or _total(rows) <= most:
        return table(rows)
    broken = _broken(rows, most)
    if _total(broken) <= most:
        return table(broken)
    short = _short_names(rows, max(LEAST_NAME, _widths(rows)[0] - (_total(rows) - most)))
    if _total(short) <= most:
        return table(short)
    return "\n\n".join(table(_broken(part, most)) for part in _parts(_short_names(rows, most // 2), most, names))


def _widths(rows: Sequence[Row]) -> list[int]:
    return [max(map(len, column)) for column in zip(*rows, strict=True)]


def _total(rows: Sequence[Row]) -> int:
    return max(len(line) for line in table(rows).splitlines() or [""])


def _broken(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """Return the rows with text broken at words, the widest columns first; as they are where that is not enough."""
    widths = _widths(rows)
    words = [
        max((len(word) for cell in column for word in cell.split()), default=0) for column in zip(*rows, strict=True)
    ]
    least = [max(word, min(width, LEAST_TEXT)) for word, width in zip(words, widths, strict=True)]
    over = sum(widths) + GAP * (len(widths) - 1) - most
    for _ in range(over):
        column = max(range(len(widths)), key=lambda one: (widths[one] > least[one], widths[one]))
        if widths[column] <= least[column]:
            return rows
        widths[column] -= 1
    found: list[Row] = []
    for row in rows:
        cells = [textwrap.wrap(cell, w, break_on_hyphens=False) for cell, w in zip(row, widths, strict=True)]
        found += itertools.zip_longest(*cells, fillvalue="") if any(cells) else [row]
    return found


def _short_names(rows: Sequence[Row], most: int) -> list[Row]:
    return [[cut(row[0], most), *row[1:]] for row in rows]


def cut(name: str, most: int) -> str:
    """Return a name of at most so many characters; its end tells runs of a sweep apart.

    >>> cut("a_very_long_name-003", 11)
    'a_ve...-003'
    """
    if len(name) <= most:
        return name
    end = max(4, most // 2 - 2)
    return f"{name[: most - 3 - end]}...{name[-end:]}"


def _parts(rows: Sequence[Row], most: int, names: int) -> list[list[Row]]:
    """Return the columns in several tables, as many in each as fit, each with the first columns."""
    widths, groups = _widths(rows), [list(range(names))]
    for column in range(names, len(widths)):
        last = groups[-1]
        if len(last) > names and sum(widths[one] + GAP for one in last) + widths[column] > most:
            groups.append(list(range(names)))
        groups[-1].append(column)
    return [[[row[column] for column in group] for row in rows] for group in groups]


def clock(seconds: float) -> str:
    """Seconds as a person says them.

    >>> clock(9.4), clock(75), clock(3700)
    ('9 s', '1 min 15 s', '1 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
