"""Logging: what reaches stderr, what reaches which file, and that private text reaches neither a record nor stderr."""

import ast
import io
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedhpc.cli.common import Parser
from fedhpc.errors import InputError
from fedhpc.util.log import AGGREGATOR, LogFile, configure, logged

LOG = logging.getLogger("fedhpc.tests")
ENTRY = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00 (INFO|WARNING|ERROR) rank (\d+) (\S+): (.*)")


@pytest.fixture(autouse=True)
def as_found() -> Iterator[None]:
    names = ("", "fedhpc", "data_prep")
    before = {name: list(logging.getLogger(name).handlers) for name in names}
    yield
    for name in names:
        logging.getLogger(name).handlers[:] = before[name]


def files(folder: Path, rank: int = 3) -> list[LogFile]:
    named = [LogFile(folder / site / "log.txt", rank, site) for site in ("a", "a.b")]
    return [*named, LogFile(folder / "aggregator-log.txt", rank, AGGREGATOR)]


def entries(file: LogFile) -> list[tuple[str, ...]]:
    return [ENTRY.fullmatch(line).groups() for line in file.path.read_text().splitlines()]  # type: ignore[union-attr]


class Stream(io.StringIO):
    """What standard error is, on a terminal or in a pipe."""

    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(("way", "code"), [("error", ""), ("command line", " [command-line]")])
def test_long_message_is_wrapped_on_terminals_only(
    way: str, code: str, terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = Stream(terminal)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", "80")
    words = " ".join(["training.rounds=0: must be at least 1."] * 6)
    if way == "error":
        configure()
        LOG.error("%s", words)
    else:
        with pytest.raises(SystemExit, match="2"):
            Parser(prog="run.py").error(words)
    lines = [line for line in stream.getvalue().splitlines() if "usage" not in line]
    assert " ".join(" ".join(lines).split()).endswith(f"error: {words}{code}")
    assert (max(map(len, lines)) <= 80) == terminal and (len(lines) > 1) == terminal


def test_records_reach_the_files_and_warnings_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with logged(files(tmp_path), 3):
        LOG.debug("not kept")
        LOG.info("begins")
        LOG.warning("odd %s", "thing")
    LOG.info("after the run")
    for file in files(tmp_path):
        assert entries(file) == [("INFO", "3", file.site, "begins"), ("WARNING", "3", file.site, "odd thing")]
        assert file.path.stat().st_mode & 0o777 == 0o600
    assert capsys.readouterr().err == "WARNING: rank 3: odd thing\n"


def test_record_of_one_site_stays_out_of_the_others(tmp_path: Path) -> None:
    one, other, aggregator = files(tmp_path, 0)
    with logged([one, other, aggregator], 0):
        LOG.warning("of a.b", extra={"site": "a.b"})
    assert not one.path.exists()
    assert entries(other) == [("WARNING", "0", "a.b", "of a.b")]
    assert entries(aggregator) == [("WARNING", "0", AGGREGATOR, "of a.b")]


def test_private_entry_is_no_record(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    one, other, aggregator = files(tmp_path)
    with logged([one, other, aggregator], 3):
        one.write("ERROR", "label 7 of\npatient p3")
    assert caplog.records == [] and capfd.readouterr() == ("", "")
    assert one.path.read_text().splitlines()[1] == "    patient p3"
    assert not other.path.exists() and not aggregator.path.exists()


def test_cause_of_an_end_is_kept_without_private_text(tmp_path: Path) -> None:
    one, *_ = files(tmp_path)
    with pytest.raises(InputError), logged([one], 3):
        raise InputError("runs/a: bad", code="resume.other-config")
    with pytest.raises(ValueError), logged([one], 3):
        raise ValueError("patient p3")
    (*_, first), (*_, second) = entries(one)
    assert first == "runs/a: bad [resume.other-config]"
    assert second.startswith("ended by ValueError") and "p3" not in second


def test_log_that_cannot_be_written_does_not_end_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, *_ = files(tmp_path)
    with logged([one], 0):
        one.path.parent.rmdir()
        LOG.info("first")
        LOG.info("second")
    assert not one.path.parent.exists(), "a folder that was removed does not come back"
    assert capsys.readouterr().err.count(f"WARNING: {one.path}: cannot be written") == 1


def test_library_shows_nothing_on_stderr(capfd: pytest.CaptureFixture[str]) -> None:
    root = logging.getLogger()
    kept, root.handlers[:] = list(root.handlers), []
    try:
        configure()
        configure()
        logging.getLogger("some_library").error("value 7 of patient p3")
        LOG.error("once")
    finally:
        root.handlers[:] = kept
    assert capfd.readouterr().err == "error: once\n"


REPO = Path(__file__).resolve().parents[2]
PRINTERS = {
    "fedhpc/__main__.py": "a package is missing, perhaps one that logging needs",
    "fedhpc/cli/predict.py": "notes on files that were passed over",
    "fedhpc/cli/prepare.py": "how the command ended",
    "fedhpc/cli/status.py": "how the command ended",
    "fedhpc/bench/algorithms.py": "progress",
    "fedhpc/bench/early.py": "progress",
    "fedhpc/bench/harmonising.py": "progress",
    "fedhpc/bench/legacy.py": "progress",
    "fedhpc/bench/one_run.py": "progress",
    "fedhpc/bench/splits.py": "progress",
    "fedhpc/bench/stress.py": "progress",
    "fedhpc/cli/prepare_archive.py": "how the command ended",
    "fedhpc/util/log.py": "this is the one place",
}


def test_stderr_is_written_through_logging() -> None:
    found = {
        str(path.relative_to(REPO))
        for folder in ("fedhpc", "data_prep")
        for path in (REPO / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.keyword) and node.arg == "file" and ast.unparse(node.value) == "sys.stderr"
    }
    assert found == set(PRINTERS)
