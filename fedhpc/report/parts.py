"""What a page is made of, as values: parts with figures, tables, cards and pictures. A figure carries its numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from markupsafe import Markup

from fedhpc.util.csv_text import csv_text
from fedhpc.util.text import clock, data_size, fixed

Value = str | float | int | None
MOST_OPEN_ROWS = 20
Kind = Literal["text", "code", "number", "count", "bytes", "seconds"]


@dataclass(frozen=True)
class Column:
    """One column of a table: `key` in JSON and CSV, `title` on the page, where it is not shown if it is hidden."""

    key: str
    title: str
    kind: Kind = "text"
    hidden: bool = False

    @property
    def is_number(self) -> bool:
        """Whether it is aligned to the right."""
        return self.kind not in ("text", "code")

    def shown(self, value: Value) -> str:
        """Return a value as the page shows it.

        >>> Column("b", "Bytes", "bytes").shown(48_000_000), Column("a", "AUC", "number").shown(None)
        ('48.0 MB', '-')
        """
        if value is None or value == "":
            return "-"
        if isinstance(value, str):
            return value
        if self.kind == "bytes":
            return data_size(value)
        if self.kind == "seconds":
            return f"{value:.2f} s" if value < 10 else clock(value)
        return f"{value:,.0f}" if self.kind == "count" else fixed(value)


@dataclass(frozen=True)
class Table:
    """Rows of plain values; `key` names it in report.json and its CSV file; `folded`: shown to those who ask."""

    key: str
    title: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Value]]
    note: str = ""
    folded: bool = False

    @property
    def is_long(self) -> bool:
        """Whether the page shows it only to those who ask."""
        return self.folded or len(self.rows) > MOST_OPEN_ROWS

    def used(self) -> list[int]:
        """Return which columns the page shows: the first, and those with a value in any row that are not hidden."""
        there = [not column.hidden for column in self.columns]
        return [
            k for k in range(len(there)) if not k or (there[k] and any(row[k] not in (None, "") for row in self.rows))
        ]

    def records(self) -> list[dict[str, Value]]:
        """As a list of objects."""
        return [dict(zip((column.key for column in self.columns), row, strict=True)) for row in self.rows]

    def csv(self) -> str:
        """As CSV text, with a line of column keys."""
        return csv_text([[column.key for column in self.columns], *self.rows])


@dataclass(frozen=True)
class Legend:
    """One entry of a legend. `style` 0 to 5 is a colour and a marker; `level`: a broken line without markers."""

    label: str
    style: int
    level: bool = False
    block: bool = False


@dataclass(frozen=True)
class Figure:
    """A chart. `alt` says in a sentence what it shows; `table` has its numbers; `below`: under the one before it."""

    title: str
    alt: str
    svg: Markup
    table: Table
    note: str = ""
    legend: Sequence[Legend] = ()
    wide: bool = False
    below: bool = False


@dataclass(frozen=True)
class Tile:
    """One large number of the answer."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Card:
    """What is known of one site: pairs of a label and a value, and marks of what is unusual."""

    title: str
    facts: Sequence[tuple[str, str]]
    marks: Sequence[str] = ()


@dataclass(frozen=True)
class Picture:
    """A public image: its PNG file in base64."""

    png_base64: str
    alt: str
    caption: str


@dataclass(frozen=True)
class Part:
    """One section of the page; `key` is its anchor."""

    key: str
    title: str
    lead: str = ""
    tiles: Sequence[Tile] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    cards: Sequence[Card] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()
    warnings: Sequence[str] = ()
    code: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not any((self.tiles, self.figures, self.tables, self.cards, self.pictures, self.warnings, self.code))

    @property
    def beside(self) -> bool:
        """Whether its one table stands beside its one figure."""
        return len(self.figures) == 1 and len(self.tables) == 1 and not self.cards and not self.tables[0].is_long

    def stacks(self) -> list[list[Figure]]:
        """Its figures, those that stand below each other together."""
        found: list[list[Figure]] = []
        for figure in self.figures:
            if figure.below and found:
                found[-1].append(figure)
            else:
                found.append([figure])
        return found

    def all_tables(self) -> list[Table]:
        """Its tables and those of its figures."""
        return [*(figure.table for figure in self.figures), *self.tables]


def facts_of_parts(parts: Sequence[Part]) -> dict[str, Any]:
    """{part: {table: rows}}, for report.json."""
    return {part.key: {table.key: table.records() for table in part.all_tables()} for part in parts}


def csv_files(parts: Sequence[Part]) -> Mapping[str, str]:
    """{file name: content}, one for each table of the page."""
    return {f"{part.key}-{table.key}.csv": table.csv() for part in parts for table in part.all_tables()}
