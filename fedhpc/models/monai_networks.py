"""Any network of MONAI by its name (`model.monai`), given the task's channels and classes under MONAI's own names."""

import contextlib
import difflib
import importlib
import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from fedhpc.errors import InputError
from fedhpc.models.lean_torch import import_rest
from fedhpc.models.task import Task

NETWORKS = "monai.networks.nets"


def monai_network(name: str, task: Task, args: dict[str, Any]) -> nn.Module:
    """Return the network of `monai.networks.nets` with this name; `args` go before what the task says.

    Raises:
        InputError: there is no such network, or it cannot be made of these arguments.
    """
    import_rest()  # as in `fedhpc.models.own`
    factory = _factory(name)
    known = {**_of_task(_parameters(factory), task), **args}
    try:
        # What MONAI prints is not for standard output, which belongs to `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            network: nn.Module = factory(**known)
    except Exception as error:
        given = ", ".join(f"{key}={value!r}" for key, value in known.items())
        raise InputError(
            f"model.monai={name}: cannot be built with {given}: {type(error).__name__}: {error}. Set model.args as "
            f"monai.networks.nets.{name} wants them",
            code="model.monai",
        ) from None
    return network


def import_networks() -> None:
    """Import MONAI's networks, and what they import of PyTorch and of other packages."""
    import_rest()
    importlib.import_module(NETWORKS)


def norm_argument(name: str) -> str | None:
    """Return the keyword argument by which a MONAI network takes another norm; None where it has none."""
    known = _parameters(_factory(name))
    return next((key for key in ("norm", "norm_type", "norm_name") if key in known), None)


def _factory(name: str) -> Callable[..., nn.Module]:
    # Imported for these networks only: it takes longer than all else that a rank imports.
    from monai.networks import nets

    found = getattr(nets, name, None)
    if found is None or not _makes_network(found):
        names = [key for key, value in vars(nets).items() if _makes_network(value)]
        near = difflib.get_close_matches(name, names, n=3) or sorted(names)[:3]
        raise InputError(
            f"model.monai={name}: MONAI has no such network; did you mean {', '.join(near)}?", code="model.monai"
        )
    factory: Callable[..., nn.Module] = found
    return factory


def _makes_network(value: object) -> bool:
    if inspect.isclass(value):
        return issubclass(value, nn.Module)
    return inspect.isfunction(value) and _class_of(value) is not None


def _class_of(function: Callable[..., Any]) -> type | None:
    """Return the network class that a function says it returns."""
    try:
        kind = typing.get_type_hints(function).get("return")
    except NameError:
        return None
    return kind if inspect.isclass(kind) and issubclass(kind, nn.Module) else None


def _parameters(factory: Callable[..., Any]) -> set[str]:
    """Return the keyword arguments of a network, also those that it passes on to the class it is made of."""
    return {name for one in _initialisers(factory) for name in inspect.signature(one).parameters}


def _initialisers(factory: Callable[..., Any]) -> Iterator[Callable[..., Any]]:
    if not inspect.isclass(factory):
        yield factory
    kind = _class_of(factory) if not inspect.isclass(factory) else factory
    for one in inspect.getmro(kind or nn.Module):
        own = one.__dict__.get("__init__")
        if own is None or one is nn.Module:
            continue
        yield own
        if not any(p.kind is p.VAR_KEYWORD for p in inspect.signature(own).parameters.values()):
            return


def _of_task(known: set[str], task: Task) -> dict[str, Any]:
    """Return what the task says, of the arguments that a network knows; and no weights from elsewhere."""
    channels, *size = task.image_shape
    classes = len(task.classes)
    values = {
        "spatial_dims": task.dims,
        "in_channels": channels,
        "n_input_channels": channels,
        "out_channels": classes,
        "num_classes": classes,
        "img_size": tuple(size),
        "in_shape": task.image_shape,
        "classes": classes,
        "pretrained": False,
    }
    return {key: value for key, value in values.items() if key in known}
