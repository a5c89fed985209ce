"""Sites whose data are wrong on purpose: what each case changes; shard and test split stay as they are."""

from collections.abc import Iterator

import numpy as np
import pytest

from data_prep.shard_writer import write_shard
from fedhpc.config.stress import DATA_CASES, Stress
from fedhpc.site.data.corruption import IMAGE_CASES, CorruptedShard
from fedhpc.site.data.shard import Shard

N, CLASSES = 240, ("a", "b", "c")
LABEL_CASES = ("label_flip", "label_noise")


@pytest.fixture(scope="module")
def shard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shard]:
    path = tmp_path_factory.mktemp("shard") / "site1.h5"
    write_shard(
        path,
        site="site1",
        classes=CLASSES,
        images=np.random.default_rng(0).integers(0, 256, (N, 2, 16, 16), dtype=np.uint8),
        labels=np.arange(N) % 3,
        patient=[f"p{k}" for k in range(N)],
        split=np.arange(N) // 4 % 3,
        modality=["MR"] * N,
        pixel_range=(0.0, 255.0),
        created_by="test 1",
    )
    with Shard.open(path, "site1") as opened:
        yield opened


def corrupted(shard: Shard, case: str, strength: float | None = None) -> CorruptedShard:
    return CorruptedShard(shard, Stress(case=case, sites=("site1",), strength=strength), seed=0)


@pytest.mark.parametrize("case", DATA_CASES)
def test_case_spares_test_split_and_shard(shard: Shard, case: str) -> None:
    wrong, rows = corrupted(shard, case), np.arange(N)
    struck = (wrong.read(rows) != shard.read(rows)).any(axis=(1, 2, 3)) | (wrong.labels != shard.labels)
    assert not struck[shard.indices("test")].any()
    assert struck[shard.indices("train")].any() and struck[shard.indices("val")].any()
    assert (wrong.labels == shard.labels).all() == (case not in LABEL_CASES)
    again = corrupted(shard, case)
    assert (again.labels == wrong.labels).all()
    assert (again.read(rows[::-1]) == wrong.read(rows)[::-1]).all()


@pytest.mark.parametrize("case", IMAGE_CASES)
def test_image_case_keeps_type_range_and_own_features(shard: Shard, case: str) -> None:
    wrong, rows = corrupted(shard, case), shard.indices("train")
    images = wrong.read(rows)
    assert images.dtype == shard.dtype and images.shape == (len(rows), *shard.image_shape)
    assert (images != shard.read(rows)).any(axis=(1, 2, 3)).all()
    assert wrong.digest != shard.digest


@pytest.mark.parametrize("case", LABEL_CASES)
def test_label_case_shares_clean_features(shard: Shard, case: str) -> None:
    """The features of an image do not depend on its label: they are computed once for both."""
    assert corrupted(shard, case).digest == shard.digest


def test_label_flip_reverses_classes(shard: Shard) -> None:
    rows = shard.indices("train")
    assert (corrupted(shard, "label_flip").labels[rows] == 2 - shard.labels[rows]).all()


def test_label_noise_strikes_its_share_with_other_labels(shard: Shard) -> None:
    spoiled = np.concatenate([shard.indices("train"), shard.indices("val")])
    assert (corrupted(shard, "label_noise", 1.0).labels[spoiled] != shard.labels[spoiled]).all()
    share = (corrupted(shard, "label_noise", 0.5).labels[spoiled] != shard.labels[spoiled]).mean()
    # 160 images, each with chance 1/2: further off with a chance below 1e-6.
    assert 0.3 < share < 0.7


def test_inverted_and_swapped_contrast_are_inverses_on_tissue(shard: Shard) -> None:
    rows = shard.indices("train")
    clean, inverted = (one.read(rows).astype(int) for one in (shard, corrupted(shard, "inverted_contrast")))
    swapped = corrupted(shard, "swapped_modality").read(rows).astype(int)
    assert (inverted == 255 - clean).all()
    assert (swapped[clean < 25] == clean[clean < 25]).all()
    assert (abs(swapped[clean > 26] - (280.5 - clean[clean > 26])) <= 1).all()


def test_spike_in_kspace_is_a_stripe(shard: Shard) -> None:
    image = np.full((1, 16, 16), 0.5)
    striped = IMAGE_CASES["kspace_spikes"](image, 1.0, np.random.default_rng(0))
    places = np.abs(np.fft.fft2(striped - image))[0]
    assert (places > places.max() / 10).sum() <= 6
