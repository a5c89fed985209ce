"""How a row of the table of claims is made."""

from collections.abc import Sequence

from fedhpc.records.study import Cell, Claim, Kind, Study, Verdict
from fedhpc.study.figures import Figure


def verdict_of(met: bool) -> Verdict:
    """Return the word."""
    return "met" if met else "missed"


def not_measured(name: str, paper: str, why: str, cells: Sequence[Cell] = ()) -> Claim:
    """Return a row without a figure.

    >>> not_measured("AUC", "0.94", "no cell has finished").verdict
    'not measured'
    """
    return Claim(name, paper, "", None, None, None, "not measured", why, commands_of(cells))


def missing(study: Study, kind: Kind) -> str:
    """Return why there is no figure of a kind of cells: none has finished, or the study has none.

    >>> missing(Study("s", "quick", ()), "legacy")
    'this study was planned without it'
    """
    there = any(cell.kind == kind for cell in study.cells)
    return f"no cell of the kind {kind} has finished" if there else "this study was planned without it"


def figure_claim(claim: Claim, found: Figure, cells: Sequence[Cell]) -> Claim:
    """Return a row with its figure, interval and command."""
    return Claim(
        claim.name, claim.paper, claim.measured, found.mean, found.low, found.high, claim.verdict, claim.why,
        commands_of(cells),
    )  # fmt: skip


def commands_of(cells: Sequence[Cell]) -> str:
    """Return the commands that repeat the first of some cells, and how many more there are like it."""
    if not cells:
        return ""
    more = f"  (and {len(cells) - 1} more like it, see study.json)" if len(cells) > 1 else ""
    return "; ".join(cells[0].commands) + more
