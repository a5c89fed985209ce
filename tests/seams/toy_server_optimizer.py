"""A toy server optimiser with state, whole in this file: a step along a sum of the mean updates that fades."""

from typing import Literal

import numpy as np

from fedhpc.aggregation import rules
from fedhpc.aggregation.base import Arrays, ServerStep
from fedhpc.util.arrays import F32


class Momentum(ServerStep):
    """`server.optimizer: momentum`."""

    optimizer: Literal["momentum"] = "momentum"
    beta: float = 0.5

    def initial(self, size: int) -> Arrays:
        """See `ServerStep`."""
        return {"velocity": np.zeros(size, np.float32)}

    def step(self, mean: F32, kept: Arrays, round: int) -> tuple[F32, Arrays]:
        """See `ServerStep`."""
        velocity = (np.float32(self.beta) * kept["velocity"] + mean).astype(np.float32)
        return velocity, {"velocity": velocity}


def register() -> None:
    """Put it into the table."""
    rules.SERVER_OPTIMIZERS = (*rules.SERVER_OPTIMIZERS, Momentum)
