"""The edge-processing layer: each image by itself, the default as it always was, each step as its paper says."""

import hashlib
import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from data_prep.domain_shift import draw, shift
from data_prep.shard_writer import write_shard
from fedhpc.config.harmonise import DEFAULT, N4, Clip, Fourier, Nyul, Smooth, Step, Window, ZScore
from fedhpc.config.schema import RunConfig
from fedhpc.models.backbones import Backbone, public_backbone
from fedhpc.site.data.harmonise import chain_key, harmonise
from fedhpc.site.data.harmonise.foreground import foreground
from fedhpc.site.data.harmonise.intensity import landmarks_of
from fedhpc.site.data.harmonise.smoothing import noise_of
from fedhpc.site.data.harmonise.spectrum import amplitude_of
from fedhpc.site.data.open_site import open_site, open_site_of_run
from fedhpc.site.data.samples import EXTRACTION
from tests.conftest import missing

LANDMARKS = (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 100.0)
AMPLITUDE = ((3.0, 4.0, 3.0), (5.0, 80.0, 5.0), (3.0, 4.0, 3.0))
STEPS: list[Step] = [
    ZScore(), ZScore(mask="foreground"), Window(centre=100, width=100), Clip(low=5, high=90), Smooth(),
    Nyul(landmarks=LANDMARKS), Fourier(amplitude=AMPLITUDE),
]  # fmt: skip


def discs(count: int = 3, size: int = 48, noise: float = 6.0) -> Any:
    """A bright disc with a dark hole on a dark ground, [count, 1, size, size] float32."""
    random = np.random.default_rng(count)
    y, x = np.indices((size, size)) - size / 2
    radius = np.hypot(y, x)
    image = np.where(radius < 0.35 * size, 120 + 2 * x, 10.0)
    image[radius < 3] = 12
    return (image + random.normal(0, noise, (count, 1, size, size))).astype(np.float32)


def inside(size: int = 48) -> Any:
    y, x = np.indices((size, size)) - size / 2
    return np.hypot(y, x) < 0.35 * size


