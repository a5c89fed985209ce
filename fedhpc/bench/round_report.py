"""What `run.py bench round` has measured, as ratios to the floor: tables, and a comparison with recorded ratios."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedhpc.bench.round_work import FLOOR, WAYS
from fedhpc.errors import InputError
from fedhpc.util.files import read_json, write_json
from fedhpc.util.text import fitted

RECORDED = Path(__file__).with_name("round_ratios.json")
"""The ratios that the bench itself has recorded (`--record`)."""
OF_RUNS = ("whole_s", "whole_cpu_s", "first_round_s")
OF_ROUNDS = ("round_s", "round_cpu_s")
COMPARED = ("round_s", "round_cpu_s", "whole_cpu_s", "pss_mb")
"""The ratios that a busy machine disturbs least: `--check` looks at these."""
LEAST_NOISE, DEVIATIONS = 0.05, 3.0
"""A ratio is worse beyond noise where it exceeds the recorded one by so many of its standard errors, and by 5 %."""
TARGETS: Mapping[str, Mapping[str, float]] = {
    "plain": {"round_s": 1.03},
    "dense-full": {"round_s": 1.05},
    "full": {"round_s": 1.05, "whole_s": 1.05},
}
MEMORY_TARGETS_MB = {4: 1000.0, 2: 700.0}
HEAD = (
    "way",
    "ranks",
    "round",
    "round, CPU",
    "whole",
    "whole, CPU",
    "a round (s)",
    "to round 1 (s)",
    "PSS (MB)",
    "AUC",
)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Key:
    """One row of a table."""

    workload: str
    way: str
    ranks: int

    def __str__(self) -> str:
        """Return the key in the file of recorded ratios."""
        return f"{self.workload}/{self.way}/{self.ranks}"


@dataclass(frozen=True)
class Ratio:
    """Ratios to the floor: their median and quartiles, and the standard error of the median (None of a single one).

    The error is 1.25 standard deviations over the root of how many there are, as for normal numbers; the deviation is
    that of the median distance to the median, which single outliers do not move (Hampel 1974).
    """

    median: float
    low: float
    high: float
    error: float | None

    @classmethod
    def of(cls, found: Sequence[float]) -> "Ratio":
        """Of some ratios, at least one."""
        median = statistics.median(found)
        if len(found) < 2:
            return cls(median, median, median, None)
        low, _, high = statistics.quantiles(found, n=4, method="inclusive")
        deviation = 1.4826 * statistics.median(abs(one - median) for one in found)
        return cls(median, low, high, 1.2533 * deviation / math.sqrt(len(found)))


def rows_of(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return one row a workload, way and number of ranks: ratios to the floor with as many processes, and medians.

    A ratio of rounds is the median of those of single turns, one of whole runs that of single repeats.
    """
    runs: dict[Key, list[Row]] = {}
    for run in result["runs"]:
        runs.setdefault(Key(run["workload"], run["way"], run["ranks"]), []).append(run)
    memory = {Key(one["workload"], one["way"], one["ranks"]): one["pss_mb"] for one in result["memory"]}
    return [_row(key, runs, memory) for key in dict.fromkeys([*runs, *memory])]


def _row(key: Key, runs: Mapping[Key, Sequence[Row]], memory: Mapping[Key, float]) -> dict[str, Any]:
    floor, own = replace(key, way=FLOOR), runs.get(key, [])
    ratios: dict[str, Ratio] = {}
    medians: dict[str, float] = {}
    pairs = list(zip(own, runs.get(floor, []), strict=True))
    for name in OF_RUNS if own else ():
        ratios[name] = Ratio.of([mine[name] / its[name] for mine, its in pairs])
        medians[name] = statistics.median(run[name] for run in own)
    for name in OF_ROUNDS if own else ():
        turns = [turn for mine, its in pairs for turn in zip(mine["rounds"], its["rounds"], strict=True)]
        ratios[name] = Ratio.of([mine[name] / its[name] for mine, its in turns])
        medians[name] = statistics.median(turn[name] for run in own for turn in run["rounds"])
    if key in memory:
        ratios["pss_mb"], medians["pss_mb"] = Ratio.of([memory[key] / memory[floor]]), memory[key]
    if own:
        medians["auc"] = statistics.median(run["auc"] for run in own)
    phases = {
        name: statistics.median(run["phases_s"][name] for run in own) for name in (own[0]["phases_s"] if own else ())
    }
    return {
        **vars(key),
        "ratios": {name: asdict(one) for name, one in ratios.items()},
        "medians": medians,
        "phases_s": phases,
    }


