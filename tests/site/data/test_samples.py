"""Features of a frozen backbone are kept whole beside the shard, or not at all."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data_prep.shard_writer import write_shard
from fedhpc.errors import ShardError, inside
from fedhpc.models.backbones import Backbone, public_backbone
from fedhpc.site.data import samples
from fedhpc.site.data.samples import FeatureSamples
from fedhpc.site.data.shard import Shard

N, DIM = 40, 512


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    images = np.random.default_rng(0).integers(0, 256, (N, 1, 8, 8), dtype=np.uint8)
    columns = {"labels": np.arange(N) % 2, "patient": [f"p{k}" for k in range(N)], "split": np.arange(N) % 3}
    other = {"site": "site1", "classes": ("a", "b"), "pixel_range": (0.0, 255.0), "created_by": "test 1"}
    write_shard(tmp_path / "site1.h5", images=images, modality=["MR"] * N, **columns, **other)
    return tmp_path / "site1.h5"


def backbone() -> Backbone:
    return Backbone(nn.Sequential(nn.Flatten(), nn.Linear(64, DIM)), DIM, image_size=None)


def test_features_on_full_disk_are_one_message(shard: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Shard.open(shard, "site1") as opened:
        resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, before[1]))
        try:
            with pytest.raises(ShardError, match=r"site site1: cannot keep the features .*File too large") as caught:
                FeatureSamples(opened, backbone(), shard.parent)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "0.1 MB are needed" in inside(caught.value) and str(shard.parent) not in str(caught.value)
    assert [path.name for path in shard.parent.iterdir()] == ["site1.h5"]


def test_features_are_kept_and_read_back(shard: Path) -> None:
    network = backbone()
    with Shard.open(shard, "site1") as opened:
        first = FeatureSamples(opened, network, shard.parent).inputs(np.arange(N))
        again = FeatureSamples(opened, network, shard.parent).inputs(np.arange(N))
    (kept,) = shard.parent.glob("site1.features-*.npy")
    assert first.shape == (N, DIM) and np.array_equal(np.load(kept), again.numpy()) and first.equal(again)


@pytest.mark.parametrize("name", ["phantom", "efficientnet_lite0"])
def test_features_of_a_patient_do_not_depend_on_others(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bit for bit: a convolution rounds by the size of its batch, so that one patient more would show in others.

    Blocks of 4 show what those of 32 do: a last block of 1 image and of 2, and a block that is full.
    """
    monkeypatch.setattr(samples, "READ_AT_ONCE", 4)
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 32, 32), dtype=np.uint8)
    found = []
    for count in (1, 5, 6):
        columns = {"labels": np.arange(count) % 2, "patient": [f"p{k}" for k in range(count)], "split": [0] * count}
        other = {"classes": ("a", "b"), "pixel_range": (0.0, 255.0), "created_by": "test 1"}
        path = tmp_path / f"site{count}.h5"
        write_shard(path, site=path.stem, images=images[-count:], modality=["MR"] * count, **columns, **other)
        with Shard.open(path, path.stem) as opened:
            found.append(FeatureSamples(opened, public_backbone(name), tmp_path).inputs(np.arange(count)))
    assert torch.equal(found[0], found[1][-1:]) and torch.equal(found[1], found[2][1:])


def test_features_that_are_not_finite_are_refused(shard: Path) -> None:
    """As the deviation of a stage of one pixel is: nothing is trained on them, and nothing is kept."""
    network = backbone()
    for parameter in network.parameters():
        nn.init.constant_(parameter, np.nan)
    with Shard.open(shard, "site1") as opened, pytest.raises(ShardError, match="not finite") as caught:
        FeatureSamples(opened, network, shard.parent)
    assert caught.value.code == "shard.features"
    assert [path.name for path in shard.parent.iterdir()] == ["site1.h5"]
