"""The rest of a page: tables of settings and runs, audits, public images, configuration, versions, commands."""

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.config.strict_yaml import dump_yaml
from fedhpc.records.metrics import shown_metrics
from fedhpc.report.grid import title_of
from fedhpc.report.notes import notes_of
from fedhpc.report.parts import Column, Part, Picture, Table, Value
from fedhpc.report.rows import SEED, Group, Row
from fedhpc.report.view import RunView
from fedhpc.util.text import capital, shown

CHECKOUT_COMMAND = "python run.py"


def runs_part(keys: Sequence[str], rows: Sequence[Row], groups: Sequence[Group]) -> Part:
    """Return the settings, the runs, and what failed."""
    tables = [_settings(keys, groups)] if len(groups) < len(rows) else []
    tables.append(_runs(keys, rows))
    failed = [row for row in rows if row.message]
    if failed:
        columns = [Column("run", "Run"), Column("message", "What failed")]
        note = "`python run.py sweep resume` runs these, and only these, again."
        tables.append(Table("failed", "What failed", columns, [[row.name, row.message] for row in failed], note))
    return Part("runs", "All runs" if len(rows) > 1 else "The run", tables=tables, notes=notes_of(rows))


def settings(keys: Sequence[str]) -> list[str]:
    """Return the keys that distinguish a setting; where only seeds differ, a column for the names of baselines."""
    return [key for key in keys if key != SEED] or ["setting"]


def _settings(keys: Sequence[str], groups: Sequence[Group]) -> Table:
    own = settings(keys)
    metrics = [Column(metric.key, capital(metric.name), "number") for metric in shown_metrics()]
    columns = [
        *(Column(key, capital(title_of(key))) for key in own), Column("finished", "Finished"),
        Column("auc", "AUC", "number"), Column("auc_lowest", "lowest", "number"),
        Column("auc_highest", "highest", "number"), *metrics,
        Column("epsilon_spent", "Epsilon spent", "number"), Column("up", "Up a round", "bytes"),
    ]  # fmt: skip
    rows: list[list[Value]] = []
    for group in groups:
        ends = (group.auc_lowest, group.auc_highest) if len(group.aucs) > 1 else (None, None)
        others = [group.metrics.get(metric.key) for metric in shown_metrics()]
        point = point_cells(own, group.baseline, group.point)
        done = f"{group.finished} of {group.runs}"
        rows.append([*point, done, group.auc, *ends, *others, group.epsilon, group.bytes_up])
    return Table("settings", "Settings, means over seeds", columns, rows)


def _runs(keys: Sequence[str], rows: Sequence[Row]) -> Table:
    metrics = [Column(metric.key, capital(metric.name), "number") for metric in shown_metrics()]
    columns = [
        Column("run", "Run"), *(Column(key, capital(title_of(key))) for key in keys), Column("state", "State"),
        Column("auc", "AUC", "number"), Column("low", "95 % from", "number"), Column("high", "to", "number"), *metrics,
        Column("epsilon_spent", "Epsilon spent", "number"), Column("up", "Up", "bytes"),
        Column("down", "Down", "bytes"), Column("rounds", "Rounds", "count"), Column("seconds", "Time", "seconds"),
    ]  # fmt: skip
    body: list[list[Value]] = []
    for row in rows:
        others = [row.metrics.get(metric.key) for metric in shown_metrics()]
        point = point_cells(keys, row.baseline, row.point)
        ends = (row.auc, row.auc_low, row.auc_high)
        cost = (row.epsilon, row.bytes_up, row.bytes_down, row.rounds, row.seconds)
        body.append([row.name, *point, _state(row), *ends, *others, *cost])
    return Table("runs", "Runs", columns, body)


def _state(row: Row) -> str:
    state = "finished, budget spent" if row.stopped == "budget" else row.state
    state = f"{state}, INSECURE" if row.insecure else state
    return f"{state}, WITHOUT {row.absent}" if row.absent else state


def point_cells(keys: Sequence[str], baseline: str, point: Mapping[str, Any]) -> list[Value]:
    """Return the values of the keys; a baseline's name stands in the first column that is not its own."""
    cells: list[Value] = [shown(point[key]) if key in point else None for key in keys]
    if baseline and cells:
        place = next((at for at, key in enumerate(keys) if key not in point), 0)
        cells[place] = baseline
    return cells


def audit_part(view: RunView) -> Part:
    """Return the public verdicts of `run.py audit`; its figures and pictures stay at the hospital."""
    rows: list[list[Value]] = [
        [one.get("site"), found.get("attack"), found.get("setting"), found.get("kind"), found.get("verdict")]
        for one in view.audits
        for found in one.get("findings", ())
    ]
    if not rows:
        return Part("audit", "Privacy audit")
    columns = [Column(key, key.capitalize()) for key in ("site", "attack", "setting", "kind", "verdict")]
    verdicts = [str(one["verdict"]) for one in view.audits if one.get("verdict")]
    notes = ["Bounds and pictures that were measured on patients stay in sites/<site>/audit."]
    table = Table("audit", "What was attacked", columns, rows)
    return Part("audit", "Privacy audit", " ".join(verdicts), tables=[table], notes=notes)


def examples_part(view: RunView) -> Part:
    """A few public or synthetic images of each class."""
    if view.examples is None:
        return Part("examples", "Example images")
    pictures = [Picture(one["png"], f"{one['caption']}, example image", one["caption"]) for one in view.examples.images]
    lead = f"{view.examples.source} No image of a hospital's shard is in this page."
    return Part("examples", "Example images", lead, pictures=pictures)


def setup_part(view: RunView, targets: Sequence[str]) -> Part:
    """Versions, the resolved config, and the commands that repeat the run and this page."""
    environment = view.environment
    facts = {
        "program": environment.get("git"), "config digest": view.summary.get("config_digest"),
        "host": environment.get("host"), "platform": environment.get("platform"), "python": environment.get("python"),
        **environment.get("packages", {}), "GPUs": ", ".join(map(str, environment.get("gpus", []))) or "none",
    }  # fmt: skip
    rows: list[list[Value]] = [[name, str(value)] for name, value in facts.items() if value]
    table = Table("versions", "Versions", [Column("what", "What"), Column("value", "Value")], rows)
    folder = shlex.quote(str(view.path))
    again = f"{CHECKOUT_COMMAND} train {shlex.quote(str(view.path / 'config.yaml'))} --run-dir {folder}-again"
    ranks = max((int(start.get("ranks", 1)) for start in view.starts), default=1)
    commands = [
        f"{f'mpirun -n {ranks} ' if ranks > 1 else ''}{again}",
        f"{CHECKOUT_COMMAND} report {' '.join(map(shlex.quote, targets))} -o report.html",
        f"{CHECKOUT_COMMAND} egress {folder}",
    ]
    config = dump_yaml(view.config.model_dump(mode="json", exclude_defaults=True))
    code = "\n".join(["# Repeat the run, this page, and the list of what left each hospital:", *commands, "",
                      "# The config, without what is at its default:", config])  # fmt: skip
    return Part("setup", "Configuration and commands", f"Run {view.name}.", tables=[table], code=code)
