"""The binormal ROC curve of a few noisy counts: what rank 0 makes of a private release of scores.

Negatives have a latent score N(0, 1), positives N(a / b, 1 / b^2); the score that a model gives is any increasing
function of it (Dorfman and Alf 1969, "Maximum-likelihood estimation of parameters of signal-detection theory ..."). So

    AUC = Phi(a / sqrt(1 + b^2)),    sensitivity at specificity s = Phi(a - b Phi^-1(s))

and a histogram of any few bins determines a, b and the latent positions of its edges. Two numbers and a position an
edge are fitted to counts whose noise is known, by least squares with a weak prior; the bins may be one threshold's two.
That is why little noise is left in the area: an area from the counts alone takes the noise of every bin. An edge
may have a width on the latent scale: the share above it grows linearly across it. It then tells of more of the curve
than one point, and where exactly it lies matters less. Where noise is small beside what the curve does not fit, the
area follows the counts instead (`Curve.auc`).

All inputs are released and public; nothing here sees a patient.
"""

from dataclasses import dataclass, replace

import numpy as np

from fedhpc.util.arrays import F64
from fedhpc.util.normal import ndtr, ndtri

PRIOR_A, PRIOR_LOG_B = (0.0, 2.5), (0.0, 0.15)
"""Mean and standard deviation. A wrong b matters little near the point where both error rates are equal: of a curve
with b = 0.6 or 1.6 and an AUC of 0.979 that point gives 0.982 by b = 1."""
STEPS, DIFFERENCE = 40, 1e-5
LEAST_WIDTH = 1e-3
"""Of an edge; below it the edge has none."""
SMALLEST_GAP, LARGEST_GAP = -8.0, 3.0
"""Of the logarithm of what lies between two latent edges."""


@dataclass(frozen=True)
class Counts:
    """R noisy histograms of K bins of one task, and the standard deviation of the noise in a bin (public).

    Attributes:
        negative, positive: f64[R, K]; may be below zero.
        early: f64[R, K], those of the positives with an early stage; the noise in `positive` contains theirs.
        deviations: of the noise of a bin of negatives, of positives, of early positives.
        width: of the edges, on the latent scale.
    """

    negative: F64
    positive: F64
    early: F64
    deviations: tuple[float, float, float]
    width: float = 0.0


@dataclass(frozen=True)
class Curve:
    """R fitted curves.

    Attributes:
        a, b: f64[R].
        edges: f64[R, K - 1], latent positions of the edges.
        negatives, positives: f64[R], how many there are.
        auc: f64[R], the area, corrected by what the counts show beyond their noise.
        a_early: f64[R], the same parameter for early positives.
    """

    a: F64
    b: F64
    edges: F64
    negatives: F64
    positives: F64
    auc: F64
    a_early: F64

    def sensitivity(self, specificity: float) -> F64:
        """f64[R], at a specificity."""
        return ndtr(self.a - self.b * ndtri(specificity))

    def sensitivity_early(self, specificity: float) -> F64:
        """f64[R], of early positives."""
        out: F64 = ndtr(self.a_early - self.b * ndtri(specificity))
        return out

    def f1(self, latent: F64) -> F64:
        """F1 at latent thresholds f64[R, ...]."""
        shape = (-1, *(1,) * (latent.ndim - 1))
        a, b, n0, n1 = (part.reshape(shape) for part in (self.a, self.b, self.negatives, self.positives))
        found, false = n1 * ndtr(a - b * latent), n0 * ndtr(-latent)
        out: F64 = 2 * found / np.maximum(found + false + n1, 1e-9)
        return out


def fit(counts: Counts) -> Curve:
    """Return the curves of R histograms, by damped Gauss-Newton steps on all of them at once.

    Minimises, over a, log b, the edges and both totals, the squared differences between counts and curve in units of
    the noise, plus (a / 2.5)^2 + (log b / 0.15)^2.
    """
    theta = _start(counts)
    residual = _residual(theta, counts)
    best, damping = (residual**2).sum(axis=1), np.full(len(theta), 1e-2)
    identity = np.eye(theta.shape[1])
    for _ in range(STEPS):
        jacobian = _jacobian(theta, residual, counts)
        hessian = np.einsum("rkp,rkq->rpq", jacobian, jacobian)
        slope = np.einsum("rkp,rk->rp", jacobian, residual)
        size = np.einsum("rpp->rp", hessian) + 1e-6
        step = np.linalg.solve(hessian + damping[:, None, None] * size[:, :, None] * identity, slope[..., None])[..., 0]
        tried = theta - step
        value = (_residual(tried, counts) ** 2).sum(axis=1)
        better = value < best
        theta = np.where(better[:, None], tried, theta)
        best = np.where(better, value, best)
        damping = np.clip(np.where(better, damping * 0.3, damping * 4), 1e-9, 1e6)
        residual = _residual(theta, counts)
    curve = Curve(
        a=theta[:, 0],
        b=np.exp(theta[:, 1]),
        edges=_edges(theta),
        negatives=np.exp(theta[:, 2]),
        positives=np.exp(theta[:, 3]),
        auc=np.empty(0),
        a_early=np.empty(0),
    )
    return replace(curve, auc=_area(curve, counts), a_early=_early(curve, counts))


