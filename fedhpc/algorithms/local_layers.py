"""Parameters that stay at home: each site trains its own values of them, and they are never sent.

Li et al. 2021, "FedBN: Federated Learning on Non-IID Features via Local Batch Normalization", keep batch normalisation
at each site, since scanners shift features. fedhpc has no batch statistics, which would leak; what is kept at home here
are the scale and shift of GroupNorm, LayerNorm and InstanceNorm.

The vector keeps its length. In an update the entries at home are zero, and a zero is not sent; so in the global model,
and in `model.pt`, they have their initial values, and a hospital that did not take part starts from those. A site's own
values are in its own state (`local` in `sites/<site>/residual-NNNN.npz`), for its training and evaluation.

With privacy on, a site's own values are trained by the same private steps: they are clipped, noised and charged with
all others. They are private already, and are not released.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from fedhpc.aggregation.base import Arrays
from fedhpc.algorithms.run_state import RunState
from fedhpc.util.arrays import F32, I64

LOCAL = "local"


@dataclass(frozen=True)
class LocalLayers:
    """Which entries of the parameters stay at home: ascending indices; none by default."""

    entries: I64 = field(default_factory=lambda: np.empty(0, np.int64))

    def added_to(self, fresh: RunState) -> RunState:
        """Return the state before the first round with the initial values at every site."""
        if not self.entries.size:
            return fresh
        initial = fresh.params[self.entries]
        return replace(fresh, sites={name: {**kept, LOCAL: initial} for name, kept in fresh.sites.items()})

    def at_site(self, params: F32, kept: Arrays) -> F32:
        """Return the global parameters f32[d] with the site's own values in the entries at home."""
        if not self.entries.size:
            return params
        own = params.copy()
        own[self.entries] = kept[LOCAL]
        return own

    def parted(self, start: F32, update: F32) -> tuple[F32, Mapping[str, F32]]:
        """Return (the update f32[d] that may be sent, what the site keeps) of a round from `start` f32[d]."""
        if not self.entries.size:
            return update, {}
        sent = update.copy()
        sent[self.entries] = 0
        return sent, {LOCAL: (start + update)[self.entries]}
