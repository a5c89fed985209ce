"""The codes of errors: each known, unique, used and documented, and kept on every way that an error takes."""

import ast
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from fedhpc import errors
from fedhpc.cli.main import main
from fedhpc.error_codes import CODES, TABLE
from fedhpc.errors import (
    CodedText,
    ConfigError,
    FedhpcError,
    FileError,
    InputError,
    PayloadError,
    PrivacyError,
    RankErrors,
    ShardError,
    SiteError,
    at,
    in_round,
    printed,
    site_failure,
)
from fedhpc.records.checkpoint import ForeignCheckpointError
from fedhpc.transport.base import AloneTransport
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.transport.tls import TlsError

REPO = Path(__file__).resolve().parents[1]
CLASSES = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, FedhpcError)]
CLASSES += [ForeignCheckpointError, TlsError]
NAMES = {one.__name__ for one in CLASSES}
WITHOUT_SITE = {"internal", "memory", "audit.failed", "environment"}
"""Codes that are printed where no error of our own is raised."""


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for folder in ("fedhpc", "data_prep"):
        for path in sorted((REPO / folder).rglob("*.py")):
            yield path, ast.parse(path.read_text(encoding="utf-8"))


def strings(node: ast.AST) -> set[str]:
    return {one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)}


def test_error_class_found_by_its_name() -> None:
    derived = {
        node.name
        for _, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
        and any(isinstance(base, ast.Name) and base.id in NAMES for base in node.bases)
    }
    assert derived | {"FedhpcError"} == NAMES


def test_every_class_has_a_known_code() -> None:
    assert [one.__name__ for one in CLASSES if one.code not in CODES] == []
    own = {one.__name__ for one in CLASSES if "code" in vars(one)}
    assert own == NAMES - {"InputError", "RankErrors", "SilentRankError"}


def test_every_raise_uses_a_known_code() -> None:
    """A literal of the table; a name only where a code is passed on."""
    wrong, raised = [], set()
    for path, tree in trees():
        for node in ast.walk(tree):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES):
                continue
            for code in [keyword.value for keyword in node.keywords if keyword.arg == "code"]:
                found = strings(code)
                raised |= found
                if found - set(CODES):
                    wrong.append(f"{path.relative_to(REPO)}:{node.lineno}: {sorted(found)}")
    assert wrong == []
    assert len(raised) > 60


def test_every_code_is_used() -> None:
    used = {one.code for one in CLASSES} | WITHOUT_SITE
    for path, tree in trees():
        if path.name != "error_codes.py":
            used |= strings(tree)
    assert sorted(set(CODES) - used) == []


def test_codes_are_unique_and_well_formed() -> None:
    assert len(TABLE) == len(CODES)
    for one in TABLE:
        family, *situation = one.name.split(".")
        assert len(situation) <= 1
        assert all(part.replace("-", "").isalpha() and part == part.lower() for part in (family, *situation))
        assert one.meaning.endswith(".") and one.remedy.endswith(".")


def test_docs_are_current(capsys: pytest.CaptureFixture[str]) -> None:
    """`python run.py errors > docs/errors.md` makes them so."""
    assert main(["errors"]) == 0
    assert (REPO / "docs" / "errors.md").read_text(encoding="utf-8") == capsys.readouterr().out


def test_unknown_code_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["errors", "no-such"]) == 2
    assert "CODE=no-such" in capsys.readouterr().err


@pytest.mark.parametrize("error", [InputError, FileError, ConfigError, ShardError, PrivacyError, TlsError])
def test_collective_keeps_the_code(error: type[InputError]) -> None:
    def fails() -> None:
        raise error("runs/a: a problem", code="run-directory.locked")

    with pytest.raises(RankErrors) as raised:
        run_on_all_ranks(AloneTransport(), fails)
    assert (raised.value.code, str(raised.value)) == ("run-directory.locked", "runs/a: a problem")


def test_collective_keeps_the_private_part_at_home() -> None:
    def fails() -> None:
        raise ShardError("1 problem", private="patient p3", code="shard.other")

    with pytest.raises(RankErrors) as raised:
        run_on_all_ranks(AloneTransport(), fails)
    assert printed(raised.value, private=True) == "1 problem [shard.other]"


class Hostile(AloneTransport):
    """Another rank that sends `payload` as its problem."""

    def __init__(self, payload: bytes) -> None:
        self.payload = payload

    def gather(self, payloads: object, kind: object, round: int | None = None) -> list[bytes]:
        return [b"", self.payload]


@pytest.mark.parametrize("payload", [b"patient 7\ntext", b"text", b"\xff\x1b[31m\ntext", b"\n"])
def test_code_of_another_rank_is_one_of_the_table(payload: bytes) -> None:
    with pytest.raises(RankErrors) as raised:
        run_on_all_ranks(Hostile(payload), lambda: None)
    assert raised.value.code in CODES


def test_ranks_with_different_problems_each_keep_a_code() -> None:
    error = RankErrors([CodedText("shard.other", "site1: other"), CodedText("file.no-space", "runs: full")])
    assert printed(error) == "site1: other [shard.other]\nruns: full [file.no-space]"


def test_wrapped_errors_keep_the_code() -> None:
    with pytest.raises(PayloadError) as raised, at("site1"):
        raise PayloadError("bad", code="payload.tampered")
    assert (raised.value.code, str(raised.value)) == ("payload.tampered", "site1: bad")
    failure = site_failure("site1", "training", PrivacyError("no", code="privacy.site-budget"))
    with pytest.raises(SiteError) as again, in_round(3):
        raise failure
    assert again.value.code == "privacy.site-budget"
    assert site_failure("site1", "training", ValueError("p3")).code == "site"


def test_code_stands_after_the_message() -> None:
    assert printed(InputError("a")) == "a [input]"
    assert printed(ConfigError("two\nlines")) == "two\nlines\n[config]"
    assert printed(MemoryError()) == "MemoryError [memory]"


def test_words_of_other_errors_stay_inside() -> None:
    """numpy's MemoryError tells the number of images; a rank's stderr is no hospital's own."""
    with pytest.raises(MemoryError, match="1234567") as raised:
        np.empty((1_234_567, 2**20, 2**10))
    assert "1234567" not in printed(raised.value)
    failure = site_failure("site1", "opening its shard", raised.value)
    assert failure.code == "memory" and "1234567" not in str(failure) and "1234567" in failure.private
