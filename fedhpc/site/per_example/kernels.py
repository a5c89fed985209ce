"""Weight gradients of single images in convolutions and Linear layers, and inner products of them without making them.

Everything here is private: x [n, ...] is a layer's input and g [n, ...] the gradient of the loss at its output, image
by image. There are several exact ways to the same numbers, and which is cheapest depends on the shapes. It is chosen by
shapes alone, never by a measurement: that would differ from run to run, and with it the last bits of the model.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight, conv3d_weight

from fedhpc.site.per_example.unit_order import RowPair

Convolution = nn.Conv2d | nn.Conv3d
Layer = Convolution | nn.Linear

CHANNEL_BLOCK = 8  # oneDNN's grouped kernels work on blocks of 8 channels
BULKY_ENTRIES = 2**20  # gradients of fewer entries, of all images of a layer, are never too large to keep


@dataclass(frozen=True)
class Costs:
    """What decides between the ways on one type of device, in multiply-adds.

    Attributes:
        keep_entry: to write, square and sum one entry of one image's gradient.
        add_entry: to add one entry of a shifted block of a Gram matrix.
        gram: two dozen more calls of torch, and the weighted sum's start.
        unfolded_entries: what is unfolded at a time.
    """

    keep_entry: int
    add_entry: int
    gram: int
    unfolded_entries: int


COSTS = {
    # As timed in float32 on one AVX-512 core, which does about 4e10 multiply-adds a second. 2 MB are a core's cache.
    "cpu": Costs(keep_entry=50, add_entry=10, gram=6_000_000, unfolded_entries=2**19),
    # By an H200: 2.5e13 multiply-adds a second in float32, 4.2e12 bytes, 5 us a call. 0.5 GB keep it busy.
    "cuda": Costs(keep_entry=100, add_entry=70, gram=3_000_000_000, unfolded_entries=2**27),
}


def costs_of(t: Tensor) -> Costs:
    """Return the costs on the device that a tensor lies on; those of a GPU for any that is not the CPU."""
    return COSTS["cpu" if t.device.type == "cpu" else "cuda"]


@dataclass(frozen=True)
class GradKernel:
    """One way to the gradients of each image.

    `write(layer, x, g, out)` fills out [n, weights], each image's entries in an order of the way's own;
    `natural(layer, v)` brings v [..., weights] into the weight's order and shape [..., *weight.shape].
    """

    write: Callable[[Any, Tensor, Tensor, Tensor], None]
    natural: Callable[[Any, Tensor], Tensor]


def handles(layer: nn.Module) -> bool:
    """Whether these functions know the layer: of these very types, with a plain weight and zero padding in numbers."""
    if "weight" not in layer._parameters:
        return False
    if type(layer) in (nn.Conv2d, nn.Conv3d):
        return layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return type(layer) is nn.Linear


def is_pointwise(layer: Convolution) -> bool:
    """Return whether each output position sees one input pixel, of all channels."""
    return layer.groups == 1 and all((k, p) == (1, 0) for k, _, p, _ in _axes(layer))


def can_unfold_gradient(layer: Convolution) -> bool:
    """Whether input pixels meet the output's gradient as output positions meet the input: by a kernel of stride 1."""
    return layer.groups == 1 and all(s == 1 and p <= d * (k - 1) for k, s, p, d in _axes(layer))


def kernel_of(layer: Layer, x: Tensor, g: Tensor) -> GradKernel:
    """Return the cheapest kernel for input x [n, ...] and output gradient g [n, ...], by their shapes alone."""
    if isinstance(layer, nn.Linear):
        return LINEAR
    if is_pointwise(layer):
        return POINTWISE
    if can_unfold_gradient(layer) and g.shape[1:].numel() < x.shape[1:].numel():
        return UNFOLDED_GRADIENT
    inputs, outputs = layer.in_channels // layer.groups, layer.out_channels // layer.groups
    # A grouped kernel re-orders what it returns, which must be little beside what it reads.
    blocked = inputs % CHANNEL_BLOCK == 0 and outputs % CHANNEL_BLOCK == 0 and g.shape[2:].numel() >= 2 * outputs
    planar = isinstance(layer, nn.Conv2d)
    return (
        BATCH_AS_GROUPS
        if blocked and planar and x.device.type == "cpu" and g.dtype == torch.float32
        else UNFOLDED_INPUT
    )


