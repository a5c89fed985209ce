"""`run.py bench sparse`: the AUC after the first rounds by how much is sent, beside dense float32 at equal rounds.

A network of three layers learns a function of six directions of 48 Gaussian inputs at four unequal sites, by the round
of `fedhpc.algorithms.fedavg`. It takes seconds where a network of convolutions takes minutes, and its AUC still rises
after five rounds, when what is not sent is missed most. All ways see the same data, batches and initial model.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.round_types import RoundConfig, RoundResult
from fedhpc.algorithms.run_state import fresh_state
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.records.weighted_auc import weighted_aucs
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.transport.base import AloneTransport
from fedhpc.util.arrays import F32
from fedhpc.util.progress import progress
from fedhpc.util.text import fitted

SAMPLES, TEST_SAMPLES, INPUTS, HIDDEN = (1200, 900, 600, 300), 3000, 48, 256
LR, MOMENTUM, BATCH, LOCAL_EPOCHS = 0.02, 0.9, 64, 3


@dataclass(frozen=True)
class Labelled:
    """Inputs f32[n, INPUTS] and labels int64[n]."""

    inputs: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Way:
    """One way to exchange: density up, bits of a value, density down, rounds of warm-up."""

    density: float
    value_bits: int
    density_down: float
    warm_up_rounds: int = 0


DENSE = Way(1.0, 32, 1.0)
WAYS = (
    DENSE,
    Way(0.1, 4, 0.1),
    Way(0.1, 4, 0.5),
    Way(0.1, 4, 0.1, 4),
    Way(0.1, 4, 0.5, 4),
    Way(0.2, 4, 0.5),
    Way(0.3, 4, 0.3),
    Way(1.0, 3, 1.0),
    Way(0.6, 4, 0.6),
    Way(0.5, 4, 0.5),
    Way(0.5, 5, 0.5),
)


@dataclass
class Learner:
    """A site of the benchmark; see `fedhpc.algorithms.round_types.Participant`."""

    name: str
    index: int
    data: Labelled
    model: nn.Module
    seed: int

    def train(self, params: F32, round: int, regularizer: Regularizer = NOTHING) -> F32:
        """Return local - global, f32[d]."""
        from_vector(self.model, params)
        x, y = self.data.inputs, self.data.labels
        rng = np.random.default_rng([self.seed, self.index, round])
        optimizer = torch.optim.SGD(self.model.parameters(), LR, MOMENTUM)
        for _ in range(LOCAL_EPOCHS):
            for batch in np.array_split(rng.permutation(len(y)), -(-len(y) // BATCH)):
                optimizer.zero_grad()
                nn.functional.cross_entropy(self.model(x[batch]), y[batch]).backward()  # type: ignore[no-untyped-call]
                optimizer.step()
        return to_vector(self.model) - params

    def gradient_weight(self, round: int) -> float:
        """Return by how much the mean gradient enters an update: FedAvg does not ask."""
        return LR

    def can_afford(self, round: int) -> bool:
        """There is no budget."""
        return True


def measure(rounds: int, seeds: Sequence[int], ways: Sequence[Way] = WAYS) -> dict[str, Any]:
    """Return a row for each way: AUC half-way and at the end, less that of the first way, and bits a parameter."""
    cells = list(itertools.product(ways, seeds))
    found = {cell: _run(*cell, rounds) for cell in progress(cells, len(cells), "training", unit="run")}
    rows = []
    for way in ways:
        runs = [found[way, seed] for seed in seeds]
        aucs = np.array([run["aucs"] for run in runs])
        less = aucs - np.array([found[ways[0], seed]["aucs"] for seed in seeds])
        error = less.std(0, ddof=1) / len(seeds) ** 0.5 if len(seeds) > 1 else np.full(2, np.nan)
        rows.append(
            {
                **vars(way),
                "auc": aucs.mean(0).tolist(),
                "less_dense": less.mean(0).tolist(),
                "less_dense_error": [None if np.isnan(one) else float(one) for one in error],
                **{key: float(np.mean([run[key] for run in runs])) for key in ("bits_up", "bits_down", "bits_most")},
            }
        )
    return {
        "rounds": [rounds // 2, rounds],
        "seeds": list(seeds),
        "parameters": to_vector(_model(0)).size,
        "rows": rows,
    }


def _run(way: Way, seed: int, rounds: int) -> dict[str, Any]:
    model, test = _model(seed), _drawn(seed, len(SAMPLES), TEST_SAMPLES)
    names = tuple(f"site{index + 1}" for index in range(len(SAMPLES)))
    sites = [Learner(name, i, _drawn(seed, i, SAMPLES[i]), model, seed) for i, name in enumerate(names)]
    up, down = (
        CompressionConfig(density, way.value_bits, warm_up_rounds=way.warm_up_rounds)
        for density in (way.density, way.density_down)
    )
    aucs, ups, downs, params = [], [], [], to_vector(model)

    def on_round(result: RoundResult) -> bool:
        if result.traffic is not None:
            ups.append(8 * float(np.mean(result.traffic.up_bytes)) / params.size)
            downs.append(8 * result.traffic.down_bytes / params.size)
        if result.state.round in (rounds // 2, rounds):
            aucs.append(_auc(model, result.state.params, test))
        return True

    start = fresh_state(params, names, ServerSgd())
    federate(sites, start, RoundConfig(rounds, up, down, names, SAMPLES), AloneTransport(), on_round)
    bits = {"bits_up": float(np.mean(ups)), "bits_down": float(np.mean(downs)), "bits_most": max(*ups, *downs)}
    return {"aucs": aucs, **bits}


def _model(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        hidden = [nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU()]
        return nn.Sequential(*hidden, nn.Linear(HIDDEN, 2))


@cache
def _drawn(seed: int, part: int, count: int) -> Labelled:
    """Inputs f32[count, INPUTS] and labels of products and waves of six fixed directions, with noise."""
    rng = np.random.default_rng([seed, part])
    x = rng.standard_normal((count, INPUTS)).astype(np.float32)
    z = x @ (np.random.default_rng(5).standard_normal((INPUTS, 6)) / INPUTS**0.5)
    signal = z[:, 0] * z[:, 1] + z[:, 2] * z[:, 3] + np.sin(2 * z[:, 4]) * z[:, 5]
    labels = (signal + 0.4 * rng.standard_normal(count) > 0).astype(np.int64)
    return Labelled(torch.from_numpy(x), torch.from_numpy(labels))


def _auc(model: nn.Module, params: F32, test: Labelled) -> float:
    from_vector(model, params)
    with torch.no_grad():
        logits = model(test.inputs).double().numpy()
    positive = test.labels.numpy().astype(np.bool_)
    return float(weighted_aucs(logits[:, 1] - logits[:, 0], positive, np.ones((1, positive.size)))[0])


def text(found: Mapping[str, Any]) -> str:
    """For a person."""
    half, last = found["rounds"]
    bits = ("bits up", "down", "most")
    head = ("density", "bits", "down", "warm-up", *bits, f"less dense, {half} rounds", f"{last} rounds")
    return fitted([head, *map(_line, found["rows"])])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    way = (f"{row['density']:g}", f"{row['value_bits']}", f"{row['density_down']:g}", f"{row['warm_up_rounds']}")
    bits = [f"{row[key]:.2f}" for key in ("bits_up", "bits_down", "bits_most")]
    differences = zip(row["less_dense"], row["less_dense_error"], strict=True)
    return (*way, *bits, *(f"{one:+.4f}" + ("" if error is None else f" ± {error:.4f}") for one, error in differences))
