"""Every network and backbone as ONNX: the logits are PyTorch's, or there is one message and no file."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.backbones import BOTH, CROPPED, EFFICIENTNET, PHANTOM, resized_colour
from fedhpc.models.build import build_model
from fedhpc.models.saved import SavedModel, load_backbone, save_model
from fedhpc.models.task import Task
from fedhpc.models.views import cropped, resized, standardised
from fedhpc.models.whitening import Centring, Whitening
from fedhpc.run.finished import export

SLICE, PATCH = (1, 24, 40), (2, 16, 20, 24)


def config_of(model: dict[str, Any]) -> RunConfig:
    data: dict[str, Any] = {"shards": "{site}.h5", "sites": [{"name": name, "weight": 1} for name in "ab"]}
    if "features" in model:
        data["public_reference"] = "public.h5"
    return RunConfig.model_validate({"name": "x", "data": data, "model": model, "privacy": {"off": True}})


def model_file(path: Path, model: dict[str, Any], shape: tuple[int, ...]) -> Path:
    """Of a network as it is before training, with random values in all that a run sets."""
    config = config_of(model)
    backbone = load_backbone(config.model.backbone) if config.model.backbone else None
    task = Task(("healthy", "ill"), shape)
    network = build_model(config, task, backbone)
    torch.manual_seed(0)
    with torch.no_grad():
        own = [p for m in network.modules() if isinstance(m, Whitening | Centring) for p in m.buffers()]
        for value in (*own, *network.parameters()):
            value.add_(torch.randn_like(value) / 10)
    facts = {"config": config.model_dump(mode="json"), "classes": task.classes, "image_shape": shape}
    save_model(path, network, {**facts, "f1_thresholds": [0]})
    return path


def frozen(backbone: str, **more: Any) -> dict[str, Any]:
    return {"name": "frozen", "backbone": backbone, **more}


FEW = {"features": 8, "feature_norm": "stages"}
SLOW = [
    *((frozen(name), SLICE) for name in (PHANTOM, EFFICIENTNET, BOTH, CROPPED)),
    *((frozen(name, **FEW), SLICE) for name in (PHANTOM, BOTH)),
    (frozen(CROPPED, **FEW, feature_mean="sites"), SLICE),
    *(({"name": name}, (2, 32, 32)) for name in ("densenet_small", "densenet121", "resnet18", "resnet50")),
    *(({"name": name}, (1, 32, 32, 32)) for name in ("densenet121", "resnet18", "resnet50")),
]
FAST = [
    (frozen(EFFICIENTNET, **FEW), SLICE),
    ({"name": "densenet_small", "input_layer": True}, PATCH),
]


@pytest.mark.parametrize(("model", "shape"), [*FAST, *(pytest.param(*one, marks=pytest.mark.slow) for one in SLOW)])
def test_every_network_exports_its_logits(
    model: dict[str, Any], shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    if EFFICIENTNET in str(model.get("backbone")):
        pytest.importorskip("efficientnet_lite_pytorch")
    monkeypatch.setattr(export, "CHECKED_IMAGES", (1, 2))
    done = export.export(model_file(tmp_path / "model.pt", model, shape), tmp_path / "model.onnx")
    assert done.difference <= 1e-5 and done.size_bytes == (tmp_path / "model.onnx").stat().st_size


def test_run_as_backbone_exports_its_logits(tmp_path: Path) -> None:
    """Of 3-D patches, which are mirrored as well."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    whole = model_file(tmp_path / "whole.pt", {"name": "densenet_small", "input_layer": True}, PATCH)
    head = model_file(tmp_path / "head.pt", frozen(str(whole)), PATCH)
    assert export.export(head, tmp_path / "model.onnx").difference <= 1e-5


class Views(nn.Module):
    """What a backbone does with its images before its network."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The smaller image, cut to what it shows, then larger."""
        return resized_colour(standardised(cropped(resized(images, 16))), 50).flatten(1)


def test_views_of_images_are_exported() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    saved = SavedModel(Views(), None, config_of({}), Task(("healthy", "ill"), SLICE), (0,))
    assert export._difference(export._onnx(saved.network, saved), saved.network, saved) <= 1e-5


class Spectrum(nn.Module):
    """What ONNX has no operator for."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The logits."""
        return torch.linalg.eigvalsh(images[:, 0, :2, :2])


def test_network_unknown_to_onnx_is_one_message(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("onnx")
    saved = SavedModel(Spectrum(), None, config_of({}), Task(("healthy", "ill"), SLICE), (0,))
    with pytest.raises(InputError, match="cannot export this network"):
        export._onnx(saved.network, saved)
    assert capfd.readouterr() == ("", "")


def test_compared_images_are_cropped() -> None:
    """So that the logits of a network that cuts its images are compared where it does."""
    saved = SavedModel(Spectrum(), None, config_of({}), Task(("healthy", "ill"), SLICE), (0,))
    images = torch.from_numpy(export._images(saved, 3))
    assert (cropped(images) - images).abs().amax(dim=(1, 2, 3)).min() > 0.5
