"""DICOM trees: every file is taken or refused with a reason, and what is taken is what the scanner measured."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.pixels.utils import pixel_array
from pydicom.sequence import Sequence as Items

from data_prep.importers.dicom import find
from data_prep.importers.dicom_header import Header, quiet, read_header
from data_prep.importers.dicom_series import DUPLICATE_INSTANCE, SAME_POSITION, DicomSeries, series_of
from data_prep.importers.example import examples
from data_prep.importers.job import ArchiveImport
from data_prep.importers.lesions import LesionRule
from data_prep.importers.orientation import Orientation
from data_prep.importers.planes import BESIDE_GAP
from data_prep.importers.recipe import Recipe
from data_prep.importers.resample import Square, lanczos, to_square
from data_prep.importers.volume import Plane, Spacing
from tests.support.dicom_files import MR, contours, slice_file, square_contour, uid, volume, write

CORPUS = Path(get_testdata_file("CT_small.dcm") or "").parent
TRUNCATED = {"MR_truncated.dcm"}
HU = Recipe(Square(32), ("hu",))


def found_in(folder: Path, **change: Any) -> tuple[list[DicomSeries], list[str]]:
    found = find(ArchiveImport(folder, folder / "out", folder / "secret", **change))
    return [one for one in found.series if isinstance(one, DicomSeries)], sorted(one.why for one in found.rejects)


def images_of(folder: Path, recipe: Recipe = HU) -> Any:
    (series,), _ = found_in(folder, recipe=recipe)
    return examples(series, series.open(folder), recipe)


def test_corpus_each_file_taken_or_refused() -> None:
    found = find(ArchiveImport(CORPUS, CORPUS / "out", CORPUS / "secret"))
    named = {frame.file for one in found.series for frame in one.frames} | {one.file for one in found.rejects}
    assert len(named) == found.files > 150
    for series in found.series:
        made = examples(series, series.open(CORPUS), Recipe())
        assert {*made.frames.tolist(), *(row for row, _ in made.rejects)} == set(range(len(series.frames)))


def test_corpus_decodes_as_pydicom_does() -> None:
    """Of every transfer syntax: compared file by file, whatever the screening would say."""
    syntaxes = set()
    for path in sorted(CORPUS.glob("*.dcm")):
        header = read_header(CORPUS, path.name)
        if not isinstance(header, Header) or header.modality not in ("CT", "MR") or path.name in TRUNCATED:
            continue
        (series,), _ = series_of([header])
        with quiet():
            dataset = pydicom.dcmread(path)
            stored = pixel_array(dataset, index=0)
            wanted = stored * float(dataset.get("RescaleSlope", 1)) + float(dataset.get("RescaleIntercept", 0))
        scanned = series.turn.apply(stored != dataset.get("PixelPaddingValue"))
        plane = series.open(CORPUS).plane(0).pixels
        np.testing.assert_allclose(plane[scanned], series.turn.apply(wanted)[scanned], rtol=1e-6)
        syntaxes.add(str(dataset.file_meta.TransferSyntaxUID))
    assert len(syntaxes) >= 5, syntaxes


def test_orientation_any_scan_becomes_canonical() -> None:
    """A patient scanned along any axes in any direction: the same pixels, the same places."""
    random = np.random.default_rng(0)
    body = random.normal(size=(4, 5, 6))  # left, back, head
    for axes in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            vectors = [np.eye(3)[axis] * sign for axis, sign in zip(axes, signs, strict=True)]
            orientation = Orientation.of([*vectors[0], *vectors[1]])
            assert orientation is not None
            scanned = np.transpose(body, axes)[tuple(slice(None, None, sign) for sign in signs)][:, :, 0].T
            turned = orientation.turn.apply(scanned)
            place = 0 if signs[2] > 0 else -1
            if orientation.plane == "axial":
                wanted = body[:, :, place].T
            elif orientation.plane == "coronal":
                wanted = body[:, place, ::-1].T
            else:
                wanted = body[place, :, ::-1].T
            np.testing.assert_array_equal(turned, wanted)


def test_pixels_are_hounsfield_units(tmp_path: Path) -> None:
    (first, *_) = volume(tmp_path, 1)
    made = images_of(tmp_path)
    assert made.images.dtype == np.float32
    np.testing.assert_array_equal(made.images[0, 0], first.pixel_array.astype(np.float32) - 1024)


def test_inverted_padded_and_unused_bits_are_corrected(tmp_path: Path) -> None:
    """MONOCHROME1 is inverted, padding is ground, and an overlay above the stored bits is cut off."""
    values = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    plain = dict(BitsStored=12, HighBit=11, RescaleIntercept=0)
    write(slice_file(values, 1, (0, 0, 0), **plain), tmp_path / "a" / "1.dcm")
    write(slice_file(values | 0x8000, 1, (0, 0, 0), **plain), tmp_path / "b" / "1.dcm")
    write(
        slice_file(1023 - values, 1, (0, 0, 0), PhotometricInterpretation="MONOCHROME1", **plain), tmp_path / "c/1.dcm"
    )
    padded = values.copy()
    padded[0, 0] = 4000
    write(slice_file(padded, 1, (0, 0, 0), PixelPaddingValue=4000, **plain), tmp_path / "d" / "1.dcm")
    images = [images_of(tmp_path / name).images for name in "abcd"]
    np.testing.assert_array_equal(images[0], images[1])
    np.testing.assert_array_equal(images[0], images[2])
    assert images[3].min() == 1 and images[3][0, 0, 0, 0] == 1


def test_series_mixed_is_taken_apart(tmp_path: Path) -> None:
    """Two echoes, a scout of another plane and a doubled file in one series: three stacks and one reject."""
    flat = np.random.default_rng(0).integers(0, 99, (8, 8)).astype(np.uint16)
    common = {"SOPClassUID": MR, "Modality": "MR"}
    for row, echo in itertools.product(range(4), (10, 80)):
        made = slice_file(flat + row, 1, (0, 0, 5 * row), number=10 * row + echo, EchoTime=echo, **common)
        write(made, tmp_path / f"{echo}-{row}.dcm")
    write(made, tmp_path / "again.dcm")
    other = slice_file(flat, 1, (0, 0, 0), number=999, ImageOrientationPatient=[1, 0, 0, 0, 0, -1], **common)
    write(other, tmp_path / "scout.dcm")
    series, rejects = found_in(tmp_path)
    assert sorted((len(one.frames), one.facts.plane) for one in series) == [(1, "coronal"), (4, "axial"), (4, "axial")]
    assert rejects == [DUPLICATE_INSTANCE]
    write(slice_file(flat, 1, (0, 0, 0), number=555, EchoTime=10, **common), tmp_path / "second.dcm")
    assert SAME_POSITION in found_in(tmp_path)[1]


def test_series_with_gap_says_so_and_cuts_no_stack_there(tmp_path: Path) -> None:
    volume(tmp_path, 1, depth=8)
    (tmp_path / "p1" / "004.dcm").unlink()
    (series,), _ = found_in(tmp_path)
    assert series.facts.notes == ("1 slice missing",)
    recipe = Recipe(Square(16), ("soft", "lung"), stack=3)
    made = examples(series, series.open(tmp_path), recipe)
    assert made.images.shape == (5, 6, 16, 16)
    assert [why for _, why in made.rejects] == [BESIDE_GAP] * 2


def test_stack_under_gantry_tilt_is_straight(tmp_path: Path) -> None:
    """A rod along the patient stays at one place of a stack, though the corners of tilted planes move."""
    for row in range(5):
        pixels = np.zeros((32, 32), np.uint16)
        pixels[14 - 2 * row : 18 - 2 * row, 10:14] = 2000
        pixels[2, 2] = row
        write(slice_file(pixels, 1, (0, 2.0 * row, 4.0 * row)), tmp_path / f"{row}.dcm")
    (series,), _ = found_in(tmp_path)
    assert series.facts.notes == ("gantry tilt of 27 degrees",)
    middle = examples(series, series.open(tmp_path), Recipe(Square(32), ("hu",), stack=3)).images[2]
    for channel in middle:
        assert np.argwhere(channel > 500).mean(axis=0) == pytest.approx([11.5, 11.5], abs=0.1)


def test_enhanced_frames_are_slices(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 999, (3, 16, 16)).astype(np.uint16)
    made = slice_file(frames[0], 1, (0, 0, 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.2.1", NumberOfFrames=3)
    for keyword in (
        "PixelSpacing",
        "ImagePositionPatient",
        "ImageOrientationPatient",
        "RescaleIntercept",
        "RescaleSlope",
    ):
        delattr(made, keyword)
    shared, scale, measures, plane = Dataset(), Dataset(), Dataset(), Dataset()
    scale.RescaleIntercept, scale.RescaleSlope, scale.RescaleType = -1000, 2, "HU"
    measures.PixelSpacing, plane.ImageOrientationPatient = [0.5, 0.5], [1, 0, 0, 0, 1, 0]
    shared.PixelValueTransformationSequence = Items([scale])
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = Items([measures]), Items([plane])
    made.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for row in (2, 0, 1):  # not in the order of their positions
        position, group = Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, 3.0 * row]
        group.PlanePositionSequence = Items([position])
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = Items(groups)
    made.PixelData = frames.tobytes()
    write(made, tmp_path / "enhanced.dcm")
    images = images_of(tmp_path, Recipe(Square(16), ("hu",))).images
    np.testing.assert_array_equal(images[:, 0], np.float32(frames[[1, 2, 0]]) * 2 - 1000)


def test_contours_label_slices_and_tell_the_diameter(tmp_path: Path) -> None:
    """A square with a hole: its area is exact, another region counts only where it is asked for."""
    volume(tmp_path, 1, size=64)
    ring = [square_contour(20, 30, 20.0, z) for z in (6.0, 9.0)] + [square_contour(20, 30, 10.0, 6.0)]
    marks = contours(1, {"GTV-1": ring, "heart": [square_contour(40, 40, 30, 18.0)]})
    write(marks, tmp_path / "rs.dcm")
    recipe = Recipe(Square(32), ("soft",), lesion=LesionRule(rois="gtv", early_mm=40))
    (series,), rejects = found_in(tmp_path, recipe=recipe)
    assert not rejects
    reader = series.open(tmp_path)
    areas = [0 if (mask := reader.lesion(row)) is None else int(mask.pixels.sum()) for row in range(8)]
    assert areas == [0, 0, 300, 400, 0, 0, 0, 0]
    made = examples(series, reader, recipe)
    assert made.labels.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    assert made.early.tolist() == made.labels.tolist(), "20 mm a side, 28 mm across"
    strict = Recipe(Square(32), ("soft",), lesion=LesionRule(rois="gtv", early_mm=25, negatives=1))
    made = examples(series, reader, strict)
    assert made.early.sum() == 0 and made.labels.sum() == 2 and len(made.labels) == 4


def test_segments_mark_what_contours_mark(tmp_path: Path) -> None:
    volume(tmp_path, 1)
    masks = np.zeros((2, 32, 32), np.uint8)
    masks[:, 8:18, 4:20] = 1
    made = slice_file(masks[0], 1, (0, 0, 0), SOPClassUID="1.2.840.10008.5.1.4.1.1.66.4", NumberOfFrames=2, series=7)
    of, segment, shared = Dataset(), Dataset(), Dataset()
    of.SeriesInstanceUID, segment.SegmentNumber, segment.SegmentLabel = uid(1, 1), 1, "Tumour"
    made.ReferencedSeriesSequence, made.SegmentSequence = Items([of]), Items([segment])
    made.SharedFunctionalGroupsSequence = Items([shared])
    groups = []
    for z in (3.0, 6.0):
        group, position, which = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient, which.ReferencedSegmentNumber = [0, 0, z], 1
        group.PlanePositionSequence, group.SegmentIdentificationSequence = Items([position]), Items([which])
        groups.append(group)
    made.PerFrameFunctionalGroupsSequence = Items(groups)
    made.PixelData = masks.tobytes()
    write(made, tmp_path / "seg.dcm")
    (series,), _ = found_in(tmp_path)
    reader = series.open(tmp_path)
    assert [reader.lesion(row) is not None for row in range(4)] == [False, True, True, False]
    mask = reader.lesion(1)
    assert mask is not None
    np.testing.assert_array_equal(mask.pixels, masks[0] > 0)


def test_patches_lie_on_and_beside_the_lesion(tmp_path: Path) -> None:
    made = volume(tmp_path, 1, size=64, depth=3)
    for dataset in made:
        pixels = dataset.pixel_array.copy()
        pixels[16:24, 26:34] = 1500
        dataset.PixelData = pixels.tobytes()
        write(dataset, tmp_path / "p1" / f"{int(dataset.ImagePositionPatient[2] / 3):03d}.dcm")
    write(contours(1, {"lesion": [square_contour(19.5, 29.5, 8, z) for z in (0, 3, 6)]}), tmp_path / "rs.dcm")
    recipe = Recipe(Square(16), ("hu",), lesion=LesionRule(patch_mm=16))
    (series,), _ = found_in(tmp_path, recipe=recipe)
    found = examples(series, series.open(tmp_path), recipe)
    assert found.labels.tolist() == [1, 0] * 3
    bright = (found.images > 400).sum(axis=(1, 2, 3))
    assert bright[::2].tolist() == [64] * 3 and bright[1::2].tolist() == [0] * 3


def test_resampling_is_pillows_and_keeps_millimetres() -> None:
    random = np.random.default_rng(0)
    pixels = random.normal(0, 100, (61, 47)).astype(np.float32)
    picture = np.asarray(Image.fromarray(pixels).resize((20, 26), Image.Resampling.LANCZOS))
    np.testing.assert_allclose(lanczos(61, 26, 99) @ pixels @ lanczos(47, 20, 99).T, picture, atol=1e-3)
    # Pixels twice as tall as wide: 10 rows of 2 mm and 10 columns of 1 mm are 20 x 10 squares of 1 mm.
    plane = Plane(np.ones((10, 10), np.float32), Spacing(2.0, 1.0))
    plane.pixels[0, 0] = 0
    np.testing.assert_allclose(lanczos(61, 200, 9), lanczos(61, 200, 200)[95:104], atol=1e-6)
    square = to_square(plane, Square(24, pixel_mm=1.0))
    assert square.shape == (24, 24) and int((square > 0.9).sum()) in range(190, 201)
