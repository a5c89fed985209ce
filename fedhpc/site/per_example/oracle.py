"""The gradients of single units by `torch.func`, to hold the clipping engine against before a network is trained.

What a hospital releases is the sum of clipped unit gradients. The engine makes it in one pass over a batch, by rules
for each kind of layer; here it is made from its definition, by differentiating the loss of each image by itself. A
network for which the two disagree would be clipped by a norm that is not its own, so its guarantee would be void.
"""

import copy
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fedhpc.errors import InputError
from fedhpc.models.loss import loss
from fedhpc.site.per_example.clipped_sum import ClippedSum

TOLERANCE = {torch.float64: 1e-7, torch.float32: 1e-3}
"""Largest disagreement of one parameter tensor, as a share of the norm of the whole sum."""
LARGEST_IN_DOUBLE = 5_000_000
"""Parameters of a network that is still checked in float64; a larger one would need too much memory."""
WIDE = 1e9
"""A clip norm that clips nothing."""

Sums = tuple[Tensor, ...]
"""One tensor for each trained parameter, flat."""
UnitSum = Callable[[nn.Module, Tensor, Tensor, Tensor, float], Sums]
"""(model, images, labels, owner, clip_norm) -> sum of clipped unit gradients."""


def check_unit_gradients(network: nn.Module, images: Tensor, labels: Tensor, engine: UnitSum | None = None) -> None:
    """Check the clipping of a network's unit gradients on random images, unclipped and with every unit clipped.

    Args:
        network: in training mode; left as it was.
        images: float32 [n, C, H, W], n at least 3; the first two are of one unit (public).
        labels: int64 [n] or [n, K] (public).
        engine: what is checked; None: the engine of DP-SGD.

    Raises:
        InputError: names the layer that cannot be clipped, or the parameter on which engine and oracle disagree.
    """
    size = sum(p.numel() for p in network.parameters() if p.requires_grad)
    owner = torch.tensor([0, 0, *range(1, len(images) - 1)])
    for dtype in (torch.float64, torch.float32):
        if dtype == torch.float64 and size > LARGEST_IN_DOUBLE:
            continue
        twin = _copied(network).to(dtype)
        try:
            units = unit_gradients(twin, images.to(dtype), labels, owner)
        except RuntimeError as error:
            if dtype == torch.float32:
                raise InputError(
                    f"its gradients cannot be taken image by image ({error}). Change its forward",
                    code="model.gradients",
                ) from None
            continue  # a constant of the network is float32
        _compare(twin, Batch(images.to(dtype), labels, owner), units, engine or engine_sum)
        return


def _copied(network: nn.Module) -> nn.Module:
    try:
        return copy.deepcopy(network)
    except Exception as error:
        raise InputError(
            f"cannot be copied ({type(error).__name__}: {str(error).partition('. ')[0]}). Keep no result of a forward "
            "pass in the module (or detach it), and no lock, file or generator",
            code="model.gradients",
        ) from None


class Batch(NamedTuple):
    """Images [n, C, H, W], labels int64 [n], and the unit of each image, int64 [n]."""

    images: Tensor
    labels: Tensor
    owner: Tensor


def _compare(twin: nn.Module, batch: Batch, units: Tensor, engine: UnitSum) -> None:
    norms = torch.linalg.vector_norm(units, dim=1)
    names = [name for name, p in twin.named_parameters() if p.requires_grad]
    sizes = [p.numel() for p in twin.parameters() if p.requires_grad]
    # With every unit clipped, a wrong norm shows in every entry.
    moving = norms[norms > 0]
    for clip_norm in (WIDE, *([float(moving.min()) / 2] if len(moving) else [])):
        wanted = (units * (clip_norm / norms).clamp(max=1)[:, None]).sum(0)
        found = engine(twin, *batch, clip_norm)
        whole = float(torch.linalg.vector_norm(wanted))
        for name, ours, theirs in zip(names, found, torch.split(wanted, sizes), strict=True):
            off = float(torch.linalg.vector_norm(ours.reshape(-1) - theirs))
            if not off <= TOLERANCE[units.dtype] * whole:
                raise InputError(
                    f"parameter {name}: its clipped gradients disagree with torch.func (by {off / whole:.1%} of the "
                    "whole), so privacy.epsilon would not hold. Use layers that treat each image by itself and call "
                    "each layer as it is, without changing its inputs, weights or outputs in place",
                    code="model.gradients",
                )


def engine_sum(model: nn.Module, images: Tensor, labels: Tensor, owner: Tensor, clip_norm: float) -> Sums:
    """Return the sum of clipped unit gradients as DP-SGD makes it.

    Raises:
        PrivacyError: the engine cannot clip a layer.
    """
    clipped = ClippedSum(model, clip_norm)
    try:
        clipped.add(images, labels, owner)
        return clipped.split(clipped.total.clone())
    finally:
        clipped.close()


def unit_gradients(model: nn.Module, images: Tensor, labels: Tensor, owner: Tensor) -> Tensor:
    """Return the gradient of each unit's mean loss, [units, d], by vmap over single images.

    Where a forward pass cannot be mapped (it decides by values), each image goes through it alone.

    Raises:
        RuntimeError: the network has no gradient that can be taken in this precision.
    """
    try:
        of_images = _mapped(model, images, labels)
    except RuntimeError:
        of_images = _one_by_one(model, images, labels)
    counts = torch.bincount(owner)
    sums = of_images.new_zeros((len(counts), of_images.shape[1])).index_add_(0, owner, of_images)
    return sums / counts[:, None]


def _mapped(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    named = dict(model.named_parameters())
    trained = {name: p.detach() for name, p in named.items() if p.requires_grad}
    fixed = {name: p.detach() for name, p in named.items() if not p.requires_grad} | dict(model.named_buffers())

    def of_image(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, {**parameters, **fixed}, (image[None],))
        return loss(logits, label[None])

    found = torch.func.vmap(torch.func.grad(of_image), in_dims=(None, 0, 0))(trained, images, labels)
    return torch.cat([found[name].flatten(1) for name in trained], dim=1)


def _one_by_one(model: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for image, label in zip(images, labels, strict=True):
        found = torch.autograd.grad(loss(model(image[None]), label[None]), trained, materialize_grads=True)
        rows.append(torch.cat([g.reshape(-1) for g in found]))
    return torch.stack(rows)
