"""`run.py budget`: a site ledger is made, shown and changed; a grant only ever loosens what it names, with a reason."""

import json
from pathlib import Path
from typing import Any

import pytest

from fedhpc.cli.main import main
from fedhpc.cli.privacy_spent import runs_table
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Terms


def budget(capsys: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    status = main(["budget", *map(str, words)])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.fixture
def folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    status, out, _ = budget(capsys, "init", tmp_path / "ledger", "--cap", "10")
    assert status == 0
    assert "cap epsilon 10 at delta 1e-05 per patient; runs without privacy: refused" in out
    return tmp_path / "ledger"


def facts(folder: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    status, out, _ = budget(capsys, "show", folder, "--json")
    assert status == 0
    found: dict[str, Any] = json.loads(out)
    return found


def test_show_tells_the_terms_it_was_made_with(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = facts(folder, capsys)
    assert {key: found[key] for key in ("cap", "delta", "unit", "allow_off", "initialised", "runs", "spent")} == {
        "cap": 10.0, "delta": 1e-5, "unit": "patient", "allow_off": False, "initialised": True, "runs": [], "spent": []
    }  # fmt: skip
    status, out, _ = budget(capsys, "show", folder)
    assert status == 0
    assert "nothing was spent" in out
    assert [line for line in out.splitlines() if len(line) > 80 and str(folder) not in line] == []


def test_grant_changes_what_it_names_and_keeps_the_reason(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert budget(capsys, "grant", folder, "--reason", "board", "--cap", "12", "--delta", "1e-6")[0] == 0
    assert budget(capsys, "grant", folder, "--reason", "synthetic", "--allow-off")[0] == 0
    found = facts(folder, capsys)
    assert (found["cap"], found["delta"], found["allow_off"]) == (12.0, 1e-6, True)
    assert [one["reason"] for one in found["terms"]] == ["made", "board", "synthetic"]
    assert budget(capsys, "grant", folder, "--reason", "over", "--forbid-off")[0] == 0
    assert facts(folder, capsys)["allow_off"] is False


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--reason", "x"], "nothing to grant"),
        (["--reason", " ", "--cap", "12"], "--reason: is empty"),
        (["--reason", "x", "--cap", "10"], "--cap 10: the cap is 10"),
        (["--reason", "x", "--cap", "3"], "can only raise it"),
        (["--reason", "x", "--delta", "1e-4"], "can only lower it"),
    ],
)
def test_grant_that_tightens_or_says_nothing_is_refused(
    folder: Path, words: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = facts(folder, capsys)
    status, _, err = budget(capsys, "grant", folder, *words)
    assert (status, told in err) == (2, True), err
    assert facts(folder, capsys) == before


def test_ledger_is_not_made_twice_nor_shown_where_none_is(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = budget(capsys, "init", folder, "--cap", "20")
    assert (status, "is an initialised site ledger" in err) == (2, True), err
    for kind in (("show",), ("grant", "--reason", "x", "--cap", "3")):
        status, _, err = budget(capsys, kind[0], folder.with_name("none"), *kind[1:])
        assert (status, "no site ledger; make one" in err) == (2, True), err


def test_grant_on_an_account_that_a_run_made_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its cap would bind no config that names another place: only an initialised account is found again there."""
    folder = tmp_path / "made"
    SiteLedger.open_or_create(folder, Terms("patient"))
    status, _, err = budget(capsys, "grant", folder, "--reason", "board", "--cap", "3")
    assert (status, "by `run.py budget init" in err) == (2, True), err
    assert facts(folder, capsys)["cap"] is None
    assert budget(capsys, "grant", folder, "--reason", "lost", "--accept-lost", "0123456789abcdef")[0] == 0
    assert budget(capsys, "init", folder, "--cap", "3")[0] == 0
    assert budget(capsys, "grant", folder, "--reason", "board", "--cap", "4")[0] == 0


@pytest.mark.parametrize("insecure", [False, True])
def test_account_without_bound_says_why(insecure: bool) -> None:
    run = {"run": "a", "charges": 3, "insecure": insecure, "epsilon_training": {}, "epsilon_evaluation": {}}
    assert ("privacy.noise_seed" in runs_table([run], "patient")) == insecure
