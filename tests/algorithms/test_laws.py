"""Laws of every algorithm: FedAvg at its neutral setting, a resume that changes no bit, sparse rounds that converge."""

from typing import Any

import numpy as np
import pytest

from tests.support.logistic import Settings, learners, run, same_bits

FEDPROX = {"name": "fedprox", "mu": 0.3}
ALL = [FEDPROX]
BY_NAME: dict[str, dict[str, Any]] = {section["name"]: section for section in ALL}


@pytest.mark.parametrize(("density", "value_bits"), [(1.0, 32), (0.5, 4)])
@pytest.mark.parametrize("section", [{"name": "fedprox", "mu": 0.0}])
def test_neutral_setting_is_fedavg(section: dict[str, Any], density: float, value_bits: int) -> None:
    sites = learners((2, 3, 5))
    ours, _ = run(sites, Settings(section, density=density, value_bits=value_bits))
    fedavg, _ = run(sites, Settings({"name": "fedavg"}, density=density, value_bits=value_bits))
    assert ours.params.tobytes() == fedavg.params.tobytes()


@pytest.mark.parametrize("section", ALL, ids=list(BY_NAME))
def test_resumed_run_has_the_same_bits(section: dict[str, Any]) -> None:
    """Unequal steps, sparse and rounded: all that is kept matters."""
    sites, settings = learners((2, 3, 5)), Settings(section, rounds=6, density=0.5, value_bits=4)
    straight, _ = run(sites, settings)
    _, first = run(sites, settings, go_on=3)
    resumed, _ = run(sites, settings, start=first[-1].state)
    assert same_bits(resumed, straight)
    plain, _ = run(sites, Settings({"name": "fedavg"}, rounds=6, density=0.5, value_bits=4))
    assert resumed.params.tobytes() != plain.params.tobytes()


def optimum(weights: np.ndarray) -> np.ndarray:
    """Of the weighted mean of the sites' losses, by gradient descent in float64."""
    sites, x = learners((1, 1, 1)), np.zeros(6)
    for _ in range(20_000):
        x -= 0.2 * np.average([site.gradient(x) for site in sites], axis=0, weights=weights)
    return x
