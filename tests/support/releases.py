"""What leaves one private step, as an attacker sees it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fedhpc.site.training.dp_sgd import NoiseConfig, PrivateStep


class Recorded(torch.optim.SGD):
    """Keeps what it was given: what leaves the private step."""

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        self.given = [p.grad.clone() for group in self.param_groups for p in group["params"]]


def released_by(
    model: nn.Module, batch: tuple[Tensor, Tensor], terms: NoiseConfig, releases: int = 1
) -> list[list[Tensor]]:
    """So many releases, each the noisy gradient of every parameter, for a batch (images, labels) of single images."""
    optimizer = Recorded(model.parameters(), lr=1.0)
    step = PrivateStep.wrap(model, optimizer, terms)
    found = []
    for _ in range(releases):
        step(*batch, torch.arange(len(batch[0])), last=True)
        found.append(optimizer.given)
    step.unwrap()
    return found
