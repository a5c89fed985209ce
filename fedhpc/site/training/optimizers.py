"""Local optimisers: what a step does with the gradients that lie in the parameters."""

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim.sgd import sgd


class Optimizer(Protocol):
    """What training needs of an optimiser; every `torch.optim.Optimizer` has it."""

    def step(self) -> object:
        """Move the parameters along their gradients."""

    def zero_grad(self) -> None:
        """Drop the gradients."""


class Sgd:
    """SGD with momentum and weight decay, by PyTorch's function: bit for bit `torch.optim.SGD`.

    The class of PyTorch imports the compiler (`torch._dynamo`, sympy) with its first object. Nothing is compiled here,
    and the import takes as long as that of PyTorch, at every rank.

    Args:
        parameters: to train; those without a gradient stay as they are.
        lr: the learning rate.
        momentum: 0 for none.
        weight_decay: L2, added to the gradient.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        self._parameters, self._lr = list(parameters), lr
        self._momentum, self._weight_decay = momentum, weight_decay
        self._buffers: dict[nn.Parameter, Tensor | None] = {}

    @torch.no_grad()
    def step(self) -> None:
        """Move the parameters along their gradients."""
        moved = [(p, p.grad) for p in self._parameters if p.grad is not None]
        buffers = [self._buffers.get(p) for p, _ in moved]
        sgd(
            [p for p, _ in moved],
            [gradient for _, gradient in moved],
            buffers,
            weight_decay=self._weight_decay,
            momentum=self._momentum,
            lr=self._lr,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        if self._momentum:
            self._buffers.update(zip((p for p, _ in moved), buffers, strict=True))

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for p in self._parameters:
            p.grad = None
