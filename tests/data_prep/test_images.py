"""Class folders become shards: every image once, every patient in one place, nothing of a name left."""

import hashlib
import re
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_prep.decoding import harmonise, read_grey
from data_prep.image_job import ImageImport
from data_prep.images import import_images
from data_prep.partition import Partition, partition, proportions
from data_prep.patients import pseudonym
from fedhpc.errors import ShardError
from fedhpc.site.data.shard import Shard
from fedhpc.util.rng import generator

BRAIN_MRI = Path(__file__).parents[2].parent / "shared/data/brain_mri"


def save(path: Path, seed: int, size: tuple[int, int] = (20, 14)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(generator(seed).integers(0, 256, size, dtype=np.uint8)).save(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three classes of 24 images; patient k has the images k and k + 12 of a class, by name."""
    for label, name in enumerate(("benign", "malignant", "normal")):
        for number in range(24):
            suffix = ("png", "jpg", "bmp", "tif")[number % 4]
            save(tmp_path / "in" / name / f"Doe{label}{number % 12:02}_{number}.{suffix}", 100 * label + number)
    (tmp_path / "in" / "README.txt").write_text("not an image")
    (tmp_path / "in" / "benign" / ".hidden.png").write_text("not an image")
    return tmp_path / "in"


@pytest.fixture
def job(folder: Path) -> ImageImport:
    return ImageImport(folder, folder.parent / "out", size=16, patient_regex=r"^(Doe\d+)_", modality="MR")


def read_all(paths: list[Path], need_train: bool = True) -> dict[str, Any]:
    parts: dict[str, list[Any]] = {name: [] for name in ("image", "label", "patient", "split", "site")}
    for path in paths:
        with Shard.open(path, path.stem, need_train=need_train) as shard:
            parts["image"] += [image.tobytes() for image in shard.read(np.arange(shard.n))]
            parts["label"] += shard.labels.tolist()
            parts["patient"] += shard.patient.tolist()
            parts["split"] += shard.split.tolist()
            parts["site"] += [shard.site] * shard.n
    return parts


@pytest.mark.parametrize("skew", [None, 0.1, 5.0])
def test_every_image_once_and_every_patient_in_one_place(job: ImageImport, skew: float | None) -> None:
    paths = import_images(replace(job, skew=skew))
    assert [path.name for path in paths] == ["site1.h5", "site2.h5", "site3.h5", "site4.h5"]
    found = read_all(paths)
    files = job.source.rglob("Doe*")
    assert sorted(found["image"]) == sorted(harmonise(read_grey(path), 16).tobytes() for path in files)
    places = set(zip(found["patient"], found["site"], found["split"], strict=True))
    assert len(places) == len(set(found["patient"])) == 36
    for site in ("site1", "site2", "site3", "site4"):
        for split in (0, 1, 2):
            labels = [
                k
                for k, s, p in zip(found["label"], found["site"], found["split"], strict=True)
                if (s, p) == (site, split)
            ]
            assert len(set(labels)) >= 2


def test_labels_follow_their_images(job: ImageImport) -> None:
    found = read_all(import_images(job))
    expected = {
        harmonise(read_grey(path), 16).tobytes(): label
        for label, name in enumerate(("benign", "malignant", "normal"))
        for path in (job.source / name).glob("Doe*")
    }
    assert {image: label for image, label in zip(found["image"], found["label"], strict=True)} == expected


def test_same_seed_same_bytes_other_seed_other_split(job: ImageImport) -> None:
    def digests(number: int, seed: int) -> list[str]:
        paths = import_images(replace(job, out=job.out / str(number), seed=seed, skew=0.5))
        return [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]

    assert digests(1, seed=0) == digests(2, seed=0) != digests(3, seed=1)


def test_no_name_enters_a_shard(job: ImageImport) -> None:
    for path in import_images(job):
        assert b"Doe" not in path.read_bytes() and str(job.source).encode() not in path.read_bytes()


def test_nothing_but_shards_is_left(job: ImageImport) -> None:
    paths = import_images(job)
    assert sorted(job.out.iterdir()) == paths
    import_images(job)  # the same import again
    assert sorted(job.out.iterdir()) == paths


def test_one_site_in_one_file_all_for_testing(job: ImageImport) -> None:
    out = job.source.parent / "deep" / "elsewhere.h5"
    assert import_images(replace(job, out=out, sites=1, all_test=True)) == [out]
    with Shard.open(out, "elsewhere", need_train=False) as shard:
        assert shard.n == 72 == len(shard.indices("test")) and set(shard.modality) == {b"MR"}


def test_patients_by_table(job: ImageImport, tmp_path: Path) -> None:
    files = sorted(path for path in job.source.rglob("Doe*"))
    by_path = [f"{path.relative_to(job.source).as_posix()},{path.name[:6]}" for path in files[::2]]
    by_name = [f"{path.name},{path.name[:6]}" for path in files[1::2]]
    (tmp_path / "p.csv").write_text("\n".join(["file,patient", *by_path, *by_name]))
    by_table = read_all(import_images(replace(job, patient_regex=None, patient_csv=tmp_path / "p.csv")))
    assert by_table == read_all(import_images(replace(job, out=tmp_path / "again")))


def test_without_ids_each_image_is_a_patient_and_that_is_said(
    job: ImageImport, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    found = read_all(import_images(replace(job, patient_regex=None)))
    assert len(set(found["patient"])) == 72
    # On the screen or in the log, by whether an earlier test of this process has set the log up.
    assert "no patient ids" in capsys.readouterr().err + caplog.text


def test_duplicates_are_kept_once_and_named(job: ImageImport, capsys: pytest.CaptureFixture[str]) -> None:
    first = job.source / "benign" / "Doe000_0.png"
    (job.source / "benign" / "Doe099_a.png").write_bytes(first.read_bytes())
    (job.source / "normal" / "Doe299_b.png").write_bytes(first.read_bytes())
    assert len(read_all(import_images(job))["image"]) == 72
    said = capsys.readouterr().out
    assert f"1 an exact duplicate, the first kept: benign/Doe099_a.png (= benign/{first.name})\n" in said
    assert f"in another class, the first kept: look at both: normal/Doe299_b.png (= benign/{first.name})\n" in said


def test_all_unreadable_files_are_named_and_nothing_is_written(job: ImageImport) -> None:
    good = sorted((job.source / "benign").glob("*.jpg"))[0]
    (job.source / "benign" / "Doe050_x.jpg").write_bytes(good.read_bytes()[:-200])
    (job.source / "normal" / "Doe051_x.png").write_bytes(b"")
    stack = [Image.new("L", (9, 9), shade) for shade in (0, 90)]
    stack[0].save(job.source / "normal" / "Doe052_x.tif", save_all=True, append_images=stack[1:])
    with pytest.raises(ShardError) as caught:
        import_images(job)
    # Headers are read first: a file that is cut off later is found when the others have been corrected.
    assert (
        "2 unreadable: normal/Doe051_x.png (cannot identify image file), normal/Doe052_x.tif (2 frames; allow"
        in str(caught.value)
    )
    (job.source / "normal" / "Doe051_x.png").unlink()
    (job.source / "normal" / "Doe052_x.tif").unlink()
    with pytest.raises(ShardError, match=r"1 unreadable: benign/Doe050_x.jpg \(.*\n.*--skip-unreadable"):
        import_images(job)
    assert not job.out.exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sites": 0, "size": 2, "skew": 0.0}, r"sites=0(.|\n)*size=2(.|\n)*skew=0.0; allowed: above 0"),
        ({"skew": float("nan")}, "skew=nan; allowed: above 0"),
        ({"modality": "XX"}, "modality='XX'; allowed: MR, CT, OT"),
        ({"out": Path("x.h5")}, "out=x.h5 is one file; allowed for 4 sites: a folder"),
        ({"sites": 1, "out": Path("Site A.h5")}, "no config can name the site 'Site A'"),
        ({"patient_csv": Path("p.csv")}, "patient_csv and patient_regex; allowed: one of them"),
        ({"patient_regex": "("}, r"patient_regex='\(': .*allowed: a Python regular expression"),
        ({"patient_regex": "Doe"}, "patient_regex='Doe' has no group"),
        ({"patient_regex": r"^(\d+)"}, "finds no patient in the name of 72 files: .*Doe0"),
        ({"patient_regex": None, "patient_csv": Path("none.csv")}, "patient_csv=none.csv: .*No such file"),
        ({"source": Path("nowhere")}, "nowhere is no folder; allowed: a folder of class folders"),
        ({"sites": 13}, "patients per class .* are too few for 13 sites.*Remedy: fewer sites"),
    ],
)
def test_wrong_options(job: ImageImport, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ShardError, match=words):
        import_images(replace(job, **change))
    assert not job.out.exists() or list(job.out.iterdir()) == []


def test_wrong_patient_tables(job: ImageImport, tmp_path: Path) -> None:
    table = replace(job, patient_regex=None, patient_csv=tmp_path / "p.csv")
    for text, words in (("a,b\n1,2", r"has the columns \['a', 'b'\]; allowed: file, patient"),
                        ("file,patient\nx.png,1\nx.png,2", "has patient '2' after '1'; allowed: one patient a file"),
                        ("file,patient\nx.png,", "x.png has patient ''"),
                        ("file,patient\nx.png,1", "Doe.* has no patient in")):  # fmt: skip
        (tmp_path / "p.csv").write_text(text)
        with pytest.raises(ShardError, match=words):
            import_images(table)


def test_a_class_without_images(job: ImageImport) -> None:
    (job.source / "cyst").mkdir()
    with pytest.raises(ShardError, match=r"cyst has no image; allowed: .*\.bmp"):
        import_images(job)


# One image by itself.


def test_aspect_ratio_is_kept_by_padding() -> None:
    square = harmonise(np.tile(np.array([[0, 100]], np.float32), (40, 10)), 16)  # (40, 20) -> middle half of (16, 16)
    assert square.shape == (16, 16) and square.dtype == np.uint8
    assert (square[:, :4] == 0).all() and (square[:, 12:] == 0).all() and (square[:, 4:12] > 0).any()


@settings(max_examples=40, deadline=None)
@given(gain=st.floats(0.01, 500), offset=st.floats(-1000, 1000), seed=st.integers(0, 99))
def test_a_scanners_gain_and_offset_do_not_matter(gain: float, offset: float, seed: int) -> None:
    grey = np.random.default_rng(seed).integers(0, 256, (24, 24)).astype(np.float64)
    first, second = (harmonise(image.astype(np.float32), 16).astype(int) for image in (grey, gain * grey + offset))
    assert abs(first - second).max() <= 1


def test_even_and_nearly_even_images() -> None:
    assert (harmonise(np.full((9, 9), 7, np.float32), 8) == 0).all()
    dot = np.zeros((64, 64), np.float32)
    dot[5, 5] = 3
    assert harmonise(dot, 64)[5, 5] == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_grey(tmp_path: Path, mode: str) -> None:
    ramp = np.tile(np.arange(0, 256, 8, dtype=np.uint8), (32, 1))
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    image = Image.fromarray(ramp.astype(deep[mode]) * 200) if mode in deep else Image.fromarray(ramp).convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "F", "I") else "x.png")
    image.save(path)
    grey = read_grey(path)
    assert grey.dtype == np.float32 and grey.shape == (32, 32)
    assert (np.diff(grey.mean(axis=0)) >= 0).all() or mode == "1"
    assert grey.max() == (248 * 200 if mode in deep else 255 if mode == "1" else pytest.approx(248, abs=2))


def test_sixteen_bits_are_windowed_before_they_are_rounded(tmp_path: Path) -> None:
    narrow = (30000 + np.arange(32, dtype=np.uint16))[None].repeat(32, axis=0)  # one step of 8 bits in 65,536
    Image.fromarray(narrow).save(tmp_path / "x.png")
    assert len(np.unique(harmonise(read_grey(tmp_path / "x.png"), 32))) == 32


def test_a_picture_that_lies_on_its_side_is_set_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("L", (30, 10)).save(tmp_path / "x.jpg", exif=exif)
    assert read_grey(tmp_path / "x.jpg").shape == (30, 10)


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).convert("P")
    image.save(tmp_path / "x.png", transparency=struct.pack("64B", *range(64)))
    assert read_grey(tmp_path / "x.png").max() == 63


def test_pseudonyms_are_short_keyed_and_stable() -> None:
    assert pseudonym("Doe", 0) == pseudonym("Doe", 0) != pseudonym("Doe", 1)
    assert re.fullmatch("[0-9a-f]{16}", pseudonym("Doe", 0))


# Who goes where.


def test_proportions_of_the_hospitals() -> None:
    assert proportions(4).tolist() == pytest.approx([0.4, 0.3, 0.175, 0.125])
    for sites in range(1, 12):
        assert proportions(sites).sum() == pytest.approx(1) and (np.diff(proportions(sites)) < 0).all()


@settings(max_examples=60, deadline=None)
@given(
    sites=st.integers(1, 8),
    skew=st.none() | st.floats(0.001, 100),
    seed=st.integers(0, 1000),
    counts=st.lists(st.integers(0, 60), min_size=2, max_size=5),
)
def test_partition_laws(sites: int, skew: float | None, seed: int, counts: list[int]) -> None:
    counts[:2] = [count + 6 * sites for count in counts[:2]]
    labels = np.repeat(np.arange(len(counts)), counts)
    patients = np.random.default_rng(seed).permutation(len(labels))
    site, split = partition(labels, patients, Partition(sites, skew, seed))
    assert set(site) == set(range(sites))
    for number in range(sites):
        for part in range(3):
            assert len(set(labels[(site == number) & (split == part)])) >= 2


def test_sizes_and_splits_are_as_promised_at_any_skew() -> None:
    labels = np.repeat(np.arange(3), 1000)
    for skew in (None, 0.3, 10.0):
        site, split = partition(labels, np.arange(3000), Partition(4, skew, 1))
        assert np.bincount(site) / 3000 == pytest.approx([0.4, 0.3, 0.175, 0.125], abs=0.01)
        assert np.bincount(split) / 3000 == pytest.approx([0.7, 0.1, 0.2], abs=0.01)


def test_skew_skews() -> None:
    labels = np.repeat(np.arange(4), 500)

    def largest_share(skew: float | None) -> float:
        site, _ = partition(labels, np.arange(2000), Partition(4, skew, 3))
        table = np.array([np.bincount(labels[site == number], minlength=4) for number in range(4)])
        return float((table.max(axis=1) / table.sum(axis=1)).mean())

    assert largest_share(None) == pytest.approx(0.25, abs=0.01)
    assert largest_share(0.1) > largest_share(1.0) > largest_share(100.0) > 0.25


@pytest.mark.integration
@pytest.mark.skipif(not BRAIN_MRI.is_dir(), reason="the real brain MRI images are not on this machine")
def test_real_brain_mri(tmp_path: Path) -> None:
    paths = import_images(ImageImport(BRAIN_MRI, tmp_path, skew=0.5, modality="MR"))
    found = read_all(paths)
    assert len(found["image"]) == len(set(found["image"])) > 2000
    assert set(found["label"]) == {0, 1, 2, 3}
    assert np.bincount(np.unique(found["site"], return_inverse=True)[1]) / len(found["site"]) == pytest.approx(
        [0.4, 0.3, 0.175, 0.125], abs=0.01
    )


def test_folds_test_every_patient_once_and_share_a_reference(job: ImageImport) -> None:
    tested: list[bytes] = []
    aside: set[frozenset[bytes]] = set()
    for number in (1, 2, 3):
        folder = job.out / str(number)
        *paths, reference = import_images(replace(job, out=folder, sites=2, fold=(number, 3), reference=6))
        parts = read_all(paths)
        tested += [image for image, split in zip(parts["image"], parts["split"], strict=True) if split == 2]
        with Shard.open(reference, "reference", need_train=False) as shard:
            assert (shard.n, shard.labels.any(), len(set(shard.patient.tolist()))) == (12, False, 6)
            aside.add(shard.image_hashes)
            assert not {hashlib.sha256(image).digest() for image in parts["image"]} & shard.image_hashes
        assert len(parts["image"]) == 72 - 12
        for site in set(parts["site"]):
            assert {split for split, of in zip(parts["split"], parts["site"], strict=True) if of == site} == {0, 1, 2}
    assert len(tested) == len(set(tested)) == 72 - 12
    assert len(aside) == 1


@pytest.mark.parametrize("share", [0.02, 0.3])
def test_val_share(share: float) -> None:
    labels = np.repeat(np.arange(2), 500)
    _, split = partition(labels, np.arange(1000), Partition(2, val_share=share))
    assert (split == 1).sum() == pytest.approx(1000 * share, abs=2)
    assert (split == 2).sum() == 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fold": (6, 5)}, r"fold=\(6, 5\)"),
        ({"fold": (1, 5), "all_test": True}, "fold and all_test"),
        ({"val_share": 1.0}, "val_share=1.0"),
        ({"reference": 36}, "reference=36 of 36 patients"),
        ({"reference": -1}, "reference=-1"),
    ],
)
def test_bad_splits_are_refused(job: ImageImport, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ShardError, match=message):
        import_images(replace(job, **change))
