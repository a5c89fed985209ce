"""The sections `contribution` and `rewards`: what a run keeps to tell who contributed, and what it gives for it."""

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
