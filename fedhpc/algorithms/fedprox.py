"""FedProx: local steps are pulled back to the global model.

Li et al. 2020, "Federated Optimization in Heterogeneous Networks", Algorithm 2: site i minimises
F_i(y) + mu / 2 |y - x|^2 approximately, from the global parameters x. Here by the same epochs of SGD or Adam as FedAvg,
so that sites of different sizes make different numbers of steps, which the paper allows ("gamma-inexact solution").

The gradient mu (y - x) needs no data. It is zero at the first step of a round.
"""

from dataclasses import dataclass

from fedhpc.aggregation.base import Arrays
from fedhpc.algorithms.base import Algorithm
from fedhpc.site.training.regularizers import Regularizer


@dataclass(frozen=True)
class FedProx(Algorithm):
    """FedAvg with a proximal term; mu = 0 is FedAvg, bit for bit."""

    mu: float

    def regularizer(self, own: Arrays, public: Arrays) -> Regularizer:
        """See `Algorithm`."""
        return Regularizer(proximal=self.mu)
