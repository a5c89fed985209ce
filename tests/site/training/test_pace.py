"""Slow sites: what they train keeps its expectation, how much they train, and what they say of their speed."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.models.vector import to_vector
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.training.dp_sgd import Units, entropy
from fedhpc.site.training.local_sgd import LocalRound, PrivateWork, train_plain, train_private
from fedhpc.site.training.pace import (
    MOST_TURNS,
    QUICK_TURNS,
    TURNS,
    Bench,
    StepTimes,
    round_cost_steps,
    shortest,
    slowed,
    step_cost,
)

CPU = Device(torch.device("cpu"), bf16=False)
UNITS, CLIP_NORM, RATE = 64, 0.5, 0.125


class Rows:
    """Training images of UNITS patients, of two numbers each."""

    patient = np.array([f"p{i}".encode() for i in range(UNITS)], "S16")
    labels = np.arange(UNITS, dtype=np.int64) % 2
    early = np.zeros(UNITS, np.bool_)

    def indices(self, split: str) -> np.ndarray:
        return np.arange(UNITS)

    def inputs(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.stack([np.cos(rows), np.sin(rows * rows)], axis=1).astype(np.float32))


def config(**training: object) -> RunConfig:
    tree = {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": [{"name": "a", "weight": UNITS}]},
        "training": {"batch_size": 8, "lr": 1.0, "momentum": 0.0, "weight_decay": 0.0, **training},
        "privacy": {"epsilon": 1.0, "delta": 1e-4, "clip_norm": CLIP_NORM},
    }
    return RunConfig.model_validate(tree)


def local_round(effort: float = 1.0) -> tuple[LocalRound, list[tuple[int, int]]]:
    steps: list[tuple[int, int]] = []
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    settings = config(local_epochs=2)
    return LocalRound(model, Rows(), settings, "a", 0, CPU, lambda *at: steps.append(at), effort=effort), steps


def private_update(rate: float, seed: int) -> np.ndarray:
    local, _ = local_round()
    before = to_vector(local.model)
    plan = PrivacyPlan(0.0, rate, 1)
    train_private(local, PrivateWork(Units.of(local.samples, "patient", 4), plan, entropy(seed, "a", seed), UNITS))
    return to_vector(local.model) - before


def test_private_update_of_a_smaller_rate_has_the_same_mean() -> None:
    """Over draws: a denominator of another rate would scale the slow site's update by that rate."""
    whole = private_update(1.0, 0)
    draws = np.array([private_update(RATE, seed) for seed in range(400)])
    error = draws.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(draws.mean(axis=0) - whole) < 6 * error).all()
    assert (6 * error < 0.5 * np.abs(whole)).any(), "the test tells a factor of 2"


@pytest.mark.parametrize(("effort", "steps"), [(1.0, 16), (0.5, 8), (0.1, 1), (0.01, 1)])
def test_plain_round_ends_after_its_share_of_steps(effort: float, steps: int) -> None:
    local, made = local_round(effort)
    read: list[int] = []
    inputs = local.samples.inputs
    local.samples.inputs = lambda rows: read.append(len(rows)) or inputs(rows)  # type: ignore[method-assign]
    train_plain(local)
    assert made == [(n, steps) for n in range(1, steps + 1)]
    assert sum(read) == (2 if effort == 0.01 else 8 * steps)


def test_slowed_step_takes_its_factor_of_time() -> None:
    slept_from = time.monotonic()
    step = slowed(lambda done, total: None, 5.0)
    time.sleep(0.02)
    step(1, 1)
    assert time.monotonic() - slept_from >= 0.1


def test_cost_is_two_rounded_numbers_and_leaves_the_network() -> None:
    """Two significant digits each: no more than a machine's speed fits into them."""
    model = nn.Linear(2, 2)
    before = to_vector(model).copy()
    for settings in (config(), config().replace({"privacy": {"off": True}})):
        cost = step_cost(Bench(model, (2,), settings, CPU))
        assert cost.seconds_per_image > 0
        assert (cost.seconds_per_step > 0) <= settings.private
        for seconds in (cost.seconds_per_step, cost.seconds_per_image):
            assert seconds == float(f"{seconds:.2g}")
    np.testing.assert_array_equal(to_vector(model), before)
    assert all(p.grad is None for p in model.parameters())


# Milliseconds of steps of 64 and of 256 rows, as timed by turns on a machine that others use: undisturbed they take 0.9
# and 1.5. In the first turns no large step was undisturbed, so that its images alone would cost more than all.
FEW_MS = (*(0.93, 0.91, 1.32, 0.90, 0.92) * 5, 2.60, 0.91, 0.95, 0.90)
MOST_MS = (*(4.11, 3.71, 5.02, 3.66, 3.98) * 5, 3.70, 1.52, 1.61, 1.50)


@pytest.mark.parametrize("swapped", [False, True])
def test_times_that_cannot_be_are_measured_again(swapped: bool) -> None:
    """Of a large step that was disturbed the step itself would cost nothing; of a small one its images would."""
    few, most = list(FEW_MS), list(MOST_MS)
    if swapped:
        few[:QUICK_TURNS], most[:QUICK_TURNS] = MOST_MS[:QUICK_TURNS], [1.50] * QUICK_TURNS
    times = shortest(StepTimes(64, 256), lambda: few.pop(0) / 1e3, lambda: most.pop(0) / 1e3)
    assert (len(few), len(most)) == (2, 2), "no more turns than are needed"
    cost = times.cost
    assert cost.seconds_per_step == pytest.approx(0.7e-3, rel=0.05)
    assert cost.step_images == pytest.approx(0.7 / (0.6 / 192), rel=0.1)


def test_measuring_ends_where_no_time_can_be() -> None:
    """A step of images alone, however often; a slow one is not repeated."""
    made: list[float] = []

    def step(seconds: float) -> float:
        made.append(seconds)
        return seconds

    cost = shortest(StepTimes(8, 32), lambda: step(1e-3), lambda: step(4e-3)).cost
    assert (cost.seconds_per_step, len(made)) == (0, 2 * MOST_TURNS)
    assert cost.seconds_per_image == pytest.approx(1.25e-4, rel=0.05)
    made.clear()
    assert shortest(StepTimes(8, 32), lambda: step(0.1), lambda: step(0.4)).cost.seconds_per_step == 0
    assert len(made) == 2 * TURNS


def test_cost_of_a_round_is_measured_without_privacy() -> None:
    """Opening a round costs some steps of a network this small; it is of random numbers and leaves the network."""
    model = nn.Linear(2, 2)
    before = to_vector(model).copy()
    settings = config(local_epochs=2).replace({"privacy": {"off": True}})
    assert 0 < round_cost_steps(Bench(model, (2,), settings, CPU)) < 1000
    np.testing.assert_array_equal(to_vector(model), before)
