"""Metrics from histograms against scikit-learn on the scores themselves, and the law that sites add up."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, roc_auc_score, roc_curve

from fedhpc.records.intervals import (
    Placements,
    bootstrap_aucs,
    bootstrap_histograms,
    delong_interval,
    interval95,
    squared_influence,
)
from fedhpc.records.metrics import (
    BINS,
    LOGIT_RANGE,
    Predictions,
    auc,
    f1,
    f1_thresholds,
    metrics,
    score_histogram,
    sensitivity_at,
)


def predictions(n: int = 600, classes: int = 2, seed: int = 0, images_each: int = 1) -> Predictions:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, n)
    logits = rng.normal(size=(n, classes)) + 1.2 * np.eye(classes)[labels]
    patient = np.array([f"p{seed}-{i // images_each}" for i in range(n)], "S16")
    return Predictions(logits.astype(np.float32), labels, rng.random(n) < 0.3, patient)


def probabilities(p: Predictions) -> np.ndarray:
    e = np.exp(p.logits.astype(np.float64))
    return e / e.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_auc_equals_scikit_learn(classes: int) -> None:
    p = predictions(classes=classes)
    scores = probabilities(p)[:, 1] if classes == 2 else probabilities(p)
    expected = roc_auc_score(p.labels, scores, multi_class="ovr", average="macro")
    assert auc(score_histogram(p)) == pytest.approx(expected, abs=5e-4)


def test_f1_equals_scikit_learn_at_its_threshold() -> None:
    val, test = predictions(seed=1), predictions(seed=2)
    thresholds = f1_thresholds(score_histogram(val))
    cut = thresholds[0] * 2 * LOGIT_RANGE / BINS - LOGIT_RANGE
    odds = test.logits[:, 1].astype(np.float64) - test.logits[:, 0]
    assert f1(score_histogram(test), thresholds) == pytest.approx(f1_score(test.labels, odds >= cut), abs=1e-9)
    others = [f1(score_histogram(val), np.array([t])) for t in range(0, BINS, 16)]
    best = f1(score_histogram(val), thresholds)
    assert best is not None
    assert best >= max(value for value in others if value is not None)


def test_sensitivity_equals_the_roc_curve() -> None:
    p = predictions(5000)
    false_positive, true_positive, _ = roc_curve(p.labels, p.logits[:, 1].astype(np.float64) - p.logits[:, 0])
    expected = true_positive[false_positive <= 0.1].max()
    assert sensitivity_at(score_histogram(p), 0.9) == pytest.approx(expected, abs=5e-3)


def test_sites_add_up() -> None:
    a, b = predictions(seed=1), predictions(seed=2)
    both = Predictions(
        *(np.concatenate([getattr(a, k), getattr(b, k)]) for k in ("logits", "labels", "early", "patient"))
    )
    np.testing.assert_array_equal(score_histogram(a) + score_histogram(b), score_histogram(both))


def test_none_where_a_class_is_missing() -> None:
    p = predictions(20)
    lonely = Predictions(p.logits, np.zeros(20, np.int64), p.early, p.patient)
    found = metrics(score_histogram(lonely), np.array([BINS // 2]), 0.9)
    assert found.values == dict.fromkeys(("auc", "f1", "sensitivity", "sensitivity_early"))


def test_extreme_logits_stay_in_range() -> None:
    logits = np.array([[0, 1e30], [1e30, 0]], np.float32)
    p = Predictions(logits, np.array([1, 0]), np.zeros(2, bool), np.array([b"a", b"b"], "S16"))
    assert auc(score_histogram(p)) == 1.0


def test_bootstrap_draws_patients_not_images() -> None:
    """Copies of an image of one patient must not narrow the interval."""
    single = predictions(200, seed=3)
    copied = Predictions(*(np.repeat(getattr(single, k), 4, axis=0) for k in ("logits", "labels", "early", "patient")))
    widths = []
    for p in (single, copied):
        ends = interval95(bootstrap_aucs([bootstrap_histograms(p, 300, np.random.default_rng(0))]))
        assert ends is not None
        assert ends[0] < (auc(score_histogram(p)) or 0) < ends[1]
        widths.append(ends[1] - ends[0])
    assert widths[1] == pytest.approx(widths[0], rel=0.2)


def test_bootstrap_standard_error_is_hanley_mcneils() -> None:
    p = predictions(400, seed=4)
    a = auc(score_histogram(p)) or 0
    n1, n0 = int((p.labels == 1).sum()), int((p.labels == 0).sum())
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    se = np.sqrt((a * (1 - a) + (n1 - 1) * (q1 - a * a) + (n0 - 1) * (q2 - a * a)) / (n1 * n0))
    values = bootstrap_aucs([bootstrap_histograms(p, 500, np.random.default_rng(0))])
    assert values.std() == pytest.approx(se, rel=0.2)


def two_sites(images_each: int) -> list[Predictions]:
    return [predictions(n, seed=n, images_each=images_each) for n in (480, 240)]


@pytest.mark.parametrize("images_each", [1, 4])
def test_influence_over_sites_is_delongs_variance(images_each: int) -> None:
    """By all pairs of images (DeLong et al. 1988), summed within patients (Obuchowski 1997), early ones among them."""
    sites = two_sites(images_each)
    placed = Placements.of(np.sum([score_histogram(p) for p in sites], axis=0))
    odds = np.concatenate([p.logits[:, 1].astype(np.float64) - p.logits[:, 0] for p in sites])
    positive = np.concatenate([p.labels == 1 for p in sites])
    wins = (odds[positive, None] > odds[~positive]).astype(float)
    influence = np.empty(len(odds))
    influence[positive] = (wins.mean(axis=1) - wins.mean()) / positive.sum()
    influence[~positive] = (wins.mean(axis=0) - wins.mean()) / (~positive).sum()
    _, owner = np.unique(np.concatenate([p.patient for p in sites]), return_inverse=True)
    expected = (np.bincount(owner, influence) ** 2).sum()
    assert sum(squared_influence(p, placed) for p in sites) == pytest.approx(expected, rel=0.01)


def test_delong_interval_is_the_bootstraps() -> None:
    sites = two_sites(4)
    pooled = np.sum([score_histogram(p) for p in sites], axis=0)
    variance = sum(squared_influence(p, Placements.of(pooled)) for p in sites)
    stacks = [bootstrap_histograms(p, 300, np.random.default_rng(seed)) for seed, p in enumerate(sites)]
    exact, drawn = delong_interval(auc(pooled), variance), interval95(bootstrap_aucs(stacks))
    assert exact is not None and drawn is not None
    assert exact == pytest.approx(drawn, abs=0.15 * (drawn[1] - drawn[0]))
