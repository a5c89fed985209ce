"""`run.py sweep`: the words that it takes, and in which order."""

from pathlib import Path

import pytest

from fedhpc.cli.main import main


@pytest.mark.parametrize(
    "words", [["status", "--watch", "DIR"], ["status", "DIR", "--watch"], ["--watch", "status", "DIR"]]
)
def test_sweep_directory_may_follow_options(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sweep", *(word.replace("DIR", str(tmp_path)) for word in words)]) == 2
    assert f"{tmp_path}: is no sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [["status"], ["tiny.yaml", "runs/x"], ["status", "runs/x", "--dry-run"], ["cancel", "runs/x", "--cluster", "slurm"],
     ["tiny.yaml", "--watch"], ["status", "runs/x"], ["resume", "runs/x"], ["cancel", "runs/x"]],
)  # fmt: skip
def test_words_that_do_not_go_together_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(["sweep", *words])
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert "error: " in capsys.readouterr().err
