"""FedProx against its equation in numpy."""

import numpy as np
import pytest

from tests.support.logistic import D, Settings, descended, learners, run


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rounds_follow_the_paper(momentum: float) -> None:
    """Li et al. 2020, Algorithm 2: each site descends F_i(y) + mu / 2 |y - x|^2; then the weighted mean."""
    sites, mu, x = learners((2, 3, 5), momentum), 0.3, np.zeros(D)
    for _ in range(4):
        x = np.average([descended(s, x, lambda y, x: mu * (y - x)) for s in sites], axis=0, weights=(1, 2, 3))
    state, _ = run(sites, Settings({"name": "fedprox", "mu": mu}))
    np.testing.assert_allclose(state.params, x, atol=2e-5)
    plain, _ = run(sites, Settings({"name": "fedavg"}))
    assert np.abs(plain.params - x).max() > 1e-3
