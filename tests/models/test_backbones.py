"""Public features: of every image by itself, averaged over its mirrors, whitened by public images alone."""

import numpy as np
import pytest
import torch

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.backbones import NAMES, StageStatistics, public_backbone
from fedhpc.models.build import build_model
from fedhpc.models.task import Task
from fedhpc.models.vector import parameter_count, to_vector
from fedhpc.models.whitening import PublicMap, Whitening, fit_public_map

DIMENSIONS = {"efficientnet_lite0": 1024, "phantom": 272, "efficientnet_lite0+phantom": 1296}


@pytest.mark.parametrize("name", NAMES)
def test_features_are_of_each_image_alone_over_its_mirrors(name: str) -> None:
    backbone = public_backbone(name)
    assert backbone.dim == DIMENSIONS[name]
    torch.manual_seed(0)
    images = torch.randn(3, 1, 64, 64)
    together = backbone(images)
    assert together.shape == (3, backbone.dim)
    torch.testing.assert_close(torch.cat([backbone(image[None]) for image in images]), together, rtol=1e-3, atol=1e-4)
    if backbone.image_size is None:
        views = [backbone.network(view) for view in (images, images.flip(3), images.flip(2))]
        torch.testing.assert_close(together, sum(views) / 3)
    assert not any(p.requires_grad for p in backbone.parameters())
    assert backbone.digest == public_backbone(name).digest


def test_joined_features_are_those_of_each() -> None:
    """At the size that the phantoms have, standardised as a hospital does it."""
    images = torch.randn(2, 1, 64, 64)
    images = (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True, correction=0)
    each = [public_backbone(name)(images) for name in ("efficientnet_lite0", "phantom")]
    torch.testing.assert_close(public_backbone("efficientnet_lite0+phantom")(images), torch.cat(each, dim=1))


def test_stage_statistics_are_means_and_deviations() -> None:
    network = torch.nn.Sequential(torch.nn.Identity(), torch.nn.AvgPool2d(2))
    images = torch.randn(2, 3, 4, 4)
    halved = network(images)
    expected = [images.mean((2, 3)), images.std((2, 3)), halved.mean((2, 3)), halved.std((2, 3))]
    torch.testing.assert_close(StageStatistics(network, ["0", "1"])(images), torch.cat(expected, dim=1))


def reference(n: int = 400, size: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, size)) @ rng.normal(size=(size, size)) * 3 + 5).astype(np.float32)


@pytest.mark.parametrize("exponent", [0.0, 0.6, 1.0])
def test_public_map_whitens(exponent: float) -> None:
    """Along the kept directions the reference has no correlation, and widths to the power 1 - exponent."""
    features = reference()
    found = fit_public_map(features, 4, exponent)
    turned = (features - found.mean) @ found.projection
    np.testing.assert_allclose(turned.mean(axis=0), 0, atol=1e-4)
    covariance = np.cov(turned.T, bias=True)
    widths = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(covariance, np.diag(widths**2), atol=1e-4)
    standardised = (features - features.mean(0)) / features.std(0)
    eigenvalues = np.linalg.eigvalsh(np.cov(standardised.T, bias=True))[::-1][:4]
    np.testing.assert_allclose(widths, np.sqrt(eigenvalues) ** (1 - exponent), rtol=1e-3)


def test_public_map_does_not_care_for_units_and_constants() -> None:
    features = reference()
    found = fit_public_map(features, 3, 0.6)
    scaled = features * np.float32([1, 10, 100, 1, 0.1, 1]) - 7
    again = fit_public_map(scaled, 3, 0.6)
    ours = (features - found.mean) @ found.projection
    np.testing.assert_allclose((scaled - again.mean) @ again.projection, ours, atol=1e-3)
    constant = np.concatenate([features, np.full((len(features), 1), 3, np.float32)], axis=1)
    assert np.isfinite(fit_public_map(constant, 3, 1.0).projection).all()


def test_too_few_public_images() -> None:
    with pytest.raises(InputError, match=r"model.features=5: .* 5 images of 6 features; allowed: at most 4"):
        fit_public_map(reference(5), 5, 0.6)


def test_whitened_images_are_of_length_one_and_the_map_is_saved_with_the_model() -> None:
    tree = {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": [{"name": "a"}], "public_reference": "r.h5"},
        "model": {"name": "frozen", "backbone": "phantom", "features": 5},
    }
    config, task = RunConfig.model_validate(tree), Task(("a", "b", "c"), (1, 64, 64))
    backbone = public_backbone("phantom")
    model = build_model(config, task, backbone)
    assert parameter_count(model) == 5 * 3
    assert not to_vector(model).any(), "a linear head starts at zero"
    rng = np.random.default_rng(0)
    projection = rng.normal(size=(272, 5)).astype(np.float32)
    PublicMap(rng.normal(size=272).astype(np.float32), projection).load_into(model)
    whitening = model[0]  # type: ignore[index]
    assert isinstance(whitening, Whitening)
    torch.testing.assert_close(whitening(torch.randn(7, 272)).norm(dim=1), torch.ones(7))
    other = build_model(config, task, backbone)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other[0].projection, torch.from_numpy(projection))  # type: ignore[index]
