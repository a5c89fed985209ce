"""How unlike hospitals are: nothing where they are alike, all where a scanner differs, less after the right step."""

from pathlib import Path

import numpy as np
import pytest

from data_prep.compare import Comparison, compare, comparison_text, landmarks_text, write_page
from data_prep.domain_shift import reference_steps, usual_chains
from data_prep.shard_writer import UNLABELLED, write_shard
from fedhpc.cli.main import main
from fedhpc.config.strict_yaml import parse_yaml
from fedhpc.errors import ShardError
from fedhpc.site.data.shard_format import PixelRange


def make(path: Path, seed: int, gain: float = 1.0, offset: float = 0.0, *, public: bool = False) -> Path:
    """60 patients with a blob each; a scanner of its own gain and offset."""
    random = np.random.default_rng(seed)
    y, x = np.indices((32, 32))
    at = random.uniform(12, 20, (2, 60, 1, 1))
    body = np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / 60)
    images = np.clip(gain * (90 * body + random.normal(0, 5, body.shape)) + offset, 0, 255)
    write_shard(
        path, site=path.stem, classes=UNLABELLED if public else ("a", "b"), images=images.astype(np.uint8)[:, None],
        labels=np.zeros(60, np.int64) if public else np.arange(60) % 2, patient=[f"{seed}-{k}" for k in range(60)],
        split=np.repeat([0, 1, 2], [40, 8, 12]), modality=["MR"] * 60, pixel_range=(0.0, 255.0), created_by="t",
    )  # fmt: skip
    return path


def test_alike_hospitals_cannot_be_told_apart_unlike_ones_can(tmp_path: Path) -> None:
    alike = compare(Comparison((make(tmp_path / "a.h5", 1), make(tmp_path / "b.h5", 2)), images=40))
    unlike = compare(Comparison((make(tmp_path / "a.h5", 1), make(tmp_path / "c.h5", 3, 0.6, 60)), images=40))
    assert alike["none"].auc is not None and 0.2 < alike["none"].auc < 0.8
    assert unlike["none"].auc is not None and unlike["none"].auc > 0.98
    assert unlike["none"].share > 0.5 > 0.2 > unlike["zscore"].share
    text = comparison_text(unlike)
    assert "site AUC" in text.splitlines()[0] and len(text.splitlines()) == 1 + len(unlike)
    write_page(unlike, tmp_path / "page.html")
    assert (tmp_path / "page.html").stat().st_mode & 0o777 == 0o600, "it shows images of patients"
    page = (tmp_path / "page.html").read_text()
    assert page.count("<polyline") == 2 * len(unlike) and page.count("data:image/png") == 2 * len(unlike)


def test_landmarks_are_a_configs_and_of_public_images_only(tmp_path: Path) -> None:
    reference = make(tmp_path / "reference.h5", 9, public=True)
    steps = parse_yaml(landmarks_text(reference, 3), "printed")["harmonise"]
    assert [step["step"] for step in steps] == ["nyul", "fourier", "zscore"]
    assert len(steps[0]["landmarks"]) == 11 and len(steps[1]["amplitude"]) == 3
    with pytest.raises(ShardError, match="has labels"):
        landmarks_text(make(tmp_path / "a.h5", 1), 3)
    chains = usual_chains(PixelRange(0, 255), reference_steps(reference, 3))
    assert {"nyul, zscore", "fourier, zscore"} <= set(chains)


@pytest.mark.parametrize(
    "words",
    [
        "a.h5",
        "a.h5 b.h5 --images 0",
        "a.h5 b.h5 --images -3",
        "a.h5 b.h5 --backbone x",
        "a.h5 b.h5 --frequencies 4",
        "a.h5 b.h5 --frequencies 65",
    ],
)
def test_comparison_of_nothing_is_refused(words: str) -> None:
    try:
        status = main(["prepare", "compare", *words.split()])
    except SystemExit as end:
        status = int(str(end.code))
    assert status == 2
