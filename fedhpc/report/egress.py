"""`run.py egress`: what left each hospital in a run, by its own log, and what speaks for no pixel being among it.

Everything here is public: config, records and logs. No shard is opened.
"""

import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.transport.egress_log import KINDS, Entry, read_log
from fedhpc.util.text import data_size, fitted, wrapped

CHECKOUT = Path(__file__).resolve().parents[2]
Logs = Mapping[str, Sequence[Entry]]


@dataclass(frozen=True)
class Check:
    """One thing that speaks for it. `holds` is None where it could not be looked at."""

    name: str
    holds: bool | None
    text: str


@dataclass(frozen=True)
class Report:
    """The same facts twice: `facts` for a program, `text` for a person."""

    facts: dict[str, Any]
    text: str


def report(run: Path) -> Report:
    """Return what left in a run directory.

    Raises:
        InputError: no run directory, or a log of it that is missing or damaged.
    """
    directory, config, logs, aggregator = _read(run)
    records = directory.read_rounds()
    checks = [*log_checks(config, logs, records), _contracts()]
    rounds = _rounds(logs, aggregator, len(config.site_names))
    facts = {
        "run": str(run),
        "sites": {name: _by_kind(entries) for name, entries in logs.items()},
        "aggregator": _by_kind(aggregator),
        "rounds": rounds,
        "checks": {check.name: {"holds": check.holds, "text": check.text} for check in checks},
        "holds": all(check.holds is not False for check in checks),
    }
    return Report(facts, _text(facts, checks, directory))


def log_checks(config: RunConfig, logs: Logs, records: Sequence[Mapping[str, Any]]) -> list[Check]:
    """Return what the logs of all sites say: kinds, bytes beside those that rank 0 received, encryption, search."""
    return [_kinds(logs), _counts(logs, records), _wire(config, logs), _search(config, logs)]


def exchanged(run: Path) -> list[dict[str, int]]:
    """`bytes_up` and `bytes_down` of each `round` of a run directory, over all sites, by the logs of those who sent.

    Raises:
        InputError: as `report`.
    """
    _, config, logs, aggregator = _read(run)
    return _rounds(logs, aggregator, len(config.site_names))


def _read(run: Path) -> tuple[RunDirectory, RunConfig, Logs, Sequence[Entry]]:
    directory = RunDirectory(run)
    config = directory.read_config()
    if config is None:
        raise InputError(
            f"{run}: is no run directory; give the one that `run.py train` wrote to", code="run-directory.not-a-run"
        )
    logs = {name: read_log(directory.egress(name)) for name in config.site_names}
    return directory, config, logs, read_log(directory.aggregator_egress)


def _by_kind(entries: Sequence[Entry]) -> dict[str, dict[str, Any]]:
    found = {}
    for kind in dict.fromkeys(entry.kind for entry in entries):
        mine = [entry for entry in entries if entry.kind == kind]
        found[kind] = {
            "payloads": len(mine),
            "bytes": sum(entry.bytes for entry in mine),
            "largest": max(entry.bytes for entry in mine),
            "via": sorted({entry.via for entry in mine}),
            "first": min(entry.time for entry in mine),
            "last": max(entry.time for entry in mine),
        }
    return found


def _rounds(logs: Logs, aggregator: Sequence[Entry], sites: int) -> list[dict[str, int]]:
    """Bytes of the updates of each round, over all sites; what rank 0 sends counts once for every site that gets it."""
    up = _bytes_by_round(entry for entries in logs.values() for entry in entries)
    down = _bytes_by_round(aggregator)
    return [{"round": r, "bytes_up": up.get(r, 0), "bytes_down": sites * down.get(r, 0)} for r in sorted({*up, *down})]


def _bytes_by_round(entries: Iterable[Entry]) -> dict[int, int]:
    found: dict[int, int] = {}
    for entry in entries:
        if entry.kind == "update" and entry.round is not None:
            found[entry.round] = found.get(entry.round, 0) + entry.bytes
    return found


def _kinds(logs: Logs) -> Check:
    strange = sorted({entry.kind for entries in logs.values() for entry in entries} - set(KINDS))
    if strange:
        return Check("kinds", False, f"{', '.join(strange)}: not on the whitelist ({', '.join(KINDS)})")
    count = sum(map(len, logs.values()))
    return Check("kinds", True, f"all {count} payloads are of the kinds that may leave: {', '.join(KINDS)}")


def _counts(logs: Logs, records: Sequence[Mapping[str, Any]]) -> Check:
    """What the sites wrote down against what the aggregator counted. A round that was done twice is in a log twice."""
    wrong, replayed = [], 0
    for record in records:
        for name, values in record["per_site"].items():
            mine = [e.bytes for e in logs[name] if e.kind == "update" and e.round == record["round"]]
            sums = [sum(mine[start:]) for start in range(len(mine) + 1)]
            if values["bytes_up"] not in sums:
                wrong.append(f"{name} round {record['round']}: {sums[0]} logged, {values['bytes_up']} received")
            replayed += sums[0] != values["bytes_up"]
    if wrong:
        return Check("counts", False, f"log and aggregator differ: {'; '.join(wrong[:5])}")
    again = f"; {replayed} times an update was sent again after a restart" if replayed else ""
    return Check("counts", True, f"the update bytes of all {len(records)} rounds are those that rank 0 counted{again}")


