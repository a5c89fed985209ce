"""The bound on one unit in every precision, on the CPU and on a GPU: it is of the float32 sum that is released."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fedhpc.bench.dp_steps import Place, network
from fedhpc.models.device import Device
from fedhpc.site.per_example.clipped_sum import MARGIN, ClippedSum
from tests.support.devices import DEVICES

CLIP_NORM, UNITS, SIZE = 0.05, 9, 32
"""The bound bites for every unit of the networks below."""


@pytest.fixture(params=["fp32", "tf32", "bf16"])
def precision(request: pytest.FixtureRequest) -> Iterator[str]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if request.param == "tf32" else "highest")
    torch.backends.cudnn.allow_tf32 = request.param == "tf32"
    yield request.param
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def summed(model: nn.Module, device: Device, images: Tensor, owner: Tensor) -> Tensor:
    """The clipped sum, float64 [d] on the CPU."""
    labels = torch.arange(len(images), device=images.device) % 2
    adder = ClippedSum(model, CLIP_NORM)
    with device.autocast():
        adder.add(images, labels, owner)
    adder.close()
    return adder.total.double().cpu()


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("name", ["densenet_small", "conv4"])
def test_one_unit_moves_sum_by_clip_norm(name: str, where: str, precision: str) -> None:
    torch.manual_seed(0)
    device = Device(torch.device(where), precision == "bf16")
    model = network(name, Place(where, 1, UNITS, SIZE)).to(where)
    images, owner = torch.randn(UNITS, 1, SIZE, SIZE, device=where), torch.arange(UNITS, device=where)
    whole = summed(model, device, images, owner)
    assert whole.norm() > CLIP_NORM
    for kept in (range(1), range(UNITS - 1), range(UNITS // 2)):
        rows = torch.tensor(kept, device=where)
        rest = torch.tensor([row for row in range(UNITS) if row not in kept], device=where)
        part = summed(model, device, images[rows], owner[: len(rows)])
        assert part.norm() <= len(kept) * CLIP_NORM * (1 + MARGIN / 4)
        apart = whole - part
        assert apart.norm() <= len(rest) * CLIP_NORM * (1 + MARGIN / 4)