def _start(counts: Counts) -> F64:
    """theta f64[R, 4 + K - 1]: a, log b, log of both totals, first edge, logarithms of the gaps to the next ones."""
    totals, latent = [], []
    for block, deviation in ((counts.negative, counts.deviations[0]), (counts.positive, counts.deviations[1])):
        totals.append(np.log(np.maximum(block.sum(axis=1), deviation)))
        below = (np.maximum(block, 0) + max(deviation / 2, 0.5)).cumsum(axis=1)
        latent.append(ndtri((below / below[:, -1:])[:, :-1]))
    a = (latent[0] - latent[1]).mean(axis=1)
    edges = np.sort((latent[0] + latent[1] + a[:, None]) / 2, axis=1)
    gaps = np.log(np.maximum(np.diff(edges, axis=1), 0.05))
    return np.column_stack([a, np.zeros_like(a), *totals, edges[:, :1], gaps])


def _edges(theta: F64) -> F64:
    gaps = np.exp(np.clip(theta[:, 5:], SMALLEST_GAP, LARGEST_GAP))
    return np.concatenate([theta[:, 4:5], theta[:, 4:5] + np.cumsum(gaps, axis=1)], axis=1)


def shares(latent: F64, width: F64 | float = 0.0) -> F64:
    """The share of a standard normal population in each of K bins between edges of a width (f64[R, 1]): f64[R, K]."""
    below = np.pad(_below(latent, width), ((0, 0), (1, 1)), constant_values=((0, 0), (0, 1)))
    out: F64 = np.diff(below, axis=1)
    return out


def _below(latent: F64, width: F64 | float) -> F64:
    """Return the share below edges: the mean of Phi over the width, whose integral is x Phi(x) + phi(x)."""
    if np.all(np.asarray(width) < LEAST_WIDTH):
        return ndtr(latent)
    whole = np.maximum(width, LEAST_WIDTH)
    ends = [x * ndtr(x) + np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi) for x in (latent - whole / 2, latent + whole / 2)]
    out: F64 = np.clip((ends[1] - ends[0]) / whole, 0, 1)
    return out


def _residual(theta: F64, counts: Counts) -> F64:
    a, log_b, edges = theta[:, :1], theta[:, 1:2], _edges(theta)
    negative, positive = np.exp(np.clip(theta[:, 2:4], -5, 40)).T[:, :, None]
    b = np.exp(np.clip(log_b, -3, 3))
    return np.concatenate(
        [
            (negative * shares(edges, counts.width) - counts.negative) / counts.deviations[0],
            (positive * shares(b * edges - a, b * counts.width) - counts.positive) / counts.deviations[1],
            (a - PRIOR_A[0]) / PRIOR_A[1],
            (log_b - PRIOR_LOG_B[0]) / PRIOR_LOG_B[1],
        ],
        axis=1,
    )


def _jacobian(theta: F64, residual: F64, counts: Counts) -> F64:
    columns = []
    for place in range(theta.shape[1]):
        moved = theta.copy()
        moved[:, place] += DIFFERENCE
        columns.append((_residual(moved, counts) - residual) / DIFFERENCE)
    return np.stack(columns, axis=2)


def _area(curve: Curve, counts: Counts) -> F64:
    """Return the area under the curve, and so much of the counts' deviation from it as is no noise.

    Both areas by trapezoids over the bins; of their difference a share 1 - (its noise / itself)^2 is kept, none where
    that is negative (James and Stein's positive part): all of it where there is little noise. A fit to counts of noise
    alone may take almost nobody for positive: less than one counts as one, or the noise would overflow.
    """
    b = curve.b[:, None]
    fitted = (
        curve.negatives[:, None] * shares(curve.edges, counts.width),
        curve.positives[:, None] * shares(b * curve.edges - curve.a[:, None], b * counts.width),
    )
    seen, _, _ = _trapezoids(counts.negative, counts.positive)
    expected, beaten, beats = _trapezoids(*fitted)
    noise = (beats**2).sum(axis=1) * (counts.deviations[0] / np.maximum(curve.negatives, 1)) ** 2
    noise += (beaten**2).sum(axis=1) * (counts.deviations[1] / np.maximum(curve.positives, 1)) ** 2
    difference = seen - expected
    kept = np.maximum(0, 1 - noise / np.maximum(difference**2, 1e-18))
    area: F64 = np.clip(ndtr(curve.a / np.sqrt(1 + curve.b**2)) + kept * difference, 0, 1)
    return area


def _trapezoids(negative: F64, positive: F64) -> tuple[F64, F64, F64]:
    """(area, f64[R, K] of what share of the negatives a positive of a bin beats not, and of positives a negative)."""
    n0 = np.maximum(negative.sum(axis=1, keepdims=True), 1)
    n1 = np.maximum(positive.sum(axis=1, keepdims=True), 1)
    above = 1 - (np.cumsum(negative, axis=1) - negative / 2) / n0
    below = (np.cumsum(positive, axis=1) - positive / 2) / n1
    return 1 - (positive * above).sum(axis=1) / n1[:, 0], above, below


def _early(curve: Curve, counts: Counts) -> F64:
    """a of the early positives, on the curve's own edges and b, with the prior that it is near that of all."""
    grid = np.linspace(-1, 6, 141)
    latent = curve.b[:, None, None] * curve.edges[:, None, :] - grid[None, :, None]
    parts = np.stack([shares(one, b * counts.width) for one, b in zip(latent, curve.b, strict=True)])
    deviation = counts.deviations[2]
    among = (parts * counts.early[:, None, :]).sum(axis=2) / np.maximum((parts**2).sum(axis=2), 1e-9)
    misfit = ((np.maximum(among, 0)[..., None] * parts - counts.early[:, None, :]) / deviation) ** 2
    cost = misfit.sum(axis=2) + (grid[None, :] - curve.a[:, None]) ** 2
    out: F64 = grid[cost.argmin(axis=1)]
    return out
