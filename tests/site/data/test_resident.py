"""Samples on the device give the bits that the host would have given, in any batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shard_writer import write_shard
from fedhpc.config.harmonise import DEFAULT, Chain, Window
from fedhpc.site.data.resident import SHARE, ResidentSamples, ShippedSamples, free_bytes, resident
from fedhpc.site.data.samples import ImageSamples, PooledSamples
from fedhpc.site.data.shard import Shard
from fedhpc.site.training.local_sgd import mirrored
from tests.support.devices import DEVICES

N, SIDE = 70, 24
"""More than one block."""


def shard_of(folder: Path, dtype: type) -> Shard:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 2, SIDE, SIDE)).astype(dtype)
    images[3] = 7
    write_shard(
        folder / "a.h5",
        site="a",
        classes=("no", "yes"),
        images=images,
        labels=np.arange(N) % 2,
        patient=np.array([f"p{i}".encode() for i in range(N)], "S16"),
        split=np.resize([0, 0, 0, 1, 2], N).astype(np.uint8),
        modality=np.full(N, b"CT", "S2"),
        pixel_range=(0, 255),
        created_by="tests",
    )
    return Shard.open(folder / "a.h5", "a")


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize(
    ("dtype", "chain"),
    [(np.uint8, DEFAULT), (np.float32, DEFAULT), (np.uint8, (Window(step="window", centre=90, width=50),))],
    ids=["as stored", "float32", "other chain"],
)
def test_resident_inputs_equal_the_hosts(tmp_path: Path, where: str, dtype: type, chain: Chain) -> None:
    rng = np.random.default_rng(1)
    with shard_of(tmp_path, dtype) as shard:
        host = ImageSamples(shard, chain)
        there = ResidentSamples(host, torch.device(where))
        for rows in (np.arange(N), rng.permutation(N)[:9], np.array([3, 3]), np.arange(0)):
            inputs = there.inputs(rows)
            assert inputs.device.type == where
            assert torch.equal(inputs.cpu(), host.inputs(rows))
        assert there.size_bytes == N * 2 * SIDE * SIDE * (1 if (dtype, chain) == (np.uint8, DEFAULT) else 4)
        np.testing.assert_array_equal(there.indices("val"), host.indices("val"))


@pytest.mark.parametrize("where", DEVICES)
def test_shipped_inputs_equal_the_hosts(tmp_path: Path, where: str) -> None:
    with shard_of(tmp_path, np.uint8) as shard:
        host, rows = ImageSamples(shard), np.random.default_rng(1).permutation(N)[:9]
        shipped = ShippedSamples(host, torch.device(where))
        assert shipped.inputs(rows).device.type == where
        assert torch.equal(shipped.inputs(rows).cpu(), host.inputs(rows))
        np.testing.assert_array_equal(shipped.indices("test"), host.indices("test"))


@pytest.mark.parametrize("where", DEVICES)
def test_pooled_and_mirrored_stay_on_device(tmp_path: Path, where: str) -> None:
    with shard_of(tmp_path, np.uint8) as shard:
        host = ImageSamples(shard)
        parts = [ResidentSamples(host, torch.device(where)) for _ in range(2)]
        rows, draws = np.array([N + 4, 1, N, 69]), np.array([0.1, 0.9, 0.4, 0.6])
        pooled = mirrored(PooledSamples(parts).inputs(rows), draws)
        assert pooled.device.type == where
        assert torch.equal(pooled.cpu(), mirrored(PooledSamples([host, host]).inputs(rows), draws))


def test_samples_stay_on_host_where_they_do_not_fit(tmp_path: Path) -> None:
    device = torch.device("cpu")
    with shard_of(tmp_path, np.uint8) as shard:
        host, size_bytes = ImageSamples(shard), N * 2 * SIDE * SIDE
        assert isinstance(resident(host, device, SHARE * size_bytes), ResidentSamples)
        assert resident(host, device, SHARE * size_bytes - SHARE) is host
        assert isinstance(resident(host, device, 0), ShippedSamples), "its images are in memory"
    with Shard.open(tmp_path / "a.h5", "a", in_memory=False) as streamed:
        host = ImageSamples(streamed)
        assert resident(host, device, 0) is host
    assert free_bytes(device, 4) == 0
