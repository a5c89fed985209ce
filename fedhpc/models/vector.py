"""The trained parameters of a model as one flat vector, in the module's own order."""

import numpy as np
import torch
from torch import nn

from fedhpc.compression.top_k import Layer
from fedhpc.models.input_layer import InputLayer
from fedhpc.util.arrays import F32, I64


def parameter_count(model: nn.Module) -> int:
    """d: how many parameters are trained and exchanged."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def layers_of(model: nn.Module) -> tuple[Layer, ...]:
    """Name and size of every trained parameter tensor, in the order in which they make up the vector (public)."""
    return tuple(Layer(name, p.numel()) for name, p in model.named_parameters() if p.requires_grad)


NORMS = (nn.GroupNorm, nn.LayerNorm, nn.modules.instancenorm._InstanceNorm)
LOCAL_LAYERS: dict[str, tuple[type[nn.Module], ...]] = {"none": (), "norm": NORMS, "input": (InputLayer,)}
"""What each value of `algorithm.local_layers` keeps at the sites."""


def local_entries(model: nn.Module, layers: str) -> I64:
    """Return the indices in the vector of the parameters that a value of `algorithm.local_layers` means, ascending."""
    kinds = LOCAL_LAYERS[layers]
    local = {id(p) for module in model.modules() if isinstance(module, kinds) for p in module.parameters(recurse=False)}
    trained = [p for p in model.parameters() if p.requires_grad]
    return np.flatnonzero(np.concatenate([np.full(p.numel(), id(p) in local) for p in trained]))


def to_vector(model: nn.Module) -> F32:
    """Return the trained parameters as one f32[d], in the module's own order."""
    parts = [p.detach().reshape(-1).cpu() for p in model.parameters() if p.requires_grad]
    return torch.cat(parts).numpy().astype(np.float32, copy=False)


@torch.no_grad()
def from_vector(model: nn.Module, vector: F32) -> None:
    """Set the trained parameters to f32[d]; raises ValueError where d is another."""
    if vector.size != parameter_count(model):
        raise ValueError(f"vector of {vector.size} entries for a model of {parameter_count(model)} parameters")
    start = 0
    for p in model.parameters():
        if p.requires_grad:
            p.copy_(torch.from_numpy(vector[start : start + p.numel()]).view_as(p))
            start += p.numel()
