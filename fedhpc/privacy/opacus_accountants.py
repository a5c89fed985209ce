"""Opacus's accountants without the rest of Opacus, which takes as long to import as PyTorch.

`import opacus.accountants` begins with `import opacus`: hooks for gradients, samplers, distributed optimizers, and what
they need of PyTorch, all that `fedhpc.models.lean_torch` leaves out. The accountants are numpy and scipy, and name one
class of the rest, in an annotation. Here they are imported with an empty package in the place of Opacus, and taken out
of `sys.modules` again, so that a later `import opacus` is whole. The code is the same, and so is every number.
"""

import importlib
import importlib.metadata
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

PACKAGE = "opacus"
KNOWN = ("1.6.",)
"""Versions of Opacus for which this is tested; others are imported whole."""


@dataclass(frozen=True)
class Accountants:
    """What is used of Opacus's accountants.

    Attributes:
        compute_rdp: the RDP of subsampled Gaussian steps.
        prv_accountant: the class PRVAccountant.
        domain: the class of the points at which a privacy loss is discretised.
        subsampled_prv: the class of the privacy loss of one Poisson-subsampled Gaussian step.
    """

    compute_rdp: Callable[..., Any]
    prv_accountant: type[Any]
    domain: type[Any]
    subsampled_prv: type[Any]


@lru_cache(maxsize=1)
def opacus_accountants() -> Accountants:
    """Import the accountants, alone where Opacus is not imported yet and its version is a known one."""
    if PACKAGE in sys.modules or not importlib.metadata.version(PACKAGE).startswith(KNOWN):
        return _imported()
    sys.modules.update(_in_place_of_the_rest())
    try:
        return _imported()
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
            del sys.modules[name]


def _in_place_of_the_rest() -> dict[str, ModuleType]:
    """An empty package with the path of Opacus, and the one class of the rest that the accountants name."""
    package, optimizers = ModuleType(PACKAGE), ModuleType(f"{PACKAGE}.optimizers")
    spec = importlib.util.find_spec(PACKAGE)
    package.__path__ = list(spec.submodule_search_locations or ()) if spec else []
    vars(optimizers)["DPOptimizer"] = object
    return {package.__name__: package, optimizers.__name__: optimizers}


def _imported() -> Accountants:
    from opacus.accountants import PRVAccountant
    from opacus.accountants.analysis.prv import Domain, PoissonSubsampledGaussianPRV
    from opacus.accountants.analysis.rdp import compute_rdp

    return Accountants(compute_rdp, PRVAccountant, Domain, PoissonSubsampledGaussianPRV)
