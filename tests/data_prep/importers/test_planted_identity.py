"""Identities planted wherever a DICOM file can hold one: none of their bytes gets out of the import."""

import datetime
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont
from pydicom.datadict import DicomDictionary
from pydicom.dataset import Dataset, FileDataset
from pydicom.sequence import Sequence as Items

from data_prep.importers import ocr
from fedhpc.cli.main import main
from tests.conftest import Outcome
from tests.support.dicom_files import contours, slice_file, square_contour, uid, volume, write

# What must be as it is for a file to be this image at all, or what decides how it is read. All other tags are planted.
NEEDED = {
    "SOPClassUID", "Modality", "ImageType", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation",
    "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelSpacing", "ImagePositionPatient",
    "ImageOrientationPatient", "RescaleIntercept", "RescaleSlope", "RescaleType", "NumberOfFrames", "PixelData",
    "SpecificCharacterSet", "BurnedInAnnotation", "ConversionType", "PresentationIntentType", "PlanarConfiguration",
    "FloatPixelData", "DoubleFloatPixelData", "PixelDataProviderURL", "ModalityLUTSequence", "ItemDelimitationItem",
    "PixelPaddingValue", "PixelPaddingRangeLimit", "ExtendedOffsetTable", "ExtendedOffsetTableLengths",
    "LossyImageCompressionMethod", "LengthToEnd", "DirectoryRecordSequence",
}  # fmt: skip
TEXT = {"PN", "LO", "SH", "LT", "ST", "UT", "UC", "AE", "CS", "UR"}
IDENTITY = (
    "PatientID", "IssuerOfPatientID", "PatientName", "PatientAddress", "SeriesDescription", "ProtocolName",
    "InstitutionName", "ReferringPhysicianName",
)  # fmt: skip
SECRET = "7" * 64


class Plants:
    """Hands out values that occur nowhere else, and remembers them."""

    def __init__(self) -> None:
        self.values: list[bytes] = []

    def text(self) -> str:
        return self._kept(f"PLANT{len(self.values):05d}Q")

    def date(self) -> str:
        day = datetime.date(1901, 1, 1) + datetime.timedelta(len(self.values))
        return self._kept(day.strftime("%Y%m%d"))

    def time(self) -> str:
        return self._kept(f"{len(self.values) % 24:02d}3141.{len(self.values):06d}")

    def number(self) -> str:
        return self._kept(f"{73_000_000 + 17 * len(self.values)}")

    def unique(self) -> str:
        return self._kept(uid(44, 900_000 + len(self.values)))

    def of(self, vr: str) -> Any:
        """A value of a value representation; None where it cannot hold an identity."""
        if vr in TEXT:
            return self.text()
        if vr == "DT":
            return self.date() + "120000"
        makers = {"DA": self.date, "TM": self.time, "UI": self.unique, "IS": self.number, "DS": self.number}
        if vr in makers:
            return makers[vr]()
        return self.text().encode() + b" " if vr in ("OB", "UN", "OB or OW") else None

    def _kept(self, value: str) -> str:
        self.values.append(value.encode())
        return value


def planted(dataset: FileDataset, plants: Plants, vrs: set[str] | None = None) -> None:
    """Plant every tag of the dictionary, private blocks, nested sequences, overlays, preamble and file meta."""
    for tag, (vr, _, _, _, keyword) in DicomDictionary.items():
        if keyword in NEEDED or not keyword or tag < 0x00080000 or (vrs and vr not in vrs):
            continue
        if vr == "SQ":
            dataset.add_new(tag, "SQ", Items([nested(plants, depth=1)]))
        elif (value := plants.of(vr)) is not None:
            dataset.add_new(tag, "OB" if vr == "OB or OW" else vr, value)
    for creator in range(3):
        block = dataset.private_block(0x0011 + 2 * creator, plants.text(), create=True)
        for place, vr in enumerate(("LO", "PN", "DA", "UI", "UN", "OB")):
            block.add_new(place, vr, plants.of(vr))
        block.add_new(0x20, "SQ", Items([nested(plants, depth=3)]))
    for group in (0x6000, 0x6002):
        dataset.add_new((group, 0x3000), "OB", plants.text().encode() * 8)
        dataset.add_new((group, 0x1500), "LO", plants.text())
    dataset.preamble = plants.text().encode().ljust(128, b"\0")
    dataset.file_meta.SourceApplicationEntityTitle = plants.text()
    dataset.file_meta.PrivateInformationCreatorUID = plants.unique()
    dataset.file_meta.PrivateInformation = plants.text().encode() + b" "


