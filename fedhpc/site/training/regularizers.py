"""What an algorithm adds to the loss of local training: a linear and a proximal term around the global parameters.

Of both only the gradient is needed. It is added where the optimiser steps, and so with privacy after clipping and
noise: it is a function of the parameters, of the public state and of what the site has released before. One unit does
not change it, so that the sensitivity of the clipped sum, the noise and the charge are those of FedAvg.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedhpc.site.training.optimizers import Optimizer
from fedhpc.util.arrays import F32


@dataclass(frozen=True)
class Regularizer:
    """The loss <linear, y> + proximal / 2 |y - x|^2 at the parameters y of a round that starts from x.

    Attributes:
        linear: f32[d], added to each gradient as it is; None for zeros.
        proximal: not negative.
    """

    linear: F32 | None = None
    proximal: float = 0.0

    @property
    def is_zero(self) -> bool:
        """Whether it changes no gradient."""
        return not self.proximal and (self.linear is None or not self.linear.any())


NOTHING = Regularizer()
STABLE_BELOW = 2.0


def what_to_lower(lr: float, regularizer: Regularizer) -> str:
    """Return the remedy for local training that has diverged.

    >>> what_to_lower(32.0, NOTHING)
    'lower training.lr'
    """
    if lr * regularizer.proximal < STABLE_BELOW:
        return "lower training.lr"
    return (
        f"lower training.lr={lr:g} or the proximal weight {regularizer.proximal:g} (algorithm.mu, alpha): a step "
        f"multiplies the distance from the global model by 1 less their product, which must be below {STABLE_BELOW:g}"
    )


def regularized(optimizer: Optimizer, model: nn.Module, regularizer: Regularizer) -> Optimizer:
    """Return an optimiser that adds the regulariser's gradient before each step; `optimizer` itself where that is zero.

    Args:
        optimizer: of the model's trained parameters.
        model: set to the parameters x that the round starts from.
        regularizer: what is added.
    """
    if regularizer.is_zero:
        return optimizer
    return _Regularized(optimizer, [p for p in model.parameters() if p.requires_grad], regularizer)


class _Regularized:
    """An `Optimizer`; see `regularized`."""

    def __init__(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], regularizer: Regularizer) -> None:
        self._optimizer, self._parameters, self._proximal = optimizer, parameters, regularizer.proximal
        self._start = [p.detach().clone() for p in parameters] if regularizer.proximal else []
        self._linear = [] if regularizer.linear is None else _like(regularizer.linear, parameters)

    @torch.no_grad()
    def step(self) -> None:
        """Add to the gradients, then step; a parameter without a gradient stays as it is."""
        for p, start in zip(self._parameters, self._start, strict=bool(self._start)):
            if p.grad is not None:
                p.grad.add_(p - start, alpha=self._proximal)
        for p, linear in zip(self._parameters, self._linear, strict=bool(self._linear)):
            if p.grad is not None:
                p.grad.add_(linear)
        self._optimizer.step()

    def zero_grad(self) -> None:
        """Drop the gradients."""
        self._optimizer.zero_grad()


def _like(vector: F32, parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the parts of f32[d] in the shapes and on the devices of the parameters."""
    parts = torch.split(torch.from_numpy(vector), [p.numel() for p in parameters])
    return [part.view_as(p).to(p.device) for part, p in zip(parts, parameters, strict=True)]
