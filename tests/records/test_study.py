"""The files of a study: what is written is read back, and the state of a cell is what its own folder says."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from fedhpc.errors import InputError
from fedhpc.records.study import Cell, Claim, Study, StudyDirectory

CELL = Cell("head-eps1", "federated", "head", 1.0, 0.1, 0, "elements/head-eps1", rule="mean", commands=("run",))
PLAN = Study("tiny", "quick", (CELL, replace(CELL, name="audit", kind="audit", run="elements/audit", is_run=False)))
CLAIM = Claim("AUC", "0.94", "0.95 (0.94 to 0.96)", 0.95, 0.94, 0.96, "met", "three seeds", "run.py study")


def test_plan_and_claims_read_back(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    directory.write(PLAN)
    directory.write_claims((CLAIM,))
    assert (directory.read(), directory.read_claims()) == (PLAN, (CLAIM,))


def test_cell_state_comes_from_its_folder(tmp_path: Path) -> None:
    directory = StudyDirectory(tmp_path)
    directory.write(PLAN)
    (tmp_path / CELL.run).mkdir(parents=True)
    (tmp_path / CELL.run / "outcome.json").write_text(json.dumps({"state": "finished"}), encoding="utf-8")
    study = directory.read()
    assert [cell.status for cell in study.cells] == ["finished", "pending"]
    assert [cell.name for cell in study.of("federated")] == ["head-eps1"]
    assert not study.of("audit")


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": "a", "quick": true, "cells": [{"name": "b"}]}'])
def test_damaged_plan_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"study\.json") as refused:
        StudyDirectory(tmp_path).read()
    assert refused.value.code == "file.damaged"


def test_folder_without_plan_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        StudyDirectory(tmp_path).read()
    assert refused.value.code == "study.not-a-study"
