"""The noise and the contribution of a unit, measured at every step of a round, and judged.

Two observations of `Hospital.train`: canaries alone, half of which took part, and the run's own network with masked
inputs, so that all that reaches its tensors is noise.
"""

import copy
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.audit.canaries import Blank, Canaries, CanarySamples, canary_norm, head_canaries, network_canaries
from fedhpc.audit.findings import WITH_DP, Kind, Law, worst
from fedhpc.audit.mechanism import LEARNING_RATE, coins
from fedhpc.audit.observation import Claim, NumberedBlanks, Work, observed_config, private_gradients
from fedhpc.audit.statistics import (
    LAW_RISK,
    Interval,
    correlation_limit,
    distance_limit,
    gaussian_distance,
    largest_correlation,
    mean_interval,
    spread_interval,
)
from fedhpc.compression.top_k import Layers
from fedhpc.models.vector import layers_of
from fedhpc.util.arrays import F64, I64
from fedhpc.util.rng import generator

CANARIES, FEW = 400, 8
ROUNDS = 120
"""Of canaries: a source with 8 bits of seed repeats itself among so many but for a chance of 6e-13."""
ENOUGH = 500
"""Values of noise that tell 0.7 of it from the whole at LAW_RISK, with all the steps and tensors of a run."""
ROWS, VALUES, ENTRIES = 600, 100_000, 200
BIAS_SHARE = 0.03
"""How much shorter than 1 the part of a canary's gradient in its own direction may be, the rest being in the bias."""
NOISE_MOVE = 1e-3
"""By how much noise moves a parameter of the run's own network in a step: float32 holds it, no output overflows."""


@dataclass(frozen=True)
class Observed:
    """The scores of canaries, f64[rounds, steps, canaries], in clip norms, at one site."""

    site: str
    scores: F64
    included: NDArray[np.bool_]

    @property
    def noise(self) -> F64:
        """What the directions of canaries that did not take part hold: [rounds, steps, those]."""
        return self.scores[:, :, ~self.included]

    @property
    def contributions(self) -> F64:
        """What those of the others hold."""
        return self.scores[:, :, self.included]