def record(result: Mapping[str, Any], path: Path = RECORDED) -> None:
    """Keep the ratios of a result beside those of other workloads, ways, ranks and parts that are kept already."""
    new, kept = recorded_of(result), dict(read_recorded(path)["ratios"]) if path.exists() else {}
    for key, own in new["ratios"].items():
        kept[key] = {**kept.get(key, {}), **own}
    write_json(path, {**new, "ratios": dict(sorted(kept.items()))})


def recorded_of(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is kept of a result to compare later ones with: no absolute time."""
    rows: dict[str, dict[str, Any]] = {}
    for row in rows_of(result):
        kept = {name: row["ratios"][name] for name in COMPARED if name in row["ratios"]}
        if row["way"] != FLOOR:
            rows[str(Key(row["workload"], row["way"], row["ranks"]))] = {
                name: {"ratio": round(one["median"], 4), "error": one["error"]} for name, one in kept.items()
            }
    return {"machine": result["machine"], "ratios": rows}


def worse(result: Mapping[str, Any], recorded: Mapping[str, Any]) -> list[str]:
    """Return a line for each ratio that is above the recorded one beyond noise, or that is not recorded.

    Ratios only: absolute times depend on the machine.
    """
    found = []
    for key, now in recorded_of(result)["ratios"].items():
        before = recorded["ratios"].get(key, {})
        for name, one in now.items():
            if name not in before:
                found.append(f"{key}: no {name} of this is recorded; bench round --record writes it")
                continue
            was = before[name]["ratio"]
            errors = [error for error in (before[name]["error"], one["error"]) if error is not None]
            noise = max(DEVIATIONS * math.hypot(*errors), LEAST_NOISE * was)
            if one["ratio"] > was + noise:
                found.append(f"{key}: {name} is {one['ratio']:.3f} of the floor, recorded {was:.3f}, noise {noise:.3f}")
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
    """Return the tables for a terminal."""
    return "\n\n".join(
        part for name, rows in _by_workload(result) for part in (name, fitted([HEAD, *map(_cells, rows)]))
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The same tables, their phases and targets, for a page."""
    machine = result["machine"]
    lines = [
        f"{machine['cores']} cores, {machine['memory_gb']} GB of memory, Python {machine['python']}, PyTorch "
        f"{machine['torch']}. Ratios are to the floor with as many processes: medians, and quartiles of the rounds'."
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
    rounds = (_ratio(ratios, name, spread=row["way"] != FLOOR) for name in OF_ROUNDS)
    runs = (_ratio(ratios, name) for name in ("whole_s", "whole_cpu_s"))
    last = (("round_s", 2), ("first_round_s", 1), ("pss_mb", 0), ("auc", 4))
    absolute = (f"{medians[name]:.{digits}f}" if name in medians else "-" for name, digits in last)
    return (WAYS[row["way"]], str(row["ranks"]), *rounds, *runs, *absolute)


def _ratio(ratios: Mapping[str, Mapping[str, float]], name: str, *, spread: bool = False) -> str:
    if name not in ratios:
        return "-"
    one = ratios[name]
    return f"{one['median']:.3f}" + (f" ({one['low']:.2f}-{one['high']:.2f})" if spread else "")


def _phase_cells(row: Row, phases: Sequence[str]) -> tuple[str, ...]:
    seconds = (row["phases_s"].get(phase) for phase in phases)
    return (WAYS[row["way"]], str(row["ranks"]), *("-" if one is None else f"{one:.3f}" for one in seconds))


def _targets(result: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for row in rows_of(result):
        place = (row["workload"], WAYS[row["way"]], str(row["ranks"]))
        for name, target in TARGETS.get(row["way"], {}).items():
            if name in row["ratios"]:
                found = row["ratios"][name]["median"]
                yield (
                    *place,
                    f"{name.removesuffix('_s')} / floor",
                    f"{target:.2f}",
                    f"{found:.3f}{_met(found, target)}",
                )
        limit_mb = MEMORY_TARGETS_MB.get(row["ranks"])
        if row["way"] == "full" and limit_mb and row["workload"] == "small" and "pss_mb" in row["medians"]:
            found = row["medians"]["pss_mb"]
            yield (*place, "PSS (MB)", f"{limit_mb:.0f}", f"{found:.0f}{_met(found, limit_mb)}")


def _met(found: float, target: float) -> str:
    return "" if found <= target else " (missed)"


def _markdown_table(head: Sequence[str], rows: Any) -> list[str]:
    lines = [tuple(head), tuple("---" for _ in head), *rows]
    return ["| " + " | ".join(cells) + " |" for cells in lines]
