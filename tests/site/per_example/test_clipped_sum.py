"""The clipped sum against torch.func, unit by unit; and what must never slip through unclipped."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from fedhpc.bench.dp_steps import Place, network
from fedhpc.errors import PrivacyError
from fedhpc.models.input_layer import with_input_layer
from fedhpc.site.per_example import clipped_sum
from fedhpc.site.per_example.clipped_sum import MARGIN, ClippedSum, squared_norms
from fedhpc.site.per_example.linear_head import LinearHead
from fedhpc.site.per_example.unit_order import UnitOrder
from tests.support.devices import DEVICES

SINGLE, SEVERAL = [0, 1, 2, 3, 4, 5, 6], [2, 0, 1, 1, 2, 2, 3]


def unit_gradients(model: nn.Module, images: Tensor, labels: Tensor, owner: Tensor) -> Tensor:
    """[units, d] by `torch.func`: each unit's mean over its images' gradients."""
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, parameters, (image[None],)), label[None])

    grads = vmap(grad(loss), (None, 0, 0), chunk_size=4)(trained, images, labels)
    rows = torch.cat([grads[name].reshape(len(images), -1) for name in trained], dim=1)
    return torch.stack([rows[owner == unit].mean(0) for unit in range(int(owner.max()) + 1)])


def clipped(model: nn.Module, images: Tensor, labels: Tensor, owner: Tensor, clip_norm: float) -> Tensor:
    """[d] by ours."""
    adder = ClippedSum(model, clip_norm)
    adder.add(images, labels, owner)
    adder.close()
    return adder.total


def relative_error(model: nn.Module, images: Tensor, owner: list[int]) -> float:
    """Of the sum, with a bound that bites for half of the units, relative to its norm."""
    torch.manual_seed(1)
    labels, units = torch.randint(0, 2, (len(images),)), torch.tensor(owner)
    grads = unit_gradients(model, images, labels, units)
    norms = grads.double().norm(dim=1).to(grads.dtype)
    clip_norm = float(norms.median())
    expected = ((clip_norm / norms).clamp(max=1)[:, None] * grads).sum(0)
    return float((clipped(model, images, labels, units, clip_norm) - expected).norm() / expected.norm())


@pytest.mark.parametrize("owner", [SINGLE, SEVERAL], ids=["image", "patient"])
@pytest.mark.parametrize("name", ["densenet_small", "conv4", "resnet18", "head"])
def test_sum_is_exact(name: str, owner: list[int]) -> None:
    torch.manual_seed(0)
    model, images = network(name, Place("cpu", 1, 7, 32)), torch.randn(7, 1, 32, 32)
    if name == "head":
        images = torch.randn(7, 1280)
    assert relative_error(model, images, owner) < 1e-5
    if name != "resnet18":
        assert relative_error(model.double(), images.double(), owner) < 1e-10


class Twice(nn.Module):
    """One layer used twice, one weight in two layers, and a layer that nothing comes of."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.norm = (
            nn.Conv2d(1, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.GroupNorm(2, 4),
        )
        self.tied, self.other = nn.Linear(4, 4), nn.Linear(4, 4)
        self.other.weight = self.tied.weight
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.again(self.norm(self.again(self.first(x)))))
        x = x.mean((2, 3))
        self.unused(x)
        return self.other(torch.tanh(self.tied(x)))


