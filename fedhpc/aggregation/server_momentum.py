"""The server optimiser of FedAvgM: a step along the mean updates of all rounds, older ones counting less."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Arrays, ServerStep
from fedhpc.util.arrays import F32

VELOCITY = "velocity"


class FedAvgM(ServerStep):
    """Momentum on the server (FedAvgM; Hsu, Qi and Brown 2019, arXiv 1909.06335).

    With the mean update u of a round: v <- momentum v + u, and the global model moves by lr v. `momentum: 0` with
    `lr: 1` is FedAvg, bit for bit. It steps on what has been released and costs no privacy.
    """

    optimizer: Literal["fedavgm"] = Field(
        default="fedavgm", description="FedAvgM: a step along a sum of all mean updates, of which older ones fade"
    )
    lr: Annotated[float, Field(gt=0, le=10)] = Field(default=1.0, description="the rate of the step")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="how much of the sum stays for the next round; 0 is FedAvg"
    )

    def initial(self, size: int) -> Arrays:
        """See `ServerStep`: the sum, f32[size]."""
        return {VELOCITY: np.zeros(size, np.float32)}

    def step(self, mean: F32, kept: Arrays, round: int) -> tuple[F32, Arrays]:
        """See `ServerStep`.

        >>> optimizer = FedAvgM(lr=0.5, momentum=0.5)
        >>> step, kept = optimizer.step(np.array([4.0], np.float32), {"velocity": np.array([2.0], np.float32)}, 1)
        >>> step.tolist(), kept["velocity"].tolist()
        ([2.5], [5.0])
        """
        velocity = np.float32(self.momentum) * kept[VELOCITY].astype(np.float32, copy=False) + mean
        return np.float32(self.lr) * velocity, {VELOCITY: velocity}
