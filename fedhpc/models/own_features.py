"""A head that sees all of a backbone's features beside a head on a few: what a personal model may have."""

import torch
from torch import Tensor, nn


class OwnFeatures(nn.Module):
    """`network` on features f32[b, D], plus a linear map of all of them, standardised and of length about 1.

    A private head is trained on few directions, since each costs noise. A personal one costs none.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, network: nn.Module, size: int, classes: int) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.zeros(size))
        self.correction = nn.Linear(size, classes)
        nn.init.zeros_(self.correction.weight)
        nn.init.zeros_(self.correction.bias)

    @torch.no_grad()
    def standardise(self, features: Tensor) -> None:
        """Set mean and scale to those of features f32[n, D]; a feature that does not vary counts for nothing."""
        deviation = features.std(dim=0, correction=0)
        varies = deviation > 1e-6 * deviation.max()
        self.mean.copy_(features.mean(dim=0))
        self.scale.copy_(torch.where(varies, 1 / deviation, 0.0) / features.shape[1] ** 0.5)

    def standardised(self, features: Tensor) -> Tensor:
        """Return what the correction sees of features f32[b, D]."""
        return (features - self.mean) * self.scale

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits [b, K]."""
        return torch.as_tensor(self.network(features) + self.correction(self.standardised(features)))
