"""Models are compared by what they prefer: how sure one is, or of which class, changes nothing."""

import numpy as np

from fedhpc.records.metrics import Predictions
from fedhpc.site.personal.recalibration import LEAST_PATIENTS, PatientLosses, recalibrated_losses, surely_better

PATIENTS, IMAGES = 60, 3


def losses(preference: np.ndarray, labels: np.ndarray, scale: float = 1.0, offset: float = 0.0) -> PatientLosses:
    logits = np.stack([0 * preference, scale * preference + offset], axis=1).astype(np.float32)
    patient = np.repeat(np.arange(PATIENTS), IMAGES).astype("S16")
    predicted = Predictions(logits, labels, np.zeros(len(labels), bool), patient)
    return recalibrated_losses(predicted, np.random.default_rng(0))


def test_shifted_model_is_not_worse() -> None:
    """One that ranks well but is too sure and shifted beats one that ranks worse, whose plain loss is lower."""
    rng = np.random.default_rng(1)
    labels = np.repeat(rng.permutation(PATIENTS) % 2, IMAGES)
    good = 2.0 * (2 * labels - 1) + rng.normal(size=labels.size)
    weak = 0.3 * (2 * labels - 1) + rng.normal(size=labels.size)
    plain = np.log1p(np.exp(-(2 * labels - 1) * (8 * good - 40)))
    assert plain.mean() > np.log1p(np.exp(-(2 * labels - 1) * 0.6 * weak)).mean()
    sure, calibrated, other = losses(good, labels, 8, -40), losses(good, labels), losses(weak, labels, 0.6)
    assert abs(sure.mean - calibrated.mean) < 0.1
    assert sure.surely_below(other) and not other.surely_below(sure) and not sure.surely_below(sure)


def test_best_of_many_is_not_chosen_by_chance() -> None:
    """Ten models like the first, of 27 patients: less than a third of the choices move; by one standard error most."""
    rng = np.random.default_rng(2)
    images = np.ones(27, np.int64)
    moved = np.zeros(2)
    for _ in range(1000):
        first, *others = (PatientLosses(one, images) for one in rng.exponential(size=(11, 27)))
        best = min(others, key=lambda one: one.mean)
        moved += [best.surely_below(first), best.surely_below(first, 10)]
    assert moved[0] > 500 and moved[1] < 300


def test_losses_that_are_not_finite_are_the_worst() -> None:
    labels = np.repeat(np.arange(PATIENTS) % 2, IMAGES)
    broken, sound = losses(np.full(labels.size, np.nan), labels), losses(np.zeros(labels.size), labels)
    assert broken.mean == np.inf and sound.surely_below(broken) and not broken.surely_below(sound)
    assert not broken.surely_below(broken)
    nobody = PatientLosses(np.zeros(0), np.zeros(0, np.int64))
    assert nobody.mean == np.inf and not nobody.surely_below(nobody)


def test_few_patients_are_no_evidence() -> None:
    """Of one patient the spread would be 0, and any gain beyond chance."""
    gains = np.full(LEAST_PATIENTS, 0.5)
    assert surely_better(gains, np.ones(len(gains), np.int64), 10)
    assert not any(surely_better(gains[:few], np.ones(few, np.int64), 10) for few in range(1, LEAST_PATIENTS))
