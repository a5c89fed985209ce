"""3-D patches: what they show, what is accounted for, and a federation trained on them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import numpy.typing as npt
import pytest

from data_prep.importers import dicom, nifti
from data_prep.importers.blocks import GAP, NO_VOLUME, TOO_MANY, UNUSED
from data_prep.importers.example import Examples, examples
from data_prep.importers.job import ArchiveImport
from data_prep.importers.lesions import LesionRule
from data_prep.importers.recipe import Depth, Recipe
from data_prep.importers.resample import Square
from data_prep.importers.volume import Found
from fedhpc.site.data.pixel_blocks import image_blocks
from fedhpc.site.data.shard import Shard
from fedhpc.util.arrays import middle_slice
from tests.conftest import Outcome
from tests.support.dicom_files import DX, slice_file, volume, write

MM = (1.5, 1.5, 2.0)
SITES = ("north", "south")
GRID = Recipe(Square(8, 1.5), ("hu",), depth=Depth(8), lesion=LesionRule(least_mm2=1))
PATCH = Recipe(Square(8), ("hu",), depth=Depth(6, 2.0), lesion=LesionRule(patch_mm=12, least_mm2=1))


def save(folder: Path, name: str, voxels: npt.NDArray[Any], mask: npt.NDArray[np.bool_]) -> None:
    """Voxels [x, y, z], right, front and head upwards, with a mask beside them."""
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, values in (("", voxels.astype(np.int16)), ("_mask", mask.astype(np.uint8))):
        nibabel.save(nibabel.Nifti1Image(values, np.diag([*MM, 1.0])), folder / f"{name}{suffix}.nii.gz")


def taken(found: Found, root: Path, recipe: Recipe) -> Examples:
    (series,) = found.series
    return examples(series, series.open(root), recipe)


def of_nifti(root: Path, recipe: Recipe) -> Examples:
    job = ArchiveImport(root, root, root, recipe, format_modality="CT", plane="axial")
    return taken(nifti.find(job), root, recipe)


def test_patch_shows_the_voxels_around_its_lesion(tmp_path: Path) -> None:
    """Of a volume that rises along each axis by so much a millimetre: its middle, its slopes, its order of axes."""
    x, y, z = (axis * mm for axis, mm in zip(np.indices((40, 40, 30)), MM, strict=True))
    mask = np.zeros((40, 40, 30), np.bool_)
    mask[18:21, 23:26, 9:14] = True
    save(tmp_path, "p", 10 * x + 4 * y + 7 * z, mask)
    for recipe, slice_mm in (
        (PATCH, 2.0),
        (Recipe(PATCH.square, ("hu",), depth=Depth(6, 3.0), lesion=PATCH.lesion), 3.0),
    ):
        found = of_nifti(tmp_path, recipe)
        assert found.images.shape == (2, 1, 6, 8, 8)
        assert (found.labels.tolist(), found.frames.tolist()) == ([1, 0], [11, 11])
        block = found.images[0, 0]
        steps = [float(np.diff(block, axis=axis)[1:-1, 2:-2, 2:-2].mean()) for axis in range(3)]
        # Rows run to the back and columns to the left: against both axes of the file.
        assert steps == pytest.approx([7 * slice_mm, -4 * 1.5, -10 * 1.5], rel=0.02)
        # An even number of pixels has its middle half a pixel beside the lesion's.
        assert block.mean() == pytest.approx(10 * 19.5 * 1.5 + 4 * 24.5 * 1.5 + 7 * 11 * 2, abs=1)


def test_grid_covers_the_volume_and_labels_by_lesion(tmp_path: Path) -> None:
    """Every voxel of the lesion is in a patch with the label 1, and every slice in a patch or among the rejects."""
    shape = (40, 40, 30)
    mask = np.zeros(shape, np.bool_)
    mask[17:21, 10:12, 4:6] = True
    save(tmp_path, "p", np.where(mask, 900, np.random.default_rng(0).integers(0, 99, shape)), mask)
    found = of_nifti(tmp_path, GRID)
    assert len(found.images) == 5 * 5 * 5 and found.images.shape[1:] == (1, 8, 8, 8)
    assert [bool(label) for label in found.labels] == [bool((image > 400).any()) for image in found.images]
    assert 0 < found.labels.sum() < 9
    few = Recipe(GRID.square, ("hu",), depth=GRID.depth, max_slices=3, lesion=GRID.lesion)
    fewer = of_nifti(tmp_path, few)
    untold = set(range(30)) - {row for row, _ in fewer.rejects}
    assert len(fewer.images) == 3 and {why for _, why in fewer.rejects} == {UNUSED} and untold
    whole = of_nifti(tmp_path, Recipe(Square(10), ("hu",), depth=Depth(10), lesion=GRID.lesion))
    assert whole.images.shape == (1, 1, 10, 10, 10) and whole.labels.tolist() == [1]


def test_patch_is_not_cut_across_a_gap_or_of_single_images(tmp_path: Path) -> None:
    volume(tmp_path / "gap", 1, depth=16)
    (tmp_path / "gap" / "p1" / "007.dcm").unlink()
    write(
        slice_file(np.eye(32, dtype=np.uint16), 2, (0, 0, 0), SOPClassUID=DX, Modality="DX"), tmp_path / "dx" / "1.dcm"
    )
    recipe = Recipe(Square(32, 1.0), ("hu",), depth=Depth(4, 3.0))
    bomb = Recipe(Square(8, 1e-3), ("hu",), depth=Depth(8))
    root = tmp_path / "gap"
    found = taken(dicom.find(ArchiveImport(root, root, root, bomb)), root, bomb)
    assert {why for _, why in found.rejects} == {TOO_MANY}, "refused before any memory is taken"
    for folder, why in (("gap", GAP), ("dx", NO_VOLUME)):
        root = tmp_path / folder
        found = taken(dicom.find(ArchiveImport(root, root, root, recipe)), root, recipe)
        assert why in {reason for _, reason in found.rejects}
        assert len(found.images) == (0 if folder == "dx" else 3)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory, run_here: Callable[..., Outcome]) -> Path:
    """Two hospitals of ten patients each, whose volumes have a bright ball."""
    folder = tmp_path_factory.mktemp("volumes")
    for number, site in enumerate(SITES):
        random = np.random.default_rng(number)
        for patient in range(10):
            at = random.uniform(12, 18, 3)
            distance = np.sqrt(sum((axis - c) ** 2 for axis, c in zip(np.indices((30, 30, 30)), at, strict=True)))
            save(folder / site, f"p{patient}", random.normal(40, 15, (30, 30, 30)) + 90 * (distance < 4), distance < 4)
        words = f"--site {site} --lesion patch --patch-mm 24 --depth 16 --size 16 --val-share 0.2"
        more = ["-o", folder / "in" / site, "--modality", "CT", "--window", "soft", "--secret", folder / "secret"]
        done = run_here(["prepare", "nifti", folder / site, *words.split(), *more])
        assert done.returncode == 0 and "20 images of 10 patients" in done.stdout and "face" in done.stdout, done
        (folder / "in" / site / f"{site}.h5").rename(folder / f"{site}.h5")
    return folder


def train(run_here: Callable[..., Outcome], shards: Path, name: str, *sets: str) -> Outcome:
    config = {
        "name": name,
        "data": {"shards": f"{shards}/{{site}}.h5", "sites": [{"name": site, "weight": 8} for site in SITES]},
        "model": {"input_layer": True}, "privacy": "off", "exchange": {"tls": False},
        "training": {"rounds": 1, "local_epochs": 1, "batch_size": 8, "random_flip": True},
        "runtime": {"threads": 1, "device": "cpu"}, "evaluation": {"bootstrap": 100},
    }  # fmt: skip
    (shards / f"{name}.yaml").write_text(json.dumps(config))
    more = [word for one in sets for word in ("--set", one)]
    return run_here(["train", shards / f"{name}.yaml", "--run-dir", shards / name, *more])


def test_volumes_train_in_a_federation_and_predict(shards: Path, run_here: Callable[..., Outcome]) -> None:
    """In the open and with DP-SGD; the model scores volumes of an archive and the rows of a shard."""
    assert train(run_here, shards, "open").returncode == 0
    private = train(
        run_here, shards, "private", "privacy={epsilon: 50, delta: 0.001, sample_rate: 0.5}",
        "harmonise=[{step: smooth}, {step: zscore, mask: foreground}]",
    )  # fmt: skip
    assert private.returncode == 0, private
    assert json.loads((shards / "private" / "summary.json").read_text())["epsilon"] > 0
    for source, more, rows in (
        (shards / "north.h5", [], 20),
        (shards / "north" / "p0.nii.gz", ["--modality", "CT", "--window", "soft", "--pixel-mm", "1.5"], 12),
    ):
        done = run_here(["predict", shards / "open", "--input", source, "-o", shards / "scores.csv", *more])
        assert done.returncode == 0, done
        with (shards / "scores.csv").open() as file:
            assert len(list(csv.DictReader(file))) == rows
    flat = run_here(["predict", shards / "open", "--input", Path("data_prep"), "-o", shards / "scores.csv"])
    assert flat.returncode == 2 and "Traceback" not in flat.stderr


def test_volumes_are_refused_where_slices_are_needed(shards: Path, run_here: Callable[..., Outcome]) -> None:
    done = train(
        run_here, shards, "frozen", "model={name: frozen, backbone: phantom}", "training.random_flip=false"
    )  # fmt: skip
    assert done.returncode == 2 and "takes images of 2 dimensions" in done.stderr and "Traceback" not in done.stderr
    done = train(run_here, shards, "both", "model={name: frozen, backbone: phantom, input_layer: true}")
    assert done.returncode == 2 and "model.input_layer" in done.stderr


def test_volumes_are_checked_shown_and_searched_for(shards: Path, run_here: Callable[..., Outcome]) -> None:
    done = run_here(["prepare", "check", shards / "north.h5", "--png", shards / "sheet.png"])
    assert done.returncode == 0 and "1x16x16x16" in done.stdout and (shards / "sheet.png").stat().st_size > 1000
    with (
        Shard.open(shards / "north.h5", "north", in_memory=False) as shard,
        h5py.File(shards / "north.h5", locking=False) as file,
    ):
        stored = file["images"][:]
        assert np.array_equal(shard.read([3, 1]), stored[[3, 1]])
        assert np.array_equal(middle_slice(shard.read([0])[0]), stored[0, 0, 8])
        known = {block.tobytes() for block in image_blocks(shard)}
        assert sum(stored[2].tobytes()[at : at + 16] in known for at in range(0, stored[2].nbytes - 16)) >= 200
