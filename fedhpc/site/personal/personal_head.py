"""A personal head: the global last layer plus a correction V of the hospital's own, by ridge towards 0.

    V(s) = argmin_{a, V}  mean_i loss((a W + V) x_i, y_i)  +  s / 2 |V|^2         over the hospital's training images

W is the last layer of the final model, x_i what it sees of an image. Evgeniou and Pontil 2004 ("Regularized multi-task
learning", section 2): a task's parameters are w_0 + v, with a ridge on v; here w_0 is given, up to its length, which
says how sure a model is and not what it prefers. It is also Ditto's personal objective (Li et al. 2021) for the last
layer, solved exactly: the problem is convex.

The strength s has the least loss on patients that its correction was not fitted to, by cross-validation over the
hospital's training and validation patients (of 50 validation patients alone the loss is too rough to choose by). The
final model itself is kept unless the best is better than a W by more than one standard error over the patients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhpc.models.loss import loss
from fedhpc.site.personal.last_layer import HeadInputs
from fedhpc.site.personal.recalibration import surely_better
from fedhpc.util.arrays import F64

STEPS, TOLERANCE = 200, 1e-5
FOLDS = 5


@dataclass(frozen=True)
class Candidate:
    """One way to personalise (private).

    Attributes:
        setting: the strength of the ridge (infinity: the final model itself), or a number of epochs.
        val_loss: the mean loss on patients that it was not fitted to.
    """

    setting: float
    val_loss: float


@dataclass(frozen=True)
class PersonalHead:
    """The chosen head f64[K, p], and all that it was chosen from (private)."""

    matrix: Tensor
    chosen: Candidate
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Fit:
    """A head a W + V: a as f64[], V as f64[K, p]."""

    scale: Tensor
    correction: Tensor

    def matrix(self, shared: Tensor) -> Tensor:
        """Return the head f64[K, p], from the global one."""
        return self.scale * shared + self.correction


def fit_correction(shared: Tensor, data: HeadInputs, strength: float, start: Fit | None = None) -> Fit:
    """Return the head of one strength, by L-BFGS (Nocedal and Wright 2006, algorithm 7.5).

    Args:
        shared: the global last layer f64[K, p].
        data: of the training images (private).
        strength: of the ridge, above 0; infinity: V = 0.
        start: from where to search; None: from W itself.
    """
    scale = torch.ones((), dtype=torch.float64) if start is None else start.scale.clone()
    correction = torch.zeros_like(shared) if start is None else start.correction.clone()
    searched = [scale] if math.isinf(strength) else [scale, correction]
    for one in searched:
        one.requires_grad_()
    search = torch.optim.LBFGS(
        searched, max_iter=STEPS, tolerance_grad=TOLERANCE, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        search.zero_grad()
        ridge = 0.0 if math.isinf(strength) else strength / 2 * correction.square().sum()
        value = loss(data.inputs @ (scale * shared + correction).T, data.labels) + ridge
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(objective)  # type: ignore[no-untyped-call]
    return Fit(scale.detach(), correction.detach())


def path(shared: Tensor, data: HeadInputs, strengths: Sequence[float]) -> list[Tensor]:
    """Return the heads of all strengths f64[K, p], in their order, each searched from the one before."""
    found, fit = [], None
    for strength in strengths:
        fit = fit_correction(shared, data, strength, fit)
        found.append(fit.matrix(shared))
    return found


def fit_head(
    shared: Tensor, train: HeadInputs, val: HeadInputs, strengths: Sequence[float], rng: np.random.Generator
) -> PersonalHead:
    """Choose a strength by patients that a head was not fitted to, and fit the head to the training images.

    Args:
        shared: the global last layer f64[K, p] (public).
        train, val: of the hospital's images (private).
        strengths: of the ridge, each above 0.
        rng: of the folds.
    """
    tried = (math.inf, *sorted(strengths, reverse=True))
    losses, images = _losses(shared, train.joined(val), tried, rng)
    means = losses.sum(axis=1) / images.sum()
    found = tuple(Candidate(s, float(mean)) for s, mean in zip(tried, means, strict=True))
    best = int(np.argmin(np.where(np.isfinite(means), means, np.inf)))
    if not surely_better(losses[0] - losses[best], images):
        return PersonalHead(shared, found[0], found)
    return PersonalHead(path(shared, train, tried[: best + 1])[-1], found[best], found)


def _losses(
    shared: Tensor, data: HeadInputs, strengths: Sequence[float], rng: np.random.Generator
) -> tuple[F64, NDArray[np.int64]]:
    """Return each patient's summed loss f64[strengths, patients] without it in the fit, and its number of images."""
    patients, owner = np.unique(data.patient, return_inverse=True)
    fold = (rng.permutation(len(patients)) % FOLDS)[owner]
    losses = np.zeros((len(strengths), len(patients)))
    for k in range(FOLDS):
        heads = path(shared, data.rows(fold != k), strengths)
        held, mine = data.rows(fold == k), owner[fold == k]
        for row, head in zip(losses, heads, strict=True):
            row += np.bincount(mine, loss(held.inputs @ head.T, held.labels, "none").numpy(), len(patients))
    return losses, np.bincount(owner)