def observe_canaries(claim: Claim, sites: tuple[str, ...], rounds: int) -> list[Observed]:
    """`rounds` rounds in all, the same number at each site, of CANARIES declared units of which half are there."""
    each = -(-rounds // len(sites))
    config = observed_config(claim, each, LEARNING_RATE)
    # The same at all sites, so that equal noise is in the same places.
    included = coins(claim.seed, CANARIES, "noise laws")
    found = []
    for site in sites:
        canaries = canaries_alone(claim, CANARIES)
        model = canaries.module.to(claim.device.device)
        work = Work(site, config, claim.plan, model, CanarySamples(included), CANARIES, claim.device)
        gradients = private_gradients(work, each)
        scores = np.stack([[canaries.scores(step) for step in round] for round in gradients])
        found.append(Observed(site, scores, included))
    return found


def canaries_alone(claim: Claim, count: int) -> Canaries:
    """Through the linear head of a frozen backbone or through a network's layers, as the run's model is."""
    norm = canary_norm(claim.config.privacy.clip_norm, claim.head)
    if claim.head:
        return head_canaries(None, count, claim.classes, norm)
    return network_canaries(Blank(claim.classes), count, claim.classes, norm)


def canary_laws(claim: Claim, observed: list[Observed], noise_multiplier: float) -> Iterator[Law]:
    """Noise by step and by site, contribution by step, independence, shape; `noise_multiplier` is the claimed one."""
    yield noise_by_step(observed, noise_multiplier, WITH_DP, "claim")
    yield worst(
        [
            Spread("noise of each site", site.site, site.noise, noise_multiplier, LAW_RISK / len(observed)).law()
            for site in observed
        ]
    )
    yield contribution_by_step(claim, observed, noise_multiplier)
    yield _independence(observed)
    yield _shape(observed, noise_multiplier)


def noise_by_step(observed: list[Observed], noise_multiplier: float, setting: str, kind: Kind) -> Law:
    """Return the standard deviation of the noise of each step of a round by itself, over what was planned."""
    steps = observed[0].scores.shape[1]
    laws = []
    for step in range(steps):
        values = np.concatenate([site.noise[:, step].ravel() for site in observed])
        place = f"step {step + 1} of {steps}"
        found = Spread("noise of each step", place, values, noise_multiplier, LAW_RISK / steps, setting, kind)
        laws.append(found.law())
    return worst(laws)


@dataclass(frozen=True)
class Spread:
    """Noise that was seen at one place, and what its standard deviation is to be.

    Attributes:
        name: of the law.
        place: where it was seen: a site, a step or a tensor.
        values: the noise.
        planned: its standard deviation by the plan.
        risk: the chance that the interval misses the truth.
        setting, kind: of the law.
    """

    name: str
    place: str
    values: F64
    planned: float
    risk: float
    setting: str = WITH_DP
    kind: Kind = "claim"

    def law(self) -> Law:
        """Measured over planned standard deviation."""
        low, high = (end / self.planned for end in spread_interval(self.values, self.risk))
        measured = float(np.sqrt(np.mean(np.square(self.values)))) / self.planned
        quantity = f"measured / planned, {self.place}:"
        return Law(self.name, self.setting, quantity, measured, low, high, 1.0, 1.0, self.kind)


def contribution_by_step(claim: Claim, observed: list[Observed], noise_multiplier: float) -> Law:
    """The mean contribution of a unit to each step: the share of steps that it is drawn for, times one clip norm.

    The declared number of units is twice the true one here: a mean over the true one would be twice as large.
    """
    q = claim.plan.sample_rate
    steps, deviation = observed[0].scores.shape[1], (noise_multiplier**2 + q * (1 - q)) ** 0.5
    laws = []
    for step in range(steps):
        values = np.concatenate([site.contributions[:, step].ravel() for site in observed])
        interval: Interval = mean_interval(values, deviation, LAW_RISK / steps)
        low, high = (end / q for end in interval)
        place = f"of the clip norm, step {step + 1} of {steps}:"
        measured = float(values.mean()) / q
        laws.append(Law("contribution to each step", WITH_DP, place, measured, low, high, 1 - BIAS_SHARE, 1.001))
    return worst(laws)


def _independence(observed: list[Observed]) -> Law:
    """No two of the noise vectors of all sites, rounds and steps are alike: neither repeated seeds nor momentum.

    All first steps, in which a repeated seed shows, and all steps of the first rounds.
    """
    length = min(site.noise.shape[2] for site in observed)
    first = [site.noise[:, 0, :length] for site in observed]
    later = [site.noise[:, 1:, :length].reshape(-1, length)[: ROWS // len(observed)] for site in observed]
    rows = np.concatenate([*first, *later])
    limit = correlation_limit(length, len(rows) * (len(rows) - 1) // 2, LAW_RISK)
    found = largest_correlation(rows)
    name = f"largest correlation of {len(rows)} noise vectors:"
    details = {"vectors": len(rows), "length": length}
    return Law("noise never repeats", WITH_DP, name, found, found, found, -np.inf, limit, "claim", details)


def _shape(observed: list[Observed], noise_multiplier: float) -> Law:
    values = np.concatenate([site.noise.ravel() for site in observed])[:VALUES]
    found, limit = gaussian_distance(values, noise_multiplier), distance_limit(len(values), LAW_RISK)
    name = f"distance of {len(values):,} values from a Gaussian:"
    return Law("shape of the noise", WITH_DP, name, found, found, found, -np.inf, limit)


@dataclass(frozen=True)
class OwnNetwork:
    """Noise in some entries of each tensor of the run's own network, f64[rounds, steps, entries], in clip norms."""

    values: F64
    tensor: I64
    names: tuple[str, ...]

    def of(self, name: str, step: int | None = None) -> F64:
        """Of one tensor, in one step or in all."""
        chosen = self.values[:, :, self.tensor == self.names.index(name)]
        return chosen if step is None else chosen[:, step]


class Masked(nn.Module):
    """A network whose parameters no input reaches: its answers times 0. What moves them is noise alone."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Zero logits [b, classes]."""
        logits: Tensor = self.network(inputs) * 0.0
        return logits


def observe_own_network(claim: Claim) -> OwnNetwork:
    """Enough rounds for every tensor, and for the weights and the biases of every step."""
    model = network_canaries(Masked(copy.deepcopy(claim.model)), FEW, claim.classes, 10.0).module
    layers = [layer for layer in layers_of(model) if not layer.name.startswith("canaries.")]
    entries, tensor = _some_entries(layers, claim.seed)
    rounds = _rounds_needed(claim, layers, np.bincount(tensor))
    lr = NOISE_MOVE * claim.plan.sample_rate * FEW / (claim.plan.noise_multiplier * claim.config.privacy.clip_norm)
    config = observed_config(claim, rounds, lr)
    samples = NumberedBlanks(np.ones(FEW, np.bool_), claim.input_shape)
    model = model.to(claim.device.device)
    work = Work(claim.config.site_names[0], config, claim.plan, model, samples, FEW, claim.device)
    with torch.random.fork_rng(devices=[]):
        values = private_gradients(work, rounds, entries).astype(np.float64)
    return OwnNetwork(values, tensor, tuple(layer.name for layer in layers))


def _some_entries(layers: Layers, seed: int) -> tuple[I64, I64]:
    """(which parameters, of which tensor each): at most ENTRIES random ones of each tensor."""
    rng, start, parts = generator(seed, "entries of tensors"), 0, []
    for layer in layers:
        parts.append(start + np.sort(rng.permutation(layer.size)[:ENTRIES]))
        start += layer.size
    return np.concatenate(parts), np.repeat(np.arange(len(parts)), [len(part) for part in parts])


def _rounds_needed(claim: Claim, layers: Layers, entries: I64) -> int:
    kinds = [is_bias(layer.name) for layer in layers]
    by_kind = [int(entries[np.array(kinds) == kind].sum()) for kind in set(kinds)]
    fewest = min(*by_kind, claim.plan.steps_per_round * int(entries.min()))
    return max(4, -(-ENOUGH // fewest))


def is_bias(name: str) -> bool:
    """Return whether a parameter is an offset, by its name in the module."""
    return name.rsplit(".", 1)[-1] == "bias"


def own_network_laws(observed: OwnNetwork, noise_multiplier: float) -> Iterator[Law]:
    """Noise by tensor; of weights, and of biases where there are any, by step."""
    names, steps = observed.names, observed.values.shape[1]
    risk = LAW_RISK / len(names)
    shown = {name: name.replace("network.network.", "") for name in names}
    yield worst(
        [Spread("noise of each tensor", shown[name], observed.of(name), noise_multiplier, risk).law() for name in names]
    )
    for kind, biases in (("weights", False), ("biases", True)):
        chosen = [name for name in names if is_bias(name) == biases]
        if chosen:
            yield worst(
                [
                    Spread(
                        f"noise of the {kind}",
                        f"step {step + 1} of {steps}",
                        np.concatenate([observed.of(name, step).ravel() for name in chosen]),
                        noise_multiplier,
                        LAW_RISK / steps,
                    ).law()
                    for step in range(steps)
                ]
            )
