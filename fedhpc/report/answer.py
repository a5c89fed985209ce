"""The answer first: one sentence, a few large numbers, and the three ways to train beside the paper's."""

from collections.abc import Sequence

from fedhpc.report.block_charts import ValueRow, intervals
from fedhpc.report.notes import warnings_of
from fedhpc.report.paper import AUC, NAMES, best
from fedhpc.report.parts import Column, Figure, Part, Table, Tile, Value
from fedhpc.report.rows import FINISHED, SETTING, Group, Row
from fedhpc.report.view import RunView
from fedhpc.util.text import clock, data_size, fixed, percent

NOTHING_YET = "No run has finished yet."
SYNTHETIC = "Its patients are synthetic: this is no medical result."
STYLES = {"federated": 0, "centralised": 2, "local": 1}


def answer_part(rows: Sequence[Row], groups: Sequence[Group], detail: RunView | None = None) -> Part:
    """Build the first part of a page; `detail` is the run that the page shows in full."""
    done = [row for row in rows if row.state == FINISHED]
    chosen = best(groups)
    main = chosen.get("federated") or next(iter(chosen.values()), None)
    row = _row_of(done, main)
    figures = [_compared(chosen, done)] if chosen else []
    own = [row for row in rows if "case" not in row.point]
    if row is None or main is None:
        return _without_auc(done, detail, warnings_of(own))
    lead = _sentence(chosen, row)
    if detail is not None and detail.is_synthetic:
        lead = f"{lead} {SYNTHETIC}"
    return Part("answer", "The answer", lead, _tiles(row, main), figures, warnings=warnings_of(own))


def _without_auc(done: Sequence[Row], detail: RunView | None, warnings: list[str]) -> Part:
    """Return what is known where no run has an AUC; a private run may have released none, and its summary says why."""
    row = next((row for row in done if detail is not None and row.name == detail.name), None)
    if row is None or detail is None:
        return Part("answer", "The answer", NOTHING_YET, warnings=warnings)
    why = detail.summary.get("reasons", {}).get("auc")
    lead = f"{NAMES.get(row.mode, row.mode)} training has finished, and no AUC is known{f': {why}' if why else ''}."
    return Part("answer", "The answer", lead, _tiles(row, None), warnings=warnings)


def _row_of(rows: Sequence[Row], group: Group | None) -> Row | None:
    """Return the first run of a setting."""
    if group is None:
        return None
    same = (row for row in rows if row.baseline == group.baseline and group.point.items() <= dict(row.point).items())
    return next(same, None)


def _sentence(chosen: dict[str, Group], row: Row) -> str:
    main = chosen.get("federated")
    if main is None or main.auc is None:
        return f"{NAMES.get(row.mode, row.mode)} training reaches an AUC of {fixed(row.auc)}."
    over = f" (mean of {main.finished} runs)" if main.finished > 1 else ""
    of_several = f" ({setting})" if (setting := main.point.get(SETTING)) else ""
    told = [f"Federated training{of_several} reaches an AUC of {main.auc:.3f}{over}"]
    if row.epsilon is not None and not row.insecure:
        told.append(f"at epsilon {row.epsilon:.2f} for every training {row.unit or 'unit'}")
    elif row.epsilon_target is None:
        told.append("without differential privacy")
    if row.bytes_up and row.dense_bytes and row.bytes_up < row.dense_bytes:
        told.append(f"and sends {percent(row.bytes_up / row.dense_bytes)} of the dense bytes")
    others = [f"{fixed(chosen[mode].auc)} {word}" for mode, word in _OTHERS.items() if mode in chosen]
    return f"{' '.join(told)}.{' Beside it: ' + ', '.join(others) + '.' if others else ''}"


_OTHERS = {"centralised": "with all data pooled", "local": "with each site alone"}


def _tiles(row: Row, main: Group | None) -> list[Tile]:
    tiles = [] if main is None else [Tile("AUC", fixed(main.auc), _reach(row, main))]
    if row.epsilon_target is not None:
        value = "void" if row.insecure else fixed(row.epsilon, 2)
        tiles.append(Tile("Epsilon spent", value, f"of {row.epsilon_target:g} at delta {row.delta:g}"))
    elif row.mode == "federated":
        tiles.append(Tile("Epsilon", "none", "privacy is off"))
    if row.bytes_up:
        dense = f"dense: {data_size(row.dense_bytes)}" if row.dense_bytes else "over all sites"
        if row.dense_bytes and row.bytes_up > row.dense_bytes:
            dense = f"{dense}, without headers"
        tiles.append(Tile("Up a round", data_size(row.bytes_up), dense))
    if (value_at := row.metrics.get("sensitivity")) is not None:
        tiles.append(Tile("Sensitivity", fixed(value_at), f"at specificity {row.specificity:g}"))
    if (early := row.metrics.get("sensitivity_early")) is not None:
        tiles.append(Tile("Early-stage sensitivity", fixed(early), f"at specificity {row.specificity:g}"))
    if row.seconds is not None:
        tiles.append(Tile("Time", clock(row.seconds), f"{row.rounds} rounds"))
    return tiles


def _reach(row: Row, main: Group) -> str:
    if main.finished > 1:
        return f"{fixed(main.auc_lowest)} to {fixed(main.auc_highest)} over {main.finished} runs"
    return "" if row.auc_low is None else f"95 %: {fixed(row.auc_low)} to {fixed(row.auc_high)}"


def _compared(chosen: dict[str, Group], rows: Sequence[Row]) -> Figure:
    bars, lines = [], []
    for mode, group in chosen.items():
        row = _row_of(rows, group)
        low, high = (group.auc_lowest, group.auc_highest) if group.finished > 1 else _ends(row)
        bars.append(ValueRow(mode, group.auc or 0.0, low, high, STYLES[mode], AUC[mode]))
        line: list[Value] = [mode, group.auc, low, high, group.finished, AUC[mode]]
        lines.append(line)
    columns = [
        Column("training", "Training"), Column("auc", "AUC", "number"), Column("low", "from", "number"),
        Column("high", "to", "number"), Column("runs", "Runs", "count"), Column("paper", "Paper", "number"),
    ]  # fmt: skip
    told = "; ".join(f"{bar.label} {bar.value:.3f}, paper {bar.reference:g}" for bar in bars)
    several = any(group.finished > 1 for group in chosen.values())
    reach = "Lines: lowest to highest over the seeds, or the 95 % interval of a single run."
    note = f"{reach if several else 'Lines: 95 % intervals.'} Rings: the paper, measured on other patients."
    alt = f"AUC of each way to train. {told}."
    svg = intervals(bars, "AUC on the hospitals' test splits", alt)
    return Figure("AUC by way of training", alt, svg, Table("compared", "AUC", columns, lines), note, wide=True)


def _ends(row: Row | None) -> tuple[float | None, float | None]:
    return (None, None) if row is None else (row.auc_low, row.auc_high)
