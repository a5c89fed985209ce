"""`run.py prepare`: wrong arguments are reported, and nothing is written."""

from pathlib import Path

import pytest

from fedhpc.cli.main import main


@pytest.mark.parametrize("fold", ["1", "a/b", "1/", "/3"])
def test_fold_that_is_none_is_refused(fold: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "images", str(tmp_path), "-o", str(tmp_path / "out"), "--fold", fold])
    assert ended.value.code == 2
    assert "must read K/N" in capsys.readouterr().err


def test_file_that_is_no_shard_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.h5").write_bytes(b"no shard")
    assert main(["prepare", "check", str(tmp_path / "a.h5")]) == 2
    assert "a.h5" in "".join(capsys.readouterr())


@pytest.mark.parametrize("words", [["--images", "1"], ["--size", "3"], ["--difficulty", "2"]])
def test_cohort_that_cannot_be_made_is_refused(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "phantom", "-o", str(tmp_path / "out"), *words]) == 2
    assert words[1] in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
