"""The server optimiser of FedAvg: one step along the mean update."""

from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Arrays, ServerStep
from fedhpc.util.arrays import F32


class ServerSgd(ServerStep):
    """SGD on the server (Reddi et al. 2021, "Adaptive Federated Optimization", Algorithm 1); rate 1 is FedAvg."""

    optimizer: Literal["sgd"] = Field(default="sgd", description="a step of `server.lr` times the mean update")
    lr: Annotated[float, Field(gt=0, le=10)] = Field(default=1.0, description="the rate of the step; 1 is FedAvg")

    def step(self, mean: F32, kept: Arrays, round: int) -> tuple[F32, Arrays]:
        """See `ServerStep`; nothing is kept.

        >>> ServerSgd(lr=0.5).step(np.array([4.0], np.float32), {}, round=0)
        (array([2.], dtype=float32), {})
        """
        return np.float32(self.lr) * mean, {}
