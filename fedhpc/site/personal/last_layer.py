"""The last layer of a network, and what it sees of a hospital's images."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.errors import InputError
from fedhpc.models.device import Device
from fedhpc.site.data.samples import Samples
from fedhpc.util.arrays import I64

BATCH = 256


@dataclass(frozen=True)
class HeadInputs:
    """What the last layer sees of n images (private).

    Attributes:
        inputs: f64[n, p]; the last column is 1 where the layer has offsets.
        labels: int64[n], or [n, K] of several findings.
    """

    inputs: Tensor
    labels: Tensor


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


@torch.no_grad()
def head_inputs(network: nn.Module, samples: Samples, split: str, device: Device) -> HeadInputs:
    """Return what the last layer of a network sees of one split.

    Raises:
        InputError: the layer's output is not the network's.
    """
    layer, seen = last_layer(network), list[Tensor]()
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    network.eval()
    try:
        rows = samples.indices(split)
        blocks = [_block(network, samples, rows[start : start + BATCH], device, seen) for start in _starts(rows)]
    finally:
        hook.remove()
        network.train()
    inputs = torch.cat(blocks)
    ones = torch.ones((len(inputs), 1), dtype=torch.float64)
    with_offset = inputs if layer.bias is None else torch.cat([inputs, ones], dim=1)
    return HeadInputs(with_offset, torch.from_numpy(samples.labels[rows]))


def _starts(rows: I64) -> range:
    return range(0, len(rows), BATCH)


def _block(network: nn.Module, samples: Samples, rows: I64, device: Device, seen: list[Tensor]) -> Tensor:
    seen.clear()
    logits = network(samples.inputs(rows).to(device.device))
    layer = last_layer(network)
    if len(seen) != 1 or seen[0].ndim != 2 or not np.allclose(layer(seen[0]).cpu(), logits.cpu(), atol=1e-4):
        raise InputError(
            "personalisation.method: the last linear layer does not give the network's logits by itself. Set method to "
            "fine_tune, with layers: all",
            code="personalisation",
        )
    return seen[0].double().cpu()
