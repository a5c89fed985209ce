"""Laws of every algorithm: FedAvg at its neutral setting, a resume that changes no bit, sparse rounds that converge."""

import functools
from typing import Any

import numpy as np
import pytest

from tests.support.logistic import F64, D, Settings, learners, run, same_bits

ALL: tuple[dict[str, Any], ...] = (
    {"name": "fedprox", "mu": 0.3},
    {"name": "scaffold"},
    {"name": "fednova"},
    {"name": "feddyn", "alpha": 0.5},
)
NAMES = [section["name"] for section in ALL]
FEDAVG = {"name": "fedavg"}


@pytest.mark.parametrize(("density", "value_bits"), [(1.0, 32), (0.5, 4)])
@pytest.mark.parametrize("section", [{"name": "fedprox", "mu": 0.0}, {"name": "feddyn", "alpha": 0.0}])
def test_neutral_setting_is_fedavg(section: dict[str, Any], density: float, value_bits: int) -> None:
    sites = learners((2, 3, 5))
    ours, _ = run(sites, Settings(section, density=density, value_bits=value_bits))
    fedavg, _ = run(sites, Settings(FEDAVG, density=density, value_bits=value_bits))
    assert ours.params.tobytes() == fedavg.params.tobytes()


@pytest.mark.parametrize("section", ALL, ids=NAMES)
def test_resumed_run_has_the_same_bits(section: dict[str, Any]) -> None:
    """Unequal steps, sparse and rounded: all that is kept matters."""
    sites, settings = learners((2, 3, 5)), Settings(section, rounds=6, density=0.5, value_bits=4)
    straight, _ = run(sites, settings)
    _, first = run(sites, settings, go_on=3)
    resumed, _ = run(sites, settings, start=first[-1].state)
    assert same_bits(resumed, straight)
    plain, _ = run(sites, Settings(FEDAVG, rounds=6, density=0.5, value_bits=4))
    assert resumed.params.tobytes() != plain.params.tobytes()


@pytest.mark.parametrize(("density", "value_bits"), [(1.0, 32), (0.5, 4)])
def test_fednova_with_equal_steps_is_fedavg(density: float, value_bits: int) -> None:
    sites = learners((3, 3, 3), momentum=0.9)
    ours, fedavg = (
        run(sites, Settings({"name": name}, density=density, value_bits=value_bits))[0]
        for name in ("fednova", "fedavg")
    )
    assert ours.params.tobytes() == fedavg.params.tobytes()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_of_one_site_is_fedavg(momentum: float) -> None:
    """Its control variate is that of all; with exact exchange bit for bit, whatever its weight."""
    sites = learners((3,), momentum)
    ours, fedavg = (run(sites, Settings({"name": name}, 5, weights=(7,)))[0] for name in ("scaffold", "fedavg"))
    assert ours.params.tobytes() == fedavg.params.tobytes()
    assert ours.public["algorithm.control"].any()


def test_scaffold_before_any_control_is_fedavg() -> None:
    sites = learners((2, 3, 5))
    ours, fedavg = (run(sites, Settings({"name": name}, 1))[0] for name in ("scaffold", "fedavg"))
    assert ours.params.tobytes() == fedavg.params.tobytes()


def difference(params: F64) -> F64:
    """Of the two classes' weights: what the loss depends on."""
    return params[: D // 2] - params[D // 2 :]


@functools.cache
def optimum() -> F64:
    """Of the weighted mean of the sites' losses, by gradient descent in float64."""
    sites, x = learners((1, 1, 1)), np.zeros(D)
    for _ in range(2000):
        x -= 0.3 * np.average([site.gradient(x) for site in sites], axis=0, weights=(1, 2, 3))
    return difference(x)


def distance(settings: Settings) -> float:
    """From the optimum, of the model after all rounds."""
    state, _ = run(learners((2, 3, 5)), settings)
    return float(np.abs(difference(state.params.astype(np.float64)) - optimum()).max())


@pytest.mark.parametrize(
    "corrected",
    [
        Settings({"name": "scaffold"}, 60),
        Settings({"name": "scaffold"}, 60, density=0.3, value_bits=4),
        Settings({"name": "feddyn", "alpha": 2.0}, 60),
        Settings({"name": "feddyn", "alpha": 2.0}, 60, value_bits=4),
    ],
)
def test_corrected_sites_reach_the_optimum(corrected: Settings) -> None:
    """FedAvg stops where the drifts of the sites cancel; with corrections the optimum is the fixed point."""
    assert distance(corrected) < 0.005
    assert distance(Settings(FEDAVG, 60)) > 0.05
