"""Import PyTorch without what only its compiler and its tensors without memory need.

`import torch` ends by importing `torch._meta_registrations`: the shapes of all operators and their reference versions,
written in Python. That takes a third of the CPU seconds of the import and 18 MB a process, and no step of a training
calls it. Here it is left out, and imported at the first import of a module of `NEEDING_IT` (`torch.compile`,
`torch.export` and fake tensors begin with one) or by `import_rest`. It registers kernels of the dispatch key Meta, so
results on a CPU or GPU have the same bits with and without it.
"""

import importlib
import importlib.metadata
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

REST = "torch._meta_registrations"
NEEDING_IT = (
    "torch._decomp",
    "torch._dynamo",
    "torch._export",
    "torch._functorch",
    "torch._inductor",
    REST,
    "torch._prims",
    "torch._refs",
    "torch.onnx",
    "torch.utils._content_store",
)
KNOWN = ("2.13.",)
"""Versions of PyTorch for which this is tested; others are imported whole."""


class _RestFirst(MetaPathFinder):
    """Import the rest before the first module that needs it; it finds no module itself."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if any(name == one or name.startswith(f"{one}.") for one in NEEDING_IT):
            import_rest()
        return None


_REST_FIRST = _RestFirst()


def import_lean() -> None:
    """Import PyTorch without the rest, where it is not imported yet and its version is a known one."""
    if "torch" in sys.modules or not importlib.metadata.version("torch").startswith(KNOWN):
        return
    sys.modules[REST] = ModuleType(REST)
    try:
        import torch
    finally:
        del sys.modules[REST]
    vars(torch).pop(REST.rpartition(".")[2], None)
    # A generator refuses to be made before this. In the whole import a part of the rest does it.
    from torch._opaque_base import OpaqueBaseMeta

    torch._C._set_generator_metaclass(OpaqueBaseMeta)
    sys.meta_path.insert(0, _REST_FIRST)


def import_rest() -> None:
    """Import the rest, where it was left out."""
    if _REST_FIRST in sys.meta_path:
        sys.meta_path.remove(_REST_FIRST)
        importlib.import_module(REST)