class Scaled(nn.Module):
    """A parameter of its own and a layer below."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.linear = nn.Parameter(torch.randn(6)), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x * self.scale) * self.scale


def behind_input_layer(network: nn.Module, channels: int) -> nn.Module:
    """With an input layer that has learned something."""
    model = with_input_layer(network, channels)
    for p in model.get_submodule("input_layer").parameters():
        nn.init.normal_(p, std=0.5)
    return model


OTHERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "shared": (Twice, (1, 6, 6)),
    "own parameter": (lambda: nn.Sequential(Scaled(), nn.Tanh(), nn.Linear(6, 2)), (6,)),
    "layer norm": (lambda: nn.Sequential(nn.Linear(6, 6), nn.LayerNorm(6), nn.Linear(6, 2)), (6,)),
    "sequence": (lambda: nn.Sequential(nn.Linear(6, 6), nn.Flatten(), nn.Linear(18, 2)), (3, 6)),
    "circular": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), nn.Flatten(), nn.Linear(50, 2)),
        (1, 5, 5),
    ),
    "same": (lambda: nn.Sequential(nn.Conv2d(1, 2, 2, padding="same"), nn.Flatten(), nn.Linear(50, 2)), (1, 5, 5)),
    "transposed": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.ConvTranspose2d(3, 2, 3), nn.Flatten(), nn.Linear(50, 2)),
        (1, 5, 5),
    ),
    "weight norm": (lambda: nn.Sequential(weight_norm(nn.Linear(6, 6)), nn.Tanh(), nn.Linear(6, 2)), (6,)),
    "in place": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False), nn.ReLU(inplace=True), nn.GroupNorm(2, 8), nn.Flatten(), nn.Linear(72, 2)
        ),
        (1, 5, 5),
    ),
    "input layer": (
        lambda: behind_input_layer(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Flatten(), nn.Linear(27, 2)), 2),
        (2, 5, 5),
    ),
    "volumes": (
        lambda: behind_input_layer(
            nn.Sequential(
                nn.Conv3d(1, 4, 3, 2, 1),
                nn.GroupNorm(2, 4),
                nn.Conv3d(4, 8, 1),
                nn.Tanh(),
                nn.Conv3d(8, 2, (1, 2, 3), padding=(0, 1, 1), dilation=(1, 2, 1)),
                nn.Flatten(),
                nn.Linear(36, 2),
            ),
            1,
        ),
        (1, 4, 6, 5),
    ),
    "pointwise": (
        lambda: nn.Sequential(nn.Conv2d(1, 3, 1), nn.Tanh(), nn.Conv2d(3, 2, 1, 2), nn.Flatten(), nn.Linear(18, 2)),
        (1, 5, 5),
    ),
}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("owner", [SINGLE, SEVERAL], ids=["image", "patient"])
@pytest.mark.parametrize("name", OTHERS)
def test_sum_is_exact_for_other_networks(name: str, owner: list[int]) -> None:
    torch.manual_seed(0)
    make, shape = OTHERS[name]
    images = torch.randn(7, *shape, dtype=torch.float64)
    assert relative_error(make().double(), images, owner) < 1e-10


def test_weight_gradients_that_are_not_made_are_exact_too() -> None:
    """Layers large enough that norms go by Gram matrices, on images and on sequences."""
    torch.manual_seed(0)
    convolutions = nn.Sequential(
        nn.Conv2d(1, 64, 3, 2, 1), nn.Conv2d(64, 128, 3, 2, 1), nn.Flatten(), nn.Linear(512, 2)
    )
    sequences = nn.Sequential(nn.Linear(8, 256), nn.Linear(256, 256), nn.Flatten(), nn.Linear(1024, 2))
    for model, shape in ((convolutions, (1, 8, 8)), (sequences, (4, 8))):
        images = torch.randn(40, *shape, dtype=torch.float64)
        for owner in (list(range(40)), [i // 3 for i in range(40)]):
            assert relative_error(model.double(), images, owner) < 1e-10


@pytest.mark.parametrize(
    "frozen", [["0.weight"], ["0.bias"], ["0.weight", "0.bias"], ["1.weight"], ["4.weight"]], ids=str
)
def test_frozen_parameters_are_left_alone(frozen: list[str]) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2)).double()
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    assert relative_error(model, torch.randn(7, 1, 5, 5, dtype=torch.float64), SEVERAL) < 1e-10
    assert all(model.get_parameter(name).grad is None for name in frozen)


class Escape(nn.Module):
    """Uses a layer's weight outside of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.linear(x), self.linear.weight)


