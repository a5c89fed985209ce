"""The sections `contribution` and `rewards`: what a run keeps to tell who contributed, and what it gives for it."""

from typing import Annotated

from pydantic import Field

from fedhpc.util.section import Section


class Contribution(Section):
    """What rank 0 keeps for `run.py contribution RUN`.

    With privacy on, the updates that rank 0 receives are private already: to keep them, and all that is computed of
    them, costs no epsilon. With `privacy: off` they are the sites' raw updates, from which patients may be
    reconstructed (docs/audit.md): keep them only where every hospital agrees. With privacy.trust=sites rank 0 never
    has one site's update, so there is nothing to keep.
    """

    store_updates: bool = Field(
        default=False,
        description="keep every update as it came, at rank 0 in state/updates/ (mode 0600); needs as much disk as the "
        "sites send over all rounds",
    )


class Rewards(Section):
    """What each hospital gets of the global step, in proportion to its contribution (CGSV, Xu et al. 2021).

    A hospital's contribution to a round is the cosine of its update and the aggregator's step. Of what the aggregator
    would send to all, the hospital gets so many of the largest entries as tanh(altruism x contribution) is of that of
    the largest contributor, who gets everything. So the hospitals' models differ: each keeps and tests its own, and
    only rank 0 has the true global one. Everything that decides is post-processing of updates that were sent.
    """

    altruism: Annotated[float, Field(gt=0, le=1000)] | None = Field(
        default=None,
        description="beta of CGSV: the larger, the more equal the rewards; null: everybody gets the full step",
    )
    memory: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.9, description="alpha of CGSV: the weight of earlier rounds in a contribution"
    )