def _wire(config: RunConfig, logs: Logs) -> Check:
    """Of what went over a wire unencrypted there must be no more than the handshakes, which a TLS session begins with.

    They are over before a shard is open: what went in the clear must not have been searched either.
    """
    crossed = [entry for entries in logs.values() for entry in entries if entry.via != "process"]
    clear = [entry for entry in crossed if entry.via == "clear"]
    if not crossed:
        return Check("wire", None, "no payload crossed a wire: one process plays all sites")
    if not config.exchange.tls:
        return Check("wire", None, f"not encrypted: exchange.tls is off; {len(clear)} payloads went in the clear")
    late = [entry for entry in clear if entry.kind not in ("control", "hello") or entry.searched is not None]
    if late:
        return Check("wire", False, f"{len(late)} payloads went in the clear, the first at {late[0].time}")
    text = (
        f"{len(crossed) - len(clear)} payloads went by TLS; before it the handshakes, {len(clear)} payloads of "
        f"{sum(entry.bytes for entry in clear):,} bytes in all"
    )
    return Check("wire", True, text)


def _contracts() -> Check:
    """import-linter on this checkout: that the code which sends cannot reach an image."""
    tool = Path(sys.executable).parent / "lint-imports"
    settings = CHECKOUT / "pyproject.toml"
    if not (tool.exists() and settings.exists()):
        return Check("contracts", None, "not looked at: needs a checkout with `pip install import-linter`")
    command = [str(part) for part in (tool, "--no-cache", "--no-logo", "--config", settings)]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    told = next((line for line in done.stdout.splitlines() if line.startswith("Contracts:")), done.stdout[-500:])
    return Check("contracts", done.returncode == 0, f"import contracts of this checkout: {told.partition(': ')[2]}")


def _search(config: RunConfig, logs: Logs) -> Check:
    entries = [entry for mine in logs.values() for entry in mine]
    blind = [entry for entry in entries if entry.searched is None]
    if not config.exchange.search:
        return Check("search", None, "not done: exchange.search is off")
    late = [entry for entry in blind if entry.kind not in ("control", "hello")]
    if late:
        return Check("search", False, f"{len(late)} payloads left without being searched for pixels")
    noted = config.private and config.privacy.trust == "aggregator"
    found = "what was found in those with noise is in each hospital's own log.txt" if noted else "none found"
    text = (
        f"{len(entries) - len(blind)} payloads were searched for pixels of their site before they left: {found}; "
        f"before the shards were open {len(blind)} left, of {sum(entry.bytes for entry in blind):,} bytes in all"
    )
    return Check("search", True, text)


def _text(facts: Mapping[str, Any], checks: Sequence[Check], directory: RunDirectory) -> str:
    rows = [("sender", "kind", "payloads", "bytes", "largest", "via")]
    for sender, kinds in (*facts["sites"].items(), ("aggregator", facts["aggregator"])):
        for kind, f in kinds.items():
            counts = (f"{f[key]:,}" for key in ("payloads", "bytes", "largest"))
            rows.append((sender, kind, *counts, "+".join(f["via"])))
    marks = {True: "holds", False: "BROKEN", None: "open"}
    proof = [(marks[check.holds], check.name, check.text) for check in checks]
    told = wrapped("\n".join([*_when_line(facts), _rounds_line(facts["rounds"], directory)]))
    return "\n".join([fitted(rows, names=2), "", told, "", fitted(proof)])


def _when_line(facts: Mapping[str, Any]) -> list[str]:
    """Return when the first and the last payload left, in a line; no line where none has."""
    found = [f for kinds in (*facts["sites"].values(), facts["aggregator"]) for f in kinds.values()]
    if not found:
        return []
    first, last = min(f["first"] for f in found), max(f["last"] for f in found)
    return [f"from {first[:19]} to {last[:19]} UTC (--json: of each kind)"]


def _rounds_line(rounds: Sequence[Mapping[str, int]], directory: RunDirectory) -> str:
    if not rounds:
        return "no update has left yet"
    n = len(rounds)
    up, down = (sum(one[key] for one in rounds) / n for key in ("bytes_up", "bytes_down"))
    dense = _dense_bytes(directory)
    share = ("", "") if dense is None else (f" ({up / dense:.2%} of dense)", f" ({down / dense:.2%})")
    return (
        f"updates: {len(rounds)} rounds, on average {data_size(up)} up{share[0]} and {data_size(down)} down{share[1]}"
    )


def _dense_bytes(directory: RunDirectory) -> int | None:
    """Return what a round's updates would be as dense float32; None before the run has ended."""
    if not directory.summary.exists():
        return None
    return int(directory.read_summary()["dense_bytes_per_round"])
