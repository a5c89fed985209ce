"""A site's part of a secure sum: exact integers, bounded sensitivity, the calibrated noise, and the gain."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fedhpc.config.privacy import Privacy
from fedhpc.config.schema import RunConfig
from fedhpc.config.training import Training
from fedhpc.errors import PrivacyError
from fedhpc.models.build import build_model
from fedhpc.models.device import Device
from fedhpc.models.task import Task
from fedhpc.models.vector import from_vector, parameter_count, to_vector
from fedhpc.privacy.noise import KeyStream, source
from fedhpc.privacy.plan import PrivacyPlan, plan_privacy
from fedhpc.privacy.skellam import calibrate, draw
from fedhpc.site.per_example.clipped_sum import MARGIN
from fedhpc.site.training.dp_sgd import Units, entropy
from fedhpc.site.training.local_sgd import LocalRound, PrivateWork, one_step, train_private
from fedhpc.site.training.secure_contribution import (
    LARGEST_SIZE,
    IntegerGrid,
    contribution,
    per_image_gradients,
    plan_grid,
    rounded_,
)

BENCH = Device(torch.device("cpu"), bf16=False)
SITES = ("a", "b", "c", "d")
PLAN = PrivacyPlan(12.8, 1.0, 1, "skellam")


def config(**privacy: object) -> RunConfig:
    tree = {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": [{"name": name, "weight": 10} for name in SITES]},
        "training": {"rounds": 10, "local_epochs": 1, "lr": 0.5, "weight_decay": 0.01},
        "exchange": {"density": 1},
        "privacy": {"epsilon": 1.0, "sample_rate": 1, "trust": "sites", "colluding_sites": 1, **privacy},
    }
    return RunConfig.model_validate(tree)


class FakeSamples:
    """Training images of patients, the given number of each."""

    def __init__(self, images: torch.Tensor, per_patient: Sequence[int]) -> None:
        self.images, n = images, sum(per_patient)
        assert len(images) == n
        self.patient = np.repeat([f"p{k}".encode() for k in range(len(per_patient))], per_patient)
        # A function of the image, so that an image keeps its label in another cohort.
        self.labels = (images.flatten(1)[:, 0] > 0).long().numpy()
        self.early = np.zeros(n, np.bool_)

    def indices(self, split: str) -> np.ndarray:
        return np.arange(len(self.labels))

    def inputs(self, rows: np.ndarray) -> torch.Tensor:
        return self.images[torch.from_numpy(rows)]


def network(name: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if name == "head":
        head = nn.Sequential(nn.LayerNorm(20, elementwise_affine=False), nn.Linear(20, 2))
        return head, torch.randn(12, 20)
    return build_model(config(), Task(("a", "b"), (1, 32, 32))), torch.randn(12, 1, 32, 32)


def noiseless(model: nn.Module, samples: FakeSamples, **privacy: object) -> tuple[np.ndarray, IntegerGrid]:
    """The integers of a site without its noise, which a fixed seed lets us take off again."""
    settings = config(noise_seed=3, **privacy)
    grid = plan_grid(PLAN.noise_multiplier, parameter_count(model), (10,) * 4, settings.honest_sites, 10)
    work = PrivateWork(Units.of(samples, "patient", 4), PLAN, entropy(3, "a", 0), 10)
    steps: list[tuple[int, int]] = []
    local = LocalRound(model, samples, settings, "a", 0, BENCH, lambda *at: steps.append(at))
    vector = contribution(local, work, grid, source(3, "a", 0, "skellam"))
    assert steps == [(1, 1)]
    assert vector.dtype == np.int64
    return vector - draw(grid.site_variance, vector.size, source(3, "a", 0, "skellam")), grid


@pytest.mark.parametrize(("name", "other_bits"), [("head", 0.0), ("densenet_small", 1e-4)])
def test_a_whole_patient_moves_the_sum_by_at_most_the_sensitivity(name: str, other_bits: float) -> None:
    """In grid units, with three images added in front, so that every batch changes its make-up."""
    model, images = network(name)
    images[:3] *= 5
    without, grid = noiseless(model, FakeSamples(images[3:], [1, 2, 1, 1, 1, 1, 1, 1]), clip_norm=0.05)
    added, _ = noiseless(model, FakeSamples(images, [3, 1, 2, 1, 1, 1, 1, 1, 1]), clip_norm=0.05)
    alone, _ = noiseless(model, FakeSamples(images[:3], [3]), clip_norm=0.05)
    moved = np.linalg.norm(added - without)
    assert 0.999 * grid.clip_units < moved <= grid.l2
    # What the others' own gradients changed by sharing a batch with the new patient.
    assert np.linalg.norm(added - without - alone) <= other_bits * grid.l2 <= MARGIN / 4 * grid.clip_units


@pytest.mark.parametrize("physical", [1, 2, 5, 128])
def test_the_sum_does_not_depend_on_how_units_are_batched(physical: int) -> None:
    model, images = network("head")
    samples = FakeSamples(images, [1, 2, 3, 1, 1, 4])
    whole, _ = noiseless(model, samples)
    np.testing.assert_array_equal(noiseless(model, samples, max_physical_batch=physical)[0], whole)


def test_an_empty_site_gives_noise_alone() -> None:
    model, images = network("head")
    assert not noiseless(model, FakeSamples(images[:0], []))[0].any()


def test_entries_stay_within_what_the_declared_weight_allows() -> None:
    """A site with more units than it has declared cannot make the federation's sum wrap round."""
    model, _ = network("head")
    many = FakeSamples(torch.ones(1, 20).repeat(300, 1).cumsum(1), [1] * 300)
    many.labels[:] = 0
    vector, grid = noiseless(model, many, clip_norm=0.01)
    assert np.abs(vector).max() <= grid.bound(10)
    assert np.abs(vector).sum() > 0.5 * grid.bound(10)


