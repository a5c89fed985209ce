"""What a hostile site may send for its update: the standard attacks on aggregation rules, for stress tests.

Definitions follow ByzFL. An attacker knows the honest updates of the round and the rule: more than any site of this
program could know, so that what a rule withstands here it withstands in the worst case.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from fedhpc.errors import FedhpcError
from fedhpc.util.arrays import F32, F64

STRENGTHS = tuple(float(value) for value in np.geomspace(0.1, 100, 16))
"""Among which an optimal attack chooses."""


@dataclass(frozen=True)
class Scene:
    """What an attacker sees.

    Attributes:
        own: the update that the site trained, f32[d].
        honest: those of the honest sites, f32[n - f, d].
        strength: of the attack.
        rng: what random attacks draw from.
        result: what the run's own rule would make of an update in the place of the attacker's; raises FedhpcError or
            ValueError where the rule would stop the run.
    """

    own: F32
    honest: F32
    strength: float
    rng: np.random.Generator
    result: Callable[[F32], F32]


def sign_flip(scene: Scene) -> F32:
    """Return minus the update, f32[d]."""
    return -scene.own


def scaled(scene: Scene) -> F32:
    """Return the update f32[d], `strength` times as long."""
    return np.float32(scene.strength) * scene.own


def gaussian(scene: Scene) -> F32:
    """Return Gaussian numbers f32[d], about `strength` times as long as the update."""
    size = scene.strength * float(np.linalg.norm(scene.own)) / np.sqrt(scene.own.size)
    out: F32 = (size * scene.rng.standard_normal(scene.own.size)).astype(np.float32)
    return out


def not_a_number(scene: Scene) -> F32:
    """Return f32[d] with NaN in every entry."""
    return np.full_like(scene.own, np.nan)


def wrong_length(scene: Scene) -> F32:
    """Return the update with one entry too many, f32[d + 1]."""
    return np.append(scene.own, np.float32(1))


def inner_product(scene: Scene) -> F32:
    """Return -`strength` times the mean of the honest, f32[d] (Xie et al. 2020, "Fall of Empires")."""
    mean: F64 = scene.honest.mean(axis=0, dtype=np.float64)
    return (-scene.strength * mean).astype(np.float32)


def alie(scene: Scene) -> F32:
    """Return the mean of the honest less `strength` of their standard deviations, f32[d].

    Baruch et al. 2019, "A little is enough".
    """
    mean: F64 = scene.honest.mean(axis=0, dtype=np.float64)
    deviation: F64 = scene.honest.std(axis=0, ddof=1, dtype=np.float64)
    return (mean - scene.strength * deviation).astype(np.float32)


def mimic(scene: Scene) -> F32:
    """Return a copy of the first honest update, f32[d] (Karimireddy et al. 2022)."""
    first: F32 = scene.honest[0]
    return first


def optimal(attack: Callable[[Scene], F32]) -> Callable[[Scene], F32]:
    """Return an attack f32[d] with the one of STRENGTHS that moves the rule's result farthest from the honest mean."""

    def strongest(scene: Scene) -> F32:
        mean: F64 = scene.honest.mean(axis=0, dtype=np.float64)
        tried = [attack(replace(scene, strength=strength)) for strength in STRENGTHS]
        return max(tried, key=lambda update: _harm(scene, update, mean))

    return strongest


def _harm(scene: Scene, update: F32, mean: F64) -> float:
    """Return how far the result would be from the mean; an update that stops the run does no harm to the model."""
    try:
        return float(np.linalg.norm(scene.result(update) - mean))
    except (FedhpcError, ValueError):
        return 0.0


ATTACKS: dict[str, Callable[[Scene], F32]] = {
    "sign_flip": sign_flip,
    "scaled": scaled,
    "gaussian": gaussian,
    "nan": not_a_number,
    "wrong_length": wrong_length,
    "inner_product": inner_product,
    "inner_product_optimal": optimal(inner_product),
    "alie": alie,
    "alie_optimal": optimal(alie),
    "mimic": mimic,
}
"""By the name of the case, all but `replayed`, which is of bytes and not of an update."""
