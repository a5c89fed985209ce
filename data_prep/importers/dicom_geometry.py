"""Where the frames of one DICOM file lie in the patient, as its header tells it (private)."""

from dataclasses import dataclass

from pydicom.dataset import Dataset

from data_prep.importers.dicom_classes import ENHANCED, SINGLE
from data_prep.importers.fields import Fields, Numbers, numbers_of
from data_prep.importers.volume import FARTHEST_MM, are_spacings

DIMENSIONS = ("EchoTime", "AcquisitionNumber", "TemporalPositionIdentifier", "DiffusionBValue", "TriggerTime")
"""Positions of one series may repeat in these only: echoes, phases, directions, acquisitions."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """Where one frame lies in the patient, as its header tells it."""

    position: Numbers | None
    orientation: Numbers | None
    spacing: Numbers | None
    frame: int = 0
    dimension: tuple[str, ...] = ()


def geometry_of(fields: Fields, sop_class: str, modality: str, frames: int) -> tuple[Geometry, ...]:
    """Return the geometry of each frame of a file."""
    if sop_class in ENHANCED:
        return _enhanced(fields.dataset, frames)
    return (_geometry(fields, modality),) * frames


def _geometry(fields: Fields, modality: str) -> Geometry:
    if modality in SINGLE.values():
        found = _spacing(fields.numbers("PixelSpacing")) or _spacing(fields.numbers("ImagerPixelSpacing"))
        return Geometry(None, None, found)
    return Geometry(
        _position(fields.numbers("ImagePositionPatient")),
        fields.numbers("ImageOrientationPatient"),
        _spacing(fields.numbers("PixelSpacing")),
        dimension=tuple(fields.text(key) for key in DIMENSIONS),
    )


def _spacing(found: Numbers | None) -> Numbers | None:
    """A spacing that can be one; None of others, as where there is none."""
    return found if found and are_spacings(found) else None


def _position(found: Numbers | None) -> Numbers | None:
    """A position that can be a patient's, the same way."""
    return found if found and all(abs(value) <= FARTHEST_MM for value in found) else None


def _enhanced(dataset: Dataset, frames: int) -> tuple[Geometry, ...]:
    """Geometry of each frame: its own functional groups, else the shared ones (PS3.3 C.7.6.16)."""
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [Dataset()])[0]
    own = list(dataset.get("PerFrameFunctionalGroupsSequence") or [])
    own += [Dataset()] * (frames - len(own))
    return tuple(_group_geometry(groups, shared, number) for number, groups in enumerate(own[:frames]))


def _group_geometry(groups: Dataset, shared: Dataset, number: int) -> Geometry:
    def value(sequence: str, key: str) -> Numbers | None:
        items = groups.get(sequence) or shared.get(sequence)
        return numbers_of(items[0], key) if items else None

    echo = value("MREchoSequence", "EffectiveEchoTime")
    diffusion = value("MRDiffusionSequence", "DiffusionBValue")
    content = groups.get("FrameContentSequence")
    phase = Fields(content[0]).text("TemporalPositionIndex") if content else ""
    return Geometry(
        _position(value("PlanePositionSequence", "ImagePositionPatient")),
        value("PlaneOrientationSequence", "ImageOrientationPatient"),
        _spacing(value("PixelMeasuresSequence", "PixelSpacing")),
        number,
        (str(echo or ""), "", phase, str(diffusion or ""), ""),
    )
