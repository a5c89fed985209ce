"""`run.py bench algorithms CONFIG...`: federated algorithms on hospitals that differ, beside FedAvg and centralised.

Every cell is a whole run of a config with some keys set, on shards that differ in their classes (`--skew`) and on every
seed or fold. An algorithm with parameters has several candidates; the row is of the one with the best mean *validation*
AUC, and the test AUC plays no part in the choice. A run that is finished in the output folder is not done again.

Rounds and bytes to a target are by the validation AUC of each round: the test split is released once, at the end. Time
is CPU time of the process, less sensitive to other load than the clock: start, rounds and evaluation, over FedAvg's.
"""

import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedhpc.api import load_config, train
from fedhpc.bench.divided_data import DividedData, Division
from fedhpc.bench.feature_store import quietly
from fedhpc.errors import InputError
from fedhpc.util.files import write_bytes
from fedhpc.util.progress import at_work
from fedhpc.util.text import fitted

Settings = tuple[str, ...]
FEDAVG, CENTRALISED = "fedavg", "centralised"
PLAIN, DENSE, STEP = "algorithm.name=fedavg", "exchange.density=1", "server={optimizer: sgd}"
CANDIDATES: dict[str, tuple[Settings, ...]] = {
    CENTRALISED: ((PLAIN, STEP, "mode=centralised"),),
    FEDAVG: ((PLAIN, STEP),),
    "fedprox": tuple((STEP, "algorithm.name=fedprox", f"algorithm.mu={mu}") for mu in (0.01, 0.1, 1)),
    "scaffold": ((STEP, "algorithm.name=scaffold"),),
    "fednova": ((STEP, "algorithm.name=fednova"),),
    "feddyn": tuple((STEP, "algorithm.name=feddyn", f"algorithm.alpha={alpha}", DENSE) for alpha in (0.1, 0.01, 1)),
    "fedavgm": tuple((PLAIN, STEP, "server.optimizer=fedavgm", f"server.lr={lr}") for lr in (0.3, 1)),
    "fedadagrad": tuple((PLAIN, STEP, "server.optimizer=fedadagrad", f"server.lr={lr}") for lr in (0.03, 0.1)),
    "fedyogi": tuple((PLAIN, STEP, "server.optimizer=fedyogi", f"server.lr={lr}") for lr in (0.01, 0.003)),
    "fedadam": tuple((PLAIN, STEP, "server.optimizer=fedadam", f"server.lr={lr}") for lr in (0.01, 0.003)),
}
"""The rows: each a name and what to set, one candidate or more. The first is that of `--first-only`.

Where a row names no server optimiser it has the plain step, whatever the config has: `--also shipped` is the config.
"""


@dataclass(frozen=True)
class Comparison:
    """What is run.

    Attributes:
        configs: without privacy; their shards are replaced.
        images: class folders for the configs without a phantom cohort.
        divisions: how the images are divided, for each skew the same seeds or folds.
        rows: name -> candidates.
        target: the validation AUC to reach.
        sets: overrides, for all runs.
    """

    configs: Sequence[Path]
    images: Path | None
    divisions: Mapping[float, Sequence[Division]]
    rows: Mapping[str, Sequence[Settings]]
    target: float = 0.93
    sets: Sequence[str] = field(default=())


def rows_of(names: Sequence[str], also: Sequence[Sequence[str]], *, first_only: bool) -> dict[str, Sequence[Settings]]:
    """Return the rows by name, FedAvg among them.

    Raises:
        InputError: a name that is not in CANDIDATES.
    """
    unknown = [name for name in names if name not in CANDIDATES]
    if unknown:
        raise InputError(
            f"--algorithms {' '.join(unknown)}: allowed are {', '.join(CANDIDATES)}; add others with --also",
            code="command-line",
        )
    wanted = [name for name in CANDIDATES if name in names or name == FEDAVG]
    rows: dict[str, Sequence[Settings]] = {
        name: CANDIDATES[name][:1] if first_only else CANDIDATES[name] for name in wanted
    }
    return {**rows, **{name: (tuple(settings),) for name, *settings in also}}


def run(comparison: Comparison, out: Path) -> dict[str, Any]:
    """Do all runs that are not done yet; a table for each config and skew.

    Raises:
        InputError: a config that does not fit, or a run that failed.
    """
    _check(comparison)
    tables = []
    for path in comparison.configs:
        config = load_config(path, list(comparison.sets))
        data = DividedData(config, None if config.data.phantom else comparison.images, out / config.name)
        subject = Subject(path, comparison.sets, data, comparison.target)
        for skew, divisions in comparison.divisions.items():
            found = {
                name: [[_run(subject, division, one) for division in divisions] for one in candidates]
                for name, candidates in comparison.rows.items()
            }
            tables.append({"config": str(path), "skew": skew, "rows": list(_rows(comparison, found))})
    return {"target": comparison.target, "set": list(comparison.sets), "tables": tables}


