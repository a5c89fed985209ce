"""The verdict on noise over signal: its thresholds hold in a simulation, its sizes are those of the models."""

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu

from fedhpc.models.backbones import public_backbone
from fedhpc.models.build import _network
from fedhpc.models.task import Task
from fedhpc.models.vector import parameter_count
from fedhpc.privacy.verdict import BACKBONE_FEATURES, PARAMETERS, directions_of, verdict

CLIP, LR, STEPS = 0.3, 32.0, 30


def simulated_auc(noise_length: float, directions: int, seed: int) -> float:
    """The AUC of a linear head for two classes that is trained privately, as fedhpc.privacy.verdict describes."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(2, directions)) / np.sqrt(directions)

    def cohort(n: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.integers(0, 2, n)
        values = (4 * means[labels] + rng.standard_t(5, (n, directions))) * np.arange(1, directions + 1) ** -0.3
        return values / np.linalg.norm(values, axis=1, keepdims=True), labels

    (inputs, labels), (unseen, truth) = cohort(2000), cohort(2000)
    noise = noise_length / np.sqrt(directions) * np.sqrt(STEPS) * CLIP
    head, mean = np.zeros((2, directions)), np.zeros((2, directions))
    for step in range(STEPS):
        scores = inputs @ head.T
        error = np.exp(scores - scores.max(axis=1, keepdims=True))
        error = error / error.sum(axis=1, keepdims=True) - np.eye(2)[labels]
        error *= np.minimum(1, CLIP / np.linalg.norm(error, axis=1))[:, None]
        head = head - LR * (error.T @ inputs / len(inputs) + rng.normal(size=head.shape) * noise)
        mean += head * (step >= STEPS // 2)
    score = unseen @ (mean[1] - mean[0])
    found = mannwhitneyu(score[truth == 1], score[truth == 0]).statistic
    return float(found / ((truth == 1).sum() * (truth == 0).sum()))


@pytest.mark.parametrize("directions", [16, 96])
def test_verdict_foretells_the_loss(directions: int) -> None:
    without = np.mean([simulated_auc(0.0, directions, seed) for seed in range(3)])
    lost = {
        length: without - np.mean([simulated_auc(length, directions, seed) for seed in range(3)])
        for length in (0.04, 0.12, 0.5)
    }
    words = [verdict(length / np.sqrt(directions), directions).word for length in lost]
    assert words == ["good", "weak", "hopeless"]
    assert lost[0.04] < 0.04 < 0.1 < lost[0.5] and lost[0.04] < lost[0.12] < 0.2


def test_remedy_is_given_where_it_is_needed() -> None:
    assert "model.features" not in verdict(0.001, 48).text
    assert "model.features" in verdict(0.1, 48).text and verdict(0.1, 48).comment.startswith("# ")


def test_sizes_of_networks_are_known() -> None:
    task = Task(("a", "b"), (1, 64, 64))
    with torch.device("meta"):
        assert {name: parameter_count(_network(name, task)) for name in PARAMETERS} == PARAMETERS
    assert public_backbone("phantom").dim == BACKBONE_FEATURES["phantom"]
    assert directions_of("frozen", None, "runs/x/model.pt") is None and directions_of("frozen", 48, "phantom") == 48


@pytest.mark.slow
def test_size_of_the_public_backbone_is_known() -> None:
    pytest.importorskip("efficientnet_lite_pytorch")
    assert public_backbone("efficientnet_lite0").dim == BACKBONE_FEATURES["efficientnet_lite0"]
