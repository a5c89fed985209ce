"""`run.py watch`: what it makes of the files of runs in every state, in 80 columns, and that it ends."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhpc.cli.main import main
from fedhpc.records.run_directory import SUMMARY_KEYS
from fedhpc.sweep.directory import SweepDirectory, submission
from fedhpc.sweep.trial_directory import beginning
from fedhpc.util.directory_lock import DirectoryLock, Holder
from fedhpc.watch.parts import ASCII_BLOCKS
from fedhpc.watch.run_lines import run_lines
from fedhpc.watch.run_view import view_run
from tests.support.tiny_sweeps import load_sweep, tree_of, write_sweep

PHASES = {"train": 1.5, "exchange": 0.2, "total": 2.0}


def record(round: int, **more: Any) -> dict[str, Any]:
    base = {"round": round, "auc_val": 0.8 + 0.01 * round, "epsilon": 0.5, "bytes_up": 1000, "bytes_down": 900}
    return {
        **base,
        "per_site": {},
        "ledger_heads": {},
        "seconds": PHASES,
        "absent": [],
        "dropped": [],
        "flags": [],
        **more,
    }


def run_in(folder: Path, *records: Mapping[str, Any], rounds: int = 4) -> Path:
    """The files of a run with these records, at which nobody is at work."""
    run = folder / "a-run-with-quite-a-long-name-of-its-own"
    run.mkdir()
    tree = {key: value for key, value in tree_of(folder).items() if key not in ("grid", "baselines")}
    tree |= {"privacy": {"epsilon": 1.0, "sample_rate": 1.0}, "training": {**tree["training"], "rounds": rounds}}
    (run / "config.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    (run / "rounds.jsonl").write_text("".join(json.dumps(one) + "\n" for one in records), encoding="utf-8")
    return run


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Path]:
    """A run after two of four rounds that this process is at work in."""
    run = run_in(tmp_path, record(1), record(2, dropped=["site3"], absent=["site4"]))
    lock = DirectoryLock(run)
    lock.acquire()
    yield run
    lock.release()


def text(run: Path) -> str:
    lines = run_lines(view_run(run), ASCII_BLOCKS)
    assert all(len(line) <= 80 for line in lines), lines
    return "\n".join(lines)


def test_running_run_shows_what_is_left(held: Path) -> None:
    shown = text(held)
    for part in ("round 2/4", "about 4 s left", "0.820 (best 0.820)  _#", "0.500 of 1 spent, 0.500 left",
                 "2.0 kB up, 1.8 kB down", "missing: site4", "left out of round 2: site3"):  # fmt: skip
        assert part in shown, shown


def test_late_and_missing_updates_are_named(held: Path) -> None:
    start = datetime.now(UTC) - timedelta(seconds=100)
    for site, late_s, sent_third in (("site1", 0, True), ("site2", 1, True), ("site3", 60, False), ("site4", 1, True)):
        sent = {"kind": "update", "via": "tls", "bytes": 1, "sha256": "", "to": "aggregator", "searched": 1}
        entries = [{**sent, "round": 2, "time": (start + timedelta(seconds=late_s)).isoformat()}]
        now = datetime.now(UTC) - timedelta(seconds=30)
        entries += [{**entries[0], "round": 3, "time": now.isoformat()}] * sent_third
        (held / "sites" / site).mkdir(parents=True)
        log = "".join(json.dumps(one) + "\n" for one in entries) + '{"cut'
        (held / "sites" / site / "egress.jsonl").write_text(log, encoding="utf-8")
    shown = text(held)
    most_s = (datetime.now(UTC) - start).total_seconds() - 70
    assert "slow: site3, 60.0 s after the first in round 2" in shown
    waiting = re.search(r"waiting for site3, (\d+) s after the first update", shown)
    assert waiting and 30 <= int(waiting[1]) <= round(most_s), shown
    assert "site2" not in shown and "site1" not in shown
    for line in (
        "[1]",
        '{"kind": {}}',
        json.dumps({**entries[0], "round": "x"}),
        json.dumps({**entries[0], "time": 7}),
    ):
        (held / "sites" / "site3" / "egress.jsonl").write_text(line + "\n", encoding="utf-8")
        assert "waiting for site3" in text(held), "a hospital's file ends no command of another"


def test_each_end_of_a_run_is_told_apart(tmp_path: Path) -> None:
    run = run_in(tmp_path, record(1))
    assert view_run(run).state == "stopped"
    gone = Holder(**{**asdict(Holder.this_process()), "pid": 2**22 + 1})
    (run / "lock.json").write_text(json.dumps(asdict(gone)), encoding="utf-8")
    assert view_run(run).state == "killed"
    elsewhere = Holder(**{**asdict(gone), "host": "another-node"})
    (run / "lock.json").write_text(json.dumps(asdict(elsewhere)), encoding="utf-8")
    assert view_run(run).state == "running", "nothing is known of another host's processes"
    (run / "lock.json").unlink()
    summary = {key: None for key in SUMMARY_KEYS} | {"auc": 0.9, "auc_ci95": [0.8, 0.95], "stopped": "finished"}
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    assert view_run(run).state == "finished" and "AUC 0.900 (0.800 to 0.950)" in text(run)


def test_sites_late_in_the_last_round_are_named(tmp_path: Path) -> None:
    shown = text(run_in(tmp_path, record(1), record(2, late=["site3"], staleness={"site1": 0})))
    assert "late in round 2, so not in it: site3" in shown and "take part" not in shown


@pytest.mark.parametrize("words", [["--once"], []])
def test_watch_of_an_ended_run_ends(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run_in(tmp_path, record(1))), *words]) == 0
    out = capsys.readouterr().out
    assert "round 1/4" in out and "\x1b" not in out, "a pipe gets plain text"


@pytest.mark.parametrize("made", [False, True])
def test_nothing_to_watch_is_refused(made: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = tmp_path / "none"
    if made:
        place.mkdir()
    assert main(["watch", str(place), "--once"]) == 2
    assert "it has not begun yet" in capsys.readouterr().err


def test_sweep_shows_its_trials(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = load_sweep(write_sweep(tmp_path), [])
    directory = SweepDirectory(tmp_path / "sweep")
    directory.create(sweep, "local")
    names = [trial.name for trial in sweep.trials]
    directory.add(submission("local", dict.fromkeys(names, "")))
    first, second = directory.trial(names[0]), directory.trial(names[1])
    first.write_outcome(beginning(""))
    second.end(beginning(""), "failed", "site1: its shard is not there\nmore")
    assert main(["watch", str(directory.path), "--once"]) == 0
    shown = capsys.readouterr().out
    assert "1 failed, 4 pending, 1 running; time left not known yet" in shown
    assert f"failed   {names[1]}: site1: its shard is not there" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize(
    "forged", [{"epsilon": "x"}, {"seconds": {"total": []}}, {"auc_val": {}}, {"per_site": {"site1": 7}}], ids=str
)
def test_records_of_somebody_else_end_in_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], forged: dict[str, Any]
) -> None:
    run = run_in(tmp_path, record(1), record(2) | forged)
    found = {main(command) for command in (["watch", str(run), "--once"], ["report", str(run)])}
    assert found <= {0, 2} and 2 in found
    assert "at fedhpc/" in capsys.readouterr().err, "the place is told, in case it is a fault of the program"


def test_files_of_somebody_else_cannot_move_the_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run directory that was given to one: OSC 52 writes to the clipboard, CSI 2J clears what was said before."""
    evil = "\x1b]52;c;cm0gLXJm\x07\x1b[2J"
    run = run_in(tmp_path, record(1), record(2, absent=[evil], flags=[{"site": evil, "reason": evil}]))
    assert main(["watch", str(run), "--once"]) == 0
    (run / "rounds.jsonl").write_text(json.dumps(record(1) | {"round": evil}) + "\n", encoding="utf-8")
    for command in (["watch", run, "--once"], ["report", run], ["egress", run]):
        assert main([*map(str, command)]) == 2
    out, err = capsys.readouterr()
    assert "missing: ?]52;c;" in out and "is round ?]52;c;" in err
    assert not set("\x1b\x07") & set(out + err)
