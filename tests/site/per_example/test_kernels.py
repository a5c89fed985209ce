"""Every way to a layer's per-image gradients, norms and weighted sums, against one image at a time."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fedhpc.bench.dp_steps import Place, network
from fedhpc.site.per_example import kernels as grad_samplers
from fedhpc.site.per_example.clipped_sum import GRAM_ROUNDING, ClippedSum
from fedhpc.site.per_example.kernels import (
    Convolution,
    Layer,
    gross_norms,
    handles,
    inner_products,
    kernel_of,
    prefers_gram,
    weighted_sum,
)
from fedhpc.site.per_example.unit_order import RowPair


def one_by_one(layer: Layer, x: Tensor, g: Tensor) -> Tensor:
    """[n, *weight.shape] by autograd."""
    grads = []
    for i in range(len(x)):
        out = layer(x[i : i + 1])
        grads.append(torch.autograd.grad((out * g[i : i + 1]).sum(), layer.weight)[0])
    return torch.stack(grads)


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[Convolution, Tensor, Tensor]:
    """Layers with their inputs and output gradients, in float64."""
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    inputs, outputs = groups * draw(st.integers(1, 9)), groups * draw(st.integers(1, 9))
    kernel = draw(st.tuples(st.sampled_from([1, 2, 3, 7]), st.sampled_from([1, 3])))
    kernel = draw(st.sampled_from([kernel, kernel, (*kernel, 2), (1, 1, 1)]))
    stride, padding, dilation = draw(st.integers(1, 3)), draw(st.integers(0, 3)), draw(st.integers(1, 2))
    size = [max(1, dilation * (k - 1) + 1 - 2 * padding) + draw(st.integers(0, 6)) for k in kernel]
    torch.manual_seed(draw(st.integers(0, 99)))
    kind = nn.Conv2d if len(kernel) == 2 else nn.Conv3d
    layer = kind(inputs, outputs, kernel, stride, padding, dilation, groups, bias=draw(st.booleans())).double()
    x = torch.randn(draw(st.integers(1, 5)), inputs, *size, dtype=torch.float64)
    return layer, x, torch.randn_like(layer(x).detach())


@settings(max_examples=60)
@given(convolutions())
def test_convolution_gradients_are_those_of_each_image(case: tuple[Convolution, Tensor, Tensor]) -> None:
    layer, x, g = case
    expected = one_by_one(layer, x, g)
    for way in ways_for(layer):
        out = torch.full((len(x), layer.weight.numel()), torch.nan, dtype=x.dtype)
        way.write(layer, x, g, out)
        torch.testing.assert_close(way.natural(layer, out), expected, rtol=1e-10, atol=1e-10)


def ways_for(layer: Convolution) -> list[grad_samplers.GradKernel]:
    """Those that are valid for a layer, whatever they cost."""
    ways = [grad_samplers.UNFOLDED_INPUT, grad_samplers.BATCH_AS_GROUPS]
    if grad_samplers.is_pointwise(layer):
        ways.append(grad_samplers.POINTWISE)
    if grad_samplers.can_unfold_gradient(layer):
        ways.append(grad_samplers.UNFOLDED_GRADIENT)
    return ways


@settings(max_examples=60)
@given(convolutions())
def test_inner_products_and_weighted_sums_agree_with_the_gradients(case: tuple[Convolution, Tensor, Tensor]) -> None:
    layer, x, g = case
    grads = one_by_one(layer, x, g).flatten(1)
    factor = torch.rand(len(x), dtype=x.dtype)
    total = weighted_sum(layer, x, g, factor)
    torch.testing.assert_close(total.flatten(), factor @ grads, rtol=1e-10, atol=1e-10)
    if layer.groups == 1:
        ends = [RowPair(slice(0, k), slice(len(x) - k, len(x))) for k in range(1, len(x) + 1)]
        expected = torch.cat([(grads[a] * grads[b]).sum(1) for a, b in ends])
        torch.testing.assert_close(inner_products(layer, x, g, ends), expected, rtol=1e-9, atol=1e-8)
        assert (grads.norm(dim=1) <= gross_norms(layer, x, g) * (1 + 1e-9)).all()


@pytest.mark.parametrize("shape", [(5, 6), (5, 3, 6), (5, 2, 3, 6)], ids=str)
def test_linear_layers_on_vectors_and_on_sequences(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4).double(), torch.randn(shape, dtype=torch.float64)
    g = torch.randn_like(layer(x).detach())
    grads = one_by_one(layer, x, g)
    way, out = kernel_of(layer, x, g), torch.empty(5, 24, dtype=torch.float64)
    way.write(layer, x, g, out)
    torch.testing.assert_close(way.natural(layer, out), grads)
    torch.testing.assert_close(
        inner_products(layer, x, g, [RowPair(slice(0, 5), slice(0, 5))]), grads.flatten(1).square().sum(1)
    )
    assert (grads.flatten(1).norm(dim=1) <= gross_norms(layer, x, g) * (1 + 1e-9)).all()
    factor = torch.rand(5, dtype=torch.float64)
    torch.testing.assert_close(weighted_sum(layer, x, g, factor), torch.einsum("n,n...->...", factor, grads))


CANCELLING = [
    (nn.Conv2d(256, 32, 3, padding=1), (256, 8, 8)),
    (nn.Conv2d(512, 64, 1), (512, 8, 8)),
    (nn.Conv2d(16, 32, 3, stride=2, padding=1), (16, 16, 16)),
    (nn.Linear(1024, 4), (1024,)),
    (nn.Linear(128, 64), (49, 128)),
]


@pytest.mark.parametrize(("layer", "shape"), CANCELLING, ids=str)
def test_gram_rounding_is_within_a_quarter_of_its_bound(layer: Layer, shape: tuple[int, ...]) -> None:
    """Of images that are nearly constant, whose output gradients add up to zero, and of pairs that cancel."""
    torch.manual_seed(0)
    twin = copy.deepcopy(layer).double()
    x = (5 + torch.rand(1, *shape)).repeat(8, *[1] * len(shape))
    g = torch.randn_like(layer(x).detach())
    g -= g.flatten(2).mean(2).view(*g.shape[:2], *[1] * (g.ndim - 2)) if g.ndim > 3 else 0
    g[1::2] = -g[::2] * (1 + 1e-4)
    pairs = [RowPair(slice(0, 8), slice(0, 8)), RowPair(slice(0, 7), slice(1, 8))]
    exact = inner_products(twin, x.double(), g.double(), pairs)
    gross = gross_norms(layer, x, g).double()
    share = GRAM_ROUNDING * torch.finfo(torch.float32).eps / 4
    allowed = share * torch.cat([gross * gross, gross[:-1] * gross[1:]])
    assert ((inner_products(layer, x, g, pairs).double() - exact).abs() <= allowed).all()


@pytest.mark.parametrize(
    ("layer", "size", "way"),
    [
        (nn.Conv2d(32, 16, 1), 8, grad_samplers.POINTWISE),
        (nn.Conv2d(16, 16, 3, padding=1), 16, grad_samplers.BATCH_AS_GROUPS),
        (nn.Conv3d(16, 16, 3, padding=1), 8, grad_samplers.UNFOLDED_INPUT),
        (nn.Conv2d(1, 16, 7, 2, 3), 64, grad_samplers.UNFOLDED_INPUT),
        (nn.Conv2d(16, 64, 3, padding=1), 4, grad_samplers.UNFOLDED_INPUT),
        (nn.Conv2d(32, 8, 3, padding=1), 8, grad_samplers.UNFOLDED_GRADIENT),
    ],
)
def test_shapes_choose_the_way(layer: Convolution, size: int, way: grad_samplers.GradKernel) -> None:
    x = torch.zeros(2, layer.in_channels, *[size] * len(layer.kernel_size))
    assert kernel_of(layer, x, layer(x)) is way


def test_gram_matrices_are_for_many_weights_at_few_positions() -> None:
    def preferred(layer: Layer, *shape: int) -> bool:
        x = torch.zeros(64, *shape)
        return prefers_gram(layer, x, layer(x), pairs=64)

    assert preferred(nn.Conv2d(64, 128, 3, 2, 1), 64, 8, 8)
    assert preferred(nn.Linear(1280, 4), 1280)
    assert not preferred(nn.Conv2d(8, 8, 3, padding=1), 8, 32, 32)
    assert not preferred(nn.Conv2d(256, 256, 3, padding=1, groups=2), 256, 2, 2)


def test_only_exact_types_with_zero_padding_are_handled() -> None:
    class Scaled(nn.Linear):
        """Not what it seems."""

    assert handles(nn.Linear(2, 2))
    assert handles(nn.Conv2d(2, 2, 3, padding=1)) and handles(nn.Conv3d(2, 2, 3, padding=1))
    others = [
        nn.Conv2d(2, 2, 3, padding="same"),
        nn.Conv2d(2, 2, 3, padding=1, padding_mode="circular"),
        nn.Conv1d(2, 2, 3),
    ]
    assert not any(handles(layer) for layer in [*others, Scaled(2, 2)])


@pytest.mark.parametrize("name", ["densenet_small", "conv4"])
def test_costs_of_a_gpu_give_the_same_sum(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ways that are chosen on a GPU, on the CPU."""
    torch.manual_seed(0)
    model, images = network(name, Place("cpu", 1, 5, 64)), torch.randn(5, 1, 64, 64)
    totals = []
    for costs in (grad_samplers.COSTS["cpu"], grad_samplers.COSTS["cuda"]):
        monkeypatch.setitem(grad_samplers.COSTS, "cpu", costs)
        adder = ClippedSum(model, 0.1)
        adder.add(images, torch.arange(5) % 2, torch.tensor([0, 1, 1, 2, 3]))
        adder.close()
        totals.append(adder.total.clone())
    torch.testing.assert_close(totals[0], totals[1], rtol=1e-4, atol=1e-6)
