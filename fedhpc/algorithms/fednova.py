"""FedNova: updates are normalised by the number of local steps, so that a site with more steps does not pull more.

Wang et al. 2020, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization", equation 6
with the steps of section 3: d_i = update_i / |a_i|, x <- x + tau sum_i p_i d_i, where |a_i| counts the steps that site
i has made (weighted, with momentum) and tau = sum_i p_i |a_i|. p_i is the weight over the sum of weights.

Each site sends its |a_i| times the learning rate, one float64, beside its update. All |a_i| enter as ratios to that of
the first site: where they are equal every ratio is exactly 1, and the round is FedAvg's, bit for bit. Residuals of
error feedback are normalised with the round in which they are sent, so that sparse rounds are exact where a site's
number of steps does not change from round to round.

Refused with privacy on: the noise of an update does not shrink with the number of steps like its mean, so that dividing
by few steps multiplies the noise of just the slow sites.
"""

import struct
from dataclasses import dataclass

import numpy as np

from fedhpc.aggregation.base import Arrays
from fedhpc.algorithms.base import Algorithm, Fold, Folded, Sender, Trained
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError
from fedhpc.util.arrays import F32

NUMBER = struct.Struct("<d")
LARGEST_RATIO = 1e4
"""Of the steps of two sites in one round."""


class FedNova(Algorithm):
    """FedAvg with normalised averaging."""

    sends_more = True

    def after_training(self, own: Arrays, public: Arrays, trained: Trained) -> tuple[Arrays, bytes]:
        """See `Algorithm`; nothing is kept."""
        return own, NUMBER.pack(trained.gradient_weight)

    def fold(self, kept: Arrays, public: Arrays) -> Fold:
        """See `Algorithm`."""
        return _Normalised()


@dataclass
class _Normalised(Fold):
    """The steps of the first site, and the weighted sum of all sites' as multiples of them."""

    first: float = 0.0
    total_weight: int = 0
    total: float = 0.0

    def add(self, update: SparseVector, weight: int, more: bytes, sender: Sender) -> SparseVector:
        """See `Fold`."""
        steps = _number(more, sender)
        self.first = self.first or steps
        ratio = steps / self.first
        if not 1 / LARGEST_RATIO <= ratio <= LARGEST_RATIO:
            raise PayloadError(
                f"round {sender.round + 1}: it has made {ratio:g} times the steps of the first site; allowed are "
                f"{1 / LARGEST_RATIO:g} to {LARGEST_RATIO:g} times",
                code="payload.not-finite",
            )
        self.total_weight += weight
        self.total += weight * ratio
        return SparseVector(update.size, update.indices, (update.values / ratio).astype(np.float32))

    def result(self, mean: F32, sender: Sender) -> Folded:
        """See `Fold`."""
        return Folded((mean * (self.total / self.total_weight)).astype(np.float32))


def _number(more: bytes, sender: Sender) -> float:
    """Return the positive number that a site must have sent beside its update."""
    value: float = NUMBER.unpack(more)[0] if len(more) == NUMBER.size else float("nan")
    if not 0 < value < float("inf"):
        raise PayloadError(f"round {sender.round + 1}: its number of steps is no number above 0")
    return value
