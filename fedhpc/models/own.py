"""A user's own network: the function that `model.build` names, taken from source whose digest is in the config.

The source is executed as it was read, so that what runs is what was compared. It is one file: a second file beside it
is neither found nor compared, so it imports installed packages only.
"""

import contextlib
import hashlib
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from fedhpc.config.model import Model
from fedhpc.config.model_source import check_source, place_of, read_source, source_path
from fedhpc.errors import InputError
from fedhpc.models.lean_torch import import_rest
from fedhpc.models.task import Task


def own_network(model: Model, task: Task) -> nn.Module:
    """Return what the function of `model.build` makes of (task, **model.args).

    Raises:
        InputError: there is no such source or function, it is another source than the config was read with, or the
            function fails or returns no module.
    """
    build = str(model.build)
    source, path = read_source(build), source_path(build)
    check_source(source, model)
    place, name = place_of(build)
    import_rest()  # a network may be built without memory first, on device="meta", also by a package that it imports
    module = _executed(source, path, model.source_module)
    function = getattr(module, name, None)
    if not callable(function):
        found = sorted(key for key, value in vars(module).items() if _is_own_function(value, module))
        raise InputError(
            f"model.build={build}: {place} has no function {name}. Name one that it has: {', '.join(found) or 'none'}",
            code="model.source-fails",
        )
    network = _called(function, task, model.args, f"model.build={build}", path)
    if not isinstance(network, nn.Module):
        raise InputError(
            f"model.build={build}: {name} returned a {type(network).__name__}. Return a torch.nn.Module from it",
            code="model.source-fails",
        )
    return network


def _is_own_function(value: object, module: ModuleType) -> bool:
    return callable(value) and getattr(value, "__module__", None) == module.__name__


def _executed(source: bytes, path: Path, package_module: str | None) -> ModuleType:
    """Return the module of a source; of a package's module with the package that its relative imports start from."""
    module = ModuleType(f"fedhpc_model_{hashlib.sha256(source).hexdigest()[:16]}")
    module.__file__ = str(path)
    module.__package__ = package_module.rpartition(".")[0] if package_module else ""
    # Dataclasses and type hints look their module up by its name.
    sys.modules[module.__name__] = module
    try:
        with contextlib.redirect_stdout(sys.stderr):
            exec(compile(source, str(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        raise InputError(
            f"model.build={path}: cannot be loaded: {_told(error, path)}. Correct it there", code="model.source-fails"
        ) from None
    return module


def _called(function: Any, task: Task, args: dict[str, Any], key: str, path: Path) -> object:
    try:
        with contextlib.redirect_stdout(sys.stderr):
            return function(task, **args)
    except (Exception, SystemExit) as error:
        given = ", ".join(f"{name}={value!r}" for name, value in args.items())
        raise InputError(
            f"{key}: failed when called with (task{', ' if given else ''}{given}): {_told(error, path)}. It is called "
            "with the task and the keyword arguments of model.args",
            code="model.source-fails",
        ) from None


def _told(error: BaseException, path: Path) -> str:
    """Return the kind of an error, its message and its line in the user's file."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)]
    line = lines[-1] if lines else error.lineno if isinstance(error, SyntaxError) else None
    return f"{type(error).__name__}: {error}" + (f" (line {line})" if line else "")
