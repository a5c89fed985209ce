"""Going on locally after the federation: the baseline that any personalisation must beat (Yu et al. 2020).

The run's own local training, without noise, one epoch after the other from the final model (T. Yu, E. Bagdasaryan,
V. Shmatikov, "Salvaging federated learning by local adaptation", section 3). The hospital's validation images choose
after how many epochs to stop, 0 included.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.models.loss import loss
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.site.evaluation import predict
from fedhpc.site.personal.last_layer import last_layer
from fedhpc.site.personal.personal_head import Candidate
from fedhpc.site.training.local_sgd import LocalRound, train_plain
from fedhpc.util.arrays import F32


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
    found, best = [Candidate(0.0, _val_loss(local))], to_vector(local.model)
    chosen = found[0]
    config = _one_epoch(local.config)
    for epoch in range(1, own.epochs + 1):
        with _only_last(local.model, own.layers == "last"):
            train_plain(replace(local, config=config, round=first + epoch - 1))
        found.append(Candidate(float(epoch), _val_loss(local)))
        if found[-1].val_loss < chosen.val_loss:
            chosen, best = found[-1], to_vector(local.model)
    from_vector(local.model, best)
    return FineTuned(best, chosen, tuple(found))


def _one_epoch(config: RunConfig) -> RunConfig:
    """The run's local training, an epoch at a time at a constant rate."""
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


def _val_loss(local: LocalRound) -> float:
    """The mean loss on the validation images; infinite where it is not finite."""
    predicted = predict(local.model, local.samples, "val", local.device)
    value = float(loss(torch.from_numpy(predicted.logits), torch.from_numpy(predicted.labels)))
    return value if math.isfinite(value) else math.inf
