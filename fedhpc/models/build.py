"""Build the trained part of a model: a network without batch statistics, or a head on a frozen backbone."""

import torch
from torch import nn

from fedhpc.config.model import Model
from fedhpc.config.schema import RunConfig
from fedhpc.models.backbones import Backbone
from fedhpc.models.densenet import DenseNet
from fedhpc.models.monai_networks import monai_network
from fedhpc.models.own import own_network
from fedhpc.models.resnet import resnet18, resnet50
from fedhpc.models.task import Task
from fedhpc.models.whitening import Centring, Whitening
from fedhpc.util.rng import seed_of


def build_model(config: RunConfig, task: Task, backbone: Backbone | None = None) -> nn.Module:
    """The trained part of the model, with initial weights that are a function of the run's seed: the same at all sites.

    Args:
        config: names the network.
        task: classes and image shape.
        backbone: with `model.name: frozen`, the extractor whose features the head is trained on.

    Raises:
        InputError: a network of `model.build` or `model.monai` that cannot be built.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(config.seed, "initial weights"))
        if backbone is not None:
            return _head(backbone, config.model, len(task.classes))
        if config.model.build is not None:
            return own_network(config.model, task)
        if config.model.monai is not None:
            return monai_network(config.model.monai, task, config.model.args)
        return _network(str(config.model.name), task)


def _network(name: str, task: Task) -> nn.Module:
    channels, classes = task.image_shape[0], len(task.classes)
    if name == "densenet_small":
        return DenseNet(channels, classes, init_features=16, growth_rate=8, block_config=(2, 4, 4))
    if name == "densenet121":
        return DenseNet(channels, classes)
    return {"resnet18": resnet18, "resnet50": resnet50}[name](channels, classes)


def replace_module(network: nn.Module, name: str, module: nn.Module) -> None:
    """Put `module` in the place of the one with this dotted name."""
    above, _, own = name.rpartition(".")
    setattr(network.get_submodule(above), own, module)


def _head(backbone: Backbone, model: Model, classes: int) -> nn.Module:
    """Linear on features that each image normalises by itself, or that a public map whitens: no statistic of patients.

    On whitened features it has no offsets, which would cost as much noise as a direction and move no ranking, and
    starts at zero, so that all of it was learned.
    """
    dim, kept = backbone.dim, model.features
    if kept is None:
        return nn.Sequential(nn.LayerNorm(dim, elementwise_affine=False), nn.Linear(dim, classes))
    linear = nn.Linear(kept, classes, bias=False)
    nn.init.zeros_(linear.weight)
    centred = [Centring(kept)] if model.feature_mean == "sites" else []
    return nn.Sequential(Whitening(dim, kept, blocks_of(backbone, model)), *centred, linear)


def blocks_of(backbone: Backbone, model: Model) -> tuple[int, ...]:
    """The parts of the features that each image standardises by itself; none with `model.feature_norm: none`."""
    return backbone.blocks if model.feature_norm == "stages" else ()
