"""`model.feature_mean: sites`: the noise of the one release before the rounds, the units in it, and its charge."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.audit.findings import WITH_DP, Kind, Law
from fedhpc.audit.observation import Claim, Work, hospital_at_work
from fedhpc.audit.statistics import LAW_RISK, spread_interval
from fedhpc.models.whitening import Centring, Whitening
from fedhpc.privacy.plan import BEFORE_ROUNDS
from fedhpc.run.rounds.feature_mean import feature_grid
from fedhpc.site.hospital import Hospital
from fedhpc.site.training.secure_contribution import IntegerGrid
from fedhpc.util.arrays import F64, I64

RELEASES, LESS_NOISE = 40, 0.7
LONG = 1e3
"""Of the features of the one unit that is not blank: whitening must make it of length 1."""


@dataclass
class OneUnit:
    """Units that are blank, and one that is not: what a release holds beside noise is that one's."""

    inputs_of_it: Tensor
    labels: I64
    patient: NDArray[np.bytes_]
    early: NDArray[np.bool_]

    @classmethod
    def of(cls, features: int, units: int) -> "OneUnit":
        """`units` units in all."""
        names = np.array([f"canary {number}".encode() for number in range(units)])
        return cls(torch.full((features,), LONG), np.zeros(units, np.int64), names, np.zeros(units, bool))

    def indices(self, split: str) -> I64:
        """All are of the training split."""
        return np.arange(len(self.labels) if split == "train" else 0)

    def inputs(self, rows: I64) -> Tensor:
        """Zeros, but for the first unit."""
        found = torch.zeros(len(rows), len(self.inputs_of_it))
        found[torch.from_numpy(rows == 0)] = self.inputs_of_it
        return found


def feature_mean_laws(claim: Claim) -> Iterator[Law]:
    """Noise, the longest unit and the charges of the release; the control adds 0.7 of the noise."""
    if claim.config.model.feature_mean != "sites":
        return
    yield _noise(claim, claim, WITH_DP, "claim")
    planned = claim.plan.feature_mean_noise
    less = replace(claim, plan=replace(claim.plan, feature_mean_noise=LESS_NOISE * (planned or 0.0)))
    yield _noise(claim, less, f"{LESS_NOISE} of the noise", "control")
    sums, charged = _released(claim)
    found = float(charged)
    yield Law("feature mean, charges", WITH_DP, "charged / released:", found, found, found, 1.0, np.inf)
    # The mean of all releases; its noise is a small part of what the one unit adds where there are enough.
    length = float(np.linalg.norm(sums.mean(axis=0)))
    most = 1 + _noise_of(claim) * math.sqrt(2 * sums.shape[1] / len(sums))
    yield Law("feature mean, a unit", WITH_DP, "length of one unit:", length, length, length, 0.0, most)


def _noise_of(claim: Claim) -> float:
    """Of one site, by the config and not by the product's plan, in lengths of a unit."""
    config = claim.config
    share = config.honest_sites if config.privacy.trust == "sites" else 1
    return config.privacy.feature_mean_noise / math.sqrt(share)


def _noise(claim: Claim, observed: Claim, setting: str, kind: Kind) -> Law:
    sums, _ = _released(observed)
    noise, planned = (sums - sums.mean(axis=0)) * math.sqrt(len(sums) / (len(sums) - 1)), _noise_of(claim)
    low, high = (end / planned for end in spread_interval(noise, LAW_RISK))
    measured = float(np.sqrt(np.mean(np.square(noise)))) / planned
    return Law("noise of the feature mean", setting, "measured / planned:", measured, low, high, 1.0, 1.0, kind)


def _released(claim: Claim) -> tuple[F64, float]:
    """(RELEASES sums of one site f64[n, d] in lengths of a unit, charges a release)."""
    config, size = claim.config, int(claim.config.model.features or 1)
    whitening = Whitening(size, size)
    whitening.projection.copy_(torch.eye(size))
    model = nn.Sequential(whitening, Centring(size), nn.Linear(size, claim.classes, bias=False))
    first, weights = config.site_names[0], [site.weight or 1 for site in config.data.sites]
    grid = feature_grid(config, claim.plan, weights)
    work = Work(first, config, claim.plan, model, OneUnit.of(size, 3), weights[0], claim.device)
    with hospital_at_work(work, lambda done, total: None) as hospital:
        sums = np.stack([_one(hospital, grid, config.privacy.trust) for _ in range(RELEASES)])
        count = sum(charge.round == BEFORE_ROUNDS for charge in hospital.budget.ledger.charges)
    return sums, count / RELEASES


def _one(hospital: Hospital, grid: IntegerGrid, trust: str) -> F64:
    if trust == "sites":
        return hospital.feature_share(grid) / grid.clip_units
    return hospital.feature_sum(grid)
