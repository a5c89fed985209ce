"""The local optimiser against PyTorch's class."""

import pytest
import torch
from torch import nn

from fedhpc.site.training.optimizers import Optimizer, Sgd


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
def test_sgd_equals_torch_bitwise(momentum: float, weight_decay: float) -> None:
    """Over several steps, of which one has no gradient for a layer."""
    torch.manual_seed(0)
    ours = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    theirs = nn.Sequential(nn.Linear(7, 5), nn.Linear(5, 3))
    theirs.load_state_dict(ours.state_dict())
    pairs: list[tuple[nn.Sequential, Optimizer]] = [
        (ours, Sgd(ours.parameters(), 0.1, momentum, weight_decay)),
        (theirs, torch.optim.SGD(theirs.parameters(), 0.1, momentum=momentum, weight_decay=weight_decay)),
    ]
    for number in range(4):
        gradients = [torch.randn_like(p) for p in ours.parameters()]
        for model, optimizer in pairs:
            optimizer.zero_grad()
            assert all(p.grad is None for p in model.parameters())
            for p, gradient in zip(model.parameters(), gradients, strict=True):
                p.grad = gradient.clone()
            if number == 1:
                model[0].weight.grad = None
            optimizer.step()
        assert all(torch.equal(one, two) for one, two in zip(ours.parameters(), theirs.parameters(), strict=True))
