"""FedDyn: a regulariser that changes from round to round aligns the sites' optima with the global one.

Acar et al. 2021, "Federated Learning Based on Dynamic Regularization", Algorithm 1 with all sites in every round. Site
i minimises L_i(y) - <h_i, y> + alpha / 2 |y - x|^2 from the global parameters x, by the epochs of the config, then

    h_i <- h_i - alpha update_i
    S   <- S + u,    u = sum_i w_i update_i / sum_i w_i          (the paper's server state h is -alpha S)
    x   <- x + u + S                                           (the paper's mean of the local models less h / alpha)

The paper's mean over sites is weighted here, for the weighted loss. A model that stays where it is has S = 0, and that
makes the weighted mean of the sites' gradients zero there.

Updates are taken as they were sent, at the site too, so that alpha times S is minus the weighted mean of all h_i at any
number of bits. Refused at a density below 1: S adds up what has come, and with entries that come rounds later it
swings: on a small logistic problem it diverged. The paper's argument needs local optima; with few local steps a small
alpha can diverge.

alpha = 0 switches both parts off and is FedAvg. It is not the limit of small alpha: x moves by u + S at any alpha.

With privacy on, h_i is made of private updates: post-processing, at no epsilon. But it adds up the noise of all rounds.
"""

from dataclasses import dataclass

import numpy as np

from fedhpc.aggregation.base import Arrays
from fedhpc.algorithms.base import Algorithm, Fold, Folded, Initial, Sender, Trained, vector
from fedhpc.site.training.regularizers import Regularizer
from fedhpc.util.arrays import F32

GRADIENT, SUM = "gradient", "sum"
"""h_i f32[d] at each site (private where the run is); S f32[d] at the aggregator."""


@dataclass(frozen=True)
class FedDyn(Algorithm):
    """FedAvg with dynamic regularisation."""

    alpha: float

    def initial(self, size: int) -> Initial:
        """See `Algorithm`."""
        zeros = np.zeros(size, np.float32)
        return Initial(server={SUM: zeros}, site={GRADIENT: zeros})

    def regularizer(self, own: Arrays, public: Arrays) -> Regularizer:
        """See `Algorithm`."""
        return Regularizer(linear=-vector(own, GRADIENT), proximal=self.alpha)

    def after_training(self, own: Arrays, public: Arrays, trained: Trained) -> tuple[Arrays, bytes]:
        """See `Algorithm`; nothing is sent beside the update."""
        gradient = vector(own, GRADIENT).copy()
        gradient[trained.sent.indices] -= np.float32(self.alpha) * trained.sent.values
        return {GRADIENT: gradient}, b""

    def fold(self, kept: Arrays, public: Arrays) -> Fold:
        """See `Algorithm`."""
        return _Drift(vector(kept, SUM), moves=self.alpha > 0)


@dataclass(frozen=True)
class _Drift(Fold):
    """S, and whether it moves the model."""

    drift: F32
    moves: bool

    def result(self, mean: F32, sender: Sender) -> Folded:
        """See `Fold`."""
        if not self.moves:
            return Folded(mean, {SUM: self.drift})
        drift = self.drift + mean
        return Folded(mean + drift, {SUM: drift})