@pytest.mark.parametrize("name", ["head", "densenet_small"])
def test_a_secure_step_is_the_private_step_of_the_same_units(name: str) -> None:
    """Without noise: the sum as a gradient, one step of the optimiser, against Opacus's clipped step.

    Parameters near 1 are float32, so their differences are good to 1e-7.
    """
    model, images = network(name)
    samples, start = FakeSamples(images, [1, 2, 3, 1, 1, 4]), to_vector(model)
    vector, grid = noiseless(model, samples, clip_norm=0.5)
    secure = one_step(model, config().training, 3, start, grid.mean_gradient(vector, 10, config(clip_norm=0.5).privacy))
    from_vector(model, start)
    plan = PrivacyPlan(0.0, 1.0, 1)
    work = PrivateWork(Units.of(samples, "patient", 4), plan, entropy(3, "a", 3), 10)
    train_private(LocalRound(model, samples, config(clip_norm=0.5), "a", 3, BENCH, lambda *_: None), work)
    rounding = 0.5 * len(work.units.rows) / 2 * 0.5 / grid.clip_units / 10
    np.testing.assert_allclose(secure, to_vector(model) - start, rtol=0, atol=rounding + 1e-6)


@given(st.integers(1, 30), st.integers(1, 60), st.floats(-30, 30), st.integers(0, 5))
def test_no_unit_is_longer_than_the_sensitivity(units: int, size: int, log_scale: float, seed: int) -> None:
    grid = plan_grid(1.0, size, (100,) * 4, 3, 10)
    gradients = torch.from_numpy(np.random.default_rng(seed).normal(size=(units, size))) * np.exp(log_scale)
    short = (torch.linalg.vector_norm(gradients, dim=1) < 0.3).tolist()
    original = gradients.clone()
    vectors = rounded_(gradients, 0.3, grid)
    assert (vectors == vectors.round()).all()
    assert torch.linalg.vector_norm(vectors, dim=1).max() <= grid.l2
    for is_short, before, after in zip(short, original, vectors, strict=True):
        if is_short:
            assert (after - before * (grid.clip_units / 0.3)).abs().max() <= 0.5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e200])
def test_gradient_not_finite_adds_zero(value: float) -> None:
    """Also where only its norm is not: 1e200 squared is infinite."""
    grid, rows = plan_grid(1.0, 2, (3, 3), 2, 1), [[1.0, 2.0], [value, 0.0], [0.0, 0.5]]
    vectors = rounded_(torch.tensor(rows, dtype=torch.float64), 1.0, grid)
    alone = rounded_(torch.tensor(rows[::2], dtype=torch.float64), 1.0, grid)
    assert (value == 1e200 or not vectors[1].any()) and torch.equal(vectors[::2], alone)
    assert not rounded_(torch.full((3, 2), float("nan"), dtype=torch.float64), 1.0, grid).any()


