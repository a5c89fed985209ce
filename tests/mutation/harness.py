"""Mutated copies of the checkout, judged in a few processes; and the table of what noticed which fault.

python tests/mutation/harness.py       prints the table for docs/audit.md; exit status 1 if a fault escapes
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
REPO = HERE.parents[1]
sys.path.insert(0, str(HERE))

from mutants import MUTANTS, Mutant, apply  # noqa: E402

WORKERS, TIMEOUT_S = 2, 1800
MEMORY = Path("/dev/shm")
COPIED, LINKED = ("fedhpc", "pyproject.toml"), ("tests", "data_prep", "configs", "run.py")


@dataclass(frozen=True)
class Result:
    """What became of one mutant (of the untouched copy where `mutant` is None)."""

    mutant: Mutant | None
    violated: tuple[str, ...]
    failed: tuple[str, ...]
    ran: int
    error: str | None

    @property
    def missed(self) -> list[str]:
        """The named laws and tests that did not notice the mutant."""
        if self.mutant is None:
            return []
        laws = [law for law in self.mutant.laws if law not in self.violated]
        return laws + [test for test in self.mutant.tests if not any(f.startswith(test) for f in self.failed)]


@contextmanager
def copies(mutants: Sequence[Mutant | None]) -> Iterator[list[Path]]:
    """A copy of the checkout for each mutant, patched; what is not patched is linked."""
    with tempfile.TemporaryDirectory(prefix="fedhpc-mutants-") as scratch:
        roots = []
        for number, mutant in enumerate(mutants):
            root = Path(scratch) / f"mutant{number}"
            root.mkdir()
            for name in COPIED:
                copy = shutil.copytree if (REPO / name).is_dir() else shutil.copy2
                copy(REPO / name, root / name)
            for name in LINKED:
                (root / name).symlink_to(REPO / name)
            if mutant is not None:
                apply(mutant, root)
            roots.append(root)
        yield roots


def judge(mutants: Sequence[Mutant | None], with_tests: bool = True, workers: int = WORKERS) -> list[Result]:
    """Run what is to notice each mutant, in so many processes; the untouched copy runs all of it."""
    with copies(mutants) as roots, ThreadPoolExecutor(workers) as pool:
        jobs = [_job(root, mutant, mutants, with_tests) for root, mutant in zip(roots, mutants, strict=True)]
        parts = [list(range(start, len(jobs), workers)) for start in range(min(workers, len(jobs)))]
        answers = pool.map(lambda part: _worker([jobs[i] for i in part]), parts)
        found = dict(pair for part, said in zip(parts, answers, strict=True) for pair in zip(part, said, strict=True))
    return [
        Result(mutant, tuple(said["violated"]), tuple(said["failed"]), said["ran"], said["error"])
        for mutant, said in ((mutant, found[i]) for i, mutant in enumerate(mutants))
    ]


def _job(root: Path, mutant: Mutant | None, mutants: Sequence[Mutant | None], with_tests: bool) -> dict[str, Any]:
    judged = [m for m in mutants if m is not None] if mutant is None else [mutant]
    laws = sorted({law.split(":")[0] for m in judged for law in m.laws})
    tests = sorted({test for m in judged for test in m.tests}) if with_tests else []
    return {"root": str(root), "laws": laws, "tests": tests}


def _worker(jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("PYTHONPATH", None)
    if MEMORY.is_dir():
        environment["TMPDIR"] = str(MEMORY)  # ledgers are synced to the disk at every round
    done = subprocess.run(
        [sys.executable, str(HERE / "worker.py")],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        env=environment,
        check=False,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or len(answers) != len(jobs):
        raise RuntimeError(
            f"worker ended with {done.returncode} after {len(answers)} of {len(jobs)}: {done.stderr[-3000:]}"
        )
    return answers


def table(results: Sequence[Result]) -> str:
    """Markdown: the fault, the laws of the audit and the tests that noticed it."""
    rows = ["| fault | noticed by the audit | noticed by the tests |", "|---|---|---|"]
    for result in results:
        if result.mutant is not None:
            laws = "<br>".join(law.split(": ", 1)[1] for law in result.violated) or "-"
            tests = "<br>".join(sorted({f"`{name.split('[')[0]}`" for name in result.failed})) or "-"
            rows.append(f"| {result.mutant.name} | {laws} | {tests} |")
    return "\n".join(rows)


def main() -> int:
    """Print the table."""
    results = judge([None, *MUTANTS])
    print(table(results))
    sound, *others = results
    problems = [*sound.violated, *sound.failed, *([sound.error] if sound.error else [])]
    problems += [f"{r.mutant.name}: not noticed by {', '.join(r.missed)}" for r in others if r.mutant and r.missed]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
