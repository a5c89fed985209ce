"""docs/add-a-model.md, done word for word: its files written, its commands run."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from fedhpc.config.model import Model
from tests.conftest import REPO, Outcome

PAGE = (REPO / "docs" / "add-a-model.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_page_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., Outcome]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my_models.py").write_text(blocks("python")[0], encoding="utf-8")
    Path("config.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    commands = [shlex.split(line) for line in blocks("sh")[0].splitlines()]
    assert [command[:2] for command in commands] == [["python", "run.py"]] * 2
    for command in commands:
        done = run_here(command[2:])
        assert done.returncode == 0, done.stderr
    assert "AUC" in done.stdout
    assert Path("run/model_source.py").read_text(encoding="utf-8") == blocks("python")[0]


def test_monai_section_of_the_page_is_valid() -> None:
    section = yaml.safe_load(blocks("yaml")[1])["model"]
    assert Model.model_validate(section).label == "MONAI DenseNet121"