def prefers_gram(layer: Layer, x: Tensor, g: Tensor, pairs: int) -> bool:
    """Whether `inner_products` and later a `weighted_sum` cost less than to make the images' gradients and keep them.

    Args:
        layer: the layer.
        x: its input; only the shape is used.
        g: its output, or the gradient there; only the shape is used.
        pairs: of how many pairs of images the inner product is needed: n where each image is its own unit.
    """
    n, weights, costs = len(x), layer.weight.numel(), costs_of(x)
    if isinstance(layer, nn.Linear):
        gram = (x.shape[1:].numel() // layer.in_features) ** 2 * (layer.in_features + layer.out_features)
    elif layer.groups > 1:
        return False
    else:
        pixels, positions, taps = x.shape[2:].numel(), g.shape[2:].numel(), math.prod(layer.kernel_size)
        gram = pixels**2 * layer.in_channels + positions**2 * (layer.out_channels + costs.add_entry * taps)
    # Gradients far larger than x and g are not kept even where that is quicker: Gram matrices are cheap then, too.
    bulky = n * weights > BULKY_ENTRIES and weights > 4 * (x.shape[1:].numel() + g.shape[1:].numel())
    return bulky or pairs * gram + costs.gram < n * weights * costs.keep_entry


def inner_products(layer: Layer, x: Tensor, g: Tensor, pairs: Sequence[RowPair]) -> Tensor:
    """Return inner products of the weight gradients of pairs of images, [k] (private).

    A gradient is a sum of outer products over output positions, so it is the sum, over pairs of positions, of
    <g, g'> <patch, patch'> (Goodfellow 2015 for one position; Li et al. 2021, section 4, for several). Where a gradient
    cancels to a small part of |x| |g|, its norm is less exact than its entries, by that ratio: `gross_norms` bounds it.

    Args:
        layer: the layer.
        x: its input, [n, ...] (private).
        g: the gradient at its output, [n, ...] (private).
        pairs: equally long slices of the batch; image meets image row by row, and the results lie end to end.
    """
    if isinstance(layer, nn.Linear):
        x, g = _rows(x).transpose(1, 2), _rows(g).transpose(1, 2)
    gram_of_inputs = _gram if isinstance(layer, nn.Linear) else _patch_gram(layer, g.shape[2:])
    step = max(1, 2 * costs_of(x).unfolded_entries // max(x.shape[2:].numel() ** 2, g.shape[2:].numel() ** 2))
    products = []
    for a, b in pairs:
        parts = zip(*(torch.split(t[rows], step) for t in (x, g) for rows in (a, b)), strict=True)
        for xa, xb, ga, gb in parts:
            products.append(torch.linalg.vecdot(gram_of_inputs(xa, xb).flatten(1), _gram(ga, gb).flatten(1)))
    return torch.cat(products)


def gross_norms(layer: Layer, x: Tensor, g: Tensor) -> Tensor:
    """Return the sum over output positions of |patch| |g| of each image, [n] (private).

    The image's weight gradient is no longer, and what rounding adds to its square in `inner_products` is a share of the
    square of this.

    Args:
        layer: the layer.
        x: its input, [n, ...] (private).
        g: the gradient at its output, [n, ...] (private).
    """
    if isinstance(layer, nn.Linear):
        products: Tensor = torch.linalg.vector_norm(_rows(x), dim=2) * torch.linalg.vector_norm(_rows(g), dim=2)
        return products.sum(1)
    squares = torch.linalg.vecdot(x, x, dim=1).unsqueeze(1)
    around = F.pad(squares, _around([p for *_, p, _ in _axes(layer)]))
    total = torch.zeros_like(g[:, :1])
    for tap in _taps(layer, g.shape[2:]):
        total += around[(slice(None), slice(None), *tap)]
    products = total.sqrt_().squeeze(1) * torch.linalg.vector_norm(g, dim=1)
    return products.flatten(1).sum(1)


def weighted_sum(layer: Layer, x: Tensor, g: Tensor, factor: Tensor) -> Tensor:
    """Return the sum over images of factor [n] times the image's weight gradient, in the weight's shape."""
    g = g * factor.view(-1, *[1] * (g.ndim - 1))
    if isinstance(layer, nn.Linear):
        return g.reshape(-1, layer.out_features).t() @ x.reshape(-1, layer.in_features)
    return _summed(layer, x, g, 1)


def bias_by_image(layer: Layer, g: Tensor) -> Tensor:
    """Return the bias's gradient of each image [n, outputs]."""
    return _rows(g).sum(1) if isinstance(layer, nn.Linear) else g.flatten(2).sum(2)


def _axes(layer: Convolution) -> list[tuple[int, int, int, int]]:
    """(kernel size, stride, padding, dilation) along each axis of the image."""
    if isinstance(layer.padding, str):
        raise ValueError(f"padding={layer.padding!r}: only numbers are handled")
    return list(zip(layer.kernel_size, layer.stride, layer.padding, layer.dilation, strict=True))


def _summed(layer: Convolution, x: Tensor, g: Tensor, images: int) -> Tensor:
    """The weight gradient summed over the batch, of a layer with `images` times as many groups and output channels."""
    shape = (images * layer.out_channels, *layer.weight.shape[1:])
    groups = images * layer.groups
    weight: Callable[..., Tensor] = conv2d_weight if isinstance(layer, nn.Conv2d) else conv3d_weight
    return weight(x, shape, g, layer.stride, layer.padding, layer.dilation, groups)


def _rows(t: Tensor) -> Tensor:
    """[n, ..., d] -> [n, positions, d]."""
    return t.reshape(len(t), -1, t.shape[-1])


def _write_linear(layer: nn.Linear, x: Tensor, g: Tensor, out: Tensor) -> None:
    torch.bmm(_rows(g).transpose(1, 2), _rows(x), out=out.view(len(x), *layer.weight.shape))


def _write_pointwise(layer: Convolution, x: Tensor, g: Tensor, out: Tensor) -> None:
    every = [slice(None), slice(None), *(slice(None, None, step) for step in layer.stride)]
    seen = x[tuple(every)].flatten(2)
    torch.bmm(g.flatten(2), seen.transpose(1, 2), out=out.view(len(x), layer.out_channels, layer.in_channels))


def _write_batch_as_groups(layer: Convolution, x: Tensor, g: Tensor, out: Tensor) -> None:
    """The batch as one image of n times as many channels and groups: a weight gradient keeps its groups apart."""
    joined = [t.reshape(1, -1, *t.shape[2:]) for t in (x, g)]
    out.copy_(_summed(layer, joined[0], joined[1], len(x)).view(out.shape))


def _write_unfolded_input(layer: Convolution, x: Tensor, g: Tensor, out: Tensor) -> None:
    """A matrix product for each image and group: the input's patches with g. Order: (group, in, kernel, out)."""
    groups, positions = layer.groups, g.shape[2:].numel()
    entries = layer.weight.numel() // layer.out_channels
    out = out.view(len(x), groups, entries, -1)
    step = max(1, costs_of(x).unfolded_entries // (groups * entries * positions))
    for at in range(0, len(x), step):
        taken = slice(at, at + step)
        patches = _patches(layer, x[taken], [p for *_, p, _ in _axes(layer)], g.shape[2:])
        patches = patches.reshape(-1, groups, entries, positions)
        # Patches on the left: the other way round is up to six times slower where their number is odd.
        grad = g[taken].reshape(-1, groups, out.shape[3], positions).transpose(2, 3)
        if groups == 1:
            torch.bmm(patches[:, 0], grad[:, 0], out=out[taken, 0])
        else:
            out[taken] = patches @ grad


def _write_unfolded_gradient(layer: Convolution, x: Tensor, g: Tensor, out: Tensor) -> None:
    """The same for stride 1 with g unfolded instead, which is less where it is smaller.

    Input pixel m meets g at m - tap * dilation + padding. Order: (out, kernel reversed, in).
    """
    entries, pixels = layer.weight.numel() // layer.in_channels, x.shape[2:].numel()
    out = out.view(len(x), entries, layer.in_channels)
    step = max(1, costs_of(x).unfolded_entries // (entries * pixels))
    for at in range(0, len(x), step):
        taken = slice(at, at + step)
        patches = _patches(layer, g[taken], [d * (k - 1) - p for k, _, p, d in _axes(layer)], x.shape[2:])
        torch.bmm(patches.reshape(-1, entries, pixels), x[taken].flatten(2).transpose(1, 2), out=out[taken])


def _patches(layer: Convolution, t: Tensor, padding: list[int], size: torch.Size) -> Tensor:
    """What the kernel sees at `size` places of t [n, C, ...]: [n, C, *kernel, *size], a view of t with its padding."""
    t = F.pad(t, _around(padding))
    image, channel, *along = t.stride()
    taps = [a * d for a, (_, _, _, d) in zip(along, _axes(layer), strict=True)]
    steps = [a * s for a, (_, s, _, _) in zip(along, _axes(layer), strict=True)]
    return t.as_strided((*t.shape[:2], *layer.kernel_size, *size), (image, channel, *taps, *steps))


def _around(padding: Sequence[int]) -> list[int]:
    """Return the padding of each axis as `F.pad` takes it: before and behind, from the last axis on."""
    return [p for along in reversed(padding) for p in (along, along)]


def _as_is(layer: Layer, v: Tensor) -> Tensor:
    return v.view(*v.shape[:-1], *layer.weight.shape)


def _from_unfolded_input(layer: Convolution, v: Tensor) -> Tensor:
    grouped = v.view(*v.shape[:-1], layer.groups, -1, layer.out_channels // layer.groups)
    return grouped.transpose(-1, -2).reshape(*v.shape[:-1], *layer.weight.shape)


def _from_unfolded_gradient(layer: Convolution, v: Tensor) -> Tensor:
    dims = len(layer.kernel_size)
    taps = v.view(*v.shape[:-1], layer.out_channels, *layer.kernel_size, -1).flip([-2 - axis for axis in range(dims)])
    return taps.movedim(-1, -1 - dims)


LINEAR = GradKernel(_write_linear, _as_is)
POINTWISE = GradKernel(_write_pointwise, _as_is)
BATCH_AS_GROUPS = GradKernel(_write_batch_as_groups, _as_is)
UNFOLDED_INPUT = GradKernel(_write_unfolded_input, _from_unfolded_input)
UNFOLDED_GRADIENT = GradKernel(_write_unfolded_gradient, _from_unfolded_gradient)


def _gram(a: Tensor, b: Tensor) -> Tensor:
    """[k, C, *positions] twice -> [k, positions of a, positions of b]."""
    return a.flatten(2).transpose(1, 2) @ b.flatten(2)


def _patch_gram(layer: Convolution, size: torch.Size) -> Callable[[Tensor, Tensor], Tensor]:
    """The same of the patches of a and b [k, C, ...] -> [k, L, L], for an output of L positions of shape `size`.

    Without the patches: the sum, over kernel taps, of shifted blocks of the pixels' Gram matrix.
    """
    padding = _around([p for *_, p, _ in _axes(layer)])

    def gram(a: Tensor, b: Tensor) -> Tensor:
        pixels = F.pad(_gram(a, b).view(len(a), *a.shape[2:], *a.shape[2:]), padding * 2)
        total = pixels.new_zeros(len(a), *size, *size)
        for tap in _taps(layer, size):
            total += pixels[(slice(None), *tap, *tap)]
        return total

    return gram


def _taps(layer: Convolution, size: torch.Size) -> list[tuple[slice, ...]]:
    """Return, for each kernel tap, which pixels of a padded image it meets at the output positions of shape `size`."""
    along = [
        [slice(t * d, t * d + s * (extent - 1) + 1, s) for t in range(k)]
        for (k, s, _, d), extent in zip(_axes(layer), size, strict=True)
    ]
    return list(itertools.product(*along))
