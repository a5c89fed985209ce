"""Networks without batch statistics, public frozen backbones, and model <-> flat vector."""

import io
import json
import pickle
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from fedhpc.compression.update import F32
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.backbones import NAMES, Backbone, Whitening, public_backbone
from fedhpc.models.densenet import GROUPS, DenseNet
from fedhpc.util.files import read_bytes, write_bytes
from fedhpc.util.rng import seed_of


@dataclass(frozen=True)
class Task:
    """What the images and labels of all sites have in common (public)."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]


def build_model(config: RunConfig, task: Task, backbone: Backbone | None = None) -> nn.Module:
    """The trained part of the model, with initial weights that are a function of the run's seed: the same at all sites.

    Args:
        config: names the network.
        task: classes and image shape.
        backbone: with `model.name: frozen`, the extractor whose features the head is trained on.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "initial weights"))
        if backbone is not None:
            return _head(backbone.dim, config.model.features, len(task.classes))
        return _network(config.model.name, task)


def _network(name: str, task: Task) -> nn.Module:
    channels, classes = task.image_shape[0], len(task.classes)
    if name == "densenet_small":
        return DenseNet(channels, classes, init_features=16, growth_rate=8, block_config=(2, 4, 4))
    if name == "densenet121":
        return DenseNet(channels, classes)
    # Imported for these networks only: it takes longer than all else that a rank imports.
    from monai.networks.nets.resnet import resnet18, resnet50

    factory = {"resnet18": resnet18, "resnet50": resnet50}[name]
    return _fit_for_privacy(factory(spatial_dims=2, n_input_channels=channels, num_classes=classes))


class Copy(nn.Module):
    """Its input, copied: MONAI's residual blocks add in place, which a backward hook on the layer before forbids."""

    def forward(self, x: Tensor) -> Tensor:
        """The copy."""
        return x.clone()


def _fit_for_privacy(network: nn.Module) -> nn.Module:
    """Group norms for MONAI's resnets, whose factories keep batch norm and in-place ReLU whatever the arguments say."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            norm = nn.GroupNorm(GROUPS, module.num_features)
            before_sum = name.endswith(("bn2", "bn3"))
            _replace(network, name, nn.Sequential(norm, Copy()) if before_sum else norm)
        elif isinstance(module, nn.ReLU):
            module.inplace = False
    return network


def _replace(network: nn.Module, name: str, module: nn.Module) -> None:
    above, _, own = name.rpartition(".")
    setattr(network.get_submodule(above), own, module)


def _head(dim: int, kept: int | None, classes: int) -> nn.Module:
    """Linear on features that each image normalises by itself, or that a public map whitens: no statistic of patients.

    On whitened features it has no offsets, which would cost as much noise as a direction and move no ranking, and
    starts at zero, so that all of it was learned.
    """
    if kept is None:
        return nn.Sequential(nn.LayerNorm(dim, elementwise_affine=False), nn.Linear(dim, classes))
    linear = nn.Linear(kept, classes, bias=False)
    nn.init.zeros_(linear.weight)
    return nn.Sequential(Whitening(dim, kept), linear)


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
    _replace(saved.network, name, nn.Identity())
    return Backbone(saved.network, dim, image_size=None)


def parameter_count(model: nn.Module) -> int:
    """d: how many parameters are trained and exchanged."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def layers_of(model: nn.Module) -> tuple[tuple[str, int], ...]:
    """Name and size of every trained parameter tensor, in the order in which they make up the vector (public)."""
    return tuple((name, p.numel()) for name, p in model.named_parameters() if p.requires_grad)


def to_vector(model: nn.Module) -> F32:
    """The trained parameters as one f32[d], in the module's own order."""
    parts = [p.detach().reshape(-1).cpu() for p in model.parameters() if p.requires_grad]
    return torch.cat(parts).numpy().astype(np.float32)


@torch.no_grad()
def from_vector(model: nn.Module, vector: F32) -> None:
    """Set the trained parameters to f32[d]; raises ValueError where d is another."""
    if vector.size != parameter_count(model):
        raise ValueError(f"vector of {vector.size} entries for a model of {parameter_count(model)} parameters")
    start = 0
    for p in model.parameters():
        if p.requires_grad:
            p.copy_(torch.from_numpy(vector[start : start + p.numel()]).view_as(p))
            start += p.numel()


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
        config = RunConfig.model_validate(facts["config"])
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
