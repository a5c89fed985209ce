"""The report as one self-contained HTML page: which parts there are, in which order, and how they are rendered."""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fedhpc.records.study import Claim
from fedhpc.report.answer import answer_part
from fedhpc.report.costs import costs_part, privacy_part
from fedhpc.report.details import audit_part, examples_part, runs_part, setup_part
from fedhpc.report.grid import Case, grid_part, stress_part
from fedhpc.report.paper import EPSILON as PAPER_EPSILON
from fedhpc.report.paper import best, paper_part
from fedhpc.report.parts import Part
from fedhpc.report.quality import curves_part, operating_part, progress_part
from fedhpc.report.rows import FINISHED, PART, Group, Row
from fedhpc.report.sites import contribution_part, events_part, sites_part
from fedhpc.report.study_results import CellResult, result_parts
from fedhpc.report.svg import sample
from fedhpc.report.view import RunView
from fedhpc.util.html import rendered
from fedhpc.util.text import count_of

TEMPLATE = Path(__file__).parent / "templates" / "page.html.jinja"


@dataclass(frozen=True)
class Content:
    """What is reported on.

    Attributes:
        name: of the whole.
        keys: those that the rows differ in, in order.
        rows, groups: a line a run, and one for all seeds of a setting.
        made: when, ISO 8601.
        views: the records of runs, in the order of their rows; baselines that lie beside a single run are after it.
        targets: what the command line named.
        claims: of a study, paper against measured.
        results: of a study, what its cells that are no plain run have found.
    """

    name: str
    keys: tuple[str, ...]
    rows: tuple[Row, ...]
    groups: tuple[Group, ...]
    made: str
    views: tuple[RunView, ...] = ()
    targets: tuple[str, ...] = ()
    claims: tuple[Claim, ...] = ()
    results: tuple[CellResult, ...] = ()


def parts_of(content: Content) -> list[Part]:
    """Build the parts of a page; those without content are left out."""
    detail = detail_of(content.views)
    parts = [
        answer_part(content.rows, content.groups, detail),
        paper_part(content.rows, content.groups, content.claims),
        grid_part(content.keys, content.groups, content.rows),
        *_detailed(content),
        stress_part(content.rows, _cases(content.views)),
        *result_parts(content.results),
        runs_part(content.keys, content.rows, content.groups),
    ]
    if detail is not None:
        parts += [examples_part(detail), setup_part(detail, content.targets)]
    return [part for part in parts if not part.is_empty]


def _detailed(content: Content) -> list[Part]:
    """Return the parts about one run, and about the rounds of all."""
    views, detail = content.views, detail_of(content.views)
    if detail is None:
        return []
    levels = {
        mode: group.auc for mode, group in best(content.groups).items() if group.baseline and group.auc is not None
    }
    part = detail.row.point.get(PART)
    runs = [view for view in views if not view.row.stress]
    alike = [view for view in runs if view.is_federated and not view.row.baseline and "case" not in view.row.point]
    federated = [view for view in alike if view.row.point.get(PART) == part]
    same = (view for view in views if view.row.point.get(PART) == part)
    local = next((view for view in same if view.config.mode == "local" and view.summary), None)
    return [
        progress_part(_nearest_first(federated, detail) or views, levels),
        curves_part(detail),
        operating_part(detail),
        privacy_part(detail),
        costs_part(views, detail),
        sites_part(detail, local),
        contribution_part(detail),
        events_part(detail),
        audit_part(detail),
    ]


def _nearest_first(views: Sequence[RunView], detail: RunView) -> list[RunView]:
    """Runs of the seed of the one that is shown in full, those with settings like its own first; then the others."""

    def distance(view: RunView) -> tuple[bool, bool, bool, float]:
        epsilon, own = view.row.epsilon_target, detail.row.epsilon_target
        return (
            view.row.seed != detail.row.seed,
            view.row.density != detail.row.density,
            epsilon != own,
            abs(math.log((epsilon or 100.0) / (own or 100.0))),
        )

    return sorted(views, key=distance)


def detail_of(views: Sequence[RunView]) -> RunView | None:
    """The run that is shown in full: of the federated ones with an AUC the nearest to the paper's setting."""

    def distance(view: RunView) -> tuple[bool, bool, bool, bool, float, float, bool]:
        epsilon, density = view.row.epsilon_target, view.row.density
        far = abs((100.0 if epsilon is None else epsilon) - PAPER_EPSILON)
        return (
            not view.is_federated,
            view.row.state != FINISHED,
            view.row.auc is None,
            not view.row.paper,
            far,
            abs((density or 1.0) - 0.1),
            bool(view.row.stress),
        )

    return min(views, key=distance, default=None)


def _cases(views: Sequence[RunView]) -> dict[str, Case]:
    """{run: what it is tried with}, of federated runs."""
    return {
        view.name: Case(view.config.stress.case if view.config.stress else "", view.config.aggregation.rule)
        for view in views
        if view.is_federated
    }


def page(content: Content, parts: Sequence[Part], facts: dict[str, Any]) -> str:
    """Render the page; `facts` is report.json, which the page carries for its download."""
    embedded = json.dumps(facts, allow_nan=False).replace("<", "\\u003c").replace("\u2028", "\\u2028")
    return rendered(
        TEMPLATE,
        name=content.name,
        subtitle=_subtitle(content),
        parts=parts,
        # Every < is escaped above: no tag begins or ends in it.
        facts=Markup(embedded),
        style=_asset("style.css"),
        script=_asset("script.js"),
        sample=sample,
        shown=partial(_shown),
    )


def _shown(column: Any, value: Any) -> str:
    return str(column.shown(value))


def _asset(name: str) -> Markup:
    return Markup((TEMPLATE.parent / name).read_text(encoding="utf-8"))


def _subtitle(content: Content) -> str:
    counts = Counter(row.state for row in content.rows)
    states = ", ".join(f"{count} {state}" for state, count in counts.most_common())
    commits = ", ".join(sorted({row.git for row in content.rows if row.git}))
    when = content.made[:16].replace("T", " ")
    what = f"{count_of(len(content.rows), 'run')}: {states}"
    if len(counts) == 1:
        what = f"{count_of(len(content.rows), 'run')}, {'all ' if len(content.rows) > 1 else ''}{next(iter(counts))}"
    return f"{what}. Made {when} UTC{f', code {commits}' if commits else ''}."
