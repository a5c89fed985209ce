"""Opacus's modes, which the benchmark sets beside ours: without noise, all take the same step."""

import pytest
import torch
from torch import nn

from fedhpc.bench.dp_steps import Place, network
from fedhpc.bench.opacus_modes import MODES, OurSamplers, opacus_step
from fedhpc.site.training.dp_sgd import NoiseConfig, PrivateStep

IMAGES = 16


def stepped(mode: str) -> torch.Tensor:
    model = network("conv4", Place("cpu", 1, IMAGES, 32))
    torch.manual_seed(0)
    images, labels = torch.randn(IMAGES, 1, 32, 32), torch.randint(0, 2, (IMAGES,))
    terms = NoiseConfig(0.5, 0.0, IMAGES, torch.Generator())
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    if mode == "fedhpc":
        PrivateStep.wrap(model, optimizer, terms)(images, labels, torch.arange(IMAGES), last=True)
    else:
        opacus_step(mode, model, optimizer, terms)(images, labels)
    return torch.cat([p.detach().flatten() for p in model.parameters()])


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_all_modes_take_the_step_that_ours_takes() -> None:
    start = torch.cat([p.detach().flatten() for p in network("conv4", Place("cpu", 1, IMAGES, 32)).parameters()])
    ours = stepped("fedhpc") - start
    for mode in MODES:
        assert (stepped(mode) - start - ours).norm() < 1e-5 * ours.norm(), mode


def test_our_samplers_are_registered_for_one_class_alone() -> None:
    sampled = {type(layer): OurSamplers.GRAD_SAMPLERS[type(layer)] for layer in (nn.Conv2d(1, 1, 1), nn.Linear(1, 1))}
    inherited = super(OurSamplers, OurSamplers).GRAD_SAMPLERS
    assert all(inherited[kind] is not sampler for kind, sampler in sampled.items())
