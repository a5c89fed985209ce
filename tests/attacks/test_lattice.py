"""Mironov 2012: low-order bits of a noisy float can prove that one of two neighbouring inputs is impossible.

Two worlds differ by one patient. A release excludes a world if nothing that could have been added to that world's sum
gives it. With float32 noise about one release in a hundred excludes the wrong world, a thousand times delta.
"""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.special import log_ndtr
from torch import Tensor, nn

from fedhpc.privacy.gaussian import grid_of
from fedhpc.privacy.noise import KeyStream
from fedhpc.site.per_example.clipped_sum import MARGIN, ClippedSum
from fedhpc.site.training.dp_sgd import NoiseConfig
from tests.support.releases import released_by

RELEASES = 4000
FEATURES = 3
CLIP_NORM, NOISE_MULTIPLIER = 0.5, 3.73
STD = NOISE_MULTIPLIER * CLIP_NORM * (1 + MARGIN)
F32 = np.float32


def head() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 2))


def world(patients: int) -> tuple[Tensor, Tensor]:
    """Images and labels of so many patients; the last one is the one in question."""
    torch.manual_seed(1)
    return torch.randn(2, FEATURES)[:patients], torch.tensor([0, 1])[:patients]


def true_sum(patients: int) -> np.ndarray:
    clipped = ClippedSum(head(), CLIP_NORM)
    images, labels = world(patients)
    clipped.add(images, labels, torch.arange(patients))
    clipped.close()
    return clipped.total.numpy().copy()


def excludes(releases: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Which releases, float32 [n, d], no float32 noise gives when added to this sum in float32: the old attack."""
    total = total.astype(F32)
    noise = (releases.astype(np.float64) - total).astype(F32)
    explained = np.zeros(releases.shape, np.bool_)
    for candidate in (noise, np.nextafter(noise, F32(np.inf)), np.nextafter(noise, F32(-np.inf))):
        explained |= total + candidate == releases
    return ~explained.all(axis=1)


def log_likelihood(units: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Of releases in units of the grid [n, d] from this sum: log of the normal probability of each rounding cell."""
    grid = grid_of(STD)
    low, high = ((units + side) * grid - total for side in (-0.5, 0.5))
    far, near = -np.minimum(np.abs(low), np.abs(high)) / STD, -np.maximum(np.abs(low), np.abs(high)) / STD
    both = log_ndtr(far) + np.log1p(-np.exp(log_ndtr(near) - log_ndtr(far)))
    across = np.log(np.maximum(stats.norm.cdf(high / STD) - stats.norm.cdf(low / STD), 1e-300))
    return np.where(low * high > 0, both, across).sum(axis=1)


@pytest.fixture(scope="module")
def releases() -> dict[int, np.ndarray]:
    """By the number of patients, float32 [RELEASES / 2, d]: what the optimiser gets, from the code as it is."""
    terms = NoiseConfig(CLIP_NORM, NOISE_MULTIPLIER, 1.0, KeyStream.of_seed(2))
    found = {patients: released_by(head(), world(patients), terms, RELEASES // 2) for patients in (1, 2)}
    return {
        patients: np.stack([torch.cat([p.reshape(-1) for p in parts]).numpy() for parts in many])
        for patients, many in found.items()
    }


def test_float32_noise_excludes_worlds() -> None:
    """The control: with torch.normal in float32, as it was, a release in hundreds is a proof."""
    generator = torch.Generator().manual_seed(0)
    sums = {patients: true_sum(patients) for patients in (1, 2)}
    wrong = 0
    for patients, other in ((1, 2), (2, 1)):
        total = torch.from_numpy(sums[patients]).float()
        noise = torch.normal(0.0, STD, (RELEASES // 2, len(total)), generator=generator)
        old = (total + noise).numpy()
        assert not excludes(old, sums[patients]).any()
        wrong += int(excludes(old, sums[other]).sum())
    assert wrong > 5


def test_every_release_is_possible_in_both_worlds(releases: dict[int, np.ndarray]) -> None:
    """All are on one public grid, and none is less likely in the other world than the Gaussian mechanism allows."""
    sums = {patients: true_sum(patients) for patients in (1, 2)}
    shift = float(np.linalg.norm(sums[2] - sums[1]))
    assert 0.9 * CLIP_NORM < shift <= CLIP_NORM * (1 + MARGIN)
    for patients, other in ((1, 2), (2, 1)):
        units = releases[patients].astype(np.float64) / grid_of(STD)
        np.testing.assert_array_equal(units, np.rint(units))
        loss = log_likelihood(units, sums[patients]) - log_likelihood(units, sums[other])
        # The loss of the Gaussian mechanism is N(shift^2 / (2 std^2), (shift / std)^2).
        mean, deviation = shift**2 / (2 * STD**2), shift / STD
        assert stats.kstest((loss - mean) / deviation, "norm").pvalue > 1e-7
        assert loss.max() < mean + 6.5 * deviation


def test_old_attack_proves_nothing(releases: dict[int, np.ndarray]) -> None:
    """It rules out the right world as often as the wrong one, so that what it says is no evidence."""
    counts = np.array([[excludes(releases[true], true_sum(tried)).sum() for tried in (1, 2)] for true in (1, 2)])
    assert stats.fisher_exact(counts + 1).pvalue > 1e-7


def test_low_bits_tell_nothing(releases: dict[int, np.ndarray]) -> None:
    """Uniform in both worlds, entry by entry and together, though the true sums have other low bits."""
    low = {n: np.rint(found.astype(np.float64) / grid_of(STD)).astype(np.int64) & 15 for n, found in releases.items()}
    for bits in low.values():
        assert all(stats.chisquare(np.bincount(entry, minlength=16)).pvalue > 1e-8 for entry in bits.T)
    tables = [np.bincount(bits.reshape(-1), minlength=16) for bits in low.values()]
    assert stats.chi2_contingency(tables).pvalue > 1e-7
