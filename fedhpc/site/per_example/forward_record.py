"""What a forward pass recorded, and where one backward pass leaves each image's gradients."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedhpc.errors import PrivacyError
from fedhpc.site.per_example.kernels import GradKernel, Layer, kernel_of


@dataclass
class Use:
    """One use of a layer in a forward pass, with its input [n, ...] until the backward pass comes by."""

    name: str
    layer: nn.Module
    inputs: list[Tensor]
    version: int
    by_gram: bool = False

    def pop(self) -> Tensor:
        """Return the input [n, ...] (private); only once, so that its memory is free afterwards.

        Raises:
            PrivacyError: where it has been changed in place since.
        """
        x = self.inputs.pop()
        if x._version != self.version:
            raise PrivacyError(
                f"layer {self.name}: its input was changed in place after it had been used, so the gradients of images "
                "cannot be told; change the network (inplace=False)",
                code="privacy.network",
            )
        return x


@dataclass(frozen=True)
class GramUse:
    """Input x [n, ...] and output gradient g [n, ...] of a layer whose weight gradients are not made (private)."""

    layer: Layer
    x: Tensor
    g: Tensor


@dataclass
class ForwardRecord:
    """What a forward pass recorded and its backward pass left (private).

    Attributes:
        images: n, how many the pass has seen.
        pairs: as in `fedhpc.site.per_example.kernels.prefers_gram`.
        uses: of the layers with weights, in the order of the forward pass.
        affine: (parameter, leaf with a copy for each image) of the scales and shifts.
        kept: [n, entries], the images' gradients of all parameters but the weights in `by_gram`.
        slots: the columns of `kept` that belong to a parameter.
        kernels: of a weight whose columns are in the order of its kernel, not in its own.
        shared: the parameters that are used more than once.
        written: the parameters that a gradient has come to.
        by_gram: what the norms of the other weights' gradients are computed from.
    """

    images: int
    pairs: int
    uses: list[Use] = field(default_factory=list)
    affine: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    kept: Tensor = field(default_factory=lambda: torch.empty(0))
    slots: dict[Tensor, Tensor] = field(default_factory=dict)
    kernels: dict[Tensor, tuple[Layer, GradKernel]] = field(default_factory=dict)
    shared: set[Tensor] = field(default_factory=set)
    written: set[Tensor] = field(default_factory=set)
    by_gram: list[GramUse] = field(default_factory=list)

    def plan(self, workspace: Callable[[int, int], Tensor]) -> None:
        """Decide between the two passes what is kept, and where in `workspace(n, entries)`, a tensor [n, entries]."""
        times = Counter[Tensor](p for use in self.uses for p in use.layer.parameters() if p.requires_grad)
        times.update(p for p, _ in self.affine)
        self.shared = {p for p, count in times.items() if count > 1}
        for use in self.uses:
            # The norm of a sum over uses is not told by the norms of its terms.
            use.by_gram = use.by_gram and use.layer.weight not in self.shared
        not_kept = {use.layer.weight for use in self.uses if use.by_gram}
        kept = [p for p in times if p not in not_kept]
        sizes = [p.numel() for p in kept]
        self.kept = workspace(self.images, sum(sizes))
        self.slots = dict(zip(kept, torch.split(self.kept, sizes, dim=1), strict=True))

    def keep(self, p: Tensor, grads: Tensor) -> None:
        """Take the images' gradients [n, *p.shape] from one use of a parameter."""
        slot = self.slots[p]
        grads = grads.reshape(slot.shape)
        slot.add_(grads) if p in self.written else slot.copy_(grads)
        self.written.add(p)

    def keep_weight(self, layer: Layer, x: Tensor, g: Tensor) -> None:
        """Take the images' weight gradients from input x [n, ...] and output gradient g [n, ...] of one use of a layer.

        They are written in place where one use is all there is.
        """
        kernel, slot = kernel_of(layer, x, g), self.slots[layer.weight]
        if layer.weight in self.shared or g.dtype != slot.dtype:
            out = torch.empty_like(slot, dtype=g.dtype)
            kernel.write(layer, x, g, out)
            self.keep(layer.weight, kernel.natural(layer, out))
        else:
            kernel.write(layer, x, g, slot)
            self.kernels[layer.weight] = layer, kernel
            self.written.add(layer.weight)

    def finish(self) -> None:
        """Collect, after the backward pass, from the leaves for scales and shifts; zero what nothing came to."""
        for p, leaf in self.affine:
            if leaf.grad is not None:
                self.keep(p, leaf.grad)
        for p in self.slots.keys() - self.written:
            self.slots[p].zero_()
