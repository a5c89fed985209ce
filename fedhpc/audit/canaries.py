"""Canaries: units of training data that the adversary made, each with a parameter (or a few) that only it can move.

The clipped gradient of canary i is clip_norm along a direction u_i, and the u_i are orthogonal: with isotropic noise
of the mechanism the best test for canary i is the projection of the update on u_i (Nasr et al. 2023). A
canary is told from a patient by its number, in one more channel (or column) of the input: 0 for a patient.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.site.data.samples import Samples
from fedhpc.util.arrays import F32, F64, I64

OVER_CLIP = 10.0
LONGEST_BIAS = 1.0


def canary_norm(clip_norm: float, head: bool) -> float:
    """Return the norm of a canary's gradient before it is clipped: OVER_CLIP clip norms.

    In a `head` it is also OVER_CLIP times what the bias may have in it, or little of it would be the canary's own.
    """
    return OVER_CLIP * max(clip_norm, LONGEST_BIAS if head else 0.0)


@dataclass(frozen=True)
class Canaries:
    """A network with canaries.

    Attributes:
        module: what is trained.
        scores: the projection of an update f32[d] on each canary's direction [count], positive where the canary pushes.
    """

    module: nn.Module
    scores: Callable[[F32], F64]


def _number(inputs: Tensor) -> Tensor:
    """Return the canary number of each row, int64 [b]."""
    flat = inputs[:, -1].flatten(1)[:, 0] if inputs.ndim > 2 else inputs[:, -1]
    return flat.round().long()


def _codes(number: Tensor, count: int) -> Tensor:
    """One-hot rows [b, count]; zeros for patients."""
    return nn.functional.one_hot(number, count + 1)[:, 1:].float()


class Blank(nn.Module):
    """A network without parameters: every class is equally likely."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        """Zero logits [b, classes]."""
        return inputs.new_zeros(len(inputs), self._classes)


class WithCanaries(nn.Module):
    """A `network` with a linear layer beside it that canaries alone reach, one weight for each.

    The layer adds exactly 0 to the logits whatever its weights are, so a canary's gradient stays as long as it was in
    the first step. Of a canary the network sees an empty image, and its answer is masked: no gradient comes from it.
    """

    def __init__(self, network: nn.Module, count: int, classes: int, gradient_norm: float) -> None:
        super().__init__()
        self.network, self._count, self._classes = network, count, classes
        self.canaries = nn.Linear(count, 1, bias=False)
        nn.init.zeros_(self.canaries.weight)
        # With logits of 0, cross entropy of class 0 has the gradient 1 / classes - 1 for its logit.
        self._scale = gradient_norm / (1 - 1 / classes)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [b, classes] of inputs [b, C + 1, H, W] or [b, features + 1]."""
        number = _number(inputs)
        pushed = self.canaries(self._scale * _codes(number, self._count))
        nothing = nn.functional.pad(pushed - pushed.detach(), (0, self._classes - 1))
        logits: Tensor = self.network(inputs[:, :-1]) * (number == 0)[:, None] + nothing
        return logits


def network_canaries(network: nn.Module, count: int, classes: int, gradient_norm: float) -> Canaries:
    """`count` canaries beside a network, with gradients of `gradient_norm` before they are clipped."""
    # The canaries' own weights are the last ones of the vector.
    return Canaries(
        WithCanaries(network, count, classes, gradient_norm), lambda update: update[-count:].astype(np.float64)
    )


class HeadInput(nn.Module):
    """[features, number] -> [normalised features, or a canary's code]: what a frozen head's linear layer sees."""

    def __init__(self, front: nn.Module | None, count: int, scale: float) -> None:
        """`front`: what normalises the features; None where there are none."""
        super().__init__()
        self.front, self._count, self._scale = front, count, scale

    def forward(self, inputs: Tensor) -> Tensor:
        """f32[b, kept + count] of f32[b, features + 1]."""
        number = _number(inputs)
        real = inputs[:, :-1]
        if self.front is not None:
            real = self.front(real) * (number == 0)[:, None]
        return torch.cat([real, self._scale * _codes(number, self._count)], dim=1)


def head_canaries(network: nn.Module | None, count: int, classes: int, gradient_norm: float) -> Canaries:
    """A frozen backbone's head, a single linear layer, with `count` more columns: one for each canary.

    A canary's gradient lies in its own column, along e_0 - p for the class probabilities p, here 1 / classes. Only the
    bias has a part in it that all canaries share, less than 1 / gradient_norm^2 of its square.

    Args:
        network: the run's own, what normalises the features and a linear layer; None for canaries alone.
        count, classes: numbers of them.
        gradient_norm: before clipping.
    """
    front, head = (None, None) if network is None else parts_of_head(network)
    features = 0 if head is None else head.in_features
    direction = np.eye(classes)[0] - 1 / classes
    length = float(np.linalg.norm(direction))
    offsets = head is None or head.bias is not None
    linear = nn.Linear(features + count, classes, bias=offsets)
    for p in linear.parameters():
        nn.init.zeros_(p)
    with torch.no_grad():
        if head is not None:
            linear.weight[:, :features] = head.weight
            if head.bias is not None:
                linear.bias.copy_(head.bias)

    def scores(update: F32) -> F64:
        whole = update[:-classes] if offsets else update
        weight = whole.reshape(classes, features + count)[:, features:].astype(np.float64)
        found: F64 = direction / length @ weight
        return found

    return Canaries(nn.Sequential(HeadInput(front, count, gradient_norm / length), linear), scores)


def parts_of_head(network: nn.Module) -> tuple[nn.Module, nn.Linear]:
    """(what normalises or whitens the features, the linear layer) of a frozen backbone's head."""
    *front, last = network.children()
    if not isinstance(last, nn.Linear):
        raise ValueError(f"the head ends with {type(last).__name__}, not with a linear layer")
    return nn.Sequential(*front), last


class CanarySamples:
    """The site's patients, if any, and the canaries that the coins put into the training split, each a unit."""

    def __init__(self, included: NDArray[np.bool_], real: Samples | None = None) -> None:
        """`included` [count]: which canaries take part."""
        self._real, self._included = real, included
        count = len(included)
        # A pseudonym that no importer writes.
        names = np.array([f"\x01canary{i}" for i in range(count)], "S16")
        self._n = 0 if real is None else len(real.labels)
        labels = np.zeros(count, np.int64)
        self.labels: I64 = labels if real is None else np.concatenate([real.labels, labels])
        self.patient: NDArray[np.bytes_] = names if real is None else np.concatenate([real.patient, names])
        self.early = np.zeros(self._n + count, np.bool_)

    def indices(self, split: str) -> I64:
        """See `Samples`; only "train" has canaries."""
        real = np.empty(0, np.int64) if self._real is None else self._real.indices(split)
        return np.concatenate([real, self._n + np.flatnonzero(self._included)]) if split == "train" else real

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`: with the canary number as one more channel or column."""
        number = torch.from_numpy(np.maximum(rows - self._n + 1, 0).astype(np.float32))
        if self._real is None:
            return number[:, None]
        shown = self._real.inputs(np.where(rows < self._n, rows, 0))
        shown[torch.from_numpy(rows >= self._n)] = 0
        more = number.view(-1, 1, *[1] * (shown.ndim - 2)).expand(-1, 1, *shown.shape[2:])
        return torch.cat([shown, more], dim=1)
