"""From an archive to shards: divided by patient, resumable, labelled by tables, the same for every format."""

import itertools
import os
import stat
from dataclasses import replace
from pathlib import Path

import h5py
import nibabel
import nrrd
import numpy as np
import pytest

from data_prep.importers import dicom, nifti, pipeline
from data_prep.importers.arrays import ArraysImport, import_arrays
from data_prep.importers.dicom_pixels import DicomReader
from data_prep.importers.division import divide
from data_prep.importers.example import examples
from data_prep.importers.job import ArchiveImport
from data_prep.importers.lesions import LesionRule
from data_prep.importers.pipeline import import_archive
from data_prep.importers.recipe import Recipe
from data_prep.importers.rejects import find_code
from data_prep.importers.resample import Square
from data_prep.importers.secret import site_pseudonyms
from data_prep.partition import Partition
from fedhpc.cli.main import main
from fedhpc.errors import ShardError
from fedhpc.site.data.shard import Shard
from tests.support.dicom_files import DX, contours, slice_file, square_contour, uid, volume, write

SLICES = Recipe(Square(32), ("hu",), lesion=LesionRule(early_mm=12))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine patients with a lesion of 8 or 16 mm in two slices, and one file that is no image."""
    folder = tmp_path_factory.mktemp("archive")
    for patient in range(1, 10):
        volume(folder, patient, depth=4)
        side = 8 if patient % 2 else 16
        marks = contours(patient, {"lesion": [square_contour(15, 15, side, z) for z in (3.0, 6.0)]})
        write(marks, folder / f"p{patient}" / "marks.dcm")
    (folder / "Meier^Anna.txt").write_text("a letter")
    return folder


def job(archive: Path, tmp_path: Path, **change: object) -> ArchiveImport:
    given = {"site": "north", "recipe": SLICES, **change}
    return ArchiveImport(archive, tmp_path / "out", tmp_path / "secret", **given)  # type: ignore[arg-type]


def test_shard_holds_what_the_archive_says(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (path,) = import_archive(job(archive, tmp_path), dicom.find, "dicom")
    with Shard.open(path, "north") as shard:
        assert shard.n == 36 and shard.classes == ("no lesion", "lesion") and shard.labels.sum() == 18
        assert len(set(shard.patient.tolist())) == 9 and shard.stage.sum() == 10
        assert set(shard.split.tolist()) == {0, 1, 2} and shard.pixel_range == (-1024, 3071)
    with h5py.File(path) as file:
        assert file.attrs["deidentification"] == "113100,113103,113104,113105; PS3.15 2024c"
    printed = capsys.readouterr().out
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in path.parent.iterdir())
    assert "taken 36 images of 9 patients" in printed and "1 no DICOM file" in printed
    assert sorted(one.name for one in path.parent.iterdir()) == ["north.h5", "rejects.csv"]
    assert "Meier" not in printed + (path.parent / "rejects.csv").read_text()


def test_attribute_of_free_text_is_refused(archive: Path, tmp_path: Path) -> None:
    (path,) = import_archive(job(archive, tmp_path), dicom.find, "dicom")
    with h5py.File(path, "r+") as file:
        file.attrs["deidentification"] = "113100; PS3.15 2024c; Meier"
    with pytest.raises(ShardError):
        Shard.open(path, "north")


def test_reject_is_found_by_its_code_only(archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import_archive(job(archive, tmp_path), dicom.find, "dicom")
    line = (tmp_path / "out" / "rejects.csv").read_text().splitlines()[1]
    code = line.split(",")[0]
    assert line == f"{code},1,no DICOM file"
    codes = site_pseudonyms(tmp_path / "secret", tmp_path / "out")
    assert find_code(archive, code, codes).endswith("Meier^Anna.txt")
    with pytest.raises(ShardError, match="no file"):
        find_code(archive, code, site_pseudonyms(tmp_path / "other", tmp_path / "out"))


def test_secret_makes_the_pseudonyms(archive: Path, tmp_path: Path) -> None:
    """The same secret, the same bytes; another one, no pseudonym in common; others may not read it."""
    first = import_archive(job(archive, tmp_path), dicom.find, "dicom")[0].read_bytes()
    again = ArchiveImport(archive, tmp_path / "again", tmp_path / "secret", SLICES, "north")
    assert import_archive(again, dicom.find, "dicom")[0].read_bytes() == first
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    other = ArchiveImport(archive, tmp_path / "third", tmp_path / "new", SLICES, "north")
    paths = tmp_path / "out" / "north.h5", import_archive(other, dicom.find, "dicom")[0]
    names = [set(h5py.File(path)["patient"][:].tolist()) for path in paths]
    assert not names[0] & names[1]
    (tmp_path / "secret").chmod(0o640)
    with pytest.raises(ShardError, match="others may read"):
        import_archive(again, dicom.find, "dicom")
    inside = ArchiveImport(archive, tmp_path, tmp_path / "out" / "secret", SLICES, "north")
    with pytest.raises(ShardError, match="folder of the shards"):
        import_archive(inside, dicom.find, "dicom")


def test_stopped_import_goes_on(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped after all series were read: nothing is published, and no pixel is read a second time."""
    straight = ArchiveImport(archive, tmp_path / "straight", tmp_path / "secret", SLICES, "north")
    wanted = import_archive(straight, dicom.find, "dicom")[0].read_bytes()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            import_archive(job(archive, tmp_path), dicom.find, "dicom")
    assert [one.name[:8] for one in (tmp_path / "out").iterdir()] == [".resume-"]
    monkeypatch.setattr(DicomReader, "plane", stop)
    os.utime(archive / "p1" / "marks.dcm", (1, 1))
    with pytest.raises(KeyboardInterrupt):
        # Contours that were changed in between: all is read again.
        import_archive(job(archive, tmp_path), dicom.find, "dicom")
    monkeypatch.undo()
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "_write", stop)
        with pytest.raises(KeyboardInterrupt):
            import_archive(job(archive, tmp_path), dicom.find, "dicom")
    monkeypatch.setattr(DicomReader, "plane", stop)
    assert import_archive(job(archive, tmp_path), dicom.find, "dicom")[0].read_bytes() == wanted
    assert sorted(one.name for one in (tmp_path / "out").iterdir()) == ["north.h5", "rejects.csv"]


