"""Opacus's own ways to a private step, side by side with ours in `run.py bench dp`; nothing else uses them."""

import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from opacus.grad_sample import GradSampleModule
from opacus.grad_sample.utils import wrap_model
from opacus.optimizers import DPOptimizer, DPOptimizerFastGradientClipping
from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping
from torch import Tensor, nn

from fedhpc.site.per_example.kernels import Layer, bias_by_image, handles, kernel_of
from fedhpc.site.training.dp_sgd import NoiseConfig

Step = Callable[[Tensor, Tensor], None]
"""One optimiser step on images [n, ...] and labels int64 [n], each image its own unit."""

MODES = ("hooks", "functorch", "ew", "ghost", "hooks+")
"""Opacus's `grad_sample_mode`s; `hooks+` is `hooks` with our per-image gradients through its own extension point."""


def opacus_step(mode: str, model: nn.Module, optimizer: torch.optim.Optimizer, terms: NoiseConfig) -> Step:
    """A private step by Opacus alone; `terms.expected_units` is the batch size."""
    options: dict[str, Any] = {
        "noise_multiplier": terms.noise_multiplier,
        "max_grad_norm": terms.clip_norm,
        "expected_batch_size": int(terms.expected_units),
        "generator": torch.Generator(next(model.parameters()).device).manual_seed(0),
    }
    if mode == "ghost":
        return _ghost_step(model, optimizer, options)
    wrapped = OurSamplers(model) if mode == "hooks+" else wrap_model(model, mode)
    private = DPOptimizer(optimizer, **options)

    def step(images: Tensor, labels: Tensor) -> None:
        _ignore_hook_warning()
        nn.functional.cross_entropy(wrapped(images), labels).backward()  # type: ignore[no-untyped-call]
        private.step()
        private.zero_grad(set_to_none=True)

    return step


def _ghost_step(model: nn.Module, optimizer: torch.optim.Optimizer, options: dict[str, Any]) -> Step:
    wrapped = wrap_model(model, "ghost", max_grad_norm=options["max_grad_norm"])
    private = DPOptimizerFastGradientClipping(optimizer, **options)
    loss = DPLossFastGradientClipping(wrapped, private, nn.CrossEntropyLoss())

    def step(images: Tensor, labels: Tensor) -> None:
        _ignore_hook_warning()
        loss(wrapped(images), labels).backward()
        private.step()
        private.zero_grad(set_to_none=True)

    return step


def _ignore_hook_warning() -> None:
    """torch tells that images need no gradient of their own; Opacus's hooks don't use it."""
    warnings.filterwarnings("ignore", message="Full backward hook is firing")


def sample_gradients(layer: Layer, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
    """A grad sampler as Opacus wants them: {parameter: gradients [n, *shape]} of a Conv2d or Linear layer."""
    x, g = activations[0].to(backprops.dtype), backprops
    if not handles(layer):
        sampled: dict[Tensor, Tensor] = GradSampleModule.GRAD_SAMPLERS[type(layer)](layer, activations, backprops)
        return sampled
    way, out = kernel_of(layer, x, g), g.new_empty(len(g), layer.weight.numel())
    way.write(layer, x, g, out)
    grads = {layer.weight: way.natural(layer, out)}
    if layer.bias is not None:
        grads[layer.bias] = bias_by_image(layer, g)
    return grads


class OurSamplers(GradSampleModule):  # type: ignore[misc]
    """Opacus's hooks with `sample_gradients` registered, for this class alone."""

    GRAD_SAMPLERS: ClassVar = {
        **GradSampleModule.GRAD_SAMPLERS,
        nn.Conv2d: sample_gradients,
        nn.Linear: sample_gradients,
    }
