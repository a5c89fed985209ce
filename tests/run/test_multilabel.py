"""Several findings an image: loss, clipping, shards, exact and private metrics, and whole runs."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sklearn.metrics import f1_score, roc_auc_score

from data_prep.shard_writer import write_shard
from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError, ShardError
from fedhpc.models.loss import loss
from fedhpc.models.task import Task
from fedhpc.records.metrics import Predictions, bin_of, metrics, score_histogram
from fedhpc.run.start.network import checked_network
from fedhpc.site.data.shard import Shard
from fedhpc.site.per_example.clipped_sum import ClippedSum
from fedhpc.site.per_example.oracle import check_unit_gradients
from fedhpc.site.release import Question, Weights, weighted_counts
from fedhpc.util.rng import generator

FINDINGS = ("effusion", "nodule", "fracture")
SITES = ("a", "b")


def make_shard(folder: Path, site: str, images: int = 80, **other: Any) -> Path:
    """Images of noise, two a patient; each finding is a bright square at a place of its own."""
    rng = generator(0, site, "findings")
    labels = np.repeat(rng.random((images // 2, 3)) < 0.4, 2, axis=0)
    pixels = rng.integers(0, 100, (images, 1, 32, 32), dtype=np.uint8)
    for finding in range(3):
        pixels[labels[:, finding], :, 4:14, 10 * finding + 1 : 10 * finding + 9] += 120
    content: dict[str, Any] = {
        "site": site,
        "classes": FINDINGS,
        "images": pixels,
        "labels": labels.astype(np.uint8),
        "patient": np.array([f"{site}-{i // 2}".encode() for i in range(images)], "S16"),
        "split": np.repeat(np.resize([0, 1, 2, 0], images // 2), 2).astype(np.uint8),
        "modality": np.full(images, b"MR", "S2"),
        "pixel_range": (0, 255),
        "created_by": "tests",
    }
    path = folder / f"{site}.h5"
    write_shard(path, **{**content, **other})
    return path


def config(folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "name": "findings",
        "task": "multilabel",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": site, "weight": 20} for site in SITES]},
        "training": {"rounds": 3, "local_epochs": 3, "batch_size": 8, "lr": 0.1},
        "privacy": "off",
        "exchange": {"density": 0.5, "tls": False},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
        **more,
    }


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("findings")
    for site in SITES:
        make_shard(folder, site)
    return folder


def test_loss_is_the_mean_over_findings() -> None:
    logits, labels = torch.randn(5, 3), torch.tensor([[1, 0, 1]] * 5)
    probability = torch.sigmoid(logits)
    by_hand = -(labels * probability.log() + (1 - labels) * (1 - probability).log()).mean(dim=1)
    torch.testing.assert_close(loss(logits, labels, "none"), by_hand)
    torch.testing.assert_close(loss(logits, labels), by_hand.mean())
    torch.testing.assert_close(loss(logits, labels, "sum"), by_hand.sum())


@pytest.mark.parametrize("network", ["layers", "head"])
def test_clipped_gradients_of_findings_agree_with_torch_func(network: str) -> None:
    images, labels = torch.randn(4, 1, 8, 8), torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    head = [torch.nn.Flatten(), torch.nn.Linear(64, 3)]
    layers = [
        torch.nn.Conv2d(1, 4, 3, padding=1),
        torch.nn.GroupNorm(2, 4),
        torch.nn.Flatten(),
        torch.nn.Linear(256, 3),
    ]
    model = torch.nn.Sequential(*(head if network == "head" else layers))
    assert (ClippedSum(model, 1.0)._head is not None) == (network == "head")
    check_unit_gradients(model, images, labels)


def test_own_network_is_checked_on_findings() -> None:
    source = Path(__file__).parents[1] / "models" / "bad_models.py"
    tree = config(Path("x"), model={"build": f"{source}:good"}, privacy={"epsilon": 8})
    task = Task(FINDINGS, (1, 16, 16), "multilabel")
    assert checked_network(RunConfig.model_validate(tree), task)(torch.zeros(2, 1, 16, 16)).shape == (2, 3)


def test_shard_of_findings_is_read_back(tmp_path: Path, cohort: Path, run_here: Callable[..., Any]) -> None:
    with Shard.open(cohort / "a.h5", "a") as shard:
        assert (shard.kind, shard.labels.shape, shard.labels.dtype) == ("multilabel", (80, 3), np.int64)
        again = make_shard(tmp_path, "a", labels=shard.labels[:, ::-1])
        with Shard.open(again, "a") as other:
            assert other.digest != shard.digest
    checked = run_here(["prepare", "check", cohort / "a.h5", "--png", tmp_path / "sheet.png"])
    assert checked.returncode == 0, checked.stderr


@pytest.mark.parametrize(
    ("labels", "private"),
    [
        (np.full((80, 3), 2), r"/labels has \[2, 2, 2\] in row 0.*0 and 1, for each finding"),
        (np.zeros((80, 2), np.uint8), r"/labels has \[0, 0\].*a column for each of 3 classes"),
        (np.zeros((80, 0), np.uint8), "/labels"),
    ],
)
def test_shard_with_bad_findings_is_refused(tmp_path: Path, labels: Any, private: str) -> None:
    with pytest.raises(ShardError) as refused:
        Shard.open(make_shard(tmp_path, "a", labels=labels), "a")
    assert re.search(private, refused.value.private)


def random_predictions(n: int = 400) -> Predictions:
    rng = np.random.default_rng(5)
    labels = (rng.random((n, 3)) < [0.5, 0.3, 0.1]).astype(np.int64)
    logits = (rng.normal(size=(n, 3)) + 1.5 * labels).astype(np.float32)
    patient = np.array([f"p{i // 3}".encode() for i in range(n)], "S16")
    return Predictions(logits, labels, np.zeros(n, np.bool_), patient)


def test_exact_metrics_of_findings_are_those_of_scikit_learn() -> None:
    p = random_predictions()
    found = metrics(score_histogram(p), np.full(3, bin_of(0.5)), 0.9)
    for k, one in enumerate(found.by_class):
        assert one["auc"] == pytest.approx(roc_auc_score(p.labels[:, k], p.logits[:, k]), abs=2e-3)
        assert one["f1"] == pytest.approx(f1_score(p.labels[:, k], p.logits[:, k] >= 0.5), abs=1e-9)
    assert found.auc == pytest.approx(np.mean([one["auc"] for one in found.by_class]))
    assert found["f1"] == pytest.approx(np.mean([one["f1"] for one in found.by_class]))


@pytest.mark.parametrize("unit", ["patient", "image"])
def test_private_counts_of_findings_move_by_their_bound(unit: str) -> None:
    """The worst unit has every finding in every image; the bound is met, never passed."""
    p, counted = random_predictions(60), 2 if unit == "patient" else 1
    labels = p.labels.copy()
    labels[:3] = 1
    worst = Predictions(p.logits, labels, p.early, p.patient)
    question = Question(stage=1, split="val", groups=3, edges=((-1.0, 0.0, 1.0),) * 3)
    weights = Weights(3, counted, "multilabel")
    whole = weighted_counts(worst, question, weights, unit)
    moved = []
    owners = p.patient if unit == "patient" else np.arange(len(labels))
    for owner in np.unique(owners):
        rows = np.flatnonzero(owners != owner)
        without = Predictions(worst.logits[rows], labels[rows], worst.early[rows], worst.patient[rows])
        moved.append(np.abs(whole - weighted_counts(without, question, weights, unit)).sum())
    assert max(moved) == weights.l1


def test_multiclass_weights_do_not_cover_findings() -> None:
    """What a release of findings would leak under the weights of exclusive classes: they are refused for it."""
    p = random_predictions(6)
    everything = Predictions(p.logits, np.ones_like(p.labels), p.early, p.patient)
    question = Question(stage=1, split="val", groups=2, edges=((0.0,),) * 3)
    with pytest.raises(PrivacyError, match="a unit weighs more than the evaluation's noise covers"):
        weighted_counts(everything, question, Weights(3, 2), "patient")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {
            "privacy": {"epsilon": 100, "sample_rate": 1},
            "evaluation": {"epsilon": 100, "bootstrap": 100, "every": 1},
            "training": {"rounds": 2, "local_epochs": 1},
        },
    ],
    ids=["exact", "private"],
)
def test_run_reports_every_finding(
    tmp_path: Path, cohort: Path, run_here: Callable[..., Any], more: dict[str, Any]
) -> None:
    path = tmp_path / "findings.yaml"
    path.write_text(yaml.safe_dump(config(cohort, **more)), encoding="utf-8")
    done = run_here(["train", path, "--run-dir", tmp_path / "run"])
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert list(summary["per_finding"]) == list(FINDINGS)
    for metric in ("auc", "f1"):
        values = [one[metric] for one in summary["per_finding"].values()]
        assert summary[metric] == pytest.approx(np.mean(values))
    if not more:
        assert summary["auc"] > 0.8
    found = run_here(["evaluate", tmp_path / "run", "--shard", cohort / "b.h5", "--json"])
    assert found.returncode == 0, found.stderr
    assert list(json.loads(found.stdout)["per_finding"]) == list(FINDINGS)
    shown = run_here(["evaluate", tmp_path / "run", "--shard", cohort / "b.h5"])
    assert all(finding in shown.stdout for finding in FINDINGS)
    assert run_here(["report", tmp_path / "run", "-o", tmp_path / "report.html"]).returncode == 0


def test_shard_of_the_other_kind_is_refused(tmp_path: Path, cohort: Path, run_here: Callable[..., Any]) -> None:
    path = tmp_path / "findings.yaml"
    path.write_text(yaml.safe_dump(config(cohort, task="multiclass")), encoding="utf-8")
    done = run_here(["train", path, "--run-dir", tmp_path / "run"])
    assert done.returncode == 2
    assert "its labels are multilabel, the config says task=multiclass" in done.stderr


def test_audit_of_findings_is_refused(tmp_path: Path, cohort: Path, run_here: Callable[..., Any]) -> None:
    path = tmp_path / "findings.yaml"
    path.write_text(yaml.safe_dump(config(cohort, privacy={"epsilon": 8})), encoding="utf-8")
    done = run_here(["audit", path, "--quick"])
    assert done.returncode == 2
    assert "task=multilabel" in done.stderr
