"""Losses of models as if each were well calibrated: what a model prefers counts, how sure it is does not.

A network of other hospitals' machines is often too sure of itself, or shifted to one class. Any further training puts
that right first, so that the plain loss falls while the ranking of the patients gets worse.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedhpc.models.loss import loss
from fedhpc.records.metrics import Predictions
from fedhpc.util.arrays import F64
from fedhpc.util.normal import ndtr, ndtri

FOLDS, STEPS = 5, 50
LEAST_PATIENTS = 10
"""Of one patient the standard error is 0, and of a few it is mostly chance."""


@dataclass(frozen=True)
class PatientLosses:
    """Of one model, patient by patient (private).

    Attributes:
        losses: f64[patients], summed over each patient's images.
        images: int64[patients].
    """

    losses: F64
    images: NDArray[np.int64]

    @property
    def mean(self) -> float:
        """Over the images; infinite where it is not finite, or there are none."""
        value = float(self.losses.sum() / self.images.sum()) if len(self.images) else np.inf
        return value if np.isfinite(value) else np.inf

    def surely_below(self, other: "PatientLosses", tried: int = 1) -> bool:
        """Whether the mean is below another model's of the same patients, beyond chance (see `surely_better`)."""
        if not np.isfinite([self.mean, other.mean]).all():
            return self.mean < other.mean
        return surely_better(other.losses - self.losses, self.images, tried)


def surely_better(gains: F64, images: NDArray[np.int64], tried: int = 1) -> bool:
    """Whether a mean gain per image is above one standard error, of a ratio over patients (Cochran 1977, equation 6.9).

    The best of many models is above it by chance alone: of `tried` ones, so many standard errors that no more of the
    whole choices are wrong (Bonferroni 1936): 2.15 for 10. Fewer than LEAST_PATIENTS patients do not tell the spread.

    Args:
        gains: f64[patients], summed over each patient's images.
        images: of each patient.
        tried: how many models there were to choose from.
    """
    if len(gains) < LEAST_PATIENTS:
        return False
    errors = -ndtri(ndtr(-1) / tried)
    mean = gains.sum() / images.sum()
    return bool(mean > errors * np.sqrt(((gains - mean * images) ** 2).sum()) / images.sum())


def recalibrated_losses(predicted: Predictions, rng: np.random.Generator) -> PatientLosses:
    """Return the losses of logits a z + b, with a and b fitted to the patients of the other folds.

    Args:
        predicted: of patients that the model was not trained on.
        rng: of the folds; the same for models that are compared.
    """
    logits, labels = torch.from_numpy(predicted.logits).double(), torch.from_numpy(predicted.labels)
    patients, owner = np.unique(predicted.patient, return_inverse=True)
    fold = (rng.permutation(len(patients)) % FOLDS)[owner]
    if not logits.isfinite().all():
        return PatientLosses(np.full(len(patients), np.inf), np.bincount(owner, minlength=len(patients)))
    losses = np.zeros(len(patients))
    for k in range(FOLDS):
        held, rest = torch.from_numpy(fold == k), torch.from_numpy(fold != k)
        scale, offsets = _fit(logits[rest], labels[rest])
        each = loss(scale * logits[held] + offsets, labels[held], "none")
        losses += np.bincount(owner[fold == k], each.numpy(), len(patients))
    return PatientLosses(losses, np.bincount(owner, minlength=len(patients)))


def _fit(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Scale f64[] and offsets f64[K] of the least mean loss (Platt 1999), log scale and offsets normal a priori."""
    log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
    offsets = torch.zeros(logits.shape[1], dtype=torch.float64, requires_grad=True)
    search = torch.optim.LBFGS([log_scale, offsets], max_iter=STEPS, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        search.zero_grad()
        prior = (log_scale.square() + offsets.square().sum()) / 2
        value = loss(log_scale.exp() * logits + offsets, labels, "sum") + prior
        value.backward()  # type: ignore[no-untyped-call]
        return value

    search.step(objective)  # type: ignore[no-untyped-call]
    return log_scale.detach().exp(), offsets.detach()