@pytest.mark.parametrize("name", ["head", "densenet_small"])
@pytest.mark.parametrize("spoiled", [[0, 1], list(range(12))], ids=["one unit", "all units"])
def test_unit_not_finite_is_left_out_in_both_modes(name: str, spoiled: list[int]) -> None:
    """The secure sum and the plain private step: as if the unit were not there, and no error that would tell of it."""
    model, images = network(name)
    others = [index for index in range(12) if index not in spoiled]
    without = FakeSamples(images[others], [1] * len(others))
    images[spoiled] = float("nan")
    with_it = FakeSamples(images, [len(spoiled), *[1] * len(others)])
    start = to_vector(model)
    sums, steps = [], []
    for samples in (without, with_it):
        from_vector(model, start)
        sums.append(noiseless(model, samples)[0])
        work = PrivateWork(Units.of(samples, "patient", 12), PrivacyPlan(0.0, 1.0, 1), entropy(3, "a", 3), 10)
        train_private(LocalRound(model, samples, config(), "a", 3, BENCH, lambda *_: None), work)
        steps.append(to_vector(model))
    np.testing.assert_allclose(sums[0], sums[1], rtol=0, atol=2)
    np.testing.assert_allclose(steps[0], steps[1], rtol=0, atol=1e-6)
    assert np.isfinite(steps[1]).all() and sums[0].any() == (len(others) > 0)


def test_a_failed_site_leaves_no_hooks_on_the_network_of_its_rank() -> None:
    model, images = network("head")
    with pytest.raises(RuntimeError), per_image_gradients(model, BENCH) as gradients:
        gradients(images[:, :3], torch.zeros(12, dtype=torch.int64))
    with per_image_gradients(model, BENCH) as gradients:
        assert gradients(images, torch.zeros(12, dtype=torch.int64)).shape == (12, parameter_count(model))
    assert all("grad_sample" not in p.__dict__ for p in model.parameters())


@given(
    st.floats(0.01, 1e4),
    st.integers(1, LARGEST_SIZE),
    st.lists(st.integers(1, 10**6), min_size=4, max_size=16),
    st.integers(1, 10_000),
)
def test_the_grid_is_fine_and_the_ring_wide_enough(noise: float, size: int, weights: list[int], rounds: int) -> None:
    grid = plan_grid(noise, size, weights, len(weights) - 2, rounds)
    assert grid.l2 <= grid.clip_units * (1 + MARGIN + 2**-11) + 1e-6
    assert (len(weights) - 2) * grid.site_variance >= (noise * grid.l2) ** 2 * (1 - 1e-12)
    room = 2 ** (8 * grid.width_bytes - 1) - sum(grid.bound(weight) for weight in weights)
    deviation = (len(weights) * grid.site_variance) ** 0.5
    assert 2 * size * rounds * np.exp(-((room / deviation) ** 2) / 2) < 2**-39
    assert 256 * sum(grid.bound(weight) for weight in weights) + 256 * 20 * deviation > room, "no byte too many"


def test_a_large_model_is_refused_with_its_size() -> None:
    with pytest.raises(PrivacyError, match=r"100,001 parameters are trained; .* at most 100,000"):
        plan_grid(1.0, LARGEST_SIZE + 1, (10,) * 4, 3, 10)


def test_the_gain_over_local_noise() -> None:
    """n sites with nobody colluding: the sum carries the noise of one, where local noise would carry sqrt(n) of it."""
    size, weights = 20_000, (100,) * 4
    grid = plan_grid(PLAN.noise_multiplier, size, weights, 4, 10)
    total = sum(draw(grid.site_variance, size, KeyStream.of_seed(index)) for index in range(4))
    local = sum(np.random.default_rng(9 + i).normal(0, PLAN.noise_multiplier * grid.l2, size) for i in range(4))
    assert total.std() / grid.l2 == pytest.approx(PLAN.noise_multiplier, rel=0.02)
    assert local.std() / total.std() == pytest.approx(2, rel=0.04)


def test_the_plan_is_skellam_and_meets_the_target() -> None:
    plan = plan_privacy(config(epsilon=2.0))
    assert plan == PrivacyPlan(calibrate(2.0, 1e-5, 10), 1.0, 1, "skellam")
    assert 1.999 < plan.bounds(10, 1e-5).epsilon <= 2


def test_mean_gradient_undoes_the_grid() -> None:
    grid, privacy = plan_grid(1.0, 3, (10,) * 4, 3, 1), Privacy(clip_norm=0.25)
    vector = rounded_(torch.tensor([[0.1, -0.2, 0.05]], dtype=torch.float64), 0.25, grid)[0].to(torch.int64).numpy()
    gradient = grid.mean_gradient(40 * vector, 40, privacy.model_copy(update={"sample_rate": 1.0}))
    np.testing.assert_allclose(gradient, [0.1, -0.2, 0.05], atol=0.25 / grid.clip_units)


def test_one_step_is_the_optimisers() -> None:
    model, _ = network("head")
    start, training = to_vector(model), Training(lr=0.1, lr_schedule="constant", momentum=0.9, weight_decay=0.5)
    gradient = np.arange(start.size, dtype=np.float32)
    moved = one_step(model, training, 0, start, gradient)
    np.testing.assert_allclose(moved, -0.1 * (gradient + 0.5 * start), rtol=1e-4, atol=1e-6)
