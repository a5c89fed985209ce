"""A federated logistic problem that is small enough to follow by numpy: sites that train by the product's own loop.

Every epoch is one full-batch step, so that the gradients of a round are known without the order of batches.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.algorithms.base import Algorithm
from fedhpc.algorithms.catalogue import algorithm_of
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.round_types import RoundConfig, RoundResult
from fedhpc.algorithms.run_state import RunState, fresh_state
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.site.training.local_sgd import LocalRound, gradient_weight, train_plain
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.transport.base import AloneTransport
from fedhpc.util.arrays import F32, I64

F64 = NDArray[np.float64]
FEATURES, CLASSES, LR = 3, 2, 0.1
D = CLASSES * FEATURES
BENCH = Device(torch.device("cpu"), bf16=False)


@dataclass
class Rows:
    """Samples in memory, all for training."""

    x: F32
    labels: I64

    def indices(self, split: str) -> I64:
        return np.arange(len(self.labels))

    def inputs(self, rows: I64) -> torch.Tensor:
        return torch.from_numpy(self.x[rows])


@dataclass
class Learner:
    """A site: it trains `steps` full-batch steps a round."""

    name: str
    index: int
    rows: Rows
    steps: int
    momentum: float = 0.0

    @cached_property
    def config(self) -> RunConfig:
        """Of its local training."""
        training = {"local_epochs": self.steps, "lr": LR, "lr_schedule": "constant", "momentum": self.momentum}
        tree = {
            "name": "x",
            "data": {"shards": "{site}.h5", "sites": [{"name": "a"}]},
            "training": {**training, "batch_size": 10_000, "weight_decay": 0.0, "rounds": 1000},
        }
        return RunConfig.model_validate(tree)

    def train(self, params: F32, round: int, regularizer: Regularizer = NOTHING) -> F32:
        model = nn.Linear(FEATURES, CLASSES, bias=False)
        from_vector(model, params)
        rows: Any = self.rows
        train_plain(LocalRound(model, rows, self.config, self.name, round, BENCH, lambda *_: None, regularizer))
        return to_vector(model) - params

    def gradient_weight(self, round: int) -> float:
        return gradient_weight(self.config.training, round, self.steps)

    def can_afford(self, round: int) -> bool:
        return True

    def gradient(self, y: F64) -> F64:
        """Of the mean cross entropy at y float64[D]: softmax regression, by hand."""
        logits = self.rows.x.astype(np.float64) @ y.reshape(CLASSES, FEATURES).T
        p = np.exp(logits - logits.max(axis=1, keepdims=True))
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(len(p)), self.rows.labels] -= 1
        flat: F64 = (p.T @ self.rows.x / len(p)).reshape(-1)
        return flat


def learners(steps: Sequence[int], momentum: float = 0.0) -> list[Learner]:
    """Sites whose labels depend on the features in different ways, so that local steps drift apart."""
    found = []
    for index, count in enumerate(steps):
        rng = np.random.default_rng(index)
        x = (rng.standard_normal((40, FEATURES)) * (1 + index)).astype(np.float32)
        labels = (x @ rng.standard_normal(FEATURES) + rng.standard_normal(40) > 0).astype(np.int64)
        found.append(Learner("abc"[index], index, Rows(x, labels), count, momentum))
    return found


@dataclass(frozen=True)
class Settings:
    """Of a federated run: section `algorithm`, rounds, density, bits of a value, weights."""

    algorithm: dict[str, Any]
    rounds: int = 4
    density: float = 1.0
    value_bits: int = 32
    weights: tuple[int, ...] = (1, 2, 3)

    def made(self) -> Algorithm:
        tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}]}, "algorithm": self.algorithm}
        return algorithm_of(RunConfig.model_validate({**tree, "exchange": {"density": 1.0}}).algorithm)


def run(
    sites: Sequence[Learner], settings: Settings, start: RunState | None = None, go_on: int = 1000
) -> tuple[RunState, list[RoundResult]]:
    """Train by the product's `federate`; stop after `go_on` rounds."""
    algorithm, coding = settings.made(), CompressionConfig(settings.density, settings.value_bits)
    names = tuple(site.name for site in sites)
    weights = settings.weights[: len(sites)]
    terms = RoundConfig(settings.rounds, coding, coding, names, weights, algorithm=algorithm)
    first = start or fresh_state(np.zeros(D, np.float32), names, ServerSgd(), algorithm)
    results: list[RoundResult] = []

    def on_round(result: RoundResult) -> bool:
        results.append(result)
        return len(results) < go_on

    state, _ = federate(sites, first, terms, AloneTransport(), on_round)
    return state, results


def descended(site: Learner, x: F64, added: Callable[[F64, F64], F64]) -> F64:
    """The parameters after the site's steps from x, float64: y <- y - LR m, m <- momentum m + g(y) + added(y, x)."""
    y, velocity = x.copy(), np.zeros_like(x)
    for _ in range(site.steps):
        velocity = site.momentum * velocity + site.gradient(y) + added(y, x)
        y = y - LR * velocity
    return y


def same_bits(one: RunState, other: RunState) -> bool:
    """Whether two states are the same in everything, bit for bit."""

    def flat(state: RunState) -> dict[str, bytes]:
        parts = {"public": state.public, "server": state.server, **{f"site {k}": v for k, v in state.sites.items()}}
        arrays = {f"{part}.{name}": a.tobytes() for part, kept in parts.items() for name, a in kept.items()}
        return {**arrays, "params": state.params.tobytes()}

    return flat(one) == flat(other)
