"""One process for many mutants: torch is imported once, the package anew from each mutated copy of the checkout.

    python tests/mutation/worker.py < jobs.json

A job is {"root": a copy of the checkout, "laws": families of laws, "tests": node ids}. To stdout goes one JSON line a
job: {"violated": names of laws, "failed": node ids, "ran": how many tests ran, "error": what ended a family or null}.
"""

import contextlib
import importlib.util
import io
import json
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

OURS = ("fedhpc", "data_prep", "tests", "mutation_families")


class Outcomes:
    """A pytest plugin that keeps which tests ran and which failed, at set-up or in the test itself."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.failed: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest after each phase of a test."""
        if report.when == "call" or report.failed:
            self.ran.append(report.nodeid)
        if report.failed:
            self.failed.append(report.nodeid)


def forget_package() -> None:
    """Let the next import read the package from the next copy."""
    for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
        del sys.modules[name]


def families(root: Path) -> ModuleType:
    """tests/mutation/families.py of the copy, with its package."""
    spec = importlib.util.spec_from_file_location("mutation_families", root / "tests" / "mutation" / "families.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def violated_laws(root: Path, wanted: list[str]) -> tuple[list[str], str | None]:
    """(the laws of these families that do not hold, the traceback of a family that could not be measured)."""
    broken, error = [], None
    if wanted:
        for family in wanted:
            try:
                broken += [f"{family}: {law.attack}" for law in families(root).FAMILIES[family]() if not law.passed]
            except Exception:
                # A mutant may do anything; the parent decides whether that counts.
                error = traceback.format_exc()
    return broken, error


def run_tests(root: Path, node_ids: list[str]) -> Outcomes:
    """These tests, against the copy.

    Raises:
        RuntimeError: pytest itself failed, so that no test has judged anything.
    """
    outcomes = Outcomes()
    if node_ids:
        options = ["-q", "-p", "no:cacheprovider", "-m", "", "--rootdir", str(root), "-c", str(root / "pyproject.toml")]
        with contextlib.redirect_stdout(io.StringIO()) as said:
            status = pytest.main([*options, *(str(root / node_id) for node_id in node_ids)], plugins=[outcomes])
        if status in {pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.NO_TESTS_COLLECTED}:
            raise RuntimeError(f"pytest ended with {status!r}:\n{said.getvalue()[-2000:]}")
    return outcomes


def run_job(job: dict[str, Any]) -> dict[str, Any]:
    """See the module."""
    root = Path(job["root"])
    forget_package()
    os.chdir(root)
    sys.path.insert(0, str(root))
    try:
        broken, error = violated_laws(root, job["laws"])
        outcomes = run_tests(root, job["tests"])
        package = sys.modules["fedhpc"].__file__
        assert package is not None and Path(package).is_relative_to(root), f"{package} was imported, not {root}"
    finally:
        sys.path.remove(str(root))
    return {"violated": broken, "failed": outcomes.failed, "ran": len(outcomes.ran), "error": error}


def main() -> None:
    """Answer each job as soon as it is done."""
    for job in json.load(sys.stdin):
        print(json.dumps(run_job(job)), flush=True)


if __name__ == "__main__":
    main()
