"""Planted hospitals are ranked as they must be, at no noise and at epsilon 8."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from fedhpc.bench.planted import (
    CASES,
    CLASSES,
    Case,
    Recipe,
    _apart,
    alike,
    run,
    study,
    text,
    train,
    utilities,
    values_of,
)
from fedhpc.records.weighted_auc import patient_resamples, weighted_aucs
from fedhpc.util.rng import generator


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_planted_case_is_ranked_right(case: Case, epsilon: float | None) -> None:
    """One draw; over 100 draws see docs/results-algorithms.md."""
    history = run(case, case.shards(), Recipe.of(epsilon), generator(0, "test", case.name))
    assert case.right(values_of(history, case.judging(), case.by_class)["shapley"])


def test_step_is_clipped_and_noised_as_planned() -> None:
    """Without signal an update is noise of lr sqrt(steps) sigma C / patients in each entry."""
    shard, recipe = alike()[0], Recipe(50.0)
    still = type(shard)(np.zeros_like(shard.features), shard.labels)
    head = np.zeros(CLASSES * shard.features.shape[1], np.float32)
    drawn = np.concatenate([train(still, head, recipe, np.random.default_rng(k)) for k in range(60)])
    assert drawn.std() == pytest.approx(32 * 3**0.5 * 50 * 0.3 / len(shard.labels), rel=0.05)


def test_utility_is_the_area_of_each_class() -> None:
    case, judging = CASES[2], CASES[2].judging()
    history = run(case, case.shards(), Recipe.of(None), generator(0, "test"))
    logits = judging.features @ (history.start + _model(history)).reshape(CLASSES, -1).T
    odds = logits[:, 0] - np.logaddexp.reduce(logits[:, 1:], axis=1)
    assert utilities(history, judging)[-1, 0] == pytest.approx(roc_auc_score(judging.labels == 0, odds), abs=1e-6)


def _model(history: object) -> np.ndarray:
    from fedhpc.aggregation.contribution import coalition_models

    return np.asarray(coalition_models(history)[-1], np.float64)  # type: ignore[arg-type]


def test_weighted_area_is_that_of_repeated_images() -> None:
    rng = np.random.default_rng(0)
    scores, positive = np.round(rng.normal(size=60), 1), rng.random(60) < 0.4
    times = patient_resamples(np.repeat(np.arange(30), 2).astype("S3"), 5, rng)
    for drawn, area in zip(times, weighted_aucs(scores, positive, times), strict=True):
        rows = np.repeat(np.arange(60), drawn.astype(int))
        assert area == pytest.approx(roc_auc_score(positive[rows], scores[rows]))
    assert np.isnan(weighted_aucs(scores, positive, positive[None].astype(float))[0])


def test_sites_within_the_noise_are_not_told_apart() -> None:
    """Of values whose difference is at its 95 % interval's edge or below, none is asserted."""
    case = CASES[0]
    clear, even, against = (np.array([[0.2, 0.2, 0.2, last]] * 2) for last in (0.1, 0.2, 0.3))
    spread = np.array([[0.01, 0.0, 0.0, 0.0], [-0.01, 0.0, 0.0, 0.0]])
    found = [_apart(case, values + spread) for values in (clear, even, against)]
    assert found == [{"right": 2, "wrong": 0}, {"right": 0, "wrong": 0}, {"right": 0, "wrong": 2}]
    assert _apart(CASES[4], clear) is None, "a copy has no order"


def test_study_counts_right_draws() -> None:
    found = study(1, (None,))
    assert all(row["apart"] is None for row in found["rows"]), "one draw has no interval"
    assert len(found["rows"]) == len(CASES)
    assert all(row["of"] == 1 and row["right"]["shapley"] == 1 for row in found["rows"])
    assert "free rider: copy" in text(found)
