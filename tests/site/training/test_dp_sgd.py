"""DP-SGD: bounded sensitivity, noise that differs, epsilon that is planned, charged and never passed."""

import copy
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fedhpc.config.model import BuiltIn
from fedhpc.config.schema import RunConfig
from fedhpc.models.backbones import Backbone
from fedhpc.models.build import build_model
from fedhpc.models.task import Task
from fedhpc.privacy.accountant import epsilon_of
from fedhpc.privacy.gaussian import Noise, released
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.plan import plan_privacy
from fedhpc.privacy.rdp import Steps
from fedhpc.site.per_example.clipped_sum import MARGIN
from fedhpc.site.training.dp_sgd import NoiseConfig, PrivateStep, Units, entropy, physical_batches

TASK = Task(("a", "b"), (1, 32, 32))


def config(**privacy: object) -> RunConfig:
    tree = {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": [{"name": "a", "weight": 10}]},
        "training": {"rounds": 4, "local_epochs": 2},
        "privacy": {"epsilon": 1.0, "sample_rate": 0.1, **privacy},
    }
    return RunConfig.model_validate(tree)


class FakeSamples:
    """Six training images of three patients, and one test image."""

    patient = np.array([b"p0", b"p1", b"p1", b"p2", b"p2", b"p2", b"p9"], "S16")
    labels = np.zeros(7, np.int64)
    early = np.zeros(7, np.bool_)

    def indices(self, split: str) -> np.ndarray:
        return np.arange(6) if split == "train" else np.array([6])

    def inputs(self, rows: np.ndarray) -> torch.Tensor:
        return torch.zeros(len(rows), 1)


def gradient(
    model: nn.Module,
    batches: list[tuple[torch.Tensor, torch.Tensor, list[int]]],
    noise: float = 0.0,
    at: nn.Module | None = None,
) -> np.ndarray:
    """What one private step with learning rate 1 adds to the parameters (of `at`), with the gradient sum's sign."""
    if at is not None:
        model.load_state_dict(at.state_dict())
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    step = PrivateStep.wrap(model, optimizer, NoiseConfig(0.5, noise, 1.0, KeyStream.of_seed(0)))
    for number, (images, labels, owner) in enumerate(batches):
        step(images, labels, torch.tensor(owner, dtype=torch.int64), number == len(batches) - 1)
    step.unwrap()
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return (before - after).numpy()


def shipped(name: str) -> nn.Module:
    """A network as a run builds it, or the linear head that `frozen` trains on features of 1,280 numbers."""
    backbone = Backbone(nn.Identity(), 1280, None) if name == "frozen" else None
    model = {"name": name, "backbone": "efficientnet_lite0" if backbone else None}
    tree = {**config().model_dump(mode="json"), "model": model}
    return build_model(RunConfig.model_validate(tree), TASK, backbone)


@pytest.mark.parametrize("name", get_args(BuiltIn))
def test_a_whole_patient_moves_the_sum_by_at_most_clip_norm(name: str) -> None:
    """Sensitivity: add one patient with three images; the clipped sum moves by at most C = 0.5, and by no less here."""
    torch.manual_seed(0)
    images, labels = 5 * torch.randn(5, 1, 32, 32), torch.tensor([0, 1, 0, 1, 1])
    if name == "frozen":
        images = torch.randn(5, 1280)
    without = gradient(shipped(name), [(images[:2], labels[:2], [0, 1])])
    added = gradient(shipped(name), [(images, labels, [0, 1, 2, 2, 2])])
    moved = np.linalg.norm(added - without)
    assert 0.5 * (1 - 1e-4) < moved <= 0.5 * (1 + 1e-4)


