"""DP-SGD: bounded sensitivity, noise that differs, epsilon that is planned, charged and never passed."""

import numpy as np
import pytest
import torch
from torch import nn

from fedhpc.config import RunConfig
from fedhpc.models import Task, build_model
from fedhpc.site.accountant import epsilon_of
from fedhpc.site.privacy import PrivateStep, Terms, Units, entropy, physical_batches, plan_privacy

CPU = torch.device("cpu")
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
    model: nn.Module, batches: list[tuple[torch.Tensor, torch.Tensor, list[int]]], noise: float = 0.0
) -> np.ndarray:
    """What one private step with learning rate 1 adds to the parameters, with the sign of the gradient sum."""
    before = torch.cat([p.detach().reshape(-1).clone() for p in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    generator = torch.Generator().manual_seed(0)
    step = PrivateStep.wrap(model, optimizer, Terms(0.5, noise, 1.0, generator))
    for number, (images, labels, owner) in enumerate(batches):
        step(images, labels, torch.tensor(owner, dtype=torch.int64), number == len(batches) - 1)
    step.unwrap()
    after = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    return (before - after).numpy()


@pytest.mark.parametrize("name", ["densenet_small", "resnet18"])
def test_a_whole_patient_moves_the_sum_by_at_most_clip_norm(name: str) -> None:
    """Sensitivity: add one patient with three images; the clipped sum moves by at most C = 0.5."""
    tree = {**config().model_dump(mode="json"), "model": {"name": name}}
    built = [build_model(RunConfig.model_validate(tree), TASK) for _ in range(2)]
    torch.manual_seed(0)
    images, labels = 5 * torch.randn(5, 1, 32, 32), torch.tensor([0, 1, 0, 1, 1])
    without = gradient(built[0], [(images[:2], labels[:2], [0, 1])])
    added = gradient(built[1], [(images, labels, [0, 1, 2, 2, 2])])
    moved = np.linalg.norm(added - without)
    assert 0.49 < moved <= 0.5 * (1 + 1e-4)


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


def test_units_are_patients_or_images() -> None:
    patients = Units.of(FakeSamples(), "patient", 2)
    assert sorted(len(rows) for rows in patients.rows) == [1, 2, 3]
    assert len(Units.of(FakeSamples(), "image", 2).rows) == 6
    drawn = patients.draw(1.0, np.random.default_rng(0))
    assert sorted(len(rows) for rows in drawn) == [1, 2, 2]


def test_sampling_is_poisson() -> None:
    """Independent draws: the number of units is binomial, in mean and variance."""
    units = Units(tuple(np.array([i]) for i in range(400)), 1)
    rng = np.random.default_rng(0)
    counts = np.array([len(units.draw(0.1, rng)) for _ in range(2000)])
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
        return torch.randn(4, generator=entropy(seed, site, round, CPU).noise).tolist()

    drawn = [noise(3, "site1", 0), noise(3, "site2", 0), noise(3, "site1", 1), noise(4, "site1", 0)]
    assert len({tuple(values) for values in drawn}) == 4
    assert noise(3, "site1", 0) == noise(3, "site1", 0)
    assert noise(None, "site1", 0) != noise(None, "site1", 0)


@pytest.mark.parametrize("epsilon", [0.5, 1.0, 8.0])
def test_planned_epsilon_is_just_below_the_target(epsilon: float) -> None:
    plan = plan_privacy(config(epsilon=epsilon))
    assert plan.steps_per_round == 2 * 10
    spent = epsilon_of(((plan.noise_multiplier, plan.sample_rate, 4 * plan.steps_per_round),), 1e-5)
    assert epsilon - 0.01 <= spent <= epsilon
