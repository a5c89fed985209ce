"""Attacks that make images out of an update: exact ones on a linear layer, a search on any network.

The adversary is given more than a real one has: the parameters, the label, the preprocessing and the learning rate.
"""

import math
import time
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.models.dimensions import LAYERS
from fedhpc.site.data.harmonise import harmonise
from fedhpc.util.arrays import F32
from fedhpc.util.rng import seed_of

CHANNELS = 16
WARM_UP = 3


def linear_on_pixels(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Return the network that hides least: logits are a linear function of the pixels."""
    return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), classes))


def smooth_convolutional(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    """Three convolutions without kinks and without pooling: each pixel has its own smooth effect on the gradient.

    Such a network is inverted almost exactly (Zhu, Liu & Han 2019), one with ReLU, max pooling or global
    pooling hardly: what is to be shown is that noise protects, not that a search is hard.
    """
    channels, *sides = shape
    features, conv = CHANNELS * math.prod(math.ceil(side / 4) for side in sides), LAYERS[len(sides)].conv
    return nn.Sequential(
        conv(channels, CHANNELS, 5, stride=2, padding=2),
        nn.ELU(),
        conv(CHANNELS, CHANNELS, 3, stride=2, padding=1),
        nn.ELU(),
        conv(CHANNELS, CHANNELS, 3, padding=1),
        nn.ELU(),
        nn.Flatten(),
        nn.Linear(features, classes),
    )


def input_of_linear(update: F32, classes: int, bias_too: bool = True) -> F32:
    """The input f32[inputs] of a linear layer from the update of its weight [classes, inputs] and bias [classes].

    The gradient of the weight's row k is that of bias k times the input (Phong et al. 2018; Geiping et al. 2020,
    Proposition 3.1): exact for one image and one step, else a weighted mean of inputs. Row k with the largest
    bias gradient loses least to rounding. Without a bias the row that moves most is the input but for its length and
    its sign: with two classes both rows move alike, in opposite directions.
    """
    if not bias_too:
        rows = update.reshape(classes, -1)
        longest: F32 = rows[np.linalg.norm(rows, axis=1).argmax()]
        return longest
    bias = update[-classes:]
    weight = update[:-classes].reshape(classes, -1)
    k = abs(bias).argmax()
    # Where no class was pushed there is nothing to tell.
    found: F32 = weight[k] / bias[k] if bias[k] else weight[k]
    return found


@dataclass(frozen=True)
class Search:
    """How long gradient matching goes on, and from where: iterations, weight of the total variation, seed."""

    iterations: int
    total_variation: float
    seed: int


def match_gradient(model: nn.Module, update: Tensor, labels: Tensor, shape: tuple[int, ...], search: Search) -> Tensor:
    """Images whose gradient points where the update came from (Geiping et al. 2020, equation 4, by signed Adam).

    Args:
        model: at the global parameters.
        update: f32[d], as it was sent.
        labels: int64[n], of the images that are sought.
        shape: (C, H, W) of an image, or (C, D, H, W).
        search: how long.

    Returns:
        f32[n, *shape], harmonised: the adversary knows how sites prepare their images.
    """
    rng = torch.Generator().manual_seed(seed_of(search.seed, "gradient matching"))
    x = torch.randn((len(labels), *shape), generator=rng).to(update.device).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.1)
    milestones = [round(search.iterations * share) for share in (0.375, 0.625, 0.875)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones, gamma=0.1)
    for _ in range(search.iterations):
        (gradient,) = torch.autograd.grad(_distance(model, x, labels, -update, search.total_variation), [x])
        x.grad = gradient.sign()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            x.copy_(harmonise(x.cpu().numpy()))
    return x.detach()


def _distance(model: nn.Module, x: Tensor, labels: Tensor, wanted: Tensor, total_variation: float) -> Tensor:
    """1 - cosine of the gradient at images x and the wanted one, plus a penalty on rough images."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = nn.functional.cross_entropy(model(x), labels)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in gradients])
    rough = torch.stack([x.diff(dim=axis).abs().mean() for axis in range(2, x.ndim)]).sum()
    return 1 - nn.functional.cosine_similarity(gradient, wanted, dim=0, eps=1e-12) + total_variation * rough


def affordable_iterations(
    model: nn.Module, labels: Tensor, shape: tuple[int, ...], wanted: int, budget_s: float
) -> int:
    """`wanted`, or fewer where that many would take longer than `budget_s` seconds (measured), at least 20."""
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    update = torch.ones(size, device=labels.device)
    match_gradient(model, update, labels, shape, Search(1, 0.0, 0))
    start = time.monotonic()
    match_gradient(model, update, labels, shape, Search(WARM_UP, 0.0, 0))
    each_s = (time.monotonic() - start) / WARM_UP
    return max(20, min(wanted, int(budget_s / each_s)))
