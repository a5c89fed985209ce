"""Removing the noise of a release by finding its seed: it worked on torch's generator, and must not work any more.

The rows of a linear head's clipped gradient add up to zero (softmax), so the rows of a release add up to pure noise:
whoever tries seeds knows for certain when the right one is found. torch's CPU generator has 2^32 of them.
"""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from fedhpc.privacy.gaussian import grid_of
from fedhpc.privacy.noise import source
from fedhpc.site.per_example.clipped_sum import MARGIN
from fedhpc.site.training.dp_sgd import NoiseConfig, Units, entropy
from fedhpc.util.rng import seed_of
from tests.support.releases import released_by

FEATURES, CLASSES, CLIP_NORM, NOISE_MULTIPLIER = 40, 3, 0.5, 2.0
STD = NOISE_MULTIPLIER * CLIP_NORM * (1 + MARGIN)
SEEDS = range(1000)


def victim() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, CLASSES)), torch.randn(1, FEATURES), torch.tensor([1])


def released_rows(noise_seed: int | None) -> Tensor:
    """The weight's part of one private step on one patient, float32 [CLASSES, FEATURES]."""
    model, images, labels = victim()
    fresh = entropy(noise_seed, "site1", 0)
    terms = NoiseConfig(CLIP_NORM, NOISE_MULTIPLIER, 1.0, fresh.noise)
    return released_by(model, (images, labels), terms)[0][0]


def old_release(seed: int) -> Tensor:
    """What was released before: float32 noise of torch's generator."""
    model, images, labels = victim()
    nn.functional.cross_entropy(model(images), labels).backward()
    gradients = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    clipped = gradients * min(1.0, CLIP_NORM / float(gradients.norm()))
    return (clipped + torch_noise(seed))[: CLASSES * FEATURES].view(CLASSES, FEATURES)


def torch_noise(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.normal(0.0, STD, (CLASSES * (FEATURES + 1),), generator=generator)


def global_noise(seed: int) -> Tensor:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return STD * torch.randn(CLASSES * (FEATURES + 1))


def numpy_noise(seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(0, STD, CLASSES * (FEATURES + 1)))


def search(rows: Tensor, seeds: Iterable[int], generate: Callable[[int], Tensor]) -> list[int]:
    """The seeds whose noise has the row sums of the release, to the rounding of float32."""
    sums = rows.double().sum(0)
    found = []
    for seed in seeds:
        theirs = generate(seed)[: CLASSES * FEATURES].double().view(CLASSES, FEATURES).sum(0)
        if float((sums - theirs).norm() / sums.norm()) < 1e-3:
            found.append(seed)
    return found


def test_seed_search_finds_torchs_noise() -> None:
    """The control: the attack works, also on a seed of which only the low 32 bits are searched."""
    rows = old_release(777 + (7 << 32))
    assert search(rows, SEEDS, torch_noise) == [777]
    exact = rows - torch_noise(777)[: CLASSES * FEATURES].view(CLASSES, FEATURES)
    assert exact.sum(0).abs().max() < 1e-5
    assert exact.norm() == pytest.approx(CLIP_NORM, rel=0.1)


@pytest.mark.parametrize("generate", [torch_noise, global_noise, numpy_noise])
@pytest.mark.parametrize("noise_seed", [None, 777])
def test_seed_search_finds_no_release(noise_seed: int | None, generate: Callable[[int], Tensor]) -> None:
    """Neither the low seeds nor those that the code once derived from noise_seed, site and round, whole or cut."""
    derived = [seed_of(noise_seed or 0, "site1", 0, purpose) for purpose in ("noise", "sampling", "skellam")]
    seeds = [*SEEDS, *derived, *(seed % 2**32 for seed in derived)]
    assert search(released_rows(noise_seed), seeds, generate) == []


def test_training_reads_no_other_generator(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's and numpy's generators set to the same state, two releases have nothing in common."""
    releases = []
    for _ in range(2):
        torch.manual_seed(0)
        np.random.seed(0)
        releases.append(released_rows(None))
    assert abs(float(torch.corrcoef(torch.stack([r.reshape(-1) for r in releases]))[0, 1])) < 0.6
    calls: list[int] = []
    real = os.urandom
    monkeypatch.setattr("fedhpc.privacy.noise.os.urandom", lambda n: calls.append(n) or real(n))
    released_rows(None)
    assert calls == [32, 32]


@pytest.mark.parametrize("bit", [31, 32, 33, 63, 64, 127])
def test_seeds_that_differ_in_one_high_bit_share_nothing(bit: int) -> None:
    one, other = (released_rows(5 ^ flipped).double() for flipped in (0, 1 << bit))
    difference = (one - other).reshape(-1).numpy() / (STD * 2**0.5)
    assert stats.kstest(difference, "norm").pvalue > 1e-7
    units = Units(tuple(np.array([i]) for i in range(200)), 1)
    draws = [units.draw(0.5, source(5 ^ flipped, "site1", 0, "sampling")) for flipped in (0, 1 << bit)]
    assert [int(rows[0]) for rows in draws[0]] != [int(rows[0]) for rows in draws[1]]


def test_row_sums_tell_nothing_of_the_rest() -> None:
    """They are Gaussian of the row count's variance, on the grid, and independent of the differences of rows.

    The noise is fresh. Products of squares have a skewness of 8 and a kurtosis of 225: by Edgeworth's expansion their
    mean over 12,000 is beyond 6.5 standard errors with a chance of 4.5e-9 (5.5 over 8,000: 6.5e-7, three times 2e-6).
    """
    rows = torch.stack([released_rows(None).double() for _ in range(300)]).numpy()
    sums = rows.sum(1)
    assert stats.kstest(sums.reshape(-1) / (STD * CLASSES**0.5), "norm").pvalue > 1e-7
    units = sums / grid_of(STD)
    assert np.abs(units - np.rint(units)).max() < 1e-3
    centred = rows - rows.mean(0)
    for first, second in ((0, 1), (1, 2), (0, 2)):
        difference = (centred[:, first] - centred[:, second]).reshape(-1)
        for of_sums, of_difference in ((sums, difference), (sums**2, difference**2)):
            correlation = np.corrcoef((of_sums - of_sums.mean(0)).reshape(-1), of_difference)[0, 1]
            assert abs(correlation) < 6.5 / len(difference) ** 0.5


def test_private_work_is_where_the_search_looks() -> None:
    """What is attacked here is what a hospital runs: its private rounds take their randomness from `entropy` alone."""
    text = (Path(__file__).parents[2] / "fedhpc" / "site" / "hospital.py").read_text(encoding="utf-8")
    assert text.count("entropy(") == 1
    assert "torch.Generator" not in text
