"""Text for a terminal of 80 columns: numbers, sizes, wrapped lines and tables."""

import textwrap
from collections.abc import Sequence

WIDTH, LEAST_NAME = 80, 11
"""Columns of a line, as a terminal of the usual size shows it; the least width of a name that is cut."""


def fixed(value: float | None, digits: int = 3) -> str:
    """A number for a table; a dash where there is none.

    >>> fixed(0.96512), fixed(None)
    ('0.965', '-')
    """
    return "-" if value is None else f"{value:.{digits}f}"


def data_size(count: float) -> str:
    """Bytes as B, kB or MB (1 kB = 1,000 B), with as many digits as are worth reading.

    >>> data_size(48_000_000), data_size(52_345), data_size(999.6), data_size(312)
    ('48.0 MB', '52.3 kB', '1.0 kB', '312 B')
    """
    if round(count) < 1000:
        return f"{count:.0f} B"
    return f"{count / 1e3:.1f} kB" if count < 999_950 else f"{count / 1e6:.1f} MB"


def wrapped(text: str, width: int = WIDTH) -> str:
    """Break each line of a text at words so that it fits `width`; what belongs to a line is indented below it.

    >>> print(wrapped("one two three", 9))
    one two
      three
    """
    wrapper = textwrap.TextWrapper(width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return "\n".join(wrapper.fill(line) for line in text.splitlines())


def table(rows: Sequence[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart.

    >>> print(table([("site", "auc"), ("site1", "0.9")]))
    site   auc
    site1  0.9
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows)


def fitted(rows: Sequence[Sequence[str]], width: int = WIDTH) -> str:
    """The `table` of rows whose first cells, names, are cut in the middle where lines would be wider than `width`.

    >>> print(fitted([("run", "auc"), ("a_very_long_name-003", "0.9")], 16))
    run          auc
    a_ve...-003  0.9
    """
    over = max(map(len, table(rows).splitlines())) - width
    if over <= 0:
        return table(rows)
    longest = max(len(row[0]) for row in rows)
    most = max(LEAST_NAME, longest - over)
    return table([(_cut(row[0], most), *row[1:]) for row in rows])


def _cut(name: str, most: int) -> str:
    """A name of at most so many characters; its end tells runs of a sweep apart."""
    return name if len(name) <= most else f"{name[: most - 7]}...{name[-4:]}"


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
