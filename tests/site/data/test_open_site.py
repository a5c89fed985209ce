"""One way to open a site: what it refuses, and where the features of a backbone lie."""

from pathlib import Path

import numpy as np
import pytest
from torch import nn

from data_prep.shard_writer import write_shard
from fedhpc.config.schema import RunConfig
from fedhpc.errors import ShardError
from fedhpc.models.backbones import Backbone
from fedhpc.site.data.open_site import open_site, open_site_of_run

N = 10


def shard_file(folder: Path, split: list[int]) -> Path:
    rng = np.random.default_rng(0)
    write_shard(
        folder / "a.h5",
        site="a",
        classes=("no", "yes"),
        images=rng.integers(0, 256, (N, 1, 8, 8), dtype=np.uint8),
        labels=np.arange(N) % 2,
        patient=np.array([f"a{i}".encode() for i in range(N)], "S16"),
        split=np.resize(split, N).astype(np.uint8),
        modality=np.full(N, b"CT", "S2"),
        pixel_range=(0, 255),
        created_by="tests",
    )
    return folder / "a.h5"


def config_of(folder: Path, **more: object) -> RunConfig:
    data = {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": "a"}]}
    return RunConfig.model_validate({"name": "x", "data": data} | more)


def test_samples_are_images_or_features_beside_the_shard(tmp_path: Path) -> None:
    backbone = Backbone(nn.Sequential(nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), 3, None)
    shard_file(tmp_path, [0, 1, 2])
    with open_site_of_run(config_of(tmp_path), "a") as site:
        assert site.samples(None).inputs(np.arange(2)).shape == (2, 1, 8, 8)
        assert site.samples(backbone).inputs(np.arange(N)).shape == (N, 3)
        assert site.features_path(backbone).parent == tmp_path and site.features_path(backbone).exists()


@pytest.mark.parametrize(("split", "empty"), [([0, 1], "test"), ([0, 2], "val"), ([0], "val and test")])
def test_run_needs_every_split(tmp_path: Path, split: list[int], empty: str) -> None:
    shard_file(tmp_path, split)
    with pytest.raises(ShardError, match=f"split {empty} is empty") as raised:
        open_site_of_run(config_of(tmp_path), "a")
    assert raised.value.code == "shard.empty-split"


def test_run_needs_labels_of_its_task(tmp_path: Path) -> None:
    shard_file(tmp_path, [0, 1, 2])
    with pytest.raises(ShardError, match="its labels are multiclass, the config says task=multilabel"):
        open_site_of_run(config_of(tmp_path, task="multilabel"), "a")


@pytest.mark.parametrize(("declared", "refused"), [("CT", False), ("MR", True), (None, False)])
def test_declared_modality_must_be_that_of_the_shard(declared: str | None, refused: bool, tmp_path: Path) -> None:
    shard_file(tmp_path, [0, 1, 2])
    data = {"shards": f"{tmp_path}/{{site}}.h5", "sites": [{"name": "a", "modality": declared}]}
    config = config_of(tmp_path, data=data)
    if not refused:
        open_site_of_run(config, "a").close()
        return
    with pytest.raises(ShardError, match="modality=MR: not all") as raised:
        open_site_of_run(config, "a")
    assert raised.value.code == "shard.modality"


def test_shard_by_itself_needs_no_training_split(tmp_path: Path) -> None:
    path = shard_file(tmp_path, [2])
    with open_site(path) as site:
        assert site.shard.site == "a" and len(site.shard.indices("test")) == N
    with pytest.raises(ShardError, match="empty train split"):
        open_site(path, "a")