class Pairs(nn.Module):
    """Two rows an image where the layer is."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.view(-1, 2)).view(len(x), 4)


class Changed(nn.Module):
    """Changes a layer's input after the layer has used it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        y = self.second(x)
        return y + x.mul_(2)


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "escape": (Escape, r"parameter linear\.weight: used outside"),
    "rows": (Pairs, r"layer linear takes \(6, 2\)"),
    "changed": (Changed, r"layer second: its input was changed in place"),
    "weight norm": (lambda: weight_norm(nn.Linear(4, 2, bias=False)), r"layer parametrizations\.weight takes"),
    "old weight norm": (lambda: nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 2))), "layer 0: .*deepcopy"),
    "batch norm": (lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False)), "1: batch norm mixes"),
    "statistics": (lambda: nn.Sequential(nn.InstanceNorm2d(4, affine=True, track_running_stats=True)), "0: .*buffers"),
    "two outputs": (lambda: nn.Sequential(nn.GRU(4, 4, batch_first=True)), "0: .*GRU"),
    "rows second": (lambda: nn.Sequential(nn.MultiheadAttention(4, 2)), "0: .*batch_first"),
    "all frozen": (lambda: nn.Linear(4, 2).requires_grad_(False), "no trained parameter"),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_clipped_is_refused_by_name(name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(PrivacyError, match=message):
        clipped(make(), torch.randn(3, 4), torch.tensor([0, 1, 0]), torch.tensor([0, 1, 1]), 1.0)


@pytest.mark.parametrize("name", ["conv4", "head"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e30])
def test_a_unit_without_a_finite_gradient_adds_nothing_and_spoils_nothing(name: str, value: float) -> None:
    torch.manual_seed(0)
    model = network(name, Place("cpu", 1, 7, 32))
    images = torch.randn(7, 1280) if name == "head" else torch.randn(7, 1, 32, 32)
    labels, owner = torch.tensor([0, 1, 0, 1, 0, 1, 0]), torch.tensor(SEVERAL)
    without = clipped(model, images[owner < 3], labels[owner < 3], owner[owner < 3], 0.5)
    images[owner == 3] = value
    with_it = clipped(model, images, labels, owner, 0.5)
    moved = (with_it - without).norm()
    assert torch.isfinite(with_it).all()
    assert moved <= 0.5 * (1 + 1e-5) if value == 1e30 else moved < 1e-5


def test_a_later_batch_is_not_told_of_an_earlier_one() -> None:
    """The memory is used again; a layer that the loss does not hang on must not bring back what was there."""
    torch.manual_seed(0)
    model = Twice()
    adder, labels, owner = ClippedSum(model, 1.0), torch.zeros(5, dtype=torch.int64), torch.arange(5)
    images = torch.randn(3, 5, 1, 6, 6)
    sums = []
    for batch in (*images, images[0]):
        adder.add(batch, labels, owner)
        sums.append(adder.total.clone())
        adder.clear()
    adder.close()
    torch.testing.assert_close(sums[0], sums[3], rtol=0, atol=0)
    assert (sums[0] != sums[1]).any()
    of_unused = dict(zip(dict(model.named_parameters()), adder.split(sums[3]), strict=True))["unused.weight"]
    assert not of_unused.any()


@pytest.mark.parametrize("name", ["densenet_small", "conv4", "head"])
def test_bf16_bounds_each_unit_as_fp32_does(name: str) -> None:
    torch.manual_seed(0)
    model = network(name, Place("cpu", 1, 7, 32))
    images = torch.randn(7, 1280) if name == "head" else torch.randn(7, 1, 32, 32)
    labels, owner = torch.tensor([0, 1, 0, 1, 0, 1, 0]), torch.tensor([0, 0, 0, 1, 1, 2, 3])
    full = clipped(model, images, labels, owner, 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        half = clipped(model, images, labels, owner, 0.01)
        without = clipped(model, images[3:], labels[3:], owner[3:] - 1, 0.01)
    assert half.dtype in (torch.float32, torch.float64)
    assert 0.01 * 0.99 < (half - without).norm() <= 0.01 * (1 + 1e-4)
    assert (half - full).norm() < 0.5 * full.norm()


@pytest.mark.parametrize("name", ["densenet_small", "conv4", "head"])
def test_single_unit_is_within_the_bound_in_float64(name: str) -> None:
    """What `privacy.max_physical_batch: 1` rests on: the length of just the vector that is added."""
    torch.manual_seed(0)
    model = network(name, Place("cpu", 1, 3, 32))
    images = torch.randn(3, 1280) if name == "head" else 5 * torch.randn(3, 1, 32, 32)
    total = clipped(model, images, torch.tensor([0, 1, 1]), torch.zeros(3, dtype=torch.int64), 0.01)
    assert 0.01 * (1 - 1e-6) < float(total.double().norm()) <= 0.01 * (1 + 2**-23)


def test_a_closed_sum_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(), nn.Linear(6, 2))
    images = torch.randn(4, 6)
    before, expected = [dict(module.__dict__) for module in model.modules()], model(images)
    adder = ClippedSum(model, 1.0)
    torch.testing.assert_close(model(images), expected)
    adder.close()
    assert [module.__dict__.keys() for module in model.modules()] == [kept.keys() for kept in before]


def test_norms_of_long_rows_keep_their_digits() -> None:
    rows = torch.randn(2, 3_000_001, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(squared_norms(rows).double(), rows.double().square().sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(squared_norms(rows[:, :7]), rows[:, :7].square().sum(1))


def test_precision_of_the_process_comes_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        clipped(nn.Linear(4, 2), torch.randn(3, 4), torch.tensor([0, 1, 0]), torch.arange(3), 1.0)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_precision_stays_full_until_the_last_thread_leaves() -> None:
    """Of two sites of a rank that train in threads, the first to end once gave TF32 back to the other's norms."""
    one, other = (clipped_sum._full_precision(torch.device("cpu")) for _ in range(2))
    torch.set_float32_matmul_precision("high")
    try:
        one.__enter__()
        other.__enter__()
        one.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "highest"
        other.__exit__(None, None, None)
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


@given(st.lists(st.integers(1, 5), min_size=1, max_size=8), st.randoms())
def test_turns_sum_over_units(sizes: list[int], random: object) -> None:
    """For units of any sizes in any order: sums, squared norms of sums, and values handed out and back."""
    owner = torch.tensor([unit for unit, size in enumerate(sizes) for _ in range(size)])
    owner = owner[torch.randperm(len(owner), generator=torch.Generator().manual_seed(random.randint(0, 99)))]  # type: ignore[attr-defined]
    turns, rows = UnitOrder.of(owner), torch.arange(3.0 * len(owner)).view(-1, 3)
    expected = torch.zeros(len(sizes), 3).index_add_(0, owner, rows)
    assert turns.sizes.tolist() == (sizes if max(sizes) == 1 else sorted(sizes, reverse=True))
    arranged = turns.arrange(rows)
    products = torch.cat([(arranged[a] * arranged[b]).sum(1) for a, b in turns.pairs()])
    assert turns.pair_count == len(products)
    squares = turns.pair_sums(products)
    sums = turns.unit_sums(arranged)
    torch.testing.assert_close(sums.square().sum(1), squares)
    torch.testing.assert_close(turns.in_batch(sums), expected[owner])


def test_logits_of_a_head_do_not_depend_on_the_batch_whatever_its_weights() -> None:
    """Weights of an aggregator that let every logit cancel: then the last bits of a product are all there is of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Identity(), nn.Linear(48, 2))
    with torch.no_grad():
        model[1].weight.mul_(1e20)
    head = LinearHead.of(model)
    assert head is not None
    x = torch.randn(200, 48, dtype=torch.float64)
    owner, labels = torch.arange(200), torch.zeros(200, dtype=torch.int64)
    whole = head.residuals(x, labels, owner)
    for count in (1, 2, 3, 4, 5, 7, 17, 129):
        part = head.residuals(x[-count:], labels[:count], owner[:count])
        torch.testing.assert_close(part, whole[-count:], rtol=0, atol=0)


def padded_sum(model: nn.Module, rows: list[Tensor], clip_norm: float, multiple: int) -> Tensor:
    """[d] of images, labels and owner."""
    adder = ClippedSum(model, clip_norm, multiple)
    adder.add(*rows)
    adder.close()
    assert adder.largest == 2 * clip_norm * (int(rows[2].max()) + 1)
    return adder.total.clone()


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("owner", [SINGLE, SEVERAL], ids=["image", "patient"])
@pytest.mark.parametrize("name", ["densenet_small", "conv4", "head"])
def test_padding_adds_nothing(name: str, owner: list[int], where: str) -> None:
    """What it may change is the order in which a kernel adds the others; and it is in no count."""
    torch.manual_seed(0)
    model, images = network(name, Place(where, 1, 7, 32)).to(where), torch.randn(7, 1, 32, 32)
    images = torch.randn(7, 1280) if name == "head" else images
    rows = [part.to(where) for part in (images, torch.randint(0, 2, (7,)), torch.tensor(owner))]
    plain, padded = (padded_sum(model, rows, 0.1, multiple) for multiple in (0, 12))
    assert plain.norm() > 0.1
    assert (padded - plain).norm() < (1e-5 if where == "cpu" else 1e-3) * 0.1
    assert torch.equal(padded_sum(model, rows, 0.1, 7), plain) or where != "cpu"


class Undefined(nn.Module):
    """Not finite on an image of zeros, whose gradient is not a number either."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.square().sum(dim=1, keepdim=True).log())


def test_padding_without_a_finite_gradient_is_left_out() -> None:
    torch.manual_seed(0)
    model, images = Undefined(), torch.rand(4, 3) + 1
    rows = [images, torch.zeros(4, dtype=torch.int64), torch.arange(4)]
    assert torch.equal(padded_sum(model, rows, 0.5, 9), padded_sum(model, rows, 0.5, 0))
    images[2] = 0
    others = [torch.cat([part[:2], part[3:]]) for part in rows[:2]]
    expected = padded_sum(model, [*others, torch.arange(3)], 0.5, 0)
    adder = ClippedSum(model, 0.5, 9)
    adder.add(*rows)
    assert torch.equal(adder.total, expected)
    adder.close()


@pytest.mark.parametrize("name", ["densenet_small", "conv4"])
def test_one_unit_more_in_a_padded_batch_moves_the_sum_by_clip_norm(name: str) -> None:
    """The attack: neighbouring draws, padded to one shape, differ by no more than the noise is made for."""
    torch.manual_seed(0)
    model, images = network(name, Place("cpu", 1, 7, 32)), 100 * torch.randn(7, 1, 32, 32)
    rows = [images, torch.randint(0, 2, (7,)), torch.arange(7)]
    whole = padded_sum(model, rows, 0.1, 8).double()
    for left_out in range(7):
        kept = [part[torch.arange(7) != left_out] for part in rows[:2]]
        part = padded_sum(model, [*kept, torch.arange(6)], 0.1, 8).double()
        assert (whole - part).norm() <= 0.1 * (1 + MARGIN / 4)