def nested(plants: Plants, depth: int) -> Dataset:
    item = Dataset()
    item.PatientName, item.PatientBirthDate, item.PatientAddress = plants.text(), plants.date(), plants.text()
    item.ReferencedSOPInstanceUID = plants.unique()
    if depth > 1:
        item.RequestAttributesSequence = Items([nested(plants, depth - 1)])
    return item


def identified(dataset: FileDataset, plants: Plants, patient: dict[str, str]) -> None:
    for keyword, value in patient.items():
        setattr(dataset, keyword, value)
    dataset.PatientComments, dataset.ContentDate, dataset.InstitutionAddress = (
        plants.text(), plants.date(), plants.text(),
    )  # fmt: skip


def archive(folder: Path) -> tuple[Plants, int]:
    """Write files of three patients that are taken and others that are not; return the plants and the files."""
    plants = Plants()
    for patient in range(1, 4):
        identity = {keyword: plants.text() for keyword in IDENTITY}
        identity |= {"StudyInstanceUID": plants.unique(), "SeriesInstanceUID": plants.unique()}
        home = folder / plants.text() / plants.text()
        for row, dataset in enumerate(volume(folder / "made", patient)):
            if row == 3 and patient == 1:
                planted(dataset, plants)
            identified(dataset, plants, identity)
            write(dataset, home / f"{plants.text()}-{row}.dcm")
        marks = contours(patient, {plants.text(): [square_contour(16, 16, 8, 3.0 * row) for row in (2, 3, 4)]})
        planted(marks, plants, {"PN", "DA", "LT", "ST"})
        identified(marks, plants, identity)
        marks.ReferencedFrameOfReferenceSequence[0].RTReferencedStudySequence[0].RTReferencedSeriesSequence[
            0
        ].SeriesInstanceUID = identity["SeriesInstanceUID"]
        write(marks, home / f"{plants.text()}.dcm")
    for path in (folder / "made").rglob("*.dcm"):
        path.unlink()
    refused(folder / plants.text(), plants)
    return plants, sum(1 for path in folder.rglob("*") if path.is_file())


