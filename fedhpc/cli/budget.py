"""`run.py budget init|show|grant SITE_DIR`: the site ledger that holds the budget of a hospital's patients."""

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhpc.cli.common import Parser, add_json, add_kinds, print_result
from fedhpc.errors import InputError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from fedhpc.privacy.site_ledger import SiteLedger

HELP = "the hospital's own cap on what its patients spend over all runs"
EXAMPLES = ("{run} budget init /secure/ledger --cap 10", "{run} budget show /secure/ledger")
INIT = ("{run} budget init /secure/ledger --cap 10", "{run} budget init /secure/ledger --cap 10 --allow-off")
SHOW = ("{run} budget show /secure/ledger", "{run} budget show /secure/ledger --json")
GRANT = (
    "{run} budget grant /secure/ledger --cap 12 --reason 'board, 3 May'",
    "{run} budget grant /secure/ledger --allow-off --reason 'synthetic'",
)
DELTA = 1e-5
SHOWN_GROUPS, SHOWN_RUNS = 10, 20
SPENT = (
    "spent: over all runs, by a bound that holds for runs chosen after results; it may be above the epsilon of one run "
    "alone, below"
)


def add_arguments(parser: Parser) -> None:
    """Add the kinds of the command."""
    parser.describe(
        "Make, show and change the site ledger: the hospital's record of what its patients have spent, and its cap.",
        EXAMPLES,
    )
    kinds = add_kinds(parser)
    _add_init(kinds)
    show = kinds.add_parser("show", help="what was spent and what is left")
    show.describe("Print what was spent, by how many units, and what is left.", SHOW)
    _add_folder(show)
    add_json(show)
    show.set_defaults(action=_show)
    _add_grant(kinds)


def run(options: argparse.Namespace) -> int:
    """Do what the kind says."""
    status: int = options.action(options)
    return status


def _add_folder(parser: Parser) -> None:
    parser.add_argument(
        "folder", type=Path, metavar="SITE_DIR", help="the hospital's own folder; see FEDHPC_SITE_LEDGER"
    )


def _add_init(kinds: "_SubParsersAction[Parser]") -> None:
    init = kinds.add_parser("init", help="make a site ledger, or set the terms of one that a run has made")
    init.describe("Make a site ledger, or set the terms of one that a run has made.", INIT)
    _add_folder(init)
    init.add_argument(
        "--cap", type=float, required=True, metavar="EPS", help="the epsilon that no unit may pass over all runs"
    )
    init.add_argument("--delta", type=float, help=f"at most 1 / (10 x patients) (default: {DELTA:g})")
    init.add_argument("--unit", choices=("patient", "image"), help="it cannot be changed later (default: patient)")
    init.add_argument(
        "--no-require-privacy", action="store_true", help="let runs without privacy begin (default: refuse them)"
    )
    init.add_argument("--allow-off", action="store_true", help="let them begin where the config says `privacy: off`")
    init.set_defaults(action=_init)


def _add_grant(kinds: "_SubParsersAction[Parser]") -> None:
    grant = kinds.add_parser("grant", help="raise the cap or make an exception; reason and time go into the ledger")
    grant.describe("Raise the cap or make an exception; reason and time go into the ledger.", GRANT)
    _add_folder(grant)
    grant.add_argument("--reason", required=True, metavar="TEXT", help="who decided it and why")
    grant.add_argument("--cap", type=float, metavar="EPS", help="the new cap, above the old one")
    grant.add_argument("--delta", type=float, help="a smaller delta")
    off = grant.add_mutually_exclusive_group()
    off.add_argument("--allow-off", action="store_true", help="let runs begin whose config says `privacy: off`")
    off.add_argument("--forbid-off", action="store_true", help="take that back")
    grant.add_argument(
        "--accept-lost", metavar="ID", help="the site ledger ID is lost; what it held is not counted any more"
    )
    grant.set_defaults(action=_grant)


def _init(options: argparse.Namespace) -> int:
    from fedhpc.privacy.ledger_folder import exists
    from fedhpc.privacy.site_ledger import SiteLedger
    from fedhpc.privacy.site_terms import Terms

    made_by_a_run = exists(options.folder)
    before = SiteLedger(options.folder).terms if made_by_a_run else Terms("patient", DELTA)
    terms = Terms(
        unit=options.unit or before.unit,
        delta=before.delta if options.delta is None else options.delta,
        cap=options.cap,
        require_privacy=not options.no_require_privacy,
        allow_off=options.allow_off,
        initialised=True,
    )
    print(_text(_facts(SiteLedger.create(options.folder, terms))))
    return 0


def _show(options: argparse.Namespace) -> int:
    facts = _facts(_opened(options.folder))
    print_result(facts, _text(facts), as_json=options.json)
    return 0


def _grant(options: argparse.Namespace) -> int:
    ledger = _opened(options.folder)
    before = ledger.terms
    if not options.reason.strip():
        raise InputError("--reason: is empty; say who decided it and why", code="command-line")
    if options.cap is not None and before.cap is not None and options.cap <= before.cap:
        raise InputError(
            f"--cap {options.cap:g}: the cap is {before.cap:g}; a grant can only raise it", code="privacy.site-terms"
        )
    if options.delta is not None and options.delta >= before.delta:
        raise InputError(
            f"--delta {options.delta:g}: the delta is {before.delta:g}; a grant can only lower it",
            code="privacy.site-terms",
        )
    if options.accept_lost:
        ledger.note("accept_lost", {"account": options.accept_lost, "reason": options.reason})
    terms = replace(
        before,
        cap=before.cap if options.cap is None else options.cap,
        delta=before.delta if options.delta is None else options.delta,
        allow_off=(before.allow_off or options.allow_off) and not options.forbid_off,
    )
    if terms != before and not before.initialised:
        # A config may lead away from an account that a run has made, whatever its cap.
        raise InputError(
            f"{options.folder}: a run has made this site ledger, and the hospital has not initialised it. Set its "
            f"terms by `run.py budget init {options.folder} --cap EPS`; what was spent stays",
            code="privacy.site-terms",
        )
    if terms != before:
        ledger.change(terms, options.reason, seen=before)
    elif not options.accept_lost:
        raise InputError(
            "nothing to grant: give --cap, --delta, --allow-off, --forbid-off or --accept-lost",
            code="command-line",
        )
    print(_text(_facts(_opened(options.folder))))
    return 0


