"""Files, tables and arrays that lie: each is refused with a reason, and neither memory nor a name gets out."""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import replace
from os import mkfifo
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from pydicom.uid import UID

from data_prep.importers import dicom, dicom_header, dicom_patients, nifti, nrrd_files, tree
from data_prep.importers.arrays import ArraysImport, import_arrays
from data_prep.importers.dicom_series import NO_GEOMETRY
from data_prep.importers.example import examples
from data_prep.importers.job import ArchiveImport
from data_prep.importers.recipe import Recipe
from data_prep.importers.resample import Square
from data_prep.importers.volume import Found
from fedhpc.cli.main import main
from fedhpc.errors import ShardError
from tests.support.dicom_files import slice_file, volume, write


def test_headers_claim_anything_and_the_rest_is_taken(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Impossible sizes, a dataset that inflates to gigabytes, a pipe, links to nothing: rejects, in bounded memory."""
    folder = tmp_path / "in"
    for patient in range(1, 5):
        volume(folder, patient)
    for number, frames in enumerate((-5, 0, 2_000_000_000)):
        made = slice_file(np.zeros((32, 32), np.uint16), 9, (0, 0, number), NumberOfFrames=frames)
        write(made, folder / f"frames{number}.dcm")
    write(slice_file(np.zeros((4, 4), np.uint8), 9, (0, 0, 7), Rows=65535, Columns=65535), folder / "wide.dcm")
    made = slice_file(np.zeros((32, 32), np.uint16), 9, (0, 0, 8))
    made.file_meta.TransferSyntaxUID = UID("1.2.840.10008.1.2.1.99")
    path = write(made, folder / "bomb.dcm")
    inflated = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    start = 144 + int.from_bytes(path.read_bytes()[140:144], "little")
    body = b"".join(inflated.compress(bytes(2**24)) for _ in range(40)) + inflated.flush()
    path.write_bytes(path.read_bytes()[:start] + body)
    mkfifo(folder / "pipe.dcm")
    (folder / "link.dcm").symlink_to(tmp_path / "nowhere.dcm")
    table = tmp_path / "labels.csv"
    table.write_text("patient,label\nid1,a\nid2,b\nid3,a\nid4,b\n")
    command = ["prepare", "dicom", str(folder), "-o", str(tmp_path / "out"), "--labels", str(table)]
    assert main([*command, "--site", "north", "--secret", str(tmp_path / "secret")]) == 0
    told = capsys.readouterr().out
    assert "taken 32 images of 4 patients" in told and "left out 7 images" in told
    assert f"4 {dicom_header.TOO_LARGE}" in told and f"1 {dicom_header.UNREADABLE}" in told
    assert "2 a link to nothing, a pipe or a device, not a file" in told


def test_volumes_of_impossible_size_are_rejects(tmp_path: Path) -> None:
    """A header of a hundred bytes may claim 10^12 slices; a pipe never ends."""
    sizes = {"deep": "8 8 1000000000000", "wide": "1000000 8 1000000"}
    for name, size in sizes.items():
        head = f"NRRD0004\ntype: uchar\ndimension: 3\nsizes: {size}\nencoding: raw\nendian: little\n\n"
        (tmp_path / f"{name}.nrrd").write_bytes(head.encode() + bytes(64))
    mkfifo(tmp_path / "pipe.nii.gz")
    found = nifti.find(ArchiveImport(tmp_path, tmp_path, tmp_path / "s"))
    assert not found.series
    whys = {one.file: one.why for one in found.rejects}
    assert whys == {"deep.nrrd": nrrd_files.TOO_LARGE, "wide.nrrd": nrrd_files.TOO_LARGE, "pipe.nii.gz": tree.NO_FILE}


def test_labels_that_name_patients_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column of names would become the classes of the shard, which are public; the message repeats no name."""
    for patient in range(1, 5):
        volume(tmp_path / "in", patient, depth=2)
    table = tmp_path / "labels.csv"
    table.write_text("patient,label\n" + "".join(f"id{k},SMITH^{k}\n" for k in range(1, 5)))
    command = ["prepare", "dicom", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--labels", str(table)]
    command += ["--site", "north", "--secret", str(tmp_path / "secret")]
    for words in (command, [*command, "--dry-run"]):
        assert main(words) == 2
        told = capsys.readouterr()
        assert "4 of its 4 labels are of one patient only" in told.err and "SMITH" not in told.err + told.out
    for names, problem in (
        (["SMITH", "SMITH", "JONES", "ADAMS"], "2 of its 3 labels are of one patient only"),
        (["SMITH^1", "SMITH^1", "b", "b"], "1 of its 2 labels is like a patient's name"),
        (["1960-02-01", "1960-02-01", "ID 1", "ID 1"], "2 of its 2 labels are like a patient's name"),
    ):
        table.write_text("patient,label\n" + "".join(f"id{k},{name}\n" for k, name in enumerate(names, 1)))
        assert main(command) == 2
        told = capsys.readouterr()
        assert problem in told.err and not any(name in told.err + told.out for name in names if len(name) > 1)


@pytest.mark.parametrize(
    ("change", "options", "needed"),
    [
        ({}, {"site": "../north"}, "--site of a-z"),
        ({}, {"site": None, "sites": 0}, "--sites 1 or more"),
        ({}, {"site": None, "skew": -1.0}, "--skew above 0"),
        ({}, {"val_share": 2.0}, "--val-share between"),
        ({}, {"classes": ("no", "no")}, "two or more different names"),
        ({}, {"pixel_range": (float("nan"), 1.0)}, "two finite numbers"),
        ({"split": [7] * 40}, {}, "split 0 train"),
        ({"split": ["train"] * 40}, {}, "split 0 train"),
        ({"split": [0, 2] * 20}, {}, "all images of a patient in one split"),
        ({"early": ["Meier"] * 40}, {}, "early 0 or 1"),
        ({"early": [3] * 40}, {}, "early 0 or 1"),
        ({"modality": ["AB"] * 40}, {}, "modality of MR"),
        ({"labels": 3}, {}, "in every column"),
        ({"patients": "Meier"}, {}, "in every column"),
        ({"images": np.full((40, 8, 8), np.nan, np.float32)}, {"pixel_range": (0.0, 1.0)}, "finite pixels"),
        ({"images": np.zeros((40, 0, 8), np.uint8)}, {}, "none of them 0"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, change: dict[str, object], options: dict[str, Any], needed: str
) -> None:
    content: dict[str, Any] = {
        "images": np.zeros((40, 8, 8), np.uint8), "labels": np.arange(40) % 2,
        "patients": [f"Meier {row // 2}{' ' * (row % 2)}" for row in range(40)],
    }  # fmt: skip
    np.savez(tmp_path / "scans.npz", **content | change)
    plan = ArraysImport(tmp_path / "scans.npz", tmp_path / "out", tmp_path / "secret", ("no", "yes"), "north")
    with pytest.raises(ShardError) as refused:
        import_arrays(replace(plan, **options))
    assert needed in str(refused.value) and "Meier" not in str(refused.value)
    assert not list(tmp_path.rglob("*.h5"))


@pytest.mark.parametrize("label", [b"M\xfcller", b"a\x1b[31m", b"x" * 101])
def test_label_that_cannot_be_printed_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: bytes
) -> None:
    volume(tmp_path / "in", 1, depth=1)
    (tmp_path / "l.csv").write_bytes(b"patient,label\nid1,b\nid2,%s\n" % label)
    command = ["prepare", "dicom", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--site", "north"]
    assert main([*command, "--labels", str(tmp_path / "l.csv"), "--secret", str(tmp_path / "secret")]) == 2
    assert "not printable, not UTF-8 or over 100 letters" in capsys.readouterr().err


def test_impossible_distances_are_rejects(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A spacing of 10^30 mm made an import fail; none, or a position nowhere, is no geometry."""
    for patient in range(1, 5):
        volume(tmp_path / "in", patient, depth=2)
    changes: list[dict[str, Any]] = [{"PixelSpacing": ["1e30", "1e30"]}, {"PixelSpacing": [0, 0]}]
    changes += [{"PixelSpacing": [-1, -1]}, {"ImagePositionPatient": ["0", "0", "1e308"]}]
    for number, change in enumerate(changes):
        made = slice_file(np.eye(16, dtype=np.uint16), 1, (0, 0, 500 + number), series=50 + number, **change)
        write(made, tmp_path / "in" / f"{number}.dcm")
    (tmp_path / "l.csv").write_text("patient,label\nid1,a\nid2,b\nid3,a\nid4,b\n")
    command = ["prepare", "dicom", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--site", "north"]
    command += ["--labels", str(tmp_path / "l.csv"), "--secret", str(tmp_path / "secret"), "--pixel-mm", "1"]
    assert main(command) == 0
    told = capsys.readouterr()
    assert "taken 8 images" in told.out and f"4 {NO_GEOMETRY}" in told.out and "Warning" not in told.err
    assert main([*command, "--every-mm", "nan", "--max-slices", "0", "--min-slices", "0"]) == 2
    told = capsys.readouterr()
    assert all(name in told.err for name in ("every_mm=nan", "max_slices=0", "min_slices=0"))


def test_one_person_counts_as_one_patient(tmp_path: Path) -> None:
    """Spellings of an id, its issuer, a corrected id and a file without one inside a study: never two units."""
    changes: list[dict[str, Any]] = [
        {"PatientID": "Ab 1"},
        {"PatientID": "AB1 ", "IssuerOfPatientID": "north"},
        {"PatientID": "ab\u00a01", "SpecificCharacterSet": "ISO_IR 192", "IssuerOfPatientID": "south"},
        {"PatientID": "other", "StudyInstanceUID": "1.2.3"},
        {"PatientID": "aB1", "StudyInstanceUID": "1.2.3"},
        {"PatientID": None, "StudyInstanceUID": "1.2.3"},
    ]
    for number, change in enumerate(changes, 1):
        write(slice_file(np.eye(8, dtype=np.uint16), number, (0, 0, 0), **change), tmp_path / f"same{number}.dcm")
    for number, missing in ((20, None), (21, " ")):
        made = slice_file(np.eye(8, dtype=np.uint16), number, (0, 0, 0), PatientID=missing)
        write(made, tmp_path / f"P{number}" / "0.dcm")
    found = dicom.find(ArchiveImport(tmp_path, tmp_path / "out", tmp_path / "s"))
    assert len(found.series) == len(changes) and {one.patient for one in found.series} == {"ab1"}
    assert [one.why for one in found.rejects] == [dicom_patients.NO_PATIENT] * 2
    assert found.notes == ("1 PatientID in a study of another one: counted as the same patient",)
    found = dicom.find(ArchiveImport(tmp_path, tmp_path / "out", tmp_path / "s", patient_regex="^(P[0-9]+)/"))
    assert {one.patient for one in found.series} == {"ab1", "p20", "p21"} and not found.rejects


def test_nrrd_reads_nothing_beyond_its_claim(tmp_path: Path) -> None:
    """Voxels that inflate a thousandfold, and headers that name files elsewhere: rejects, before they are read."""
    folder = tmp_path / "in"
    folder.mkdir()
    head = "NRRD0004\ntype: uchar\ndimension: 3\nsizes: 4 4 4\nendian: little\n"
    bomb = gzip.compress(bytes(2**26))
    (folder / "bomb.nrrd").write_bytes(f"{head}encoding: gzip\n\n".encode() + bomb)
    (folder / "far.raw.gz").write_bytes(bomb)
    (folder / "far.nhdr").write_text(f"{head}encoding: gz\ndata file: far.raw.gz\n\n")
    (tmp_path / "secret.raw").write_bytes(bytes(64))
    (folder / "linked.raw").symlink_to(tmp_path / "secret.raw")
    (folder / "good.raw").write_bytes(bytes(range(64)))
    outside = {"up": "../secret.raw", "whole": str(tmp_path / "secret.raw"), "link": "linked.raw", "null": "/dev/zero"}
    for name, data in (outside | {"good": "good.raw"}).items():
        (folder / f"{name}.nhdr").write_text(f"{head}encoding: raw\ndatafile: {data}\n\n")
    found = nifti.find(ArchiveImport(folder, tmp_path, tmp_path / "s", recipe=Recipe(Square(8))))
    whys = {one.file: one.why for one in found.rejects if one.why != nifti.OTHER_FORMAT}
    assert whys == {f"{name}.nhdr": nrrd_files.OUTSIDE for name in outside}
    made = {one.series: examples(one, one.open(folder), Recipe(Square(8))) for one in found.series}
    assert {why for name in ("bomb.nrrd", "far.nhdr") for _, why in made[name].rejects} == {nrrd_files.INFLATES}
    assert len(made["good.nhdr"].frames) == 4 and len(made) == 3


@pytest.mark.parametrize("finder", [dicom.find, nifti.find])
def test_links_out_of_an_archive_are_not_followed(tmp_path: Path, finder: Callable[[ArchiveImport], Found]) -> None:
    """A link inside is a file as any other; one that leads out is read by --follow-links only, a folder never."""
    folder, other = tmp_path / "in", tmp_path / "other"
    write(slice_file(np.eye(8, dtype=np.uint16), 1, (0, 0, 0)), folder / "store" / "a.dcm")
    write(slice_file(np.eye(8, dtype=np.uint16), 2, (0, 0, 0)), other / "b.dcm")
    for home in (folder / "store", other):
        nibabel.Nifti1Image(np.ones((4, 4, 4), np.int16), np.eye(4)).to_filename(home / "v.nii")
    names = ("a.dcm", "b.dcm") if finder is dicom.find else ("v.nii", "v.nii")
    (folder / f"in{names[0]}").symlink_to(f"store/{names[0]}")
    (folder / f"out{names[1]}").symlink_to(other / names[1])
    (folder / "elsewhere").symlink_to(other)
    (folder / "out_mask.nii").symlink_to(other / "v.nii")
    for follow in (False, True):
        found = finder(ArchiveImport(folder, tmp_path, tmp_path / "s", follow_links=follow))
        whys = {one.file: one.why for one in found.rejects}
        assert whys["elsewhere"] == tree.LINKED_FOLDER
        assert (whys.get(f"out{names[1]}") == tree.LINKED_OUT) == (not follow)
        if finder is nifti.find:
            assert (whys["out_mask.nii"] == tree.LINKED_OUT) == (not follow)
        read = {frame.file for one in found.series for frame in one.frames}
        assert (f"out{names[1]}" in read) == follow and read & {f"in{names[0]}", f"store/{names[0]}"}
