"""What the hospitals of one rank share."""

from dataclasses import dataclass

from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.training.local_sgd import OnStep


@dataclass(frozen=True)
class SiteContext:
    """What the hospitals of one rank share: the config, one network that each sets to its parameters, the device.

    Not shared where sites do unequal work: the noise `plan`, the `effort` (`schedule`) and, in a stress test, by which
    factor each step is slowed.
    """

    config: RunConfig
    model: nn.Module
    device: Device
    plan: PrivacyPlan | None
    on_step: OnStep
    effort: float = 1.0
    slowdown: float = 1.0
