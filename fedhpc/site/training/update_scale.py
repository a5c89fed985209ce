"""What an honest private update may be, by the config and the plan alone: its noise, and the longest signal.

A round of DP-SGD at site i makes K steps. Step k adds to the parameters -rate (clipped sum + noise) / (q w), with the
sample rate q and the declared weight w; by the step's momentum it goes on in the steps after it, so that in all it
counts rate (1 + m + ... + m^(K-k)). The noise of K steps is independent.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

from fedhpc.aggregation.base import UpdateScale
from fedhpc.config.schema import RunConfig
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.per_example.clipped_sum import MARGIN
from fedhpc.site.training.local_sgd import learning_rate

COARSE_BITS = 8
"""Values of fewer bits, or of so many, add a rounding error that is no small part of the noise."""
SAMPLED = 6.0
"""Standard deviations that the number of sampled units may be above its mean."""


def update_scales(
    config: RunConfig, plans: Sequence[PrivacyPlan], weights: tuple[int, ...], round: int
) -> tuple[UpdateScale, ...] | None:
    """Return the scale of each site's update in a round, by index; None where it is not known beforehand.

    It is known with privacy on, by SGD without weight decay, for FedAvg. Where updates are rounded or sparse, it is
    that of what is trained, before error feedback (`UpdateScale.exact`).

    Args:
        config: the run's.
        plans: the noise of each site, by index; none without privacy.
        weights: declared ones, by index.
        round: from 0 on.
    """
    training, exchange = config.training, config.exchange
    plain = training.optimizer == "sgd" and training.weight_decay == 0 and config.algorithm.name == "fedavg"
    exact = exchange.density == 1 and exchange.value_bits > COARSE_BITS
    if not plans or config.privacy.trust == "sites" or not plain:
        return None
    rate, m = learning_rate(training, round), training.momentum
    gains = [rate * sum(m**more for more in range(left)) for left in range(1, plans[0].steps_per_round + 1)]
    pairs = zip(plans, weights, strict=True)
    return tuple(replace(_scale(gains, config.privacy.clip_norm, plan, weight), exact=exact) for plan, weight in pairs)


def _scale(gains: list[float], clip_norm: float, plan: PrivacyPlan, weight: int) -> UpdateScale:
    q, units = plan.sample_rate, plan.sample_rate * weight
    most = units + SAMPLED * math.sqrt(units * (1 - q))
    noise = plan.noise_multiplier * clip_norm * (1 + MARGIN) / units * math.sqrt(sum(gain * gain for gain in gains))
    return UpdateScale(noise=noise, longest=clip_norm * (1 + MARGIN) * most / units * sum(gains))


def sum_scale(config: RunConfig, plan: PrivacyPlan, weights: tuple[int, ...], round: int) -> UpdateScale:
    """Return the scale of the mean update of a secure sum in a round: one step, with the noise of all sites together.

    Each of n sites adds 1 / honest_sites of the noise's variance. Where sites may drop out, the mean is taken over the
    fewest units that may be left. Weight decay is not in it.

    Args:
        config: the run's, with privacy.trust=sites.
        plan: its noise.
        weights: declared ones, by index.
        round: from 0 on.
    """
    rate, p = learning_rate(config.training, round), config.privacy
    fewest = sum(sorted(weights)[: len(weights) - p.tolerated_dropouts])
    step = rate * p.clip_norm * (1 + MARGIN)
    shares = math.sqrt(len(weights) / config.honest_sites)
    return UpdateScale(noise=step * plan.noise_multiplier * shares / fewest, longest=step)
