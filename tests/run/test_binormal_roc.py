"""The curve that is fitted to released counts: whatever the noise has made of them."""

import numpy as np

from fedhpc.run.evaluation.binormal_roc import Counts, fit


def test_fit_to_noise_alone_stays_in_range() -> None:
    """As few patients leave: counts that say nothing. A division by almost nobody would be a warning, an error here."""
    noise = np.random.default_rng(0).laplace(0, 12, (3, 2000, 7)).round()
    curve = fit(Counts(*noise, deviations=(17.0, 17.0, 17.0)))
    for found in (curve.auc, curve.sensitivity(0.9), curve.sensitivity_early(0.9)):
        assert ((found >= 0) & (found <= 1)).all()
