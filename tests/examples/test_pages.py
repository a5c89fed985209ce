"""docs/add-*.md, done word for word in a copy of the checkout: files written, lines changed, commands run."""

import csv
import json
import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest

from tests.conftest import REPO, Outcome, run_limited

PAGES = ("add-a-rule.md", "add-an-algorithm.md", "add-a-metric.md", "add-an-importer.md")
STEP = re.compile(r"(?P<before>[^\n]*)\n\n```(?P<language>\w+)\n(?P<text>.*?)^```", flags=re.DOTALL | re.MULTILINE)
# What a shell would do with the pages' commands, but with one import of torch for all of them.
SHELL = """
import json, runpy, sys
from fedhpc.cli.main import main
statuses = {}
for words in json.loads(sys.argv[1]):
    if words[1] == "run.py":
        statuses[" ".join(words)] = main(words[2:])
    else:
        runpy.run_path(words[1])
print(json.dumps(statuses))
"""


class Tried(NamedTuple):
    """A copy of the checkout in which all pages were carried out."""

    folder: Path
    statuses: dict[str, int]
    outcome: Outcome


def carry_out(page: str, folder: Path) -> list[list[str]]:
    """Write the files and change the lines that a page says; return its commands."""
    text = (REPO / "docs" / page).read_text(encoding="utf-8")
    commands: list[list[str]] = []
    target = Path()
    for step in STEP.finditer(text):
        names = re.findall(r"`([\w./]+\.(?:py|yaml))`", step["before"])
        target = folder / names[-1] if names else target
        if step["language"] == "sh":
            commands += map(shlex.split, step["text"].splitlines())
        elif step["language"] == "diff":
            change(target, step["text"].splitlines())
        else:
            target.write_text(step["text"], encoding="utf-8")
    return commands


def change(path: Path, lines: list[str]) -> None:
    """Apply a hunk without line numbers; what it takes away must stand in the file exactly once."""
    before = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("+"))
    after = "".join(f"{line[1:]}\n" for line in lines if not line.startswith("-"))
    text = path.read_text(encoding="utf-8")
    assert text.count(before) == 1, f"{path}: {before}"
    path.write_text(text.replace(before, after), encoding="utf-8")


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Tried:
    """All pages, one after the other, as one person would."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("fedhpc", "data_prep"):
        shutil.copytree(REPO / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    commands = [command for page in PAGES for command in carry_out(page, folder)]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    done = run_limited([sys.executable, "-c", SHELL, json.dumps(commands)], 280, environment, folder)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return Tried(folder, json.loads(done.stdout.splitlines()[-1]), done)


pytestmark = pytest.mark.integration


def test_every_command_of_the_pages_works(tried: Tried) -> None:
    stopped = "python run.py train robust.yaml --run-dir robust --stop-after 1"
    assert tried.statuses == {**dict.fromkeys(tried.statuses, 0), stopped: 75}, tried.outcome.stderr
    assert "meamed" in tried.outcome.stdout


def test_rule_and_optimizer_of_the_page_train(tried: Tried) -> None:
    with np.load(tried.folder / "robust" / "state" / "round-0002.npz") as saved:
        assert saved["server.optimizer.velocity"].any()


def test_rule_of_the_page_is_mean_around_median(tried: Tried) -> None:
    program = """
import numpy as np
from fedhpc.aggregation.base import RuleRound
from fedhpc.aggregation.meamed import MeanAroundMedian
from fedhpc.compression.update import SparseVector
rows = np.array([[1, -9, 0], [2, 5, 4], [90, 6, 0], [3, 7, 0]], np.float32)
stack = MeanAroundMedian(left_out=1).aggregator(RuleRound(3))
for site, row in enumerate(rows):
    stack.add(site, SparseVector(3, np.flatnonzero(row), row[np.flatnonzero(row)]), 1)
print(stack.result().tolist())
"""
    done = run_limited([sys.executable, "-c", program], 60, {"PYTHONPATH": str(tried.folder)}, tried.folder)
    assert done.stdout.strip() == "[2.0, 6.0, 0.0]", done.stderr


def test_algorithm_of_the_page_takes_longer_steps(tried: Tried) -> None:
    """Two opposite updates of length 5, mean length 3: 25 / (2 * 9) of the mean; equal ones: the mean."""
    program = """
import numpy as np
from fedhpc.algorithms.base import Sender
from fedhpc.algorithms.fedexp import FedExP
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.compression.update import SparseVector
sender = Sender(0, 0, CompressionConfig(1.0))
for rows in ([[3, 4], [3, -4]], [[3, 4], [3, 4]]):
    fold = FedExP().fold({}, {})
    for row in np.array(rows, np.float32):
        fold.add(SparseVector(2, np.arange(2), row), 1, b"", sender)
    print([f"{value:.4f}" for value in fold.result(np.mean(rows, axis=0).astype(np.float32), sender).mean])
"""
    done = run_limited([sys.executable, "-c", program], 60, {"PYTHONPATH": str(tried.folder)}, tried.folder)
    assert done.stdout.splitlines() == ["['4.1667', '0.0000']", "['3.0000', '4.0000']"], done.stderr
    assert (tried.folder / "extrapolated" / "model.pt").is_file()


def test_metric_of_the_page_reaches_every_reader(tried: Tried) -> None:
    summary = json.loads((tried.folder / "measured" / "summary.json").read_text(encoding="utf-8"))
    assert 0 <= summary["balanced_accuracy"] <= 1
    with (tried.folder / "report.csv").open(encoding="utf-8") as lines:
        assert float(next(csv.DictReader(lines))["balanced_accuracy"]) == summary["balanced_accuracy"]
    assert "bal. acc." in tried.outcome.stdout


def test_importer_of_the_page_loses_no_image(tried: Tried) -> None:
    with np.load(tried.folder / "scans.npz") as archive:
        given = sorted(image.tobytes() for image in archive["images"])
    stored: list[bytes] = []
    for site in ("site1", "site2"):
        with h5py.File(tried.folder / "scans" / f"{site}.h5") as shard:
            stored += [image.tobytes() for image in shard["images"]]
    assert sorted(stored) == given


def test_code_of_the_pages_keeps_the_rules(tried: Tried) -> None:
    ruff, settings = Path(sys.executable).parent / "ruff", REPO / "pyproject.toml"
    for check in (["check"], ["format", "--check"]):
        done = run_limited([ruff, *check, "--config", settings, "fedhpc", "data_prep"], 60, cwd=tried.folder)
        assert done.returncode == 0, done.stdout
