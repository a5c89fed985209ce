"""fedhpc: one diagnostic model over many hospitals, trained as an HPC batch job. Each MPI rank is one hospital.

`load_config`, `train` and `open_run` are the Python interface (`fedhpc.api`). They are imported when they are first
used, since a command line must start quickly.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedhpc.api import Run, load_config, open_run, train

__all__ = ["Run", "__version__", "load_config", "open_run", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in ("Run", "load_config", "open_run", "train"):
        return getattr(importlib.import_module("fedhpc.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Names for a notebook's completion, though what they name is not imported yet."""
    return sorted([*globals(), *set(__all__).difference(globals())])
