"""Whether a private run can learn anything: a verdict on its noise over signal, before any training.

`noise_per_signal` is the noise of a whole run in one parameter, over what all units add
together if each had a gradient of clip_norm along it. The noise lies in every direction that is learned, so its length
is sqrt(directions) times that, and this length decides.

Thresholds by simulation: softmax regression on 2,000 units of two or four classes with heavy-tailed features of length
1, 16 to 192 of them, by 30 noisy steps at rate 1 (clip norm 0.3, lr 32, the last half averaged). What is lost of an AUC
of 0.98 to 1.00 depends on the length alone, within the range that is given (`tests/privacy/test_verdict.py`):

| length          | 0.01 | 0.02 | 0.04         | 0.08         | 0.16         | 0.32         |
|-----------------|------|------|--------------|--------------|--------------|--------------|
| lost, 2 classes | 0.00 | 0.00 | 0.01 to 0.02 | 0.04 to 0.07 | 0.09 to 0.18 | 0.15 to 0.33 |
| lost, 4 classes | 0.00 | 0.01 | 0.02 to 0.04 | 0.09 to 0.11 | 0.21 to 0.25 | 0.33 to 0.36 |

On 2,422 brain MRI at four hospitals, at length 0.036, 0.014 was lost (configs/epsilon1_brain_mri.yaml).
"""

import math
import textwrap
from dataclasses import dataclass
from typing import Literal

from fedhpc.config.schema import RunConfig
from fedhpc.privacy.plan import PrivacyPlan

GOOD_AT_MOST, WEAK_AT_MOST = 0.04, 0.12
# Whole networks for two classes: trained parameters, each of them a direction.
PARAMETERS = {"densenet_small": 36_610, "densenet121": 6_949_634, "resnet18": 11_172_162, "resnet50": 23_509_698}
BACKBONE_FEATURES = {
    "efficientnet_lite0": 1024,
    "phantom": 272,
    "efficientnet_lite0+phantom": 1296,
    "efficientnet_lite0+phantom+cropped": 1296,
}


@dataclass(frozen=True)
class Verdict:
    """What to expect of a private run (public).

    Attributes:
        word: good (loses up to about 0.04 of AUC), weak (up to about 0.2), or hopeless (mostly far more).
        noise_length: noise over signal in all directions together.
        directions: how many are learned: features of a linear head, or parameters of a network.
    """

    word: Literal["good", "weak", "hopeless"]
    noise_length: float
    directions: int

    @property
    def comment(self) -> str:
        """The verdict as lines of a YAML comment."""
        return "\n".join(f"# {line}" for line in textwrap.wrap(f"Privacy and accuracy: {self.text}.", 115))

    @property
    def text(self) -> str:
        """The verdict in a line, with a remedy where there is need of one."""
        head = f"{self.word}: noise over signal {self.noise_length:.3f} in all {self.directions:,} directions together"
        if self.word == "good":
            return f"{head}; up to {GOOD_AT_MOST} costs little AUC"
        times = self.noise_length / GOOD_AT_MOST
        return (
            f"{head}, {times:.1f} times what costs little AUC ({GOOD_AT_MOST}). It falls in proportion as units or "
            "epsilon grow and as the square root of the directions shrinks: fewer model.features (model.name=frozen)"
        )


def verdict(noise_per_signal: float, directions: int) -> Verdict:
    """Judge a run by its noise over signal in one parameter and the number of directions that it learns.

    >>> verdict(0.00521, 48).word, verdict(0.015, 48).word, verdict(0.00357, 100_000).word
    ('good', 'weak', 'hopeless')
    """
    length = noise_per_signal * math.sqrt(directions)
    word: Literal["good", "weak", "hopeless"] = (
        "good" if length <= GOOD_AT_MOST else "weak" if length <= WEAK_AT_MOST else "hopeless"
    )
    return Verdict(word, length, directions)


def directions_of(name: str | None, features: int | None, backbone: str | None) -> int | None:
    """Return how many directions a config's model learns; None where its size is not known before it is built.

    Args:
        name, features, backbone: `model.name`, `model.features` and `model.backbone`.
    """
    if features is not None:
        return features
    return BACKBONE_FEATURES.get(backbone or "") if name == "frozen" else PARAMETERS.get(name or "")


def noise_per_signal(config: RunConfig, plan: PrivacyPlan) -> float:
    """Noise over signal of a whole run, in one parameter of the mean over all sites; smaller learns better.

    The standard deviation of the noise that all steps add to it together, over what all units would add together if
    each had a gradient of clip_norm along it: noise multiplier / (sample rate * sqrt(steps) * units), times the square
    root of the number of sites where each carries its full noise.
    """
    units = sum(site.weight or 0 for site in config.data.sites)
    steps = plan.steps_per_round * config.training.rounds
    shares = len(config.data.sites)
    copies = shares if config.privacy.trust == "aggregator" else shares / config.honest_sites
    return plan.noise_multiplier * math.sqrt(copies) / (plan.sample_rate * math.sqrt(steps) * units)


def judged(config: RunConfig, plan: PrivacyPlan) -> Verdict | None:
    """Return the verdict on a private config; None where the size of its model is not known before it is built."""
    directions = directions_of(config.model.name, config.model.features, config.model.backbone)
    return None if directions is None else verdict(noise_per_signal(config, plan), directions)