@given(st.integers(1, 6), st.sampled_from([0.0, 1e-3, 1.0, 1e4, 1e20, np.inf, np.nan]), st.integers(0, 99))
@settings(max_examples=30)
def test_no_patient_moves_the_sum_by_more(images: int, scale: float, seed: int) -> None:
    """Of any number of images and any pixels, and in company of any others."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))
    others, theirs = torch.randn(4, 1, 5, 5), torch.tensor([0, 1, 1, 0])
    added, labels = scale * torch.randn(images, 1, 5, 5), torch.randint(0, 2, (images,))
    together, owner = torch.cat([added, others]), [0] * images + [1, 2, 2, 3]
    without = gradient(copy.deepcopy(model), [(others, theirs, [0, 1, 1, 2])])
    with_it = gradient(model, [(together, torch.cat([labels, theirs]), owner)])
    assert np.linalg.norm(with_it - without) <= 0.5 * (1 + 1e-4)


def test_a_patients_gradient_is_the_mean_over_its_images() -> None:
    """Against autograd: one patient, three images, a clip that does not bite."""
    torch.manual_seed(0)
    model = nn.Linear(4, 2)
    images, labels = 0.01 * torch.randn(3, 4), torch.tensor([0, 1, 1])
    loss = nn.functional.cross_entropy(model(images), labels)
    expected = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))]).numpy()
    assert np.linalg.norm(expected) < 0.5
    np.testing.assert_allclose(gradient(model, [(images, labels, [0, 0, 0])]), expected, atol=1e-6)


def test_physical_batches_add_up_to_one_step() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(6, 4), torch.tensor([0, 1, 1, 0, 1, 0])
    models = [nn.Linear(4, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    whole = gradient(models[0], [(images, labels, [0, 1, 1, 2, 3, 4])])
    parts = gradient(models[1], [(images[:3], labels[:3], [0, 1, 1]), (images[3:], labels[3:], [0, 1, 2])])
    np.testing.assert_allclose(whole, parts, atol=1e-6)


def test_an_empty_draw_is_a_step_of_noise_alone() -> None:
    model = nn.Linear(40, 50)
    moved = gradient(model, [(torch.zeros(0, 40), torch.zeros(0, dtype=torch.int64), [])], noise=2.0)
    assert moved.std() == pytest.approx(2.0 * 0.5, rel=0.1)
    assert abs(moved.mean()) < 0.1


@pytest.mark.parametrize("name", get_args(BuiltIn))
def test_every_network_takes_an_empty_draw(name: str) -> None:
    """A step for which Poisson sampling drew nobody moves the parameters by noise alone."""
    model, (images, labels) = shipped(name), (torch.zeros(0, 1, 32, 32), torch.zeros(0, dtype=torch.int64))
    if name == "frozen":
        images = torch.zeros(0, 1280)
    assert not gradient(copy.deepcopy(model), [(images, labels, [])]).any()
    assert gradient(model, [(images, labels, [])], noise=2.0).std() == pytest.approx(2.0 * 0.5, rel=0.1)


def test_noise_is_drawn_from_its_own_source_once_a_step() -> None:
    """Torch's global generator changes nothing; physical batches add no noise of their own."""
    images, labels = torch.randn(4, 40), torch.tensor([0, 1, 2, 3])
    whole, parts = [(images, labels, [0, 1, 2, 3])], [(images[k : k + 1], labels[k : k + 1], [0]) for k in range(4)]
    moved = []
    for seed, batches in ((1, whole), (2, whole), (3, parts)):
        torch.manual_seed(0)
        model = nn.Linear(40, 50)
        torch.manual_seed(seed)
        moved.append(gradient(model, batches, noise=2.0))
    np.testing.assert_array_equal(moved[0], moved[1])
    np.testing.assert_allclose(moved[0], moved[2], atol=1e-5)


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_the_noisy_sum_over_expected_units_is_what_the_optimizer_gets(optimizer: type[torch.optim.Optimizer]) -> None:
    """Whatever the optimiser: its own step on (sum + noise) / expected units, and nothing left in `grad` after it."""
    torch.manual_seed(0)
    models = [nn.Linear(4, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    images, labels = torch.randn(3, 4), torch.tensor([0, 1, 1])
    both = [optimizer(model.parameters(), lr=0.1) for model in models]
    terms = NoiseConfig(0.5, 2.0, 7.0, KeyStream.of_seed(0))
    PrivateStep.wrap(models[0], both[0], terms)(images, labels, torch.arange(3), last=True)
    assert all(p.grad is None for p in models[0].parameters())
    total = torch.from_numpy(gradient(nn.Linear(4, 2), [(images, labels, [0, 1, 2])], at=models[1]))
    noise = released(torch.zeros(10, dtype=torch.float64), Noise(1 + MARGIN, 0.0, KeyStream.of_seed(0))).float()
    for p, part in zip(models[1].parameters(), ((total + noise) / 7).split([8, 2]), strict=True):
        p.grad = part.view_as(p)
    both[1].step()
    for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_units_are_patients_or_images() -> None:
    patients = Units.of(FakeSamples(), "patient", 2)
    assert sorted(len(rows) for rows in patients.rows) == [1, 2, 3]
    assert len(Units.of(FakeSamples(), "image", 2).rows) == 6
    drawn = patients.draw(1.0, KeyStream.of_seed(0))
    assert sorted(len(rows) for rows in drawn) == [1, 2, 2]


def test_sampling_is_poisson() -> None:
    """Independent draws: the number of units is binomial, in mean and variance."""
    units = Units(tuple(np.array([i]) for i in range(400)), 1)
    stream = KeyStream.of_seed(0)
    counts = np.array([len(units.draw(0.1, stream)) for _ in range(2000)])
    assert counts.mean() == pytest.approx(40, rel=0.02)
    assert counts.var() == pytest.approx(36, rel=0.1)


def test_no_unit_is_cut_between_physical_batches() -> None:
    drawn = [np.array([1, 2, 3]), np.array([4]), np.array([5, 6])]
    parts = list(physical_batches(drawn, 4))
    assert [rows.tolist() for rows, _, _ in parts] == [[1, 2, 3, 4], [5, 6]]
    assert [owner.tolist() for _, owner, _ in parts] == [[0, 0, 0, 1], [0, 0]]
    assert [last for _, _, last in parts] == [False, True]
    assert [rows.size for rows, _, _ in physical_batches([], 4)] == [0]


def test_noise_differs_between_sites_rounds_and_starts() -> None:
    def noise(seed: int | None, site: str, round: int) -> list[float]:
        return entropy(seed, site, round).noise.uniform(4).tolist()

    drawn = [noise(3, "site1", 0), noise(3, "site2", 0), noise(3, "site1", 1), noise(4, "site1", 0)]
    assert len({tuple(values) for values in drawn}) == 4
    assert noise(3, "site1", 0) == noise(3, "site1", 0)
    assert noise(None, "site1", 0) != noise(None, "site1", 0)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
def test_planned_epsilon_is_just_below_the_target(epsilon: float) -> None:
    plan = plan_privacy(config(epsilon=epsilon))
    assert plan.steps_per_round == 2 * 10
    spent = epsilon_of((Steps(plan.noise_multiplier, plan.sample_rate, 4 * plan.steps_per_round),), 1e-5)
    assert 0.998 * epsilon <= spent <= epsilon