def refused(folder: Path, plants: Plants) -> None:
    """Files that are not taken: text in pixels, broken values and pixels that quote themselves in errors."""
    corner = np.zeros((32, 32), np.uint8)
    corner[:2, :11] = np.frombuffer(plants.text().encode(), np.uint8)
    changes: list[dict[str, Any]] = [
        {"BurnedInAnnotation": "YES"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.6.1", "Modality": "US"},
        {"ConversionType": "WSD"},
        {"SeriesDescription": f"screen save {plants.text()}"},
        {"ImagePositionPatient": None},
        {"BitsAllocated": 16},
    ]
    for number, change in enumerate(changes):
        dataset = slice_file(corner, 50 + number, (0, 0, 0), **change)
        dataset.PatientName, dataset.StudyDate = plants.text(), plants.date()
        write(dataset, folder / f"{plants.text()}.dcm")
    for cut in (0.2, 0.5, 0.95):
        whole = broken_file(corner, round(100 * cut), plants, folder).read_bytes()
        (folder / f"{plants.text()}.dcm").write_bytes(whole[: round(cut * len(whole))])
    whole = broken_file(corner, 98, plants, folder).read_bytes()
    broken = whole.replace(b"1.0\\1.0 ", b"PLANTED0")  # a spacing that is no number
    assert broken != whole
    (folder / f"{plants.text()}.dcm").write_bytes(broken)
    (folder / "whole.dcm").unlink()
    (folder / f"{plants.text()}.txt").write_text(plants.text())


def broken_file(corner: Any, patient: int, plants: Plants, folder: Path) -> Path:
    dataset = slice_file(corner, patient, (0, 0, 0))
    dataset.PatientName = plants.text()
    return write(dataset, folder / "whole.dcm")


def traces(plants: Plants, left: dict[str, bytes]) -> Iterator[str]:
    """Every plant that is in one of the outputs, as text of 8 or 16 bits."""
    for value in plants.values:
        wide = value.decode().encode("utf-16-le")
        for name, content in left.items():
            if value in content or wide in content:
                yield f"{value.decode()} in {name}"


def test_planted_identities_stay_behind(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    plants, files = archive(tmp_path / "archive")
    assert len(plants.values) > 5_000, "tags of the dictionary are missing"
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    command = ["prepare", "dicom", str(tmp_path / "archive"), "--secret", str(secret), "--lesion", "slice"]
    out = tmp_path / "out"
    assert main([*command, "-o", str(tmp_path / "none"), "--dry-run"]) == 0
    assert main([*command, "-o", str(out), "--site", "north", "--window", "hu", "--size", "32"]) == 0
    assert main([*command, "-o", str(out), "--site", "south", "--all-test"]) == 2
    block = ["--patch-mm", "12", "--depth", "8", "--size", "8", "--window", "hu"]
    assert main([*command[:-1], "patch", *block, "-o", str(tmp_path / "volumes"), "--site", "north"]) == 0
    table = tmp_path / "labels.csv"
    table.write_text("patient,label\n" + "".join(f"{value.decode()},a\n" for value in plants.values[:9]) * 2)
    unlabelled = [word for word in command if word not in ("--lesion", "slice")]
    assert main([*unlabelled, "-o", str(tmp_path / "none"), "--labels", str(table)]) == 2
    printed = capfd.readouterr()
    outputs = [path for folder in (out, tmp_path / "volumes") for path in sorted(folder.rglob("*")) if path.is_file()]
    left = {str(path): path.read_bytes() for path in outputs}
    left |= {"stdout": printed.out.encode(), "stderr": printed.err.encode(), "log": caplog.text.encode()}
    assert {path.name for path in out.iterdir()} == {"north.h5", "rejects.csv"}
    assert list(traces(plants, left)) == []
    assert b"PLANT" not in b"".join(left.values()), "a plant was cut"
    assert SECRET.encode() not in b"".join(left.values())
    assert f"found {files:,} files" in printed.out
    assert "taken 24 images of 3 patients: no lesion 15, lesion 9" in printed.out
    assert "taken 6 images of 3 patients: no lesion 3, lesion 3" in printed.out, "3-D patches"


def test_planted_pixels_are_refused_or_blanked(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A device rule takes an image with burned-in text, without the text; without a rule it is refused."""
    name = np.frombuffer(b"PLANTED^NAME", np.uint8)
    for patient in range(1, 5):
        pixels = np.random.default_rng(patient).integers(0, 9, (32, 32)).astype(np.uint8)
        pixels[0, :12], pixels[31, -12:] = name, name
        dataset = slice_file(pixels, patient, (0, 0, 0), BurnedInAnnotation="YES", RescaleIntercept=0)
        dataset.Manufacturer = "Acme" if patient < 4 else "Other"
        write(dataset, tmp_path / "archive" / f"{patient}.dcm")
    rules = tmp_path / "rules.yaml"
    rules.write_text("rules:\n- {match: {manufacturer: acme}, blank: [[0, 0, 32, 1], [0, -1, 32, 1]]}\n")
    table = tmp_path / "labels.csv"
    table.write_text("patient,label\nid1,a\nid2,b\nid3,a\nid4,b\n")
    command = ["prepare", "dicom", str(tmp_path / "archive"), "-o", str(tmp_path / "out"), "--site", "north"]
    command += ["--labels", str(table), "--classes", "a", "b", "--window", "hu", "--size", "32"]
    command += ["--secret", str(tmp_path / "secret")]
    assert main(command) == 2
    assert "burned into its pixels" in capfd.readouterr().err
    assert main([*command, "--quarantine", str(tmp_path / "out" / "sheet.png")]) == 2
    assert main([*command, "--dry-run", "--quarantine", str(tmp_path / "sheet.png")]) == 0
    assert stat.S_IMODE((tmp_path / "sheet.png").stat().st_mode) == 0o600
    assert "4 images that may show text" in capfd.readouterr().out
    assert main([*command, "--blank", str(rules)]) == 0
    assert "taken 3 images" in capfd.readouterr().out
    stored = (tmp_path / "out" / "north.h5").read_bytes()
    assert name.astype("<f4").tobytes() not in stored
    assert np.float32(ord("P")).tobytes() * 1 not in stored, "letters are far brighter than all other pixels"


@pytest.mark.slow
def test_planted_identities_stay_out_of_a_run(tmp_path: Path, run_here: Callable[..., Outcome]) -> None:
    """Trained on, evaluated and reported: the run directory, its logs and the printed lines hold none of them."""
    plants, _ = archive(tmp_path / "archive")
    secret = tmp_path / "secret"
    secret.write_text(SECRET)
    secret.chmod(0o600)
    command = ["prepare", "dicom", str(tmp_path / "archive"), "--secret", str(secret), "--lesion", "slice"]
    assert run_here([*command, "-o", str(tmp_path / "shards"), "--site", "north", "--size", "32"]).returncode == 0
    config = tmp_path / "run.yaml"
    config.write_text(
        f"name: planted\ndata: {{shards: '{tmp_path}/shards/{{site}}.h5', sites: [{{name: north}}]}}\n"
        "model: {name: frozen, backbone: phantom}\ntraining: {rounds: 1, local_epochs: 1}\nprivacy: off\n"
    )
    run = tmp_path / "run"
    said = [run_here(["train", str(config), "--run-dir", str(run)])]
    said.append(run_here(["evaluate", str(run), "--shard", str(tmp_path / "shards" / "north.h5")]))
    said.append(run_here(["report", str(run), "-o", str(run / "report.html")]))
    assert [one.returncode for one in said] == [0, 0, 0], said
    left = {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}
    left |= {f"printed {number}": (one.stdout + one.stderr).encode() for number, one in enumerate(said)}
    assert len(left) > 10
    assert list(traces(plants, left)) == []
    assert b"PLANT" not in b"".join(left.values()), "a plant was cut"


@pytest.mark.skipif(shutil.which("tesseract") is None, reason="the program tesseract is not installed")
def test_ocr_quarantines_text_that_no_header_tells(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A name in the pixels of a slice scanned mirrored, whose header says nothing: left out, and shown to a person."""
    for patient in range(1, 5):
        made = slice_file(np.full((64, 128), 200, np.uint16), patient, (0, 0, 0))
        if patient == 4:
            picture = Image.new("L", (128, 64))
            ImageDraw.Draw(picture).text((8, 8), "PLANTED NAME", fill=255, font=ImageFont.load_default(14))
            made.PixelData = np.where(np.asarray(picture) > 99, 900, 200).astype(np.uint16).tobytes()
            made.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
        write(made, tmp_path / "archive" / f"{patient}.dcm")
    (tmp_path / "labels.csv").write_text("patient,label\nid1,a\nid2,b\nid3,a\nid4,b\n")
    command = ["prepare", "dicom", str(tmp_path / "archive"), "--labels", str(tmp_path / "labels.csv"), "--ocr"]
    command += ["--classes", "a", "b", "--secret", str(tmp_path / "secret"), "--dry-run"]
    assert main([*command, "--quarantine", str(tmp_path / "sheet.png")]) == 0
    told = capfd.readouterr()
    assert "would take 3 images" in told.out and f"1 {ocr.TEXT}" in told.out
    assert "1 image that may show text" in told.out
    assert "PLANTED" not in told.out + told.err


def test_ocr_without_its_program_is_refused(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    write(slice_file(np.zeros((4, 4), np.uint16), 1, (0, 0, 0)), tmp_path / "in" / "1.dcm")
    command = ["prepare", "dicom", str(tmp_path / "in"), "--lesion", "slice", "--ocr", "--dry-run"]
    assert main([*command, "--secret", str(tmp_path / "secret")]) == 2
    assert "tesseract is not installed" in capfd.readouterr().err
