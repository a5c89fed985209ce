"""Networks: accepted for DP, the same weights for the same seed, flat vector and file round trips."""

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch
from opacus.validators import ModuleValidator
from torch import nn

from fedhpc.config.model import BuiltIn
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models import resnet
from fedhpc.models.build import build_model, replace_module
from fedhpc.models.densenet import DENSENET_121, GROUPS, SMALL, DenseNet, Size
from fedhpc.models.device import device_name
from fedhpc.models.saved import load_backbone, load_model, save_model
from fedhpc.models.task import Task
from fedhpc.models.vector import from_vector, layers_of, parameter_count, to_vector

# Every name that a config may give, but for the one that has no network of its own.
NETWORKS = [name for name in get_args(BuiltIn) if name != "frozen"]
TASK = Task(("benign", "malignant"), (1, 64, 64))
DATA = {"shards": "{site}.h5", "sites": [{"name": "a"}]}


def config(name: str, seed: int = 0) -> RunConfig:
    return RunConfig.model_validate({"name": "x", "seed": seed, "data": DATA, "model": {"name": name}})


@pytest.mark.parametrize("name", NETWORKS)
def test_network_is_fit_for_privacy_and_free_of_batch_statistics(name: str) -> None:
    model = build_model(config(name), TASK)
    assert ModuleValidator.validate(model, strict=False) == []
    model.train()
    images = torch.randn(3, 1, 64, 64)
    together, alone = model(images), torch.cat([model(image[None]) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-4)


def test_small_densenet_is_small() -> None:
    assert 30_000 < parameter_count(build_model(config("densenet_small"), TASK)) < 50_000


def test_initial_weights_are_a_function_of_the_seed_alone() -> None:
    first = to_vector(build_model(config("densenet_small"), TASK))
    torch.manual_seed(99)
    np.testing.assert_array_equal(first, to_vector(build_model(config("densenet_small"), TASK)))
    assert (first != to_vector(build_model(config("densenet_small", seed=1), TASK))).any()


def test_input_layer_starts_as_identity() -> None:
    """The network behind it has the weights that it has without, and gives the same bits, of slices and volumes."""
    for shape in ((2, 64, 64), (1, 16, 32, 32)):
        task = Task(("benign", "malignant"), shape)
        plain = build_model(config("densenet_small"), task)
        model = build_model(config("densenet_small").replace({"model.input_layer": True}), task)
        assert parameter_count(model) == parameter_count(plain) + 3 * shape[0]
        images = torch.randn(2, *shape)
        assert torch.equal(model(images), plain(images))
        torch.nn.init.constant_(model.get_parameter("input_layer.low_pass"), 9.0)
        blurred = model.get_submodule("input_layer")(images)
        assert blurred.std() < 0.6 * images.std() and torch.allclose(blurred.mean(), images.mean(), atol=0.02)


def test_vector_round_trip() -> None:
    model = build_model(config("densenet_small"), TASK)
    vector = np.random.default_rng(0).normal(size=parameter_count(model)).astype(np.float32)
    from_vector(model, vector)
    np.testing.assert_array_equal(to_vector(model), vector)
    with pytest.raises(ValueError, match="parameters"):
        from_vector(model, vector[:-1])


@pytest.mark.parametrize("name", ["densenet_small", "resnet18"])
def test_layers_make_up_the_vector_in_their_order(name: str) -> None:
    model = build_model(config(name), TASK)
    vector, start = to_vector(model), 0
    for layer, size in layers_of(model):
        tensor = model.get_parameter(layer).detach().numpy().ravel()
        np.testing.assert_array_equal(vector[start : start + size], tensor)
        start += size
    assert start == vector.size


def saved(tmp_path: Path, *, input_layer: bool = False) -> Path:
    chosen = config("densenet_small", seed=5).replace({"model.input_layer": input_layer})
    model = build_model(chosen, TASK)
    facts = {
        "config": chosen.model_dump(mode="json"),
        "classes": TASK.classes,
        "image_shape": TASK.image_shape,
        "f1_thresholds": [7],
    }
    save_model(tmp_path / "model.pt", model, facts)
    return tmp_path / "model.pt"


def test_saved_model_gives_the_same_output(tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path))
    images = torch.randn(2, 1, 64, 64)
    model = build_model(config("densenet_small", seed=5), TASK).eval()
    torch.testing.assert_close(loaded.network(images), model(images))
    assert (loaded.task, loaded.f1_thresholds) == (TASK, (7,))


