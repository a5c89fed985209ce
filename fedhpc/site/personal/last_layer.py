"""The last layer of a network, and what it sees of a hospital's images."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.errors import InputError
from fedhpc.models.device import Device
from fedhpc.models.own_features import OwnFeatures
from fedhpc.site.data.samples import Samples
from fedhpc.util.arrays import I64

BATCH = 256


@dataclass(frozen=True)
class HeadInputs:
    """What the last layer sees of n images (private).

    Attributes:
        inputs: f64[n, p]; a column of ones for each layer's offsets.
        labels: int64[n], or [n, K] of several findings.
        patient: S[n], whose image it is.
    """

    inputs: Tensor
    labels: Tensor
    patient: NDArray[np.bytes_]

    def rows(self, chosen: NDArray[np.bool_]) -> "HeadInputs":
        """Some of the images."""
        mask = torch.from_numpy(chosen)
        return HeadInputs(self.inputs[mask], self.labels[mask], self.patient[chosen])

    def joined(self, other: "HeadInputs") -> "HeadInputs":
        """With those of another split."""
        parts = (self, other)
        return HeadInputs(
            torch.cat([one.inputs for one in parts]),
            torch.cat([one.labels for one in parts]),
            np.concatenate([one.patient for one in parts]),
        )


def last_layer(network: nn.Module) -> nn.Linear:
    """Return the module that gives a network's logits.

    Raises:
        InputError: it is not an `nn.Linear`.
    """
    own = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None]
    last = own[-1] if own else None
    if not isinstance(last, nn.Linear):
        raise InputError(
            f"personalisation.method: the last layer of the network is {type(last).__name__}, which is not linear. "
            "Set method to fine_tune, with layers: all",
            code="personalisation",
        )
    return last


def matrix_of(layer: nn.Linear) -> Tensor:
    """Return the parameters of a layer as one matrix f64[K, p], offsets as the last column."""
    weight = layer.weight.detach().double().cpu()
    return weight if layer.bias is None else torch.cat([weight, layer.bias.detach().double().cpu()[:, None]], dim=1)


@torch.no_grad()
def set_matrix(layer: nn.Linear, matrix: Tensor) -> None:
    """Set the parameters of a layer to what `matrix_of` gives."""
    weight = matrix if layer.bias is None else matrix[:, :-1]
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(matrix[:, -1])


def global_head(network: nn.Module) -> Tensor:
    """Return the head f64[K, p] that a correction of a network starts from: zeros for what the run did not train."""
    if not isinstance(network, OwnFeatures):
        return matrix_of(last_layer(network))
    trained, more = matrix_of(last_layer(network.network)), matrix_of(network.correction)
    return torch.cat([trained, torch.zeros_like(more)], dim=1)


def set_head(network: nn.Module, matrix: Tensor) -> None:
    """Set a network to a head as `global_head` gives it."""
    if not isinstance(network, OwnFeatures):
        set_matrix(last_layer(network), matrix)
        return
    below = last_layer(network.network)
    size = matrix_of(below).shape[1]
    set_matrix(below, matrix[:, :size])
    set_matrix(network.correction, matrix[:, size:])


@torch.no_grad()
def head_inputs(network: nn.Module, samples: Samples, split: str, device: Device) -> HeadInputs:
    """Return what the head of a network sees of one split, in the order of `global_head`.

    Raises:
        InputError: the last layer's output is not the network's.
    """
    rows = samples.indices(split)
    network.eval()
    blocks = [_block(network, samples.inputs(rows[start : start + BATCH]).to(device.device)) for start in _starts(rows)]
    network.train()
    return HeadInputs(torch.cat(blocks), torch.from_numpy(samples.labels[rows]), samples.patient[rows])


def _starts(rows: I64) -> range:
    return range(0, len(rows), BATCH)


def _block(network: nn.Module, inputs: Tensor) -> Tensor:
    if isinstance(network, OwnFeatures):
        more = network.standardised(inputs).double().cpu()
        return torch.cat([_block(network.network, inputs), _with_offset(more)], dim=1)
    layer, seen = last_layer(network), list[Tensor]()
    hook = layer.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].detach()))
    try:
        logits = network(inputs)
    finally:
        hook.remove()
    if len(seen) != 1 or seen[0].ndim != 2 or not torch.allclose(layer(seen[0]), logits, atol=1e-4):
        raise InputError(
            "personalisation.method: the last linear layer does not give the network's logits by itself. Set method to "
            "fine_tune, with layers: all",
            code="personalisation",
        )
    below = seen[0].double().cpu()
    return below if layer.bias is None else _with_offset(below)


def _with_offset(inputs: Tensor) -> Tensor:
    return torch.cat([inputs, torch.ones((len(inputs), 1), dtype=torch.float64)], dim=1)
