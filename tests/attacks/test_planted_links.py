"""A run directory may lie on a disk that others write to: through a link there no other file of the account is changed.

Each file that a hospital's rank opens for writing under a name that others know was emptied, cut or appended to so.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhpc.config.schema import RunConfig
from fedhpc.errors import FileError, PrivacyError
from fedhpc.privacy.hash_chain import Chain
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.preflight.facts import _run_dir_problem
from fedhpc.run.rounds.tracking import MLflow, TensorBoard
from fedhpc.transport.egress_log import EgressLog
from fedhpc.util.directory_lock import DirectoryLock
from fedhpc.util.files import append_line, cut_torn_line, open_to_append
from tests.support.accounts import write_patients

TOKEN = ".preflight-0123456789abcdef"
CONTENT = b"all that was spent\nand a last line without its end"


def probe(folder: Path) -> None:
    """Rank 0 draws the name; the one that it draws may lie there already."""
    said = _run_dir_problem(folder.parents[1] / TOKEN, [folder.name], private=True)
    assert said.startswith("cannot be written"), said
    raise FileError(said)


def egress(folder: Path) -> None:
    EgressLog(folder / "egress.jsonl", "aggregator").write_down(b"payload", "update", 1)


def ledger(folder: Path) -> None:
    chain = Chain(folder / "ledger.jsonl")
    with chain.locked():
        chain.append({"ledger_of": "site1"})


def ledger_lock(folder: Path) -> None:
    with Chain(folder / "other.jsonl").locked():
        pass


WRITERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "probe": (probe, TOKEN),
    "egress log": (egress, "egress.jsonl"),
    "cut egress log": (lambda folder: cut_torn_line(folder / "egress.jsonl"), "egress.jsonl"),
    "ledger": (ledger, "ledger.jsonl"),
    "lock of a ledger": (ledger_lock, "other.jsonl.lock"),
    "record": (lambda folder: append_line(folder / "rounds.jsonl", "{}"), "rounds.jsonl"),
    "log of a trial": (lambda folder: open_to_append(folder / "log.txt").close(), "log.txt"),
    "lock of a run": (lambda folder: DirectoryLock(folder).acquire(), ".lock"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_planted_link_leads_no_write_to_another_file(tmp_path: Path, writer: str) -> None:
    write, name = WRITERS[writer]
    folder, theirs = tmp_path / "run" / "sites" / "site1", tmp_path / "secure"
    folder.mkdir(parents=True)
    (tmp_path / "run" / TOKEN).touch()
    # Without an end of line the run's ledger takes it for a line that a crash has cut.
    theirs.write_bytes(CONTENT.replace(b"\n", b" ") if writer == "ledger" else CONTENT)
    before = theirs.read_bytes()
    (folder / name).symlink_to(theirs)
    with pytest.raises((FileError, PrivacyError)):
        write(folder)
    assert theirs.read_bytes() == before


CONFIG = RunConfig.model_validate({"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}]}})
EMPTIERS: dict[str, Callable[[Path], object]] = {
    "state": lambda run: RunDirectory(run).refuse_links(),
    "state/updates": lambda run: RunDirectory(run).refuse_links(),
    "tensorboard": lambda run: TensorBoard(run, CONFIG, []),
    "mlruns": lambda run: MLflow(run, CONFIG, []),
}


@pytest.mark.parametrize("name", EMPTIERS)
def test_folder_of_somebody_else_is_not_emptied(tmp_path: Path, name: str) -> None:
    """Old checkpoints, and earlier runs of a tracker, are removed from these folders."""
    run, theirs = tmp_path / "run", tmp_path / "theirs"
    (run / name).parent.mkdir(parents=True)
    theirs.mkdir()
    (theirs / "round-0001.npz").touch()
    (run / name).symlink_to(theirs)
    with pytest.raises(FileError):
        EMPTIERS[name](run)
    assert [path.name for path in theirs.iterdir()] == ["round-0001.npz"]


def test_shard_is_written_through_no_link(tmp_path: Path) -> None:
    """The built-in cohort may be made in a folder that others write to; the number of a process is easily guessed."""
    theirs = tmp_path / "theirs"
    theirs.write_bytes(CONTENT)
    (tmp_path / f".a.h5.{os.getpid()}.tmp").symlink_to(theirs)
    write_patients(tmp_path / "a.h5", ["p1", "p2", "p3"], [0, 1, 2])
    assert theirs.read_bytes() == CONTENT and not (tmp_path / "a.h5").is_symlink()
    assert (tmp_path / "a.h5").stat().st_mode & 0o077 == 0, "whoever calls `write_shard` itself may write patients"