@pytest.fixture
def three_threads() -> Iterator[None]:
    """As a rank has on most nodes; PyTorch divides work among threads by the size of a batch."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("chain", [DEFAULT, *((step,) for step in STEPS)], ids=lambda chain: chain_key(chain)[:4])
@pytest.mark.parametrize("shape", [(1, 192, 192), (2, 144, 144)])
def test_image_is_harmonised_alone_as_in_any_block(
    shape: tuple[int, ...], chain: tuple[Step, ...], three_threads: None
) -> None:
    """Bit for bit: else one patient more would move the score of the image that is alone in a shard's last block.

    Sums over 2^15 pixels and more are divided among threads where there is but one of them.
    """
    images = (np.random.default_rng(0).random((5, *shape)) ** 3 * 200).astype(np.float32)
    alone = torch.cat([harmonise(image[None], chain) for image in images])
    assert all(torch.equal(harmonise(images[:count], chain), alone[:count]) for count in (2, 5))


def test_default_keeps_its_bits_and_its_cache(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 9, 9), dtype=np.uint8)
    x = torch.from_numpy(images.astype(np.float32))
    centred = x - x.mean(dim=(2, 3), keepdim=True)
    wanted = centred / centred.square().mean(dim=(2, 3), keepdim=True).sqrt()
    assert torch.equal(harmonise(images), wanted) and torch.equal(harmonise(images, DEFAULT), wanted)
    path = tmp_path / "a.h5"
    write_shard(
        path, site="a", classes=("x", "y"), images=images, labels=[0, 1] * 3, patient=list("abcdef"),
        split=[0, 0, 1, 1, 2, 2], modality=["MR"] * 6, pixel_range=(0.0, 255.0), created_by="t",
    )  # fmt: skip
    backbone = Backbone(nn.Sequential(nn.Flatten(), nn.Linear(81, 3)).eval(), 3, None)
    with open_site(path) as site, open_site(path, chain=(ZScore(mask="foreground"),)) as other:
        key = hashlib.sha256(f"{EXTRACTION} {site.shard.digest} {backbone.digest}".encode()).hexdigest()[:16]
        assert site.features_path(backbone).name == f"a.features-{key}.npy"
        assert other.features_path(backbone) != site.features_path(backbone)
        rows = np.arange(6)
        assert not torch.equal(site.samples(backbone).inputs(rows), other.samples(backbone).inputs(rows))


@pytest.mark.parametrize("shape", [(0, 1, 48, 48), (0, 2, 5, 48, 48)])
@pytest.mark.parametrize("step", [*STEPS, N4()], ids=lambda step: step.step)
def test_step_takes_no_image_at_all(step: Step, shape: tuple[int, ...]) -> None:
    """As of a step of DP-SGD for which Poisson sampling drew nobody."""
    assert harmonise(np.zeros(shape, np.uint8), (step,)).shape == shape


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.step)
def test_step_sees_one_image_only(step: Step) -> None:
    images = discs()
    together = harmonise(images, (step,))
    assert together.dtype == torch.float32 and torch.isfinite(together).all()
    for row in range(len(images)):
        assert torch.equal(harmonise(images[row : row + 1], (step,))[0], together[row])
    flat = harmonise(np.full((1, 1, 16, 16), 7, np.uint8), (step,))
    assert torch.isfinite(flat).all()


def test_foreground_is_the_body() -> None:
    images = discs()
    images[:, :, 2:5, 2:5] = 200  # a smaller piece: a marker beside the patient
    for mask in foreground(images)[:, 0]:
        assert (mask != inside()).mean() < 0.01
    assert foreground(np.zeros((1, 1, 8, 8), np.float32)).all()


def test_zscore_inside_ignores_the_ground() -> None:
    """A larger field of view changes nothing inside the body: what the mask is for."""
    images = discs()
    wide = np.pad(images, ((0, 0), (0, 0), (24, 24), (24, 24)), mode="edge")
    chain = (ZScore(mask="foreground"),)
    one, other = harmonise(images, chain).numpy(), harmonise(wide, chain).numpy()[:, :, 24:-24, 24:-24]
    body = foreground(images)
    assert one[body].mean() == pytest.approx(0, abs=1e-4) and one[body].std() == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(one[body], other[body], atol=0.02)
    assert (
        abs(harmonise(images).numpy()[body].mean() - harmonise(wide).numpy()[:, :, 24:-24, 24:-24][body].mean()) > 0.2
    )


def test_window_and_clip_by_hand() -> None:
    image = np.array([[[[-200, 0, 50, 100, 900]]]], np.float32)
    assert harmonise(image, (Window(centre=50, width=100),)).flatten().tolist() == [0, 0, 0.5, 1, 1]
    ramp = np.arange(101, dtype=np.float32).reshape(1, 1, 1, 101)
    assert harmonise(ramp, (Clip(low=10, high=90),)).flatten().tolist() == [min(max(v, 10), 90) for v in range(101)]


def test_nyul_puts_percentiles_on_landmarks_whatever_the_scanner() -> None:
    images = discs()
    chain = (Nyul(landmarks=LANDMARKS),)
    out = harmonise(images, chain).numpy()
    found = landmarks_of(out, foreground(images))
    np.testing.assert_allclose(found, np.broadcast_to(LANDMARKS, found.shape), atol=0.3)
    np.testing.assert_allclose(harmonise(3 * images + 40, chain).numpy(), out, atol=0.3)


def test_fourier_takes_amplitudes_and_keeps_phases() -> None:
    images = discs()
    own = amplitude_of(images[:1], 3)[0, 0]
    same = harmonise(images[:1], (Fourier(amplitude=tuple(map(tuple, own.tolist()))),)).numpy()
    np.testing.assert_allclose(same, images[:1], atol=1e-3)
    out = harmonise(images, (Fourier(amplitude=AMPLITUDE),)).numpy()
    symmetric = (np.array(AMPLITUDE) + np.array(AMPLITUDE)[::-1, ::-1]) / 2
    np.testing.assert_allclose(amplitude_of(out, 3)[:, 0], np.broadcast_to(symmetric, (3, 3, 3)), rtol=1e-3)
    before, after = np.fft.fft2(images), np.fft.fft2(out)
    high = np.ones((48, 48), bool)
    high[np.ix_([-1, 0, 1], [-1, 0, 1])] = False
    np.testing.assert_allclose(after[:, 0, high], before[:, 0, high], atol=0.1)


def test_smoothing_follows_the_noise() -> None:
    clean, noisy = discs(noise=0.5), discs(noise=12.0)
    ramp = np.random.default_rng(0).normal(0, 12, (1, 1, 99, 99)) + 5 * np.arange(99)
    assert noise_of(ramp.astype(np.float32)).mean() == pytest.approx(12, rel=0.05)
    before, after = noisy[:, 0, :6].std(), harmonise(noisy, (Smooth(),)).numpy()[:, 0, :6].std()
    assert after < 0.6 * before
    assert np.abs(harmonise(clean, (Smooth(),)).numpy() - clean).mean() < 0.5


def test_bias_field_is_divided_out() -> None:
    if importlib.util.find_spec("SimpleITK") is None:
        missing("SimpleITK is not installed (pip install 'fedhpc[n4]')")
    y, x = np.indices((64, 64)) / 64 - 0.5
    body = np.hypot(y, x) < 0.4
    tissue = np.where(body, 100.0, 0.0) + np.where(np.hypot(y + 0.1, x) < 0.15, 40.0, 0.0)
    shaded = (tissue * np.exp(1.2 * x) + np.random.default_rng(0).normal(0, 1, x.shape)).astype(np.float32)
    out = harmonise(shaded[None, None], (N4(),)).numpy()[0, 0]
    edge = body & (np.hypot(y + 0.1, x) > 0.2)
    assert out[edge].std() / out[edge].mean() < 0.5 * shaded[edge].std() / shaded[edge].mean()


def test_own_chain_of_site_changes_its_features_only(tmp_path: Path) -> None:
    """Features, cache key and config digest follow a site's own chain; nothing else at any other site does."""
    images = discs(6).clip(0, 255).astype(np.uint8)
    for number, name in enumerate("ab"):
        write_shard(
            tmp_path / f"{name}.h5", site=name, classes=("x", "y"), images=images + number, labels=[0, 1] * 3,
            patient=[f"{name}{row}" for row in range(6)], split=[0, 0, 1, 1, 2, 2], modality=["MR"] * 6,
            pixel_range=(0.0, 255.0), created_by="t",
        )  # fmt: skip
    sites: list[dict[str, Any]] = [{"name": "a", "weight": 9}, {"name": "b", "weight": 9}]
    plain = {"name": "a", "data": {"shards": f"{tmp_path}/{{site}}.h5", "sites": sites}}
    alike = RunConfig.model_validate(plain)
    sites[1]["harmonise"] = [{"step": "zscore", "mask": "foreground"}]
    config = RunConfig.model_validate(plain)
    assert config.digest() != alike.digest() and config.without(["a"]).chain_of("b") == config.chain_of("b")
    backbone = Backbone(nn.Sequential(nn.Flatten(), nn.Linear(48 * 48, 3)).eval(), 3, None)
    same = {}
    for name in "ab":
        with open_site_of_run(alike, name) as before, open_site_of_run(config, name) as after:
            found = [site.samples(backbone).inputs(np.arange(6)) for site in (before, after)]
            same[name] = torch.equal(*found), before.features_path(backbone) == after.features_path(backbone)
    assert same == {"a": (True, True), "b": (False, False)}
    shown = shift(draw([tmp_path / "a.h5", tmp_path / "b.h5"], 6), DEFAULT, public_backbone("phantom"),
                  {"b": config.chain_of("b")}).examples  # fmt: skip
    for name in "ab":
        wanted = harmonise(images + "ab".index(name), config.chain_of(name)).numpy()[:, 0]
        assert any(np.allclose(shown[name], one, atol=1e-5) for one in wanted), "compare shows what the site trains on"


def test_chain_is_part_of_the_configs_identity() -> None:
    plain = {"name": "a", "data": {"shards": "{site}.h5", "sites": [{"name": "x", "weight": 9}]}}
    config = RunConfig.model_validate(plain)
    other = RunConfig.model_validate(
        plain | {"harmonise": [{"step": "clip"}, {"step": "zscore", "mask": "foreground"}]}
    )
    assert config.harmonise == DEFAULT and chain_key(DEFAULT) == ""
    assert config.digest() != other.digest() and chain_key(other.harmonise) not in ("", chain_key((Clip(),)))
    for wrong in (
        [],
        [{"step": "magic"}],
        [{"step": "nyul", "landmarks": [1.0]}],
        [{"step": "fourier", "amplitude": [[1.0, 2.0]]}],
    ):
        with pytest.raises(ValidationError):
            RunConfig.model_validate(plain | {"harmonise": wrong})
