"""What the inversions start from: updates that were sent without privacy, with the clip alone, and with DP."""

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.audit.findings import WITH_DP
from fedhpc.audit.mechanism import mechanism_config
from fedhpc.audit.target import Subject
from fedhpc.audit.transmission import WORST_CASE, AuditedSite, released
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.util.arrays import F32, I64

NO_PRIVACY, CLIP_ONLY = "without privacy", "clip only"
SETTINGS = (NO_PRIVACY, CLIP_ONLY, WITH_DP)


class OneUnit:
    """One image, or the features of one, as a whole training split."""

    def __init__(self, inputs: Tensor, label: int) -> None:
        """`inputs` [1, ...], ready for the network (private)."""
        self._inputs = inputs
        self.labels: I64 = np.array([label], np.int64)
        self.patient: NDArray[np.bytes_] = np.array([b"audited"], "S16")
        self.early = np.zeros(1, np.bool_)

    def indices(self, split: str) -> I64:
        """See `Samples`."""
        return np.arange(1 if split == "train" else 0)

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`."""
        return self._inputs[torch.from_numpy(rows)]


def one_step_releases(subject: Subject, model: nn.Module, inputs: Tensor, label: int) -> dict[str, F32]:
    """Return what is sent after one step on one unit, in each of SETTINGS: `model` keeps its parameters.

    With a learning rate of 1, no momentum and all entries sent, the update is minus the gradient.
    """
    config = mechanism_config(subject.config, rounds=1, local_epochs=1, sample_rate=1.0)
    config = config.replace({"training.lr": 1.0, "training.batch_size": 1})
    params, samples, found = to_vector(model), OneUnit(inputs, label), {}
    for setting, plan in _plans(replace(subject.plan, sample_rate=1.0, steps_per_round=1)).items():
        site = AuditedSite(subject.site, subject.index, model, samples, config, plan, 1, subject.device)
        found[setting] = released(site, params, 0, WORST_CASE)
    from_vector(model, params)
    return found


def _plans(plan: PrivacyPlan) -> dict[str, PrivacyPlan | None]:
    return {NO_PRIVACY: None, CLIP_ONLY: replace(plan, noise_multiplier=0.0), WITH_DP: plan}


def real_releases(subject: Subject) -> dict[str, F32]:
    """Return what is sent after one round as the config has it, in each of SETTINGS, from the released parameters.

    Raises:
        PrivacyError: the site ledger refuses the round with noise.
    """
    subject.charges.pay(subject.plan)
    config = subject.config.replace({"privacy.noise_seed": None})
    found = {}
    for setting, plan in _plans(subject.plan).items():
        site = AuditedSite(
            subject.site, subject.index, subject.model, subject.samples, config, plan, subject.weight, subject.device
        )
        found[setting] = released(site, subject.params, subject.round, config.exchange)
    from_vector(subject.model, subject.params)
    return found
