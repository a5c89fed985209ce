"""FedDyn against its equations in numpy, and what the sites keep against what the aggregator keeps."""

import numpy as np
import pytest

from fedhpc.algorithms.base import PREFIX
from fedhpc.algorithms.feddyn import GRADIENT, SUM
from fedhpc.site.training.regularizers import Regularizer, what_to_lower
from tests.support.logistic import F64, D, Settings, descended, learners, run

WEIGHTS, ALPHA = np.array([1, 2, 3]) / 6, 0.5


def test_rounds_follow_the_paper() -> None:
    """Acar et al. 2021, Algorithm 1, in the paper's variables: the server keeps h, and x = mean - h / alpha."""
    sites, x, h = learners((2, 3, 5)), np.zeros(D), np.zeros(D)
    gradients = [np.zeros(D) for _ in sites]

    def term(i: int, y: F64, x: F64) -> F64:
        return ALPHA * (y - x) - gradients[i]

    for _ in range(4):
        ends = [descended(site, x, lambda y, x, i=i: term(i, y, x)) for i, site in enumerate(sites)]
        gradients = [g - ALPHA * (end - x) for g, end in zip(gradients, ends, strict=True)]
        h = h - ALPHA * (WEIGHTS @ (np.array(ends) - x))
        x = WEIGHTS @ np.array(ends) - h / ALPHA
    state, _ = run(sites, Settings({"name": "feddyn", "alpha": ALPHA}))
    np.testing.assert_allclose(state.params, x, atol=5e-5)


@pytest.mark.parametrize(("density", "value_bits"), [(1.0, 32), (0.3, 4)])
def test_aggregator_keeps_the_mean_of_what_sites_keep(density: float, value_bits: int) -> None:
    settings = Settings({"name": "feddyn", "alpha": ALPHA}, rounds=9, density=density, value_bits=value_bits)
    state, _ = run(learners((2, 3, 5)), settings)
    own = np.array([state.sites[name][PREFIX + GRADIENT] for name in "abc"])
    np.testing.assert_allclose(-ALPHA * state.server[PREFIX + SUM], WEIGHTS @ own, atol=1e-5)


@pytest.mark.parametrize(("lr", "proximal"), [(32.0, 0.1), (32.0, 0.01), (4.0, 0.1), (1.0, 2.5), (4.0, 0.0)])
def test_remedy_names_the_weight_where_its_steps_diverge(lr: float, proximal: float) -> None:
    distance = 1.0
    for _ in range(50):
        distance -= lr * proximal * distance
    assert ("proximal" in what_to_lower(lr, Regularizer(proximal=proximal))) == (abs(distance) > 1)
