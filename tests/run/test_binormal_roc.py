"""The curve that is fitted to released counts: whatever the noise has made of them."""

import numpy as np

from fedhpc.run.evaluation.binormal_roc import Counts, fit
from fedhpc.run.evaluation.curves import EDGES, Thresholds, final_question


def test_fit_to_noise_alone_stays_in_range() -> None:
    """As few patients leave: counts that say nothing. A division by almost nobody would be a warning, an error here."""
    noise = np.random.default_rng(0).laplace(0, 12, (3, 2000, 7)).round()
    curve = fit(Counts(*noise, deviations=(17.0, 17.0, 17.0)))
    for found in (curve.auc, curve.sensitivity(0.9), curve.sensitivity_early(0.9)):
        assert ((found >= 0) & (found <= 1)).all()


def test_thresholds_of_noise_alone_can_be_asked() -> None:
    """Whatever a validation release without patients looks like, its threshold and width are finite."""
    noise = np.random.default_rng(2).laplace(0, 12, (60, 3, 1, len(EDGES) + 1)).round()
    for blocks in noise:
        curve = fit(Counts(*blocks, deviations=(17.0, 17.0, 17.0)))
        question = final_question(1, [Thresholds.of(curve, EDGES)], 1)
        assert np.isfinite([question.edges[0][0], *question.widths]).all() and question.widths[0] >= 0


def test_scores_of_one_bin_are_undecided() -> None:
    """A model that says nothing: the released area must not be the prior's, as if it were a good one."""
    for bins, place in ((2, 0), (2, 1), (4, 1), (8, 3), (8, 7)):
        rng = np.random.default_rng(1)
        blocks = [rng.normal(0, 2, (400, bins)) for _ in range(3)]
        for block, patients in zip(blocks, (120, 60, 20), strict=True):
            block[:, place] += patients
        auc = fit(Counts(*blocks, deviations=(2.0, 2.0, 2.0))).auc
        assert abs(auc.mean() - 0.5) < 0.1
        assert np.quantile(auc, 0.025) < 0.4 and np.quantile(auc, 0.975) > 0.6
