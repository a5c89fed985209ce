"""The server optimisers: each paper's equation against plain Python, FedAvg at the neutral setting, and resume."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from pydantic import ValidationError

from fedhpc.aggregation.base import ServerStep
from fedhpc.aggregation.rules import SERVER_OPTIMIZERS
from fedhpc.aggregation.server_adaptive import FedAdagrad, FedAdam, FedYogi
from fedhpc.aggregation.server_momentum import FedAvgM
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.round_types import RoundResult
from fedhpc.algorithms.run_state import RunState, fresh_state
from fedhpc.compression.update import pack_arrays, unpack_arrays
from fedhpc.transport.base import AloneTransport
from fedhpc.util.arrays import F32
from tests.algorithms.test_fedavg import Puller, terms_of

D, ROUNDS = 30, 6
FAR = 2.0**30
NEUTRAL = (
    FedAvgM(momentum=0),
    FedAdagrad(beta1=0, tau=FAR, lr=2 * FAR),
    FedYogi(beta1=0, tau=FAR, lr=2 * FAR),
    FedAdam(beta1=0, beta2=1 - 2**-53, tau=FAR, lr=2 * FAR),
)


def updates() -> F32:
    """Of several scales, with entries that are zero."""
    rng = np.random.default_rng(0)
    drawn = rng.normal(size=(ROUNDS, D)) * 10.0 ** rng.integers(-4, 2, size=D)
    drawn[:, 0] = 0
    return drawn.astype(np.float32)


def fedavgm(history: list[float]) -> float:
    """Hsu et al. 2019: the last step of one parameter, with lr 0.3 and momentum 0.8."""
    return 0.3 * sum(0.8**age * update for age, update in enumerate(reversed(history)))


def adaptive(history: list[float], second: Callable[[float, float], float]) -> float:
    """Reddi et al. 2021, Algorithm 2: the last step of one parameter, with lr 0.1, beta1 0.7, tau 0.01."""
    m, v = 0.0, 0.01**2
    for update in history:
        m, v = 0.7 * m + 0.3 * update, second(v, update * update)
    return 0.1 * m / (v**0.5 + 0.01)


def sign(x: float) -> int:
    return (x > 0) - (x < 0)


SHARED = {"lr": 0.1, "beta1": 0.7, "tau": 0.01}
EQUATIONS: list[tuple[ServerStep, Callable[[list[float]], float]]] = [
    (FedAvgM(lr=0.3, momentum=0.8), fedavgm),
    (FedAdagrad(**SHARED), lambda history: adaptive(history, lambda v, d2: v + d2)),
    (FedAdam(**SHARED, beta2=0.9), lambda history: adaptive(history, lambda v, d2: 0.9 * v + 0.1 * d2)),
    (FedYogi(**SHARED, beta2=0.9), lambda history: adaptive(history, lambda v, d2: v - 0.1 * d2 * sign(v - d2))),
]


@pytest.mark.parametrize(("optimizer", "equation"), EQUATIONS, ids=lambda value: getattr(value, "optimizer", ""))
def test_optimizer_follows_its_equation(optimizer: ServerStep, equation: Callable[[list[float]], float]) -> None:
    kept = optimizer.initial(D)
    for round, mean in enumerate(updates()):
        step, kept = optimizer.step(mean, kept, round)
        expected = [equation([float(value) for value in column]) for column in updates()[: round + 1].T]
        np.testing.assert_allclose(step, expected, rtol=1e-5, atol=1e-9)


def rounds_with(server: ServerStep, start: RunState | None = None, stop_after: int = ROUNDS) -> RunState:
    """Sparse rounds of two sites."""
    rng = np.random.default_rng(1)
    sites = [Puller(name, i, rng.normal(size=D).astype(np.float32)) for i, name in enumerate("ab")]
    done: list[RoundResult] = []

    def on_round(result: RoundResult) -> bool:
        done.append(result)
        return len(done) < stop_after

    start = start or fresh_state(np.zeros(D, np.float32), "ab", server)
    return federate(
        sites, start, replace(terms_of(ROUNDS, 0.2, 0.2, (1, 3)), server=server), AloneTransport(), on_round
    )[0]


@pytest.mark.parametrize("neutral", NEUTRAL, ids=lambda server: server.optimizer)
def test_neutral_setting_equals_fedavg_bitwise(neutral: ServerStep) -> None:
    assert rounds_with(neutral).params.tobytes() == rounds_with(ServerSgd()).params.tobytes()


@pytest.mark.parametrize("kind", SERVER_OPTIMIZERS, ids=lambda kind: kind.model_fields["optimizer"].default)
def test_resumed_run_has_same_bits(kind: type[ServerStep]) -> None:
    """What is kept goes through the bytes of a checkpoint."""
    server = kind()
    half = rounds_with(server, stop_after=3)
    saved = replace(half, server=unpack_arrays(pack_arrays(half.server)))
    whole, resumed = rounds_with(server), rounds_with(server, saved)
    assert resumed.params.tobytes() == whole.params.tobytes()
    assert (
        kind is ServerSgd
        or resumed.params.tobytes() != rounds_with(server, fresh_state(half.params, "ab", server)).params.tobytes()
    )


@pytest.mark.parametrize("bad", [{"momentum": 1.0}, {"lr": 0.0}])
def test_momentum_out_of_range_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        FedAvgM(**bad)
