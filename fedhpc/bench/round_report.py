"""What `run.py bench round` has measured, as ratios to the floor: tables, and a comparison with recorded ratios."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.bench.round_work import FLOOR, WAYS
from fedhpc.errors import InputError
from fedhpc.util.files import read_json, write_json
from fedhpc.util.text import fitted

RECORDED = Path(__file__).with_name("round_ratios.json")
"""The ratios that the bench itself has recorded (`--record`)."""
RATIOS = ("whole_s", "whole_cpu_s", "best_round_s", "round_s", "round_cpu_s", "first_round_s", "pss_mb")
COMPARED = ("whole_cpu_s", "best_round_s", "round_cpu_s", "pss_mb")
"""The ratios that a busy machine disturbs least: `--check` looks at these."""
LEAST_NOISE, DEVIATIONS = 0.05, 3.0
"""A ratio is worse beyond noise where it exceeds the recorded one by so many of its standard deviations, and by 5 %."""
TARGETS: Mapping[str, Mapping[str, float]] = {
    "plain": {"best_round_s": 1.03},
    "dense-full": {"best_round_s": 1.05},
    "full": {"best_round_s": 1.05, "whole_s": 1.05},
}
MEMORY_TARGETS_MB = {4: 1000.0, 2: 700.0}
HEAD = ("way", "ranks", "whole", "whole CPU", "best round", "round", "round CPU", "to round 1 (s)", "PSS (MB)", "AUC")
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """One row of a table."""

    workload: str
    way: str
    ranks: int

    def __str__(self) -> str:
        """The key in the file of recorded ratios."""
        return f"{self.workload}/{self.way}/{self.ranks}"


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row a workload, way and number of ranks: medians, ratios to the floor, and their deviation.

    The floor of a workload is that of its first number of ranks. A ratio is that of two medians; its deviation that of
    the ratios of single repeats.
    """
    runs: dict[Key, list[Row]] = {}
    for run in result["runs"]:
        runs.setdefault(Key(run["workload"], run["way"], run["ranks"]), []).append(run)
    floors: dict[str, list[Row]] = {}
    for key, own in runs.items():
        if key.way == FLOOR:
            floors.setdefault(key.workload, own)
    return [_row(key, own, floors[key.workload]) for key, own in runs.items()]


def _row(key: Key, runs: Sequence[Row], floor: Sequence[Row]) -> dict[str, Any]:
    ratios, deviations = {}, {}
    for name in RATIOS:
        mine, its = [run[name] for run in runs], [run[name] for run in floor]
        ratios[name] = statistics.median(mine) / statistics.median(its)
        single = [a / b for a, b in zip(mine, its, strict=True)]
        deviations[name] = statistics.stdev(single) if len(single) > 1 else None
    phases = {name: statistics.median(run["phases_s"][name] for run in runs) for name in runs[0]["phases_s"]}
    medians = {name: statistics.median(run[name] for run in runs) for name in (*RATIOS, "auc")}
    return {**vars(key), "ratios": ratios, "deviations": deviations, "medians": medians, "phases_s": phases}


def record(result: Mapping[str, Any], path: Path = RECORDED) -> None:
    """Keep the ratios of a result beside those of other workloads, ways and ranks that are kept already."""
    new, old = recorded_of(result), read_recorded(path)["ratios"] if path.exists() else {}
    write_json(path, {**new, "ratios": dict(sorted({**old, **new["ratios"]}.items()))})


