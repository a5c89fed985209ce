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
from importlib.abc import Loader, MetaPathFinder
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


class _Loaded(Loader):
    """Give the import system a module that is loaded already: it would execute the module's code again."""

    def __init__(self, module: ModuleType) -> None:
        self._module, self._spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._module

    def exec_module(self, module: ModuleType) -> None:
        module.__spec__ = self._spec


class _RestFirst(MetaPathFinder):
    """Import the rest before the first module that needs it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        if not any(name == one or name.startswith(f"{one}.") for one in NEEDING_IT):
            return None
        import_rest()
        module = sys.modules.get(name)
        if module is None:
            return None
        # The import system takes the spec of a module that it finds loaded in the place of what a finder returns.
        module.__spec__ = ModuleSpec(name, _Loaded(module))
        return module.__spec__


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
