"""The table and the contact sheet tell what is in the shards, and one bad shard does not hide the others."""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from data_prep.check import check
from data_prep.shard_writer import write_shard
from fedhpc.errors import ShardError


def make(path: Path, **change: Any) -> Path:
    random = np.random.default_rng(5)
    content: dict[str, Any] = {
        "site": path.stem,
        "classes": ("benign", "malignant"),
        "images": random.integers(0, 256, (30, 1, 16, 16), dtype=np.uint8),
        "labels": np.arange(30) % 2,
        "patient": [f"p{row // 3}" for row in range(30)],
        "split": np.repeat([0, 1, 2], [18, 3, 9]),
        "modality": ["MR"] * 20 + ["CT"] * 10,
        "stage": np.arange(30) < 4,
        "pixel_range": (0.0, 255.0),
        "created_by": "test 1",
    }
    write_shard(path, **{**content, **change})
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    return make(tmp_path / "north.h5")


@pytest.fixture
def bad(tmp_path: Path) -> Path:
    path = make(tmp_path / "south.h5")
    with h5py.File(path, "r+") as file:
        file["labels"][3] = 7
    return path


def test_table_counts(good: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert check([good])
    head, row = capsys.readouterr().out.splitlines()
    counts = ["images", "patients", "train", "val", "test", "benign", "malignant"]
    assert head.split() == ["shard", "verdict", "site", *counts, "modality", "early", "size", "dtype", "digest"]
    cells = row.split()
    assert cells[:10] == [str(good), "ok", "north", "30", "10", "18", "3", "9", "15", "15"]
    assert cells[10:-1] == ["CT", "10,", "MR", "20", "4", "1x16x16", "uint8"]
    assert len(cells[-1]) == 8


def test_a_bad_shard_does_not_hide_the_others(
    good: Path, bad: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check([good])
    capsys.readouterr()
    assert not check([bad, tmp_path / "none.h5", good], tmp_path / "sheet.png")
    text = capsys.readouterr().out
    assert [line.split()[1] for line in text.splitlines()[1:4]] == ["BAD", "BAD", "ok"]
    assert "/labels has 7 in row 3" in text and "no such file" in text
    assert (tmp_path / "sheet.png").exists()


def test_a_shard_only_for_testing_is_good(tmp_path: Path) -> None:
    assert check([make(tmp_path / "west.h5", split=np.full(30, 2), stage=None)])


def test_shards_that_cannot_train_together_are_noted(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = make(tmp_path / "east.h5", classes=("malignant", "benign"))
    check([good, other])
    assert "different classes and cannot train together" in capsys.readouterr().out
    check([good, good])
    assert "note" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"images": np.random.default_rng(0).random((30, 3, 40, 7), dtype=np.float32), "pixel_range": (-0.5, 1.0)},
        {"classes": [f"a class with a very long name {k}" for k in range(40)], "labels": np.arange(30)},
        {
            "images": np.random.default_rng(0).integers(0, 65536, (30, 1, 300, 200), dtype=np.uint16),
            "pixel_range": (0, 65535),
        },
    ],
)
def test_contact_sheet_shows_images_and_is_reproducible(tmp_path: Path, change: dict[str, Any]) -> None:
    path = make(tmp_path / "north.h5", **change)
    check([path, path], tmp_path / "a.png")
    check([path, path], tmp_path / "b.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    with Image.open(tmp_path / "b.png") as sheet:
        pixels = np.asarray(sheet.convert("L")).astype(float)
    half = pixels.shape[0] // 2
    assert pixels[:half].std() > 20 and pixels[half:].std() > 20
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png", "north.h5"]


def test_no_sheet_of_nothing(bad: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="not one shard is good"):
        check([bad], tmp_path / "a.png")
