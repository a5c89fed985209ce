"""The claims as a table for a terminal, as Markdown, CSV and JSON."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from fedhpc.records.study import Claim, Study, StudyDirectory
from fedhpc.util.csv_text import csv_text
from fedhpc.util.files import write_text
from fedhpc.util.text import fitted, wrapped

HEAD = ("claim", "paper", "measured", "verdict")


def write_claims(records: StudyDirectory, study: Study, claims: tuple[Claim, ...]) -> None:
    """Write claims.json, claims.csv and claims.md."""
    records.write_claims(claims)
    rows = [[*Claim.__dataclass_fields__], *([*asdict(one).values()] for one in claims)]
    write_text(records.claims.with_suffix(".csv"), csv_text(rows))
    write_text(records.claims.with_suffix(".md"), _markdown(study, claims))


def claims_text(study: Study, claims: Sequence[Claim]) -> str:
    """Return the table for a terminal: without reasons, which claims.md has."""
    rows = [HEAD, *((one.name, one.paper, one.measured or "-", one.verdict) for one in claims)]
    return f"{wrapped(_title(study))}\n{fitted(rows)}\n{_counts(claims)}"


def _title(study: Study) -> str:
    """Return what the table is of.

    >>> _title(Study("s", "full", ()))
    'Paper against measured'
    """
    small = f": {study.size}, on smaller and easier cohorts; the full study judges the paper's claims"
    return f"Paper against measured{'' if study.size == 'full' else small}"


def _counts(claims: Sequence[Claim]) -> str:
    """Return how many are met, missed and not measured.

    >>> _counts([])
    '0 met, 0 missed, 0 not measured'
    """
    counts = Counter(one.verdict for one in claims)
    return f"{counts['met']} met, {counts['missed']} missed, {counts['not measured']} not measured"


def _markdown(study: Study, claims: Sequence[Claim]) -> str:
    head = [*HEAD, "how, and why", "command"]
    lines = [f"# {_title(study)}", "", _row(head), _row(["---"] * len(head))]
    lines += [
        _row(
            [
                one.name,
                one.paper,
                one.measured or "-",
                f"**{one.verdict}**",
                one.why,
                one.command and f"`{one.command}`",
            ]
        )
        for one in claims
    ]
    return "\n".join([*lines, "", _counts(claims), ""])


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