def recorded_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a result to compare later ones with: no absolute time."""
    rows = {
        str(Key(row["workload"], row["way"], row["ranks"])): {
            name: {"ratio": round(row["ratios"][name], 4), "deviation": row["deviations"][name]} for name in COMPARED
        }
        for row in rows_of(result)
        if row["way"] != FLOOR
    }
    return {"machine": result["machine"], "ratios": rows}


def worse(result: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Return a line for each ratio that is above the recorded one beyond noise, or that is not recorded.

    Ratios only: absolute times depend on the machine.
    """
    found = []
    for row in rows_of(result):
        key = str(Key(row["workload"], row["way"], row["ranks"]))
        if row["way"] == FLOOR:
            continue
        if key not in recorded["ratios"]:
            found.append(f"{key}: no ratio of this is recorded; bench round --record writes them")
            continue
        for name, before in recorded["ratios"][key].items():
            now, noises = row["ratios"][name], (before["deviation"], row["deviations"][name])
            noise = max(DEVIATIONS * max(one or 0.0 for one in noises), LEAST_NOISE * before["ratio"])
            if now > before["ratio"] + noise:
                found.append(
                    f"{key}: {name} is {now:.3f} of the floor, recorded {before['ratio']:.3f}, noise {noise:.3f}"
                )
    return found


def read_recorded(path: Path = RECORDED) -> dict[str, Any]:
    """Return the recorded ratios.

    Raises:
        InputError: there is no such file, or it holds none.
    """
    if not path.exists():
        raise InputError(
            f"--check: no ratios are recorded yet ({path.name}). Record them on an idle machine: bench round --record",
            code="bench.failed",
        )
    return read_json(path, "Write it by bench round --record")


def text(result: Mapping[str, Any]) -> str:
    """The tables for a terminal."""
    return "\n\n".join(
        part for name, rows in _by_workload(result) for part in (name, fitted([HEAD, *map(_cells, rows)]))
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The same tables, their phases and targets, for a page."""
    machine = result["machine"]
    lines = [
        f"{machine['cores']} cores, {machine['memory_gb']} GB of memory, Python {machine['python']}, PyTorch "
        f"{machine['torch']}. Ratios are to the floor with the first number of ranks."
    ]
    for name, rows in _by_workload(result):
        lines += ["", f"**{name}**, {result['rounds'][name]} rounds", "", *_markdown_table(HEAD, map(_cells, rows))]
        phases = list(dict.fromkeys(phase for row in rows for phase in row["phases_s"]))
        cells = [_phase_cells(row, phases) for row in rows]
        lines += ["", "Seconds a round by phase at rank 0:", "", *_markdown_table(("way", "ranks", *phases), cells)]
    return "\n".join([*lines, "", *_markdown_table(("", "way", "ranks", "figure", "target", "is"), _targets(result))])


def _by_workload(result: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    rows = rows_of(result)
    for name in dict.fromkeys(row["workload"] for row in rows):
        yield name, [row for row in rows if row["workload"] == name]


def _cells(row: Row) -> tuple[str, ...]:
    ratios, medians = row["ratios"], row["medians"]
    numbers = (f"{ratios[name]:.3f}" for name in ("whole_s", "whole_cpu_s", "best_round_s", "round_s", "round_cpu_s"))
    last = (f"{medians['first_round_s']:.1f}", f"{medians['pss_mb']:.0f}", f"{medians['auc']:.3f}")
    return (WAYS[row["way"]], str(row["ranks"]), *numbers, *last)


def _phase_cells(row: Row, phases: Sequence[str]) -> tuple[str, ...]:
    seconds = (row["phases_s"].get(phase) for phase in phases)
    return (WAYS[row["way"]], str(row["ranks"]), *("-" if one is None else f"{one:.3f}" for one in seconds))


def _targets(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in rows_of(result):
        place = (row["workload"], WAYS[row["way"]], str(row["ranks"]))
        for name, target in TARGETS.get(row["way"], {}).items():
            yield (*place, f"{name.removesuffix('_s')} / floor".replace("_", " "), f"{target:.2f}", *_met(row, name))
        limit_mb = MEMORY_TARGETS_MB.get(row["ranks"])
        if row["way"] == "full" and limit_mb is not None and row["workload"] == "small":
            found = row["medians"]["pss_mb"]
            yield (*place, "PSS (MB)", f"{limit_mb:.0f}", f"{found:.0f}{'' if found <= limit_mb else ' (missed)'}")


def _met(row: Row, name: str) -> tuple[str]:
    ratio = row["ratios"][name]
    return (f"{ratio:.3f}{'' if ratio <= TARGETS[row['way']][name] else ' (missed)'}",)


def _markdown_table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [tuple(head), tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
