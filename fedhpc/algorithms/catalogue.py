"""All algorithms, by the section of the config that chooses them.

To add one, write its section in `fedhpc.config.algorithm`, its class in a file of its own, and a line here.
"""

from collections.abc import Callable
from typing import Any

from fedhpc.algorithms.base import Algorithm
from fedhpc.algorithms.feddyn import FedDyn
from fedhpc.algorithms.fednova import FedNova
from fedhpc.algorithms.fedprox import FedProx
from fedhpc.algorithms.scaffold import Scaffold
from fedhpc.config import algorithm as sections

MAKE: dict[str, Callable[[Any], Algorithm]] = {
    "fedavg": lambda section: Algorithm(),
    "fedprox": lambda section: FedProx(section.mu),
    "scaffold": lambda section: Scaffold(),
    "fednova": lambda section: FedNova(),
    "feddyn": lambda section: FedDyn(section.alpha),
}


def algorithm_of(section: sections.Algorithm) -> Algorithm:
    """Return the algorithm that a section of the config names."""
    return MAKE[section.name](section)
