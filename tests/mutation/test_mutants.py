"""Faults made on purpose are noticed: some by the audit's laws always, all by laws and tests with `-m slow`."""

import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent))

from harness import REPO, copies, judge
from mutants import MUTANTS, Mutant, apply

ALWAYS = (
    "no noise on the last step",
    "no noise on the biases",
    "one seed at all sites",
    "leak through momentum",
    "image for patient unit",
    "the true count as denominator",
    "charges after the steps",
)


def test_every_mutant_still_applies() -> None:
    with copies(MUTANTS) as roots:
        for mutant, root in zip(MUTANTS, roots, strict=True):
            patched = (root / mutant.file).read_text(encoding="utf-8")
            assert patched != (REPO / mutant.file).read_text(encoding="utf-8"), mutant.name
        # A fault that ends in a NameError would be noticed by anything.
        files = [root / mutant.file for mutant, root in zip(MUTANTS, roots, strict=True)]
        ruff = [Path(sys.executable).parent / "ruff", "check", "--isolated", "--select", "F821", *files]
        done = subprocess.run(ruff, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
    assert all(mutant.tests for mutant in MUTANTS)


def test_a_mutant_whose_place_has_moved_fails_loudly(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("a = 1\n")
    with pytest.raises(ValueError, match=r"its text is 0 times in code\.py"):
        apply(Mutant("gone", "code.py", "b = 1", "b = 2"), tmp_path)


@pytest.mark.timeout(900)
def test_the_audit_notices_faults_that_no_attack_shows() -> None:
    chosen = [mutant for mutant in MUTANTS if mutant.name in ALWAYS]
    assert len(chosen) == len(ALWAYS)
    # In one process, which imports torch once: other tests have the other cores.
    for result in judge(chosen, with_tests=False, workers=1):
        assert result.mutant is not None
        assert set(result.mutant.laws) <= set(result.violated), (result.mutant.name, result.violated, result.error)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_fault_is_noticed_by_what_is_named_and_no_other_is() -> None:
    """The untouched copy runs every law and every test that is named, and all of them hold."""
    sound, *results = judge([None, *MUTANTS])
    assert (sound.violated, sound.failed, sound.error) == ((), (), None)
    assert sound.ran >= len({test for mutant in MUTANTS for test in mutant.tests})
    assert {result.mutant.name: result.missed for result in results if result.mutant and result.missed} == {}
