"""A personal head: the global last layer plus a correction V of the hospital's own, by ridge towards 0.

    V(s) = argmin_V  mean_i loss((W + V) x_i, y_i)  +  s / 2 |V|^2            over the hospital's training images

W is the last layer of the final model, x_i what it sees of an image. Evgeniou and Pontil 2004 ("Regularized multi-task
learning", equation 1): a task's parameters are w_0 + v, with a ridge on v; here w_0 is given. It is also Ditto's
personal objective (Li et al. 2021, equation 2) for the last layer, solved exactly: the problem is convex. The strength
s is the one with the least loss on the hospital's validation images, among those given and infinity (V = 0).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fedhpc.models.loss import loss
from fedhpc.site.personal.last_layer import HeadInputs

STEPS = 200
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Candidate:
    """One way to personalise (private).

    Attributes:
        setting: the strength of the ridge (infinity: the final model itself), or a number of epochs.
        val_loss: the mean loss on the hospital's validation images.
    """

    setting: float
    val_loss: float


@dataclass(frozen=True)
class PersonalHead:
    """The chosen head f64[K, p], and all that it was chosen from (private)."""

    matrix: Tensor
    chosen: Candidate
    candidates: tuple[Candidate, ...]


def fit_correction(shared: Tensor, data: HeadInputs, strength: float, start: Tensor | None = None) -> Tensor:
    """Return the correction V f64[K, p] of one strength, by L-BFGS (Nocedal and Wright 2006, algorithm 7.5).

    Args:
        shared: the global last layer f64[K, p].
        data: of the training images (private).
        strength: of the ridge, above 0: the minimum is then unique.
        start: from where to search; None: from 0.
    """
    correction = (torch.zeros_like(shared) if start is None else start.clone()).requires_grad_()
    search = torch.optim.LBFGS(
        [correction], max_iter=STEPS, tolerance_grad=TOLERANCE, tolerance_change=1e-12, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        search.zero_grad()
        value = loss(data.inputs @ (shared + correction).T, data.labels) + strength / 2 * correction.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(objective)  # type: ignore[no-untyped-call]
    return correction.detach()


def fit_head(shared: Tensor, train: HeadInputs, val: HeadInputs, strengths: Sequence[float]) -> PersonalHead:
    """Fit a correction for each strength and choose by the validation images; of equal ones the stronger.

    Args:
        shared: the global last layer f64[K, p] (public).
        train, val: of the hospital's images (private).
        strengths: of the ridge, each above 0.
    """
    matrices, found = [shared], [Candidate(math.inf, _mean_loss(shared, val))]
    correction = torch.zeros_like(shared)
    for strength in sorted(strengths, reverse=True):
        correction = fit_correction(shared, train, strength, correction)
        matrices.append(shared + correction)
        found.append(Candidate(strength, _mean_loss(matrices[-1], val)))
    best = min(range(len(found)), key=lambda k: found[k].val_loss if math.isfinite(found[k].val_loss) else math.inf)
    return PersonalHead(matrices[best], found[best], tuple(found))


def _mean_loss(matrix: Tensor, data: HeadInputs) -> float:
    return float(loss(data.inputs @ matrix.T, data.labels))
