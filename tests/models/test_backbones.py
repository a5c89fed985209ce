"""Public features: of every image by itself, averaged over its mirrors, whitened by public images alone."""

import numpy as np
import pytest
import torch

from fedhpc.config.model import Model
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.backbones import NAMES, StageStatistics, public_backbone
from fedhpc.models.build import blocks_of, build_model
from fedhpc.models.task import Task
from fedhpc.models.vector import parameter_count, to_vector
from fedhpc.models.views import cropped, resized, triangle_weights
from fedhpc.models.whitening import PublicMap, Whitening, fit_public_map, in_blocks
from fedhpc.run.start.public_features import reference_backbone

DIMENSIONS = {
    "efficientnet_lite0": 1024,
    "phantom": 272,
    "efficientnet_lite0+phantom": 1296,
    "efficientnet_lite0+phantom+cropped": 1296,
}


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
        views = [images, images.flip(3), images.flip(2)]
        views += [cropped(images), cropped(images).flip(3)] if name.endswith("cropped") else []
        torch.testing.assert_close(together, torch.stack([backbone.network(view) for view in views]).mean(dim=0))
    assert not any(p.requires_grad for p in backbone.parameters())
    assert backbone.digest == public_backbone(name).digest


def test_joined_features_are_those_of_each() -> None:
    """At the size that the phantoms have, standardised as a hospital does it."""
    images = torch.randn(2, 1, 64, 64)
    images = (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), keepdim=True, correction=0)
    each = [public_backbone(name)(images) for name in ("efficientnet_lite0", "phantom")]
    torch.testing.assert_close(public_backbone("efficientnet_lite0+phantom")(images), torch.cat(each, dim=1))


@pytest.mark.parametrize("before", [1, 13, 64, 100, 225, 512])
@pytest.mark.parametrize("after", [64, 224])
def test_matrices_resize_as_pytorch(before: int, after: int) -> None:
    images = torch.randn(2, 1, before, 32)
    rows, columns = (torch.from_numpy(triangle_weights(side, after)) for side in (before, 32))
    torch.testing.assert_close(rows @ images @ columns.T, resized(images, after), rtol=0, atol=1e-6)


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


def picture(size: int, corner: int, side: int) -> torch.Tensor:
    """A dark image with a bright square pattern of `side` pixels at (corner, corner)."""
    image = torch.full((1, 1, size, size), -1.0)
    pattern = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(3)) + 0.5
    image[:, :, corner : corner + side, corner : corner + side] = torch.nn.functional.interpolate(pattern, size=side)
    return image


def test_crop_does_not_depend_on_place_and_field_of_view() -> None:
    inside = slice(8, 56)  # not the edge, whose pixels are mixed with the dark outside
    views = [cropped(picture(64, *where))[0, 0, inside, inside] for where in ((0, 64), (8, 32), (27, 32), (30, 24))]
    for view in views[1:]:
        assert np.corrcoef(views[0].flatten(), view.flatten())[0, 1] > 0.85
    whole = picture(64, 0, 64)[0, 0, inside, inside].flatten()
    assert abs(np.corrcoef(whole, picture(64, 8, 32)[0, 0, inside, inside].flatten())[0, 1]) < 0.5


def test_crop_is_of_each_image_alone_whatever_its_gain() -> None:
    images = torch.cat([picture(48, 4, 24), picture(48, 12, 30), torch.zeros(1, 1, 48, 48)])
    images = torch.cat([images, images.flip(3)], dim=1)
    together = cropped(images)
    torch.testing.assert_close(torch.cat([cropped(image[None]) for image in images]), together)
    torch.testing.assert_close(cropped(3 * images + 7), together, rtol=0, atol=1e-4)
    assert together.isfinite().all() and not together[2].any(), "an image of one colour stays so"
    torch.testing.assert_close(together[:2].mean(dim=(2, 3)), torch.zeros(2, 2), rtol=0, atol=1e-5)


def test_thin_frame_is_not_what_an_image_shows() -> None:
    plain = picture(64, 20, 24)
    framed = plain.clone()
    framed[:, :, 0, 0:3] = framed[:, :, 40:42, 62] = 2.0
    assert np.corrcoef(cropped(plain).flatten(), cropped(framed).flatten())[0, 1] > 0.95


@pytest.mark.parametrize(
    ("created_by", "sees_crops"), [("data_prep.phantom.public 1", False), ("fedhpc prepare images", True)]
)
def test_phantoms_of_the_reference_are_not_cropped(created_by: str, sees_crops: bool) -> None:
    backbone = public_backbone("efficientnet_lite0+phantom+cropped")
    seen = reference_backbone(created_by, backbone)
    assert (seen.digest == backbone.digest) is sees_crops
    assert (seen.digest == public_backbone("efficientnet_lite0+phantom").digest) is not sees_crops
    assert seen.blocks == backbone.blocks


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


def test_stage_norm_ignores_gain_and_offset_of_each_part() -> None:
    backbone = public_backbone("phantom")
    rng = torch.Generator().manual_seed(0)
    features = torch.randn(7, backbone.dim, generator=rng)
    parts = features.split(list(backbone.blocks), dim=1)
    moved = torch.cat([part * (0.2 + 3 * k) - 5 * k for k, part in enumerate(parts)], dim=1)
    found = fit_public_map(in_blocks(features, backbone.blocks).numpy(), 4, 0.6)
    results = {}
    for norm in ("none", "stages"):
        blocks = blocks_of(backbone, Model(name="frozen", backbone="phantom", features=4, feature_norm=norm))
        whitening = Whitening(backbone.dim, 4, blocks)
        found.load_into(whitening)
        results[norm] = whitening(features), whitening(moved)
    torch.testing.assert_close(*results["stages"], rtol=0, atol=1e-4)
    assert (results["none"][0] - results["none"][1]).abs().max() > 0.1


def test_head_on_all_features_standardises_each_part_by_itself() -> None:
    """Gain and offset of a part change nothing with `stages`; standardised as one, the features change with them."""
    backbone = public_backbone("phantom")
    features = torch.randn(7, backbone.dim, generator=torch.Generator().manual_seed(0))
    parts = features.split(list(backbone.blocks), dim=1)
    moved = torch.cat([part * (0.2 + 3 * k) - 5 * k for k, part in enumerate(parts)], dim=1)
    task = Task(("a", "b", "c"), (1, 64, 64))
    change = {}
    for norm in ("none", "stages"):
        tree = {
            "name": "x",
            "data": {"shards": "{site}.h5", "sites": [{"name": "a"}]},
            "model": {"name": "frozen", "backbone": "phantom", "feature_norm": norm},
        }
        head = build_model(RunConfig.model_validate(tree), task, backbone)
        assert parameter_count(head) == 3 * (backbone.dim + 1)
        change[norm] = float((head(features) - head(moved)).detach().abs().max())
    assert change["stages"] < 1e-4 < 0.1 < change["none"]


@pytest.mark.parametrize("name", NAMES)
def test_backbone_blocks_are_the_parts_of_its_features(name: str) -> None:
    """Each image's mean channels of a stage are one part, their deviations the next: in order, and none left over."""
    backbone = public_backbone(name)
    assert sum(backbone.blocks) == backbone.dim
    assert backbone.blocks[::2] == backbone.blocks[1::2]
    deviations = backbone(torch.rand(1, 1, 64, 64)).split(list(backbone.blocks), dim=1)[1::2]
    assert all((part >= 0).all() for part in deviations)
