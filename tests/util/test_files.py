"""A file is whole or as it was, a line is appended whole or not at all, and every error names path and remedy."""

import ast
import errno
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from fedhpc.errors import FileError, InputError
from fedhpc.util import files


def partial(limit: int) -> Callable[[int, memoryview], int]:
    """An `os.write` that takes at most `limit` bytes, as a signal or a full disk makes it do."""
    original = os.write
    return lambda descriptor, content: original(descriptor, content[:limit])


@pytest.mark.parametrize("limit", [1, 3, 10**6])
def test_short_writes_are_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    monkeypatch.setattr(os, "write", partial(limit))
    files.write_bytes(tmp_path / "a", b"0123456789")
    files.append_line(tmp_path / "a", "xyz")
    assert (tmp_path / "a").read_bytes() == b"0123456789xyz\n"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    files.write_text(tmp_path / "a", "old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(FileError, match=r"/a: cannot be written: No space left on device\. Free space"):
        files.write_text(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


KILLED = """
import os, signal, sys
from pathlib import Path
from fedhpc.util import files

call, path = sys.argv[1], Path(sys.argv[2])
original = getattr(os, call)

def killed(*arguments):
    if call == "write":
        original(arguments[0], arguments[1][:2])
    os.kill(os.getpid(), signal.SIGKILL)

setattr(os, call, killed)
files.write_text(path, "new") if sys.argv[3] == "whole" else files.append_line(path, "new")
"""


@pytest.mark.parametrize(
    ("call", "way"), [("write", "whole"), ("fsync", "whole"), ("replace", "whole"), ("write", "line")]
)
def test_process_killed_in_a_write_leaves_a_whole_file(tmp_path: Path, call: str, way: str) -> None:
    """SIGKILL inside the call; a line that was cut is removed as the file is opened again."""
    path = tmp_path / "a"
    files.append_line(path, "old")
    done = subprocess.run([sys.executable, "-c", KILLED, call, path, way], check=False)
    assert done.returncode == -signal.SIGKILL
    files.cut_torn_line(path)
    assert path.read_text(encoding="utf-8") == "old\n"
    files.write_text(path, "newer")
    assert path.read_text(encoding="utf-8") == "newer"


def test_stale_handle_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(*_: object) -> int:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    monkeypatch.setattr(os, "write", stale)
    with pytest.raises(FileError, match=r"/a: cannot be written: Stale file handle\. It was removed or moved"):
        files.write_text(tmp_path / "a", "new")


def test_failed_append_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.append_line(tmp_path / "a", "one")
    original, calls = os.write, []

    def half_then_full(descriptor: int, content: memoryview) -> int:
        calls.append(len(content))
        if len(calls) > 1:
            raise OSError(28, "No space left on device")
        return original(descriptor, content[:2])

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(FileError):
        files.append_line(tmp_path / "a", "two")
    assert len(calls) == 2
    assert (tmp_path / "a").read_text() == "one\n"


def test_mode_is_that_of_the_new_file(tmp_path: Path) -> None:
    files.write_text(tmp_path / "a", "x", mode=files.PRIVATE)
    files.append_line(tmp_path / "b", "x", mode=files.PRIVATE)
    assert [(tmp_path / name).stat().st_mode & 0o777 for name in "ab"] == [0o600, 0o600]


@pytest.mark.parametrize(
    ("act", "said"),
    [
        (lambda path: files.read_bytes(path / "none"), "none: cannot be read: No such file"),
        (lambda path: files.read_bytes(path), "cannot be read: Is a directory"),
        (lambda path: files.write_text(path / "no" / "a", "x"), "a: cannot be written: No such file"),
        (lambda path: files.append_line(path / "no" / "a", "x"), "a: cannot be written: No such file"),
        (lambda path: files.make_folder(path / "file" / "a"), "a: cannot be made: Not a directory"),
        (lambda path: files.make_folder(path / "x" / "y", parents=False), "y: cannot be made: No such file"),
    ],
)
def test_error_names_path_and_remedy(tmp_path: Path, act: Callable[[Path], object], said: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileError, match=said) as caught:
        act(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "folder" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b'{"a": 1', b"\xff", b"[" * 50_000])
def test_broken_json_is_one_message(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(InputError, match=r"/a: is not a .*Do this\."):
        files.read_json(tmp_path / "a", "Do this")


@pytest.mark.parametrize(
    ("content", "lines", "torn"),
    [(b"", [], False), (b"a", [], True), (b"a\n", ["a"], False), (b"a\nb\nc", ["a", "b"], True), (b"\n", [], False)],
)
def test_torn_last_line_is_left_out(tmp_path: Path, content: bytes, lines: list[str], torn: bool) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    assert files.read_lines(path, "") == (lines, torn)
    assert bool(files.cut_torn_line(path)) is torn
    assert path.read_bytes() == content.rpartition(b"\n")[0] + (b"\n" if b"\n" in content else b"")


def test_private_line_goes_to_a_private_file_only(tmp_path: Path) -> None:
    """A log that was put there before with another mode, or a link to somebody else's file."""
    path = tmp_path / "log.txt"
    path.touch()
    path.chmod(0o666)
    files.append_line(path, "patient", mode=files.PRIVATE)
    assert path.stat().st_mode & 0o777 == files.PRIVATE
    (tmp_path / "theirs").touch()
    path.unlink()
    path.symlink_to(tmp_path / "theirs")
    with pytest.raises(FileError, match="cannot be written"):
        files.append_line(path, "patient", mode=files.PRIVATE)
    assert not (tmp_path / "theirs").read_bytes()


def test_left_temporary_file_lends_no_mode(tmp_path: Path) -> None:
    """Of a process with the same number that was killed; it may be readable by others, or lead elsewhere."""
    left = tmp_path / f".key.{os.getpid()}.tmp"
    left.write_text("old", encoding="ascii")
    left.chmod(0o644)
    files.write_bytes(tmp_path / "key", b"new", mode=files.PRIVATE)
    (tmp_path / "elsewhere").write_text("mine", encoding="ascii")
    left.symlink_to(tmp_path / "elsewhere")
    files.write_bytes(tmp_path / "key", b"newer", mode=files.PRIVATE)
    assert (tmp_path / "key").read_bytes() == b"newer"
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert (tmp_path / "elsewhere").read_bytes() == b"mine"


def test_replacing_leaves_the_old_file_where_its_block_fails(tmp_path: Path) -> None:
    path = tmp_path / "features.npy"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="of the reader"), files.replacing(path) as write:
        write(b"half")
        raise OSError("of the reader: no error of this file")
    assert [one.name for one in tmp_path.iterdir()] == ["features.npy"] and path.read_bytes() == b"old"
    with files.replacing(path) as write:
        write(b"one")
        write(memoryview(b"two"))
    assert path.read_bytes() == b"onetwo"


OTHER_WRITERS = {
    "privacy/hash_chain.py": "several processes append to one file under a lock",
    "privacy/anchored_chain.py": "a charge that cannot be written is a PrivacyError",
    "privacy/ledger_folder.py": "a lock file",
    "util/directory_lock.py": "a lock file",
    "util/output.py": "/dev/null",
    "transport/egress_log.py": "holds its file open over a run, and appends by append_whole",
    "run/preflight/facts.py": "a probe that it removes",
    "bench/step_memory.py": "/proc",
    "bench/harmonising.py": "a cohort in a folder of its own",
    "bench/importing.py": "a cohort in a folder of its own",
    "bench/round.py": "the log of a child process",
    "bench/round_turns.py": "the log of a child process",
    "chaos/blows.py": "fills the disk on purpose",
    "chaos/campaign.py": "the log of a child process",
    "records/checkpoint.py": "members of an archive, whose bytes go through `files.replacing`",
    "util/memory.py": "/proc",
    "transport/launcher_guard.py": "the launcher's own stderr",
    "transport/channel.py": "opens no file: a message of a TLS session",
}


def writes(call: ast.Call) -> bool:
    """Whether a call opens a file for writing, or writes one, by its name and its mode."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = ast.unparse(call.func).rpartition(".")[0]
    if name == "open":
        words = " ".join(ast.unparse(one) for one in [*call.args, *(word.value for word in call.keywords)])
        mode = [one.value for one in call.args if isinstance(one, ast.Constant) and isinstance(one.value, str)]
        return any(flag in words for flag in ("O_WRONLY", "O_RDWR")) or any(set("wax+") & set(m) for m in mode)
    to_path = name in ("write_text", "write_bytes", "touch") and isinstance(call.func, ast.Attribute)
    return to_path and owner != "files"


def test_files_are_written_in_one_place() -> None:
    """All others would have to know of full disks, short writes, torn files and modes."""
    root = Path(files.__file__).parents[1]
    found = {
        str(path.relative_to(root))
        for path in root.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and writes(node)
    }
    assert found - {"util/files.py"} == set(OTHER_WRITERS)
