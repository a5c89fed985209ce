"""SCAFFOLD against its equations in numpy, and what it keeps against what it sends."""

from collections.abc import Callable

import numpy as np
import pytest

from fedhpc.algorithms.base import PREFIX, Sender, joined, parted
from fedhpc.algorithms.run_state import RESIDUAL
from fedhpc.algorithms.scaffold import CONTROL, Scaffold
from fedhpc.compression.codec import encode
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.compression.update import SparseVector, Update
from fedhpc.errors import PayloadError
from tests.support.logistic import F64, LR, D, Settings, descended, learners, run

WEIGHTS = np.array([1, 2, 3]) / 6


def constant(vector: F64) -> Callable[[F64, F64], F64]:
    return lambda y, x: vector


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_rounds_follow_the_paper(momentum: float) -> None:
    """Karimireddy et al. 2020, Algorithm 1, option II; the sites make 2, 3 and 5 steps."""
    sites, x, c = learners((2, 3, 5), momentum), np.zeros(D), np.zeros(D)
    own = [np.zeros(D) for _ in sites]
    for _ in range(4):
        ends = [descended(site, x, constant(c - own[i])) for i, site in enumerate(sites)]
        steps = [sum((1 - momentum**j) / (1 - momentum) for j in range(1, s.steps + 1)) * LR for s in sites]
        new = [own[i] - c + (x - end) / steps[i] for i, end in enumerate(ends)]
        c = c + WEIGHTS @ (np.array(new) - np.array(own))
        x, own = WEIGHTS @ np.array(ends), new
    state, _ = run(sites, Settings({"name": "scaffold"}))
    np.testing.assert_allclose(state.params, x, atol=2e-5)
    np.testing.assert_allclose(state.public[PREFIX + CONTROL], c, atol=2e-5)
    np.testing.assert_allclose(c, WEIGHTS @ np.array(own), atol=1e-12)


def test_controls_are_what_was_sent() -> None:
    """c plus the aggregator's residual is the weighted mean of all c_i, sparse and rounded to 4 bits."""
    state, _ = run(learners((2, 3, 5)), Settings({"name": "scaffold"}, rounds=9, density=0.3, value_bits=4))
    own = np.array([state.sites[name][PREFIX + CONTROL] for name in "abc"])
    known = state.public[PREFIX + CONTROL] + state.server[PREFIX + RESIDUAL]
    np.testing.assert_allclose(known, WEIGHTS @ own, atol=1e-6)
    assert np.abs(own).max() > 0.01


def test_second_vector_is_counted_in_the_traffic() -> None:
    sites = learners((2, 3, 5))
    (_, ours), (_, plain) = (run(sites, Settings({"name": name}, rounds=2)) for name in ("scaffold", "fedavg"))
    mine, theirs = ours[-1].traffic, plain[-1].traffic
    assert mine is not None
    assert theirs is not None
    assert all(a > 1.5 * b for a, b in zip(mine.up_bytes, theirs.up_bytes, strict=True))
    assert mine.down_bytes > 1.5 * theirs.down_bytes


@pytest.mark.parametrize("damage", ["nothing", "cut", "huge", "other sender"])
def test_bad_control_is_refused(damage: str) -> None:
    """What comes beside an update is as little trusted as the update."""
    entries = SparseVector(D, np.arange(D), np.full(D, 1e7 if damage == "huge" else 1.0, np.float32))
    payload = encode(Update(5 if damage == "other sender" else 1, 3, entries))
    more = {"nothing": b"", "cut": payload[:-1]}.get(damage, payload)
    fold = Scaffold().fold(Scaffold().initial(D).server, Scaffold().initial(D).public)
    with pytest.raises(PayloadError):
        fold.add(entries, 1, more, Sender(1, 3, CompressionConfig(1.0)))


@pytest.mark.parametrize("message", [b"", b"\xff" * 8, joined(b"update", b"")[:-1]])
def test_message_that_is_too_short_is_refused(message: bytes) -> None:
    with pytest.raises(PayloadError, match="ends before the update"):
        parted(message)
