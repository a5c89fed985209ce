"""A forward pass that is recorded, so that one backward pass leaves each image's gradients or what their norms need.

"Book-keeping" (Bu et al. 2023, "Differentially private optimization on large model at small cost", section 3): layers
run as ever but with their parameters detached, so that autograd computes no summed weight gradient only to throw it
away; a hook on each layer's output takes the gradient there as the backward pass goes by. Conv2d, Conv3d, Linear,
GroupNorm and `InputLayer` have rules here. Any other layer goes by Opacus's functorch sampler: it is slower, and
differentiates the layer itself.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fedhpc.errors import PrivacyError
from fedhpc.models.input_layer import InputLayer, transformed
from fedhpc.site.per_example.forward_record import ForwardRecord, GramUse, Use
from fedhpc.site.per_example.kernels import (
    Layer,
    bias_by_image,
    handles,
    is_pointwise,
    prefers_gram,
)
from fedhpc.site.per_example.refusals import own_trained, refusals


class _Start(torch.autograd.Function):
    """Makes the backward pass reach an output that no trained layer comes before, and end there."""

    @staticmethod
    def forward(ctx: Any, out: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(out)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


Rule = Callable[[ForwardRecord, Any, Tensor], Tensor]


class Recorder:
    """Replaces the forward of each trained layer of a model until `detach`; outside of `record` it changes nothing.

    The model must treat each image by itself. Of layers that do not, batch norm is found out, as are layers that see or
    give anything but one row an image; arithmetic across rows in a module's own forward is not.
    """

    def __init__(self, model: nn.Module) -> None:
        """Attach to `model`.

        Raises:
            PrivacyError: names the layers that mix images, or whose images' gradients cannot be told apart.
        """
        refused = [f"{name or 'model'}: {why}" for name, module in model.named_modules() for why in refusals(module)]
        if refused:
            raise PrivacyError(
                "the network cannot be trained with privacy: " + "; ".join(refused), code="privacy.network"
            )
        self._model = model
        self._record: ForwardRecord | None = None
        self._names: dict[nn.Module, str] = {}
        try:
            self._attach(model, "")
        except PrivacyError:
            self.detach()
            raise

    def detach(self) -> None:
        """Give the layers their own forward back."""
        for layer in self._names:
            layer.__dict__.pop("forward", None)
            layer.__dict__.pop("ft_compute_sample_grad", None)
        self._names.clear()

    def record(self, images: Tensor, pairs: int) -> tuple[Tensor, ForwardRecord]:
        """Return the model's output for images [n, ...], and the record; `pairs` as in `prefers_gram`.

        Raises:
            PrivacyError: where a trained layer sees anything but one row an image.
        """
        record = self._record = ForwardRecord(len(images), pairs)
        try:
            return self._model(images), record
        finally:
            self._record = None

    def _attach(self, module: nn.Module, name: str) -> None:
        if module in self._names:
            return
        rule = self._rule(module) if own_trained(module) else None
        if rule is not None:
            self._names[module] = name or "model"
            if rule == self._other:
                self._prepare(module)
            module.__dict__["forward"] = partial(self._forward, rule, module, module.forward)
        if rule != self._other:
            for below, child in module.named_children():
                self._attach(child, f"{name}.{below}".lstrip("."))

    def _prepare(self, module: nn.Module) -> None:
        from opacus.grad_sample.functorch import prepare_layer

        try:
            prepare_layer(module)
        except RuntimeError as error:
            raise PrivacyError(
                f"layer {self._names[module]}: {error}; change the network", code="privacy.network"
            ) from None

    def _rule(self, module: nn.Module) -> Rule:
        if type(module) is nn.GroupNorm:
            return self._group_norm
        if type(module) is InputLayer:
            return self._input_layer
        return self._matrix_product if handles(module) else self._other

    def _forward(self, rule: Rule, layer: nn.Module, own: Callable[..., Any], *args: Any, **options: Any) -> Any:
        record = self._record
        if record is None or not torch.is_grad_enabled():
            return own(*args, **options)
        inputs = [*args, *options.values()]
        self._check_rows(layer, "takes", inputs, record.images)
        return rule(record, layer, inputs[0])

    def _check_rows(self, layer: nn.Module, does: str, values: list[Any], images: int) -> None:
        if len(values) != 1 or not isinstance(values[0], Tensor) or values[0].shape[:1] != (images,):
            got = ", ".join(str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in values)
            raise PrivacyError(
                f"layer {self._names[layer]} {does} {got}: with privacy a trained layer takes and gives one tensor "
                f"with a row for each of the {images} images; change the network",
                code="privacy.network",
            )

    def _group_norm(self, record: ForwardRecord, layer: nn.GroupNorm, x: Tensor) -> Tensor:
        """The batch as one image of n times as many channels and groups, so with a scale and shift for each image."""
        n, channels = x.shape[:2]
        parameters = (layer.weight, layer.bias)
        leaves = [p.detach().expand(n, -1).reshape(-1).requires_grad_(p.requires_grad) for p in parameters]
        joined = x.reshape(1, n * channels, *x.shape[2:])
        out = torch.group_norm(joined, n * layer.num_groups, leaves[0], leaves[1], layer.eps)
        record.affine += [(p, leaf) for p, leaf in zip(parameters, leaves, strict=True) if p.requires_grad]
        return out.reshape(x.shape)

    def _input_layer(self, record: ForwardRecord, layer: InputLayer, x: Tensor) -> Tensor:
        """With parameters for each image, which autograd gives the gradients of."""
        parameters = (layer.log_gain, layer.log_gamma, layer.low_pass)
        leaves = [p.detach().repeat(len(x), 1).requires_grad_(p.requires_grad) for p in parameters]
        record.affine += [(p, leaf) for p, leaf in zip(parameters, leaves, strict=True) if p.requires_grad]
        return transformed(x, *leaves)

    def _matrix_product(self, record: ForwardRecord, layer: Layer, x: Tensor) -> Tensor:
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        if isinstance(layer, nn.Linear):
            out = F.linear(x, weight, bias)
        elif is_pointwise(layer) and set(layer.stride) == {1} and x.device.type == "cpu":
            # On a CPU a matrix product takes half the time of a 1x1 convolution, which re-orders its input first.
            out = (weight.flatten(1) @ x.flatten(2)).view(len(x), -1, *x.shape[2:])
            out = out if bias is None else out + bias.view(-1, *[1] * (x.ndim - 2))
        else:
            convolve = F.conv2d if isinstance(layer, nn.Conv2d) else F.conv3d
            out = convolve(x, weight, bias, layer.stride, layer.padding, layer.dilation, layer.groups)
        by_gram = layer.weight.requires_grad and prefers_gram(layer, x, out, record.pairs)
        return self._watched(record, self._use(layer, x, by_gram), out, _take_matrix_product)

    def _other(self, record: ForwardRecord, layer: nn.Module, x: Tensor) -> Tensor:
        self._record = None
        try:
            out = torch.func.functional_call(layer, {name: p.detach() for name, p in layer.named_parameters()}, x)
        finally:
            self._record = record
        return self._watched(record, self._use(layer, x, False), out, _take_other)

    def _use(self, layer: nn.Module, x: Tensor, by_gram: bool) -> Use:
        return Use(self._names[layer], layer, [x.detach()], x._version, by_gram)

    def _watched(
        self, record: ForwardRecord, use: Use, out: Tensor, take: Callable[[ForwardRecord, Use, Tensor], None]
    ) -> Tensor:
        self._check_rows(use.layer, "gives", [out], record.images)
        record.uses.append(use)
        if not out.requires_grad:
            anchor = torch.zeros((), device=out.device, requires_grad=True)
            out = _Start.apply(out, anchor)  # type: ignore[no-untyped-call]
        out.register_hook(partial(take, record, use))  # type: ignore[no-untyped-call]
        return out


def _take_matrix_product(record: ForwardRecord, use: Use, g: Tensor) -> None:
    layer: Any = use.layer
    x = use.pop()
    if layer.bias is not None and layer.bias.requires_grad:
        record.keep(layer.bias, bias_by_image(layer, g))
    if use.by_gram:
        # Norm and sum are computed apart: both in the weight's precision, so that they are of the same gradient.
        record.by_gram.append(GramUse(layer, x.to(layer.weight.dtype), g.to(layer.weight.dtype)))
    elif layer.weight.requires_grad:
        record.keep_weight(layer, x.to(g.dtype), g)


def _take_other(record: ForwardRecord, use: Use, g: Tensor) -> None:
    from opacus.grad_sample.functorch import ft_compute_per_sample_gradient

    # Not by Opacus's sampler for the layer's type: for a Conv2d with circular padding, say, that one is silently wrong.
    for p, grads in ft_compute_per_sample_gradient(use.layer, [use.pop()], g).items():
        if p.requires_grad:
            record.keep(p, grads)
