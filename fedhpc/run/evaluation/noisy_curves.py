"""ROC curves and calibration from released counts with noise: functions of what rank 0 has, which spend nothing."""

from collections.abc import Iterator

import numpy as np

from fedhpc.records.calibration import GRID, Calibration
from fedhpc.records.curves import CalibrationBin, ModelCurves, false_positive_rates
from fedhpc.run.evaluation.binormal_roc import Curve
from fedhpc.run.evaluation.curves import LEAST_SIGNAL, Law, Release, Thresholds, curves_of, interpolated, latent_width
from fedhpc.util.arrays import F64
from fedhpc.util.normal import ndtri

LARGEST_LOG_ODDS = 7.0
"""Of a calibrated score: a few noisy counts say nothing of one in a thousand."""


def noisy_curves(law: Law, release: Release, specificity: float) -> ModelCurves:
    """Return the fitted ROC curve and the calibration of one test release; empty where a class has too few."""
    fitted = curves_of(law, release.counts[None], release.noises, latent_width(release.question))
    if fitted is None:
        return ModelCurves()
    rates = false_positive_rates(specificity)
    inner = [[float(curve.sensitivity(1 - rate)[0]) for rate in rates[1:-1]] for curve in fitted]
    return ModelCurves((0.0, *np.mean(inner, axis=0).tolist(), 1.0), tuple(_calibration(law, release)))


def _calibration(law: Law, release: Release) -> Iterator[CalibrationBin]:
    """Each bin of each task whose images stand out of the noise."""
    for task, edges in enumerate(release.question.edges):
        counts = law.counts(release.counts[None], task, release.noises)
        bounds = np.concatenate([[0.0], _probability(np.array(edges)), [1.0]])
        noise = float(np.hypot(*counts.deviations[:2]))
        for k, (negative, positive) in enumerate(zip(counts.negative[0], counts.positive[0], strict=True)):
            images = float(negative + positive)
            if images < 2 * LEAST_SIGNAL * noise:
                continue
            share = float(np.clip(positive / images, 0, 1))
            of_noise = np.hypot((1 - share) * counts.deviations[1], share * counts.deviations[0]) / images
            of_images = np.sqrt((share * images + 2) * ((1 - share) * images + 2) / (images + 4) ** 3)
            deviation = float(np.hypot(of_noise, of_images))
            yield CalibrationBin(float(bounds[k]), float(bounds[k + 1]), None, share, images, deviation)


def _probability(log_odds: F64) -> F64:
    out: F64 = 1 / (1 + np.exp(-np.clip(log_odds, -700, 700)))
    return out


def noisy_calibration(curve: Curve, thresholds: Thresholds, specificity: float) -> Calibration:
    """Return what the scores of one task mean, by the curve of the validation release.

    Bayes' rule on the two normal populations of `fedhpc.run.evaluation.binormal_roc`, at their released numbers. Where
    their variances differ, the ratio of densities falls again at one end: there the map stays level.
    """
    a, b = float(curve.a[0]), float(curve.b[0])
    latent = interpolated(GRID, thresholds.edges, thresholds.latent)
    ratio = np.log(b * max(float(curve.positives[0]), 1e-3) / max(float(curve.negatives[0]), 1e-3))
    log_odds = np.clip(ratio + (latent**2 - (b * latent - a) ** 2) / 2, -LARGEST_LOG_ODDS, LARGEST_LOG_ODDS)
    middle = int(np.abs(latent - a / (1 + b)).argmin())
    rising = np.concatenate(
        [
            np.minimum.accumulate(log_odds[: middle + 1][::-1])[::-1],
            np.maximum.accumulate(log_odds[middle:])[1:],
        ]
    )
    score = float(thresholds.score(np.array([ndtri(specificity)]))[0])
    return Calibration(tuple(GRID.tolist()), tuple(rising.tolist()), score, specificity)
