"""Files, tables and arrays that lie: each is refused with a reason, and neither memory nor a name gets out."""

import zlib
from dataclasses import replace
from os import mkfifo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydicom.uid import UID

from data_prep.importers import dicom_header, nifti
from data_prep.importers.arrays import ArraysImport, import_arrays
from data_prep.importers.dicom_series import NO_GEOMETRY
from data_prep.importers.job import ArchiveImport
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
    assert whys == {"deep.nrrd": nifti.TOO_LARGE, "wide.nrrd": nifti.TOO_LARGE, "pipe.nii.gz": nifti.NO_FILE}


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
        assert "none of its 4 labels is of two patients" in told.err and "SMITH" not in told.err + told.out


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
