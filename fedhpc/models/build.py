"""Build the trained part of a model: a network without batch statistics, or a head on a frozen backbone."""

import torch
from torch import nn

from fedhpc.config.model import Model
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.backbones import Backbone
from fedhpc.models.densenet import DENSENET_121, SMALL, DenseNet
from fedhpc.models.input_layer import with_input_layer
from fedhpc.models.monai_networks import monai_network
from fedhpc.models.own import own_network
from fedhpc.models.resnet import resnet18, resnet50
from fedhpc.models.task import Task
from fedhpc.models.whitening import Centring, StageNorm, Whitening
from fedhpc.util.rng import seed_of

LEAST_PIXELS = {"densenet_small": 13, "densenet121": 29, "resnet18": 1, "resnet50": 1}
"""A side of the smallest image that is not halved to nothing."""


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
            _check_dims(backbone, config.model, task)
            return _head(backbone, config.model, len(task.classes))
        network = _whole_network(config.model, task)
    return with_input_layer(network, task.image_shape[0]) if config.model.input_layer else network


def _check_dims(backbone: Backbone, model: Model, task: Task) -> None:
    """Refuse a backbone of slices for 3-D patches, and the other way round."""
    if backbone.dims != task.dims:
        raise InputError(
            f"model.backbone={model.backbone}: takes images of {backbone.dims} dimensions; the shards hold images of "
            f"{task.dims} ({' x '.join(map(str, task.image_shape[1:]))}). Train a network, as "
            "model.name=densenet_small, or prepare shards of slices",
            code="model.backbone",
        )


def _whole_network(model: Model, task: Task) -> nn.Module:
    if model.build is not None:
        return own_network(model, task)
    if model.monai is not None:
        return monai_network(model.monai, task, model.args)
    return _network(str(model.name), task)


def _network(name: str, task: Task) -> nn.Module:
    channels, classes, dims = task.image_shape[0], len(task.classes), task.dims
    if min(task.image_shape[1:]) < LEAST_PIXELS[name]:
        raise InputError(
            f"model.name={name}: needs images of {LEAST_PIXELS[name]} pixels a side or more; the shards hold "
            f"{' x '.join(map(str, task.image_shape[1:]))}. Prepare larger ones, or take another network",
            code="model.output",
        )
    if name == "densenet_small":
        return DenseNet(channels, classes, SMALL, dims)
    if name == "densenet121":
        return DenseNet(channels, classes, DENSENET_121, dims)
    return {"resnet18": resnet18, "resnet50": resnet50}[name](channels, classes, dims)


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
        blocks = blocks_of(backbone, model)
        norm = StageNorm(blocks) if blocks else nn.LayerNorm(dim, elementwise_affine=False)
        return nn.Sequential(norm, nn.Linear(dim, classes))
    linear = nn.Linear(kept, classes, bias=False)
    nn.init.zeros_(linear.weight)
    centred = [Centring(kept)] if model.feature_mean == "sites" else []
    return nn.Sequential(Whitening(dim, kept, blocks_of(backbone, model)), *centred, linear)


def blocks_of(backbone: Backbone, model: Model) -> tuple[int, ...]:
    """Return the parts of the features that each image standardises by itself; none with `model.feature_norm: none`."""
    return backbone.blocks if model.feature_norm == "stages" else ()
