"""The key `training`: how a site trains between two exchanges."""

import math
from typing import Annotated, Literal

from pydantic import Field

from fedhpc.util.section import Section


class Training(Section):
    """Local training: `local_epochs` epochs a round of SGD or Adam on softmax cross entropy."""

    rounds: Annotated[int, Field(ge=1, le=10_000)] = Field(default=20, description="exchanges with the aggregator")
    local_epochs: Annotated[int, Field(ge=1, le=100)] | Annotated[float, Field(gt=0, lt=1)] = Field(
        default=3,
        description="passes of a site over its training units in a round; without privacy also a part of one: 0.25 "
        "trains on a quarter of the images, drawn anew each round",
    )
    batch_size: Annotated[int, Field(ge=1)] = Field(
        default=64,
        description="images a step without privacy; with privacy on the expected batch is weight x privacy.sample_rate",
    )
    optimizer: Literal["sgd", "adam"] = Field(default="sgd", description="sgd (with momentum) or adam (AdamW)")
    lr: Annotated[float, Field(gt=0)] = Field(default=0.05, description="learning rate of the local steps")
    lr_schedule: Literal["constant", "cosine"] = Field(
        default="cosine", description="constant, or cosine: falls to 0 over the rounds along half a cosine"
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(default=0.9, description="momentum of sgd; not used by adam")
    weight_decay: Annotated[float, Field(ge=0)] = Field(
        default=1e-4, description="L2 penalty of sgd, added to the gradient; decoupled weight decay of adam"
    )
    average_last: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.0,
        description="the result is the mean of the global models of this last share of the rounds; 0: the last model",
    )
    random_flip: bool = Field(
        default=False, description="mirror each training image left to right with probability 1/2"
    )

    @property
    def epochs_begun(self) -> int:
        """How many epochs a round begins: `local_epochs`, of a part of one 1."""
        return math.ceil(self.local_epochs)
