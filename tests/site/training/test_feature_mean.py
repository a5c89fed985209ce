"""What a site gives to the mean of the features: bounded by unit, exactly added, with the planned noise."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fedhpc.models.device import Device
from fedhpc.models.whitening import Whitening
from fedhpc.privacy.noise import source
from fedhpc.site.training.dp_sgd import Units
from fedhpc.site.training.feature_mean import Features, noisy_sum, shared_sum, whitened_sum
from fedhpc.site.training.secure_contribution import plan_grid

D, N, NOISE = 6, 40, 8.0
GRID = plan_grid(NOISE, D, (N, N), 2, 1)


class Samples:
    """Features that are far from length 1, some of them none at all."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.features = torch.from_numpy((rng.normal(size=(N, D)) * rng.uniform(0, 1e4, (N, 1))).astype(np.float32))
        self.features[3], self.features[4, 0] = 0.0, torch.nan
        self.labels, self.early = np.zeros(N, np.int64), np.zeros(N, bool)
        self.patient = np.array([b"%d" % (row // 2) for row in range(N)])

    def indices(self, split: str) -> np.ndarray:
        return np.arange(N)

    def inputs(self, rows: np.ndarray) -> torch.Tensor:
        return self.features[torch.from_numpy(rows)]


def features(unit: str = "image", batch: int = 7) -> Features:
    whitening, samples = Whitening(D, D), Samples()
    whitening.projection.copy_(torch.eye(D))
    device = Device(torch.device("cpu"), bf16=False)
    return Features(torch.nn.Sequential(whitening), samples, Units.of(samples, unit, 1), device, batch)


@pytest.mark.parametrize("unit", ["image", "patient"])
def test_one_unit_moves_the_sum_within_its_bound(unit: str) -> None:
    whole = features(unit)
    total = whitened_sum(whole, GRID, N)
    for left_out in range(len(whole.units.rows)):
        rows = whole.units.rows[:left_out] + whole.units.rows[left_out + 1 :]
        fewer = whitened_sum(replace(whole, units=replace(whole.units, rows=rows), batch=5), GRID, N)
        assert np.linalg.norm(total - fewer) <= GRID.l2


def test_patient_counts_as_the_mean_of_its_images() -> None:
    direct = torch.nn.functional.normalize(features().samples.inputs(np.arange(N)).double(), dim=1)
    pairs = direct.view(N // 2, 2, D).mean(dim=1)
    # A unit with a value that is no number counts as zeros.
    expected = pairs[~torch.isnan(pairs).any(dim=1)].sum(dim=0).numpy()
    found = whitened_sum(features("patient"), GRID, N) / GRID.clip_units
    assert np.allclose(found, expected, atol=N / GRID.clip_units)


def test_sum_stays_within_the_declared_weight() -> None:
    same = features()
    same.samples.features[:] = 1.0
    assert np.abs(whitened_sum(same, GRID, 2)).max() == GRID.bound(2)


def test_noise_is_as_planned() -> None:
    """The chance of a false alarm is below 1e-9: 20,000 values tell a standard deviation to within 0.5 %."""
    zeros = np.zeros(20_000, np.int64)
    local = noisy_sum(zeros, GRID, NOISE, source(None, "a", 0, "test"))
    assert np.std(local) == pytest.approx(NOISE * GRID.l2 / GRID.clip_units, rel=0.035)
    shares = sum(shared_sum(zeros, GRID, source(None, site, 0, "test")) for site in "ab")
    assert np.std(shares) == pytest.approx(NOISE * GRID.l2, rel=0.035)
    assert np.array_equal(noisy_sum(zeros + 5, GRID, 0.0, source(None, "a", 0, "test")), (zeros + 5) / GRID.clip_units)
