"""SCAFFOLD: control variates take out of each local step what is the site's own.

Karimireddy et al. 2020, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning", Algorithm 1 with option II
and all sites in every round. Site i takes steps along g_i(y) + c - c_i, then

    c_i <- c_i - c + (x - y_i) / (K_i lr)        the mean gradient of its own round
    c   <- c + sum_i w_i (change of c_i) / sum_i w_i

The paper's mean over sites is weighted here like that of the updates, so that the corrections cancel in the mean. With
momentum, K_i lr is `gradient_weight`: then (x - y_i) / (K_i lr) is a weighted mean of the round's corrected gradients,
and c_i stays a mean of g_i. Sites may make different numbers of steps.

What is sent. The change of c_i goes beside the update, coded like it (density, bits), and so does the change of c back:
twice FedAvg's bytes. c_i is defined as the sum of what was *sent*: what a round does not send is in the next round's
difference (EF21, Richtarik et al. 2021). So at any density the site and the aggregator agree on c_i exactly. c follows
the weighted mean of all c_i with error feedback: c plus the aggregator's residual is that mean; at density 1 and 32
bits the residual is zero but for rounding.

With privacy on, c_i is made of private updates and of what all know: post-processing, at no epsilon. It carries their
noise into the next round's steps.
"""

from dataclasses import dataclass, field

import numpy as np

from fedhpc.aggregation.base import Arrays
from fedhpc.algorithms.base import Algorithm, Fold, Folded, Initial, Sender, Trained, vector
from fedhpc.algorithms.run_state import RESIDUAL
from fedhpc.compression.update import SparseVector
from fedhpc.site.training.regularizers import Regularizer
from fedhpc.util.arrays import F32, F64

CONTROL = "control"
"""c of all, f32[d] (public), and c_i of each site (private where the run is)."""


class Scaffold(Algorithm):
    """SCAFFOLD, option II. One site alone is FedAvg, bit for bit, where exchange is dense and exact."""

    sends_more = True
    vectors = 2

    def initial(self, size: int) -> Initial:
        """See `Algorithm`: all control variates are zero, so that the first round is FedAvg's."""
        zeros = np.zeros(size, np.float32)
        return Initial(public={CONTROL: zeros}, server={RESIDUAL: zeros}, site={CONTROL: zeros})

    def regularizer(self, own: Arrays, public: Arrays) -> Regularizer:
        """See `Algorithm`: c - c_i."""
        return Regularizer(linear=vector(public, CONTROL) - vector(own, CONTROL))

    def after_training(self, own: Arrays, public: Arrays, trained: Trained) -> tuple[Arrays, bytes]:
        """See `Algorithm`."""
        change = -vector(public, CONTROL) - trained.update / np.float32(trained.gradient_weight)
        payload, sent, _ = trained.sender.encode(change, np.zeros_like(change))
        control = vector(own, CONTROL).copy()
        control[sent.indices] += sent.values
        return {CONTROL: control}, payload

    def fold(self, kept: Arrays, public: Arrays) -> Fold:
        """See `Algorithm`."""
        return _ControlMean(vector(kept, RESIDUAL))

    def after_round(self, public: Arrays, more: bytes, sender: Sender, size: int) -> Arrays:
        """See `Algorithm`."""
        change, control = sender.decode(more, size), vector(public, CONTROL).copy()
        control[change.indices] += change.values
        return {CONTROL: control}


@dataclass
class _ControlMean(Fold):
    """The weighted mean of the changes of all c_i, in float64: of one site it is that site's change exactly."""

    residual: F32
    total_weight: int = 0
    total: F64 = field(init=False)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.residual.size, np.float64)

    def add(self, update: SparseVector, weight: int, more: bytes, sender: Sender) -> SparseVector:
        """See `Fold`."""
        change = sender.decode(more, update.size)
        self.total[change.indices] += weight * change.values.astype(np.float64)
        self.total_weight += weight
        return update

    def result(self, mean: F32, sender: Sender) -> Folded:
        """See `Fold`."""
        change = (self.total / self.total_weight).astype(np.float32)
        payload, _, residual = sender.encode(change, self.residual)
        return Folded(mean, {RESIDUAL: residual}, payload)