def _opened(folder: Path) -> "SiteLedger":
    from fedhpc.privacy.ledger_folder import exists
    from fedhpc.privacy.site_ledger import SiteLedger

    if not exists(folder):
        raise InputError(
            f"{folder}: no site ledger; make one: run.py budget init {folder} --cap EPS", code="privacy.ledger-missing"
        )
    return SiteLedger(folder)


def _facts(ledger: "SiteLedger") -> dict[str, Any]:
    """All that `show` tells; no hash and no pseudonym is among it."""
    from fedhpc.cli.privacy_spent import runs_of

    terms, groups = ledger.terms, ledger.groups()
    counted = "images" if terms.unit == "image" else "patients"
    by_spending: dict[float, int] = {}
    for group in groups:
        by_spending[group.epsilon] = by_spending.get(group.epsilon, 0) + getattr(group, counted)
    sums = [(epsilon, count) for epsilon, count in sorted(by_spending.items(), reverse=True) if count]
    left = None if terms.cap is None else [max(0.0, terms.cap - epsilon) for epsilon, _ in sums]
    return {
        "site_ledger": str(ledger.folder),
        "id": ledger.id,
        "unit": terms.unit,
        "cap": terms.cap,
        "delta": terms.delta,
        "require_privacy": terms.require_privacy,
        "allow_off": terms.allow_off,
        "initialised": terms.initialised,
        "units": sum(count for _, count in sums),
        "spent": [
            {"units": count, "epsilon": _finite(epsilon), "left": None if left is None else _finite(left[row])}
            for row, (epsilon, count) in enumerate(sums)
        ],
        "runs": runs_of(ledger),
        "committed_to": sorted({one.ledger for group in groups for one in group.paid if one.sole is not None}),
        "without_privacy": [entry["run"] for entry in ledger.entries("without_privacy")],
        "terms": [
            {"time": entry["time"], "cap": entry["cap"], "delta": entry["delta"], "reason": entry.get("reason", "made")}
            for entry in ledger.entries("terms")
        ],
        "accepted_as_lost": [entry["account"] for entry in ledger.entries("accept_lost")],
    }


def _finite(epsilon: float) -> float | None:
    """JSON knows no infinity: null is without bound."""
    return epsilon if epsilon < float("inf") else None


def _text(facts: dict[str, Any]) -> str:
    """Within 80 columns, but for the folder's name and the reasons."""
    from fedhpc.cli.privacy_spent import alone_cells, without_bound_note
    from fedhpc.util.text import fitted, fixed, wrapped

    unit = facts["unit"]
    cap = "no cap is set" if facts["cap"] is None else f"cap epsilon {facts['cap']:g}"
    demand = "refused" if facts["require_privacy"] else "let through"
    if facts["require_privacy"] and facts["allow_off"]:
        demand = "refused, but with `privacy: off` in the config"
    made = "" if facts["initialised"] else "\nnot initialised: a run has made it (run.py budget init sets its terms)"
    lines = [
        f"site ledger {facts['site_ledger']} ({facts['id']}){made}",
        f"{cap} at delta {facts['delta']:g} per {unit}; runs without privacy: {demand}",
        "",
    ]
    rows = [(f"{unit}s", "spent", "left")]
    for one in facts["spent"][:SHOWN_GROUPS]:
        spent = "without bound" if one["epsilon"] is None else fixed(one["epsilon"])
        rows.append((f"{one['units']:,}", spent, fixed(one["left"])))
    more = facts["spent"][SHOWN_GROUPS:]
    if more:
        rows.append((f"{sum(one['units'] for one in more):,}", f"below {rows[-1][1]}", ""))
    lines.append(f"{fitted(rows)}\n{wrapped(SPENT)}" if facts["spent"] else "nothing was spent")
    runs = [("run", "charges", "training", "evaluation", "")]
    for one in facts["runs"][-SHOWN_RUNS:]:
        sole = "all of the cap" if one["ledger"] in facts["committed_to"] else ""
        runs.append((one["run"], str(one["charges"]), *alone_cells(one, unit), sole))
    lines += ["", f"{fitted(runs)}{without_bound_note(facts['runs'][-SHOWN_RUNS:])}"] if facts["runs"] else []
    if len(facts["runs"]) > SHOWN_RUNS:
        lines.append(f"and {len(facts['runs']) - SHOWN_RUNS} earlier runs (--json has all)")
    if facts["without_privacy"]:
        lines.append(f"without privacy: {', '.join(facts['without_privacy'])}; no epsilon bounds what they reveal")
    lines.append("")
    for one in facts["terms"]:
        then = "no cap" if one["cap"] is None else f"cap {one['cap']:g}"
        lines.append(f"{one['time'][:10]} {then}: {one['reason']}")
    return "\n".join(lines)