@pytest.mark.slow
def test_processes_write_what_one_writes(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = import_archive(job(archive, tmp_path), dicom.find, "dicom")[0].read_bytes()
    monkeypatch.setattr(pipeline, "FEW_IMAGES", 0)
    several = ArchiveImport(archive, tmp_path / "several", tmp_path / "secret", SLICES, "north")
    assert import_archive(several, dicom.find, "dicom")[0].read_bytes() == one


def test_contours_that_cannot_be_read_reject_their_series(archive: Path, tmp_path: Path) -> None:
    """Not read as no lesion: the label would be wrong."""
    for patient in range(1, 5):
        volume(tmp_path / "in", patient, depth=4)
        marks = contours(patient, {"lesion": [square_contour(15, 15, 8, 3.0)]})
        if patient == 4:
            marks.ROIContourSequence[0].ReferencedROINumber = None
        write(marks, tmp_path / "in" / f"{patient}.dcm")
    import_archive(job(tmp_path / "in", tmp_path), dicom.find, "dicom")
    rows = (tmp_path / "out" / "rejects.csv").read_text()
    assert rows.count("its contours or masks cannot be read (TypeError)") == 4


@pytest.mark.parametrize("join", ["file", "series", "study", "patient"])
def test_labels_join_by_any_key(archive: Path, tmp_path: Path, join: str) -> None:
    keys = {
        "file": lambda patient, row: f"p{patient}/{row:03d}.dcm",
        "series": lambda patient, row: uid(patient, 1),
        "study": lambda patient, row: uid(patient),
        "patient": lambda patient, row: f"id{patient}",
    }
    table = tmp_path / "labels.csv"
    lines = {f"{keys[join](n, row)},{'ab'[n % 2]}" for n, row in itertools.product(range(1, 9), range(4))}
    table.write_text(f"{join},label\n" + "\n".join(sorted(lines)))
    (path,) = import_archive(job(archive, tmp_path, recipe=Recipe(Square(8)), labels=table), dicom.find, "dicom")
    with Shard.open(path, "north") as shard:
        assert shard.classes == ("a", "b") and np.bincount(shard.labels).tolist() == [16, 16]
        assert not shard.has_stage
    assert (tmp_path / "out" / "rejects.csv").read_text().count("without a label in the table") == 4


def test_wrong_table_is_told_by_line_not_by_name(archive: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("patient,label\nMeier,a\nMeier,b\nHuber,\n")
    with pytest.raises(ShardError, match="line 3, 4") as told:
        import_archive(job(archive, tmp_path, recipe=Recipe(), labels=table), dicom.find, "dicom")
    assert "Meier" not in str(told.value)
    table.write_text("study,label\n" + "".join(f"{number},Meier {number}\n" for number in range(30)))
    with pytest.raises(ShardError, match="30 different labels") as told:
        import_archive(job(archive, tmp_path, recipe=Recipe(), labels=table), dicom.find, "dicom")
    assert "Meier" not in str(told.value)


def test_slabs_divide_one_patient(archive: Path, tmp_path: Path) -> None:
    volume(tmp_path / "in", 1, depth=12)
    write(contours(1, {"a": [square_contour(15, 15, 8, 3.0 * z) for z in (1, 5, 9)]}), tmp_path / "in" / "rs.dcm")
    with pytest.raises(ShardError, match="1 patients for 1 hospitals"):
        import_archive(job(tmp_path / "in", tmp_path), dicom.find, "dicom")
    (path,) = import_archive(job(tmp_path / "in", tmp_path, slabs=3), dicom.find, "dicom")
    with Shard.open(path, "north") as shard:
        assert len(set(shard.patient.tolist())) == 3
        assert np.bincount(shard.split[shard.labels == 1]).tolist() == [1, 1, 1]


def test_nifti_and_nrrd_give_what_dicom_gives(tmp_path: Path) -> None:
    """One volume in three formats, the two of research in another order of axes: the same pixels and masks."""
    made = volume(tmp_path / "dicom", 1, size=24, depth=6)
    write(contours(1, {"a": [square_contour(10, 8, 6, 6.0)]}), tmp_path / "dicom" / "rs.dcm")
    voxels = np.stack([dataset.pixel_array.T for dataset in made], axis=2).astype(np.int16) - 1024  # left, back, head
    mask = np.zeros(voxels.shape, np.uint8)
    mask[5:11, 7:13, 2] = 3
    for folder in ("nifti", "nrrd"):
        (tmp_path / folder).mkdir()
    # Flipped and transposed as it comes: right, head, front.
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = 23
    affine = np.diag([-1.0, -1, 1, 1]) @ np.diag([1.0, 1, 3, 1]) @ flip
    for name, content in (("p1", voxels), ("p1_mask", mask)):
        swapped = np.ascontiguousarray(content[::-1].transpose(0, 2, 1))
        nibabel.Nifti1Image(swapped, affine[:, [0, 2, 1, 3]]).to_filename(tmp_path / "nifti" / f"{name}.nii.gz")
        header = {
            "space": "left-posterior-superior",
            "space directions": np.diag([1.0, 1, 3]),
            "space origin": [0, 0, 0],
        }
        nrrd.write(str(tmp_path / "nrrd" / f"{name}.nrrd"), content, header)
    recipe = Recipe(Square(24), ("hu",), lesion=LesionRule())
    results = []
    for name, finder in (("dicom", dicom.find), ("nifti", nifti.find), ("nrrd", nifti.find)):
        found = finder(ArchiveImport(tmp_path / name, tmp_path, tmp_path / "s", recipe, format_modality="CT"))
        assert not found.rejects
        (series,) = found.series
        results.append(examples(series, series.open(tmp_path / name), recipe))
    for other in results[1:]:
        np.testing.assert_array_equal(results[0].images, other.images)
        np.testing.assert_array_equal(results[0].labels, other.labels)
    assert results[0].labels.tolist() == [0, 0, 1, 0, 0, 0]


def test_nifti_files_all_accounted_for(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(np.zeros((4, 4, 4), np.int16), np.eye(4))
    image.to_filename(tmp_path / "a.nii")
    nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.int16), np.eye(4)).to_filename(tmp_path / "four.nii")
    image.to_filename(tmp_path / "lonely_mask.nii")
    (tmp_path / "broken.nii").write_bytes(b"no volume")
    (tmp_path / "note.txt").write_text("x")
    found = nifti.find(ArchiveImport(tmp_path, tmp_path, tmp_path / "s"))
    assert [one.frames[0].file for one in found.series] == ["a.nii"]
    whys = {one.file: one.why for one in found.rejects}
    assert whys == {
        "four.nii": nifti.NOT_3D, "lonely_mask.nii": nifti.ALONE, "broken.nii": nifti.UNREADABLE,
        "note.txt": nifti.OTHER_FORMAT,
    }  # fmt: skip


def test_arrays_come_out_as_they_went_in(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    content = {
        "images": random.integers(0, 4096, (40, 8, 8)).astype(np.uint16),
        "labels": np.arange(40) % 2,
        "patients": [("Meier {}", "MEIER\u00a0{} ")[row % 2].format(row // 2) for row in range(40)],
        "modality": ["CT"] * 40,
        "early": np.arange(40) % 3 == 0,
    }
    np.savez(tmp_path / "scans.npz", **content)
    plan = ArraysImport(tmp_path / "scans.npz", tmp_path / "out", tmp_path / "secret", ("no", "yes"), "north")
    (path,) = import_arrays(plan)
    with Shard.open(path, "north") as shard:
        np.testing.assert_array_equal(shard.read(np.arange(40))[:, 0], content["images"])
        assert len(set(shard.patient.tolist())) == 20 and shard.stage.sum() == 14
    assert b"Meier" not in path.read_bytes() and stat.S_IMODE(path.stat().st_mode) == 0o600
    content["images"] = images = content["images"][:, None, None].repeat(3, axis=2)
    np.savez(tmp_path / "scans.npz", **content)
    (path,) = import_arrays(replace(plan, replace=True))
    with Shard.open(path, "north") as shard:
        np.testing.assert_array_equal(shard.read(np.arange(40)), images)
    np.savez(tmp_path / "scans.npz", **{**content, "images": np.zeros((40, 8, 8, 3), np.uint8)})
    with pytest.raises(ShardError, match=r"np.moveaxis\(images, -1, 1\)"):
        import_arrays(plan)
    np.save(tmp_path / "one.npy", content["images"])
    with pytest.raises(ShardError, match="cannot be read as a NumPy archive"):
        import_arrays(replace(plan, source=tmp_path / "one.npy"))
    np.savez(tmp_path / "scans.npz", **content, birthdays=np.arange(40))
    with pytest.raises(ShardError, match="1 unknown arrays"):
        import_arrays(plan)


def test_divide_keeps_patients_together_and_fills_splits() -> None:
    random = np.random.default_rng(0)
    for patients, sites in ((3, 1), (12, 4), (40, 3), (17, 2)):
        owner = random.integers(0, patients, 300)
        owner[:patients] = np.arange(patients)
        names = np.array([f"p{number}" for number in owner], "S16")
        for labels in (np.ones(300, np.int64), random.integers(0, 2, 300)):
            site_of, split = divide(labels, names, Partition(sites))
            for number in range(patients):
                assert len({*zip(site_of[owner == number], split[owner == number], strict=True)}) == 1
            for site in range(sites):
                assert set(split[site_of == site].tolist()) == {0, 1, 2}


def test_wrong_options_are_listed_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(slice_file(np.zeros((4, 4), np.uint16), 1, (0, 0, 0)), tmp_path / "in" / "1.dcm")
    words = ["prepare", "dicom", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--size", "3", "--stack", "2"]
    assert main([*words, "--secret", str(tmp_path / "secret")]) == 2
    told = capsys.readouterr().err
    assert "size=3" in told and "stack=2" in told and "--labels TABLE" in told


def test_radiographs_are_single_images_of_any_size(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each by its own percentiles, proportions kept; raw detector images are left out, Latin names no obstacle."""
    random = np.random.default_rng(0)
    for patient in range(1, 7):
        pixels = random.integers(0, 400, (40 + patient, 30), dtype=np.uint16)
        pixels[10:20, 5:15] = 3000
        made = slice_file(pixels, patient, (0, 0, 0), SOPClassUID=DX, Modality="DX", ImageOrientationPatient=None)
        del made.ImagePositionPatient, made.RescaleIntercept, made.RescaleSlope
        made.SpecificCharacterSet, made.PatientID = "ISO_IR 100", f"M\u00fcller {patient}"
        if patient == 6:
            made.PresentationIntentType = "FOR PROCESSING"
        write(made, tmp_path / "in" / f"{patient}.dcm")
    table = tmp_path / "labels.csv"
    table.write_text(
        "patient,label\n" + "".join(f"M\u00fcller {k},{'ab'[k % 2]}\n" for k in range(1, 7)), encoding="utf-8"
    )
    plan = job(tmp_path / "in", tmp_path, recipe=Recipe(Square(32)), labels=table)
    (path,) = import_archive(plan, dicom.find, "dicom")
    with Shard.open(path, "north") as shard:
        assert shard.n == 5 and set(shard.modality.tolist()) == {b"DX"} and np.bincount(shard.labels).tolist() == [2, 3]
        images = shard.read(np.arange(5))[:, 0]
        assert images.dtype == np.uint8 and (images.max(axis=(1, 2)) == 255).all() and (images[:, 16, 0] == 0).all()
    assert "1 a raw detector image" in capsys.readouterr().out
