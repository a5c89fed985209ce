"""A run directory may lie on a disk that others write to: through a link there no other file of the account is changed.

Each file that a hospital's rank opens for writing under a name that others know was emptied, cut or appended to so.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from fedhpc.errors import FileError, PrivacyError
from fedhpc.privacy.hash_chain import Chain
from fedhpc.run.preflight.facts import _run_dir_problem
from fedhpc.transport.egress_log import EgressLog
from fedhpc.util.directory_lock import DirectoryLock
from fedhpc.util.files import append_line, cut_torn_line

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
