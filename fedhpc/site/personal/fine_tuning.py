"""Going on locally after the federation: the baseline that any personalisation must beat (Yu et al. 2020).

The run's own local training, without noise, one epoch after the other from the final model (T. Yu, E. Bagdasaryan,
V. Shmatikov, "Salvaging federated learning by local adaptation", section 3). The hospital's validation patients choose
after how many epochs to stop, by the loss of the recalibrated model. The final model itself is kept unless the best is
better than it, recalibrated as well, by more than the standard errors over these patients that the best of so many
epochs has by chance.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.site.evaluation import predict
from fedhpc.site.personal.last_layer import last_layer
from fedhpc.site.personal.personal_head import Candidate
from fedhpc.site.personal.recalibration import PatientLosses, recalibrated_losses
from fedhpc.site.training.local_sgd import LocalRound, train_plain
from fedhpc.util.arrays import F32
from fedhpc.util.rng import generator


@dataclass(frozen=True)
class FineTuned:
    """The chosen parameters f32[d], and all that they were chosen from (private)."""

    params: F32
    chosen: Candidate
    candidates: tuple[Candidate, ...]


def fine_tune(local: LocalRound) -> FineTuned:
    """Train on from the parameters of `local.model`, and choose the number of epochs; of equal ones the smallest.

    Args:
        local: the model, set to the final one and left changed, the site's samples and the config; its round is not
            used: the epochs are numbered on from the last round, so that they draw what no round has drawn.
    """
    own, first = local.config.personalisation, local.config.training.rounds
    losses, best, at = [_losses(local)], to_vector(local.model), 0
    kept = best
    config = _one_epoch(local.config)
    for epoch in range(1, own.epochs + 1):
        with _only_last(local.model, own.layers == "last"):
            train_plain(replace(local, config=config, round=first + epoch - 1))
        losses.append(_losses(local))
        if losses[epoch].mean < losses[at].mean:
            at, best = epoch, to_vector(local.model)
    if not losses[at].surely_below(losses[0], own.epochs):
        at, best = 0, kept
    from_vector(local.model, best)
    found = tuple(Candidate(float(epoch), one.mean) for epoch, one in enumerate(losses))
    return FineTuned(best, found[at], found)


def _one_epoch(config: RunConfig) -> RunConfig:
    """Return the run's local training, an epoch at a time at a constant rate."""
    lr = config.personalisation.lr or config.training.lr
    training = config.training.model_copy(update={"local_epochs": 1, "lr": lr, "lr_schedule": "constant"})
    return config.model_copy(update={"training": training})


@contextmanager
def _only_last(model: nn.Module, wanted: bool) -> Iterator[None]:
    """Train the last layer alone, if that is `wanted`; after it all that was trained before is trained again."""
    last = set(last_layer(model).parameters()) if wanted else set()
    still = [p for p in model.parameters() if wanted and p.requires_grad and p not in last]
    for p in still:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in still:
            p.requires_grad_(True)


def _losses(local: LocalRound) -> PatientLosses:
    predicted = predict(local.model, local.samples, "val", local.device)
    return recalibrated_losses(predicted, generator(local.config.seed, "personal folds"))
