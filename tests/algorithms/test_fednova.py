"""FedNova against its equation in numpy."""

import struct

import numpy as np
import pytest

from fedhpc.algorithms.base import Sender
from fedhpc.algorithms.fednova import FedNova
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError
from tests.support.logistic import D, Settings, descended, learners, run

WEIGHTS = np.array([1, 2, 3]) / 6


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rounds_follow_the_paper(momentum: float) -> None:
    """Wang et al. 2020, equation 6: x + tau sum_i p_i update_i / |a_i|, tau = sum_i p_i |a_i|."""
    sites, x = learners((2, 3, 50), momentum), np.zeros(D)
    steps = np.array([sum(momentum**k for j in range(site.steps) for k in range(j + 1)) for site in sites])
    for _ in range(4):
        updates = np.array([descended(site, x, lambda y, x: 0 * y) - x for site in sites])
        x = x + (WEIGHTS @ steps) * (WEIGHTS / steps) @ updates
    state, _ = run(sites, Settings({"name": "fednova"}))
    np.testing.assert_allclose(state.params, x, atol=5e-5)
    plain, _ = run(sites, Settings({"name": "fedavg"}))
    assert np.abs(plain.params - x).max() > 1e-2


@pytest.mark.parametrize("more", [b"", b"\0" * 8, struct.pack("<d", -1), struct.pack("<d", 1e9), b"\xff" * 8])
def test_bad_number_of_steps_is_refused(more: bytes) -> None:
    fold, entries = FedNova().fold({}, {}), SparseVector(D, np.arange(D), np.ones(D, np.float32))
    sender = Sender(1, 3, CompressionConfig(1.0))
    fold.add(entries, 1, struct.pack("<d", 2.0), sender)
    with pytest.raises(PayloadError):
        fold.add(entries, 1, more, sender)