def _check(comparison: Comparison) -> None:
    """Refuse what cannot run before the first run."""
    for path in comparison.configs:
        for candidates in comparison.rows.values():
            for settings in candidates:
                if load_config(path, [*comparison.sets, *settings]).private:
                    raise InputError(
                        f"{path}: privacy is on; `bench algorithms` compares runs without it. Add --set privacy=off",
                        code="command-line",
                    )


@dataclass(frozen=True)
class Subject:
    """One config of a comparison, with its images."""

    path: Path
    sets: Sequence[str]
    data: DividedData
    target: float


def _run(subject: Subject, division: Division, settings: Settings) -> dict[str, Any]:
    """Return what one run came to."""
    shards = subject.data.shards(division)
    sites = json.dumps([{"name": f"site{number}"} for number in range(1, 5)])
    more = ("evaluation.bootstrap=100", "runtime.threads=1", "data.phantom=null", f"data.sites={sites}")
    words = [*subject.sets, *settings, *more, f"data.shards={shards}/{{site}}.h5", f"seed={division.seed}"]
    config = load_config(subject.path, words)
    directory = shards / "runs" / config.digest()
    if not (directory / "cpu_s").exists():
        print(directory, *settings, file=sys.stderr, flush=True)
        started = time.process_time()
        with at_work(f"run {directory.name}"):
            quietly(lambda: train(config, directory))
        write_bytes(directory / "cpu_s", f"{time.process_time() - started:.2f}".encode())
    return _result(directory, subject.target)


def _result(directory: Path, target: float) -> dict[str, Any]:
    summary = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
    lines = (directory / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    reached, sent_bytes = None, 0
    for record in map(json.loads, lines):
        sent_bytes += record["bytes_up"] + record["bytes_down"]
        if (record["auc_val"] or 0) >= target:
            reached = record["round"]
            break
    alone = [site["auc"] for site in summary["per_site"].values() if site["auc"] is not None]
    return {
        "auc_val": summary["auc_val"],
        "auc": summary["auc"],
        "worst_site_auc": min(alone),
        "rounds_to_target": reached,
        "mb_to_target": None if reached is None else sent_bytes / 1e6,
        "cpu_s": float((directory / "cpu_s").read_text(encoding="utf-8")),
    }


def _rows(
    comparison: Comparison, found: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]]
) -> Iterator[dict[str, Any]]:
    """A row an algorithm: of its best candidate by mean validation AUC."""
    fedavg = found[FEDAVG][0]
    for name, candidates in found.items():
        means = [_mean(runs, "auc_val") or 0.0 for runs in candidates]
        best = means.index(max(means))
        runs = candidates[best]
        gains = [one["worst_site_auc"] - other["worst_site_auc"] for one, other in zip(runs, fedavg, strict=True)]
        yield {
            "algorithm": name,
            "set": list(comparison.rows[name][best]),
            **{key: _mean(runs, key) for key in ("auc_val", "auc", "worst_site_auc")},
            "auc_sd": _sd([one["auc"] for one in runs]),
            "worst_gain": statistics.fmean(gains),
            "worst_gain_sd": _sd(gains),
            "reached": sum(one["rounds_to_target"] is not None for one in runs),
            **{key: _mean(runs, key) for key in ("rounds_to_target", "mb_to_target")},
            "time_over_fedavg": sum(one["cpu_s"] for one in runs) / sum(one["cpu_s"] for one in fedavg),
            "runs": [dict(one) for one in runs],
        }


def _mean(runs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    """None where a run has none."""
    values = [one[key] for one in runs]
    return None if None in values else statistics.fmean(values)


def _sd(values: Sequence[float]) -> float | None:
    return statistics.stdev(values) if len(values) > 1 else None


def text(result: Mapping[str, Any]) -> str:
    """For a person: a table for each config and skew."""
    target = f"{result['target']:.2f}".lstrip("0")
    head = ("algorithm", "AUC", "SD", "worst", "vs FedAvg", f"to {target}", "MB", "time")
    parts = []
    for one in result["tables"]:
        title = f"{one['config']}, skew {one['skew']:g}"
        parts.append(f"{title}\n\n{fitted([head, *map(_line, one['rows'])])}")
    return "\n\n".join(parts)


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    name = row["algorithm"]
    chosen = [word.partition("=") for word in row["set"]]
    values = [value for key, _, value in chosen if key in ("algorithm.mu", "algorithm.alpha", "server.lr")]
    gain = f"{row['worst_gain']:+.3f}" + ("" if row["worst_gain_sd"] is None else f" ± {row['worst_gain_sd']:.3f}")
    mb, rounds = row["mb_to_target"], row["rounds_to_target"]
    return (
        " ".join([name, *values]),
        f"{row['auc']:.3f}",
        "-" if row["auc_sd"] is None else f"{row['auc_sd']:.3f}",
        f"{row['worst_site_auc']:.3f}",
        gain,
        "-" if rounds is None else f"{rounds:.0f}",
        "-" if mb is None else f"{mb:.3f}",
        f"{row['time_over_fedavg']:.2f}",
    )
