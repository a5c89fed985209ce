"""The section `personalisation`: what each hospital makes of the final model for itself."""

from typing import Annotated, Literal

from pydantic import Field

from fedhpc.util.section import Section

Strength = Annotated[float, Field(gt=0, le=1e6)]
DECADES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


class Personalisation(Section):
    """A model of a hospital's own, made after the last round from the final model and its own patients.

    It is trained WITHOUT noise, so it is as private as the shard: `sites/<site>/personal.pt` and what was measured of
    it, `personal.json`, are readable by their owner only (mode 0600) and nothing of them is sent. So it costs no
    epsilon. Whoever gives the file away gives away what the shard says of its training and validation patients.

    `head` fits a correction to the last layer, which must be linear; `fine_tune` goes on training locally. Either may
    choose the final model itself, where the hospital's validation patients are not better off without it.
    """

    method: Literal["none", "head", "fine_tune"] = Field(
        default="none",
        description="none; head: the global last layer plus a correction, by ridge towards 0; fine_tune: local epochs",
    )
    strengths: Annotated[tuple[Strength, ...], Field(min_length=1)] = Field(
        default=DECADES,
        description="of the ridge of `head`, on the mean loss; cross-validation over the hospital's training and "
        "validation patients chooses among them and the final model itself",
    )
    features: Literal["kept", "all"] = Field(
        default="all",
        description="with model.features, what `head` corrects: the kept directions, or those and all features of the "
        "backbone: without noise each direction more costs nothing",
    )
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=20,
        description="of `fine_tune` at most; the hospital's validation patients choose how many, from 0, by the loss "
        "of the recalibrated model",
    )
    lr: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="learning rate of `fine_tune`, constant; null: training.lr"
    )
    layers: Literal["all", "last"] = Field(default="all", description="which layers `fine_tune` trains")
