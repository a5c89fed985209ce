"""The adaptive server optimisers of Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 2.

With the mean update D of round t, entry by entry:

    m_t = beta1 m_{t-1} + (1 - beta1) D
    v_t = v_{t-1} + D^2                                                 FedAdagrad
    v_t = v_{t-1} - (1 - beta2) D^2 sign(v_{t-1} - D^2)                 FedYogi
    v_t = beta2 v_{t-1} + (1 - beta2) D^2                               FedAdam
    the global model moves by lr m_t / (sqrt(v_t) + tau)

from m = 0 and v = tau^2. There is no correction of the bias of m and v, as in the paper. All three step on what has
been released: they cost no privacy, and need only the mean, so they go with secure aggregation.

The neutral setting: where tau is far above every entry of D, sqrt(v) stays tau, and the step is lr m / (2 tau). So
beta1 = 0 and lr = 2 tau is FedAvg, for FedAdam with beta2 -> 1 as well, without which its v forgets tau^2.
"""

from abc import abstractmethod
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedhpc.aggregation.base import Arrays, ServerStep
from fedhpc.util.arrays import F32

Decay = Annotated[float, Field(ge=0, lt=1)]
F64 = NDArray[np.float64]
FIRST, SECOND = "first_moment", "second_moment"


class AdaptiveStep(ServerStep):
    """What the three have in common; they differ in `second_moment`."""

    lr: Annotated[float, Field(gt=0, le=1e12)] = Field(
        default=0.01,
        description="the rate of the step: about the longest step of a parameter in one round, where updates are "
        "larger than `server.tau`",
    )
    beta1: Decay = Field(default=0.9, description="how much of the mean of the mean updates stays for the next round")
    tau: Annotated[float, Field(ge=1e-12, le=1e12)] = Field(
        default=1e-3, description="added to the root of the second moment: the larger it is, the less the step adapts"
    )

    @abstractmethod
    def second_moment(self, before: F64, squared: F64) -> F64:
        """Return v_t, float64[d], from v_{t-1} and the squared mean update."""

    def initial(self, size: int) -> Arrays:
        """See `ServerStep`: both moments, f32[size]; the second at the least that the paper allows, tau^2."""
        return {FIRST: np.zeros(size, np.float32), SECOND: np.full(size, self.tau**2, np.float32)}

    def step(self, mean: F32, kept: Arrays, round: int) -> tuple[F32, Arrays]:
        """See `ServerStep`. Computed in float64, kept in float32."""
        update = mean.astype(np.float64)
        first = self.beta1 * kept[FIRST].astype(np.float64) + (1 - self.beta1) * update
        second = self.second_moment(kept[SECOND].astype(np.float64), update**2)
        step = self.lr * first / (np.sqrt(second) + self.tau)
        return step.astype(np.float32), {FIRST: first.astype(np.float32), SECOND: second.astype(np.float32)}


class FedAdagrad(AdaptiveStep):
    """FedAdagrad (Reddi et al. 2021, Algorithm 2): steps get shorter where updates have been large in any round.

    The neutral setting is `beta1: 0` and `lr` = 2 `tau`, with `tau` far above every entry of an update.
    """

    optimizer: Literal["fedadagrad"] = Field(
        default="fedadagrad", description="FedAdagrad: a step over the root of the sum of all squared mean updates"
    )
    beta1: Decay = Field(default=0.0, description="how much of the mean of the mean updates stays for the next round")

    def second_moment(self, before: F64, squared: F64) -> F64:
        """See `AdaptiveStep`.

        >>> FedAdagrad().second_moment(np.array([1.0]), np.array([4.0])).tolist()
        [5.0]
        """
        return before + squared


class FedYogi(AdaptiveStep):
    """FedYogi (Reddi et al. 2021, Algorithm 2): as FedAdam, but v moves by at most (1 - beta2) D^2 in a round.

    The neutral setting is `beta1: 0` and `lr` = 2 `tau`, with `tau` far above every entry of an update.
    """

    optimizer: Literal["fedyogi"] = Field(
        default="fedyogi", description="FedYogi: as fedadam, with a second moment that changes less at once"
    )
    beta2: Decay = Field(default=0.99, description="how much of the second moment stays for the next round")

    def second_moment(self, before: F64, squared: F64) -> F64:
        """See `AdaptiveStep`.

        >>> FedYogi(beta2=0.5).second_moment(np.array([1.0, 9.0]), np.array([4.0, 4.0])).tolist()
        [3.0, 7.0]
        """
        return before - (1 - self.beta2) * squared * np.sign(before - squared)


class FedAdam(AdaptiveStep):
    """FedAdam (Reddi et al. 2021, Algorithm 2): a step over the root of the recent mean of the squared mean updates.

    The neutral setting is `beta1: 0`, `beta2` -> 1 and `lr` = 2 `tau`, with `tau` far above every entry of an update.
    """

    optimizer: Literal["fedadam"] = Field(
        default="fedadam", description="FedAdam: a step over the root of the recent mean of squared mean updates"
    )
    beta2: Decay = Field(default=0.99, description="how much of the second moment stays for the next round")

    def second_moment(self, before: F64, squared: F64) -> F64:
        """See `AdaptiveStep`.

        >>> FedAdam(beta2=0.5).second_moment(np.array([1.0, 9.0]), np.array([4.0, 4.0])).tolist()
        [2.5, 6.5]
        """
        return self.beta2 * before + (1 - self.beta2) * squared
