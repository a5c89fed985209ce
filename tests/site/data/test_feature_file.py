"""Cached features: what was written is read, and a file that is damaged or changes under a run is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedhpc.errors import RankErrors, ShardError
from fedhpc.models.backbones import public_backbone
from fedhpc.models.device import Device
from fedhpc.models.task import Task
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.start.open_session import _Opened, _samples
from fedhpc.site.data.feature_file import FeatureFile
from fedhpc.site.data.open_site import open_site
from fedhpc.transport.base import AloneTransport
from tests.mpi.test_federated import make_shard

SHAPE = (5000, 7)


@pytest.fixture
def features(tmp_path: Path) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal(SHAPE, np.float32)
    np.save(tmp_path / "f.npy", rows)
    return rows


@pytest.mark.parametrize("keep", [True, False])
def test_rows_are_read_as_written(features: np.ndarray, tmp_path: Path, keep: bool) -> None:
    file = FeatureFile(tmp_path / "f.npy", *SHAPE, "a", keep=keep)
    for rows in ([], [3], [4999, 0, 4999, 4097]):
        np.testing.assert_array_equal(file.read(np.array(rows, np.int64)), features[rows])


@pytest.mark.parametrize("damage", ["cut", "changed", "gone"])
def test_change_during_a_run_is_refused(features: np.ndarray, tmp_path: Path, damage: str) -> None:
    path, rows = tmp_path / "f.npy", np.array([2, 4000])
    kept, streamed = (FeatureFile(path, *SHAPE, "a", keep=keep) for keep in (True, False))
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:9000] if damage == "cut" else content[:-30_000] + b"\1" * 30_000)
    np.testing.assert_array_equal(kept.read(rows), features[rows])
    with pytest.raises(ShardError, match=r"site 'a': its cached features .* changed during the run"):
        streamed.read(rows)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"x" * 1000])
def test_damaged_file_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "f.npy").write_bytes(content)
    with pytest.raises(ShardError, match="Remove the file: it is computed again"):
        FeatureFile(tmp_path / "f.npy", *SHAPE, "a", keep=True)


@pytest.mark.parametrize("change", ["shape", "dtype", "short", "long"])
def test_features_of_another_shape_are_refused(features: np.ndarray, tmp_path: Path, change: str) -> None:
    path = tmp_path / "f.npy"
    if change in ("shape", "dtype"):
        np.save(path, features[:-1] if change == "shape" else features.astype(np.float64))
    else:
        path.write_bytes(path.read_bytes()[:-4] if change == "short" else path.read_bytes() + b"\0")
    with pytest.raises(ShardError) as caught:
        FeatureFile(path, *SHAPE, "a", keep=False)
    assert str(SHAPE) not in str(caught.value) and str(SHAPE) in caught.value.private


def test_features_that_cannot_be_used_end_all_ranks(tmp_path: Path) -> None:
    """A disk that refuses at one hospital ends all ranks; its path stays in that hospital's log."""
    make_shard(tmp_path, "site1", 20)
    backbone, directory = public_backbone("phantom"), RunDirectory(tmp_path / "run")
    with open_site(tmp_path / "site1.h5", "site1") as site:
        path = site.features_path(backbone)
        path.mkdir()
        device, task = Device(torch.device("cpu"), bf16=False), Task(("benign", "malignant"), (1, 32, 32))
        opened = _Opened(AloneTransport(), (0,), (site,), (), device, (), task, (20,))
        with pytest.raises(RankErrors, match=r"cached features .* are damaged") as raised:
            _samples(opened, backbone, directory)
    assert str(path) not in str(raised.value)
    assert str(path) in directory.log("site1", 0).path.read_text(encoding="utf-8")
