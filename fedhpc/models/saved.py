"""`model.pt`: a finished model on disk, and what another run takes from one."""

import io
import json
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from fedhpc.config.loader import with_new_names
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.backbones import NAMES, Backbone, public_backbone
from fedhpc.models.build import Task, build_model, replace_module
from fedhpc.util.files import read_bytes, write_bytes


@dataclass(frozen=True)
class SavedModel:
    """A finished model: `network` takes harmonised images, or features of `backbone` where there is one."""

    network: nn.Module
    backbone: Backbone | None
    config: RunConfig
    task: Task
    f1_thresholds: tuple[int, ...]


def save_model(path: Path, model: nn.Module, facts: dict[str, Any]) -> None:
    """Write weights only, with the JSON `facts` (config, classes, image_shape, f1_thresholds) to rebuild the model.

    Raises:
        FileError: where it cannot be written; a model that was there before is still there.
    """
    buffer = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "facts": json.dumps(facts)}, buffer)
    write_bytes(path, buffer.getbuffer())


def load_model(path: Path) -> SavedModel:
    """Read a `model.pt`, without unpickling any code.

    Raises:
        InputError: where it is not one, or its facts and its weights do not fit together.
    """
    content = read_bytes(path)
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        facts = json.loads(saved["facts"])
        config = RunConfig.model_validate(with_new_names(facts["config"]))
        task = Task(tuple(facts["classes"]), tuple(facts["image_shape"]))
        thresholds = tuple(int(value) for value in facts["f1_thresholds"])
    except (*UNREADABLE, ValidationError) as error:
        raise _no_model(path, error) from None
    backbone = load_backbone(config.model.backbone) if config.model.backbone else None
    try:
        network = build_model(config, task, backbone)
        network.load_state_dict(saved["state_dict"])
    except UNREADABLE as error:
        raise _no_model(path, error) from None
    return SavedModel(network.eval(), backbone, config, task, thresholds)


MALFORMED = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
UNREADABLE = (*MALFORMED, AssertionError, ImportError, MemoryError, struct.error, pickle.UnpicklingError)
"""What torch's unpickler raises at bytes that are no model: its machine checks little of what it reads."""


def _no_model(path: Path, error: Exception) -> InputError:
    cause = str(error).partition("\n")[0]
    return InputError(
        f"{path}: is not the model.pt of a fedhpc run ({type(error).__name__}: {cause}). Give the one that a finished "
        "run of this version wrote"
    )


def load_backbone(source: str) -> Backbone:
    """A public extractor by its name (see `backbones.public_backbone`), or a fedhpc `model.pt` without its head.

    Raises:
        InputError: where there is no such backbone.
    """
    if source in NAMES:
        return public_backbone(source)
    if not Path(source).is_file():
        raise InputError(f"model.backbone={source}: no such file; allowed: {', '.join(NAMES)} or the model.pt of a run")
    saved = load_model(Path(source))
    if saved.backbone is not None:
        raise InputError(f"model.backbone={source}: is itself a head on a backbone; give a whole network's model.pt")
    name = "fc" if hasattr(saved.network, "fc") else "class_layers.out"
    dim = int(saved.network.get_submodule(name).in_features)  # type: ignore[arg-type]
    replace_module(saved.network, name, nn.Identity())
    return Backbone(saved.network, dim, image_size=None)