@pytest.mark.parametrize("input_layer", [False, True])
def test_a_trained_model_serves_as_backbone(tmp_path: Path, input_layer: bool) -> None:
    backbone = load_backbone(str(saved(tmp_path, input_layer=input_layer)))
    features = backbone(torch.randn(2, 1, 64, 64))
    assert features.shape == (2, backbone.dim)
    assert not any(p.requires_grad for p in backbone.parameters())


@pytest.mark.parametrize("content", [b"", b"no model", b"abc", b".", b"\x80\x02.", b"}h", b"PK\x03\x04"])
def test_not_a_model(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt"):
        load_model(tmp_path / "model.pt")


def test_dimensions_and_sizes_that_do_not_fit_are_refused() -> None:
    """One message that names the key: a backbone of slices for patches, and patches that are halved to nothing."""
    volumes = Task(("no", "yes"), (1, 16, 16, 16))
    frozen = config("densenet_small").replace({"model": {"name": "frozen", "backbone": "phantom"}})
    with pytest.raises(InputError, match=r"model\.backbone=phantom: takes images of 2 dimensions"):
        build_model(frozen, volumes, load_backbone("phantom"))
    with pytest.raises(InputError, match=r"model\.name=densenet_small: needs images of 13 pixels"):
        build_model(config("densenet_small"), Task(("no", "yes"), (1, 12, 64, 64)))
    model = build_model(config("densenet_small"), Task(("no", "yes"), (1, 13, 13, 13)))
    assert model(torch.randn(1, 1, 13, 13, 13)).shape == (1, 2)


def test_unknown_backbone() -> None:
    with pytest.raises(InputError, match="allowed: efficientnet_lite0"):
        load_backbone("resnet9000")


def test_gpu_is_demanded_and_not_there() -> None:
    with pytest.raises(InputError, match="no GPU is visible"):
        device_name("cuda", 0, 0)


@pytest.mark.parametrize(("size", "dims"), [(SMALL, 2), (SMALL, 3), (DENSENET_121, 2)], ids=str)
def test_densenet_equals_monai_bitwise(size: Size, dims: int) -> None:
    """Names, initial weights and outputs: a run's results do not depend on which of the two is loaded."""
    from monai.networks.nets.densenet import DenseNet as MonaiDenseNet

    norm, act = ("group", {"num_groups": GROUPS}), ("relu", {"inplace": False})
    torch.manual_seed(3)
    ours = DenseNet(1, 2, size, dims)
    torch.manual_seed(3)
    theirs = MonaiDenseNet(dims, 1, 2, *size, act=act, norm=norm)
    assert str(ours) == str(theirs), "the digest of a backbone covers its text"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(ours.parameters(), theirs.parameters(), strict=True))
    images = torch.randn(2, 1, *[32] * dims)
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize(("name", "dims"), [("resnet18", 2), ("resnet18", 3), ("resnet50", 2)])
def test_resnet_equals_monai_bitwise(name: str, dims: int) -> None:
    """MONAI's, whose norms are replaced: names, text, initial weights, outputs and gradients."""
    from monai.networks.nets import resnet as monai_resnet

    torch.manual_seed(3)
    ours = getattr(resnet, name)(1, 2, dims)
    torch.manual_seed(3)
    theirs = with_group_norms(getattr(monai_resnet, name)(spatial_dims=dims, n_input_channels=1, num_classes=2))
    assert str(ours) == str(theirs), "the digest of a backbone covers its text"
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(one, two) for one, two in zip(ours.parameters(), theirs.parameters(), strict=True))
    images = torch.randn(2, 1, *[16] * dims)
    for model in (ours, theirs):
        model(images).square().sum().backward()
    assert torch.equal(ours(images), theirs(images))
    assert all(torch.equal(one.grad, two.grad) for one, two in zip(ours.parameters(), theirs.parameters(), strict=True))


def with_group_norms(network: nn.Module) -> nn.Module:
    """Group norms in the place of batch norms, and no activation in place."""
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            norm = nn.GroupNorm(GROUPS, module.num_features)
            ends = name.endswith(("bn2", "bn3"))
            replace_module(network, name, nn.Sequential(norm, resnet.Copy()) if ends else norm)
        elif isinstance(module, nn.ReLU):
            module.inplace = False
    return network
