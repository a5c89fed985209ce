"""Whoever chooses `data.public_reference` must not learn from a run whether an image is in a hospital's shard."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from data_prep.shard_writer import write_shard

N, SIZE = 60, 32


def shard(path: Path, images: np.ndarray, split: np.ndarray) -> None:
    write_shard(
        path,
        site=path.stem,
        classes=["benign", "malignant"],
        images=images,
        labels=np.arange(len(images)) % 2,
        patient=[f"{path.stem}{row}" for row in range(len(images))],
        split=split,
        modality=["MR"] * len(images),
        pixel_range=(0, 255),
        created_by="test",
    )


@pytest.fixture
def start(tmp_path: Path, run_here: Callable[..., object]) -> Callable[..., object]:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (N, 1, SIZE, SIZE), dtype=np.uint8)
    shard(tmp_path / "site1.h5", images, np.arange(N) % 3)
    others = rng.integers(0, 256, (8, 1, SIZE, SIZE), dtype=np.uint8)
    shard(tmp_path / "candidate.h5", np.concatenate([images[:1], others[1:]]), np.zeros(8, np.int64))
    shard(tmp_path / "stranger.h5", others, np.zeros(8, np.int64))
    shard(tmp_path / "validation.h5", images[1::3], np.zeros(N // 3, np.int64))
    tree = {
        "name": "reference",
        "data": {"shards": f"{tmp_path}/{{site}}.h5", "sites": [{"name": "site1", "weight": 20}]},
        "model": {"name": "frozen", "backbone": "phantom", "features": 2},
        "training": {"rounds": 1, "local_epochs": 1, "lr": 1.0},
        "privacy": {"epsilon": 8.0, "sample_rate": 1.0, "noise_seed": 1},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")

    def run(reference: str, *sets: str) -> object:
        words = [f"data.public_reference={tmp_path}/{reference}.h5", *sets]
        more = [word for override in words for word in ("--set", override)]
        return run_here(["train", tmp_path / "run.yaml", "--run-dir", tmp_path / reference, *more])

    return run


def test_image_in_the_reference_is_left_out_unnoticed(tmp_path: Path, start: Callable[..., object]) -> None:
    """The run starts with it as without, and only the site's own log says that an image was left out."""
    outcomes = {reference: start(reference) for reference in ("candidate", "stranger")}
    for status, out, err in outcomes.values():  # type: ignore[attr-defined]
        assert status == 0, err
        assert "are in this shard" not in out + err
    note = "1 of its images are in this shard"
    assert note in (tmp_path / "candidate" / "sites" / "site1" / "log.txt").read_text(encoding="utf-8")
    assert "in this shard" not in (tmp_path / "stranger" / "sites" / "site1" / "log.txt").read_text(encoding="utf-8")


def test_image_in_the_reference_is_refused_without_privacy(start: Callable[..., object]) -> None:
    status, _, err = start("candidate", "privacy=off")  # type: ignore[misc]
    assert status == 2
    assert "set them aside for good" in err


def test_whole_split_in_the_reference_is_left_out_unnoticed(start: Callable[..., object]) -> None:
    """No validation patient is left, and the release is noise alone: the run ends as any other."""
    status, out, err = start("validation")  # type: ignore[misc]
    assert status == 0, err
    assert "are in this shard" not in out + err
