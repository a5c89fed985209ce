"""A file is whole or as it was, a line is appended whole or not at all, and every error names path and remedy."""

import os
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
