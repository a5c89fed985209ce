"""Cached features: what was written is read, and a file that is damaged or changes under a run is refused."""

from pathlib import Path

import numpy as np
import pytest

from fedhpc.errors import ShardError
from fedhpc.site.data.feature_file import FeatureFile

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
