"""NIfTI and NRRD volumes with their masks: `run.py prepare nifti DIR`.

A mask lies beside its volume and is called like it with a suffix: `p1.nii.gz` and `p1_mask.nii.gz`. Of neither format
is anything read but the grid and the affine map: descriptions and extensions, which may hold names, stay unread.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from data_prep.importers import nrrd_files
from data_prep.importers.job import ArchiveImport
from data_prep.importers.libraries import require
from data_prep.importers.orientation import CANONICAL, OBLIQUE_DEGREES, Orientation, Turn
from data_prep.importers.parallel import each
from data_prep.importers.tree import files_below, refusal
from data_prep.importers.volume import (
    MOST_FRAMES,
    MOST_PIXELS,
    MOST_VOXELS,
    Bool,
    Facts,
    Found,
    Frame,
    ImportFault,
    Mask,
    Plane,
    Reader,
    Reject,
    Series,
    Spacing,
    are_spacings,
    is_plausible,
)
from data_prep.names import patient_key

NIFTI, NRRD = (".nii", ".nii.gz"), (".nrrd", ".nhdr")
SUFFIXES = (*NIFTI, *NRRD)
OTHER_FORMAT = "neither NIfTI nor NRRD by its name"
UNREADABLE = "a volume whose header cannot be read"
NOT_3D = "no volume of three dimensions"
TOO_LARGE = (
    f"claims more than {MOST_FRAMES:,} slices, more than {MOST_PIXELS:,} pixels a slice, or {MOST_VOXELS:,} in all"
)
ALONE = "a mask without its volume"
OTHER_GRID = "its mask is of another size"
NO_PATIENT = "its path tells no patient by --patient-regex"
NOT_WANTED = "not asked for by --plane"
TOO_FEW = "of fewer slices than --min-slices"


UNIT = Spacing(1.0, 1.0)


@dataclass(frozen=True)
class Grid:
    """The geometry of one volume.

    Attributes:
        shape: voxels along each axis.
        affine: float [4][4], from voxel to millimetres in the patient: left, back, head.
    """

    shape: tuple[int, ...]
    affine: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class GridSeries(Series):
    """A volume in one file.

    Attributes:
        file: path below the source.
        mask: path of the mask, or "".
        across: axis of the voxels that the slices lie behind one another on.
        turn: into canonical orientation.
        spacing_mm: of rows and columns before the turn.
    """

    file: str = ""
    mask: str = ""
    across: int = 2
    turn: Turn = CANONICAL
    spacing_mm: Spacing = UNIT

    @property
    def marks(self) -> tuple[str, ...]:
        """See `Series`."""
        return (self.mask,) if self.mask else ()

    def open(self, root: Path) -> Reader:
        """Return the reader of its planes."""
        return GridReader(root, self)


@dataclass
class GridReader:
    """Reads slices of a volume; NIfTI slice by slice, NRRD as a whole."""

    root: Path
    series: GridSeries
    _volume: Any = None
    _mask: Any = None

    def plane(self, row: int) -> Plane:
        """Return one slice."""
        if self._volume is None:
            self._volume = _voxels(self.root / self.series.file)
        pixels = np.asarray(self._slice(self._volume, row), np.float32)
        return Plane(np.asarray(self.series.turn.apply(pixels), np.float32), self._spacing)

    def lesion(self, row: int) -> Mask | None:
        """Return the mask of one slice; labels above 0 are lesion."""
        if not self.series.mask:
            return None
        if self._mask is None:
            self._mask = _voxels(self.root / self.series.mask)
            if self._mask.shape != _voxels(self.root / self.series.file).shape:
                raise ImportFault(OTHER_GRID)
        pixels: Bool = np.asarray(self._slice(self._mask, row)) > 0
        return Mask(np.asarray(self.series.turn.apply(pixels), np.bool_), self._spacing)

    @property
    def _spacing(self) -> Spacing:
        return self.series.turn.spacing(self.series.spacing_mm)

    def _slice(self, voxels: Any, row: int) -> npt.NDArray[Any]:
        """The slice [rows, columns]: the first of the two other axes is along the columns of a row, as x is."""
        where: list[Any] = [slice(None)] * 3
        where[self.series.across] = self.series.frames[row].index
        return np.asarray(voxels[tuple(where)]).T


def find(job: ArchiveImport) -> Found:
    """Return all volumes below `job.source`, and every file that is none, with the reason.

    Raises:
        ShardError: the folder cannot be read, a library is missing.
    """
    files = files_below(job.source) if job.only is None else list(job.only)
    require(*(["nibabel"] if any(name.endswith(NIFTI) for name in files) else []))
    require(*(["nrrd"] if any(name.endswith(NRRD) for name in files) else []))
    marks = [name for name in files if _is_mask(name, job.mask_suffix)]
    closed = {name: why for name in marks if (why := refusal(job.source, name, job.follow_links))}
    masks = {_volume_of(name, job.mask_suffix): name for name in marks if name not in closed}
    series: list[GridSeries] = []
    others = [name for name in files if not name.lower().endswith(SUFFIXES)]
    rejects = [Reject(name, refusal(job.source, name, follow_links=True) or OTHER_FORMAT) for name in others]
    rejects += [Reject(name, why) for name, why in closed.items()]
    volumes = [name for name in files if name.lower().endswith(SUFFIXES) and name not in marks]
    stems = {_stem(name).removesuffix(job.image_suffix) for name in volumes}
    rejects += [Reject(mask, ALONE) for stem, mask in masks.items() if stem not in stems]
    for name, grid in zip(volumes, each(_Scan(job.source, job.follow_links), volumes, "headers", "file"), strict=True):
        found = _series(job, name, grid) if isinstance(grid, Grid) else grid
        if isinstance(found, str):
            rejects.append(Reject(name, found))
        else:
            mask = masks.get(_stem(name).removesuffix(job.image_suffix), "")
            series.append(replace(found, mask=mask, has_lesions=bool(mask)))
    return Found(tuple(series), tuple(rejects), len(files))


class _Scan:
    """Reads the grid of one file below a source; it goes to other processes."""

    def __init__(self, root: Path, follow_links: bool) -> None:
        self._root, self._follow_links = root, follow_links

    def __call__(self, file: str) -> Grid | str:
        try:
            if why := refusal(self._root, file, self._follow_links):
                return why
            grid = _grid(self._root / file)
        except MemoryError:
            raise
        except ImportFault as fault:
            return str(fault)
        except Exception:  # readers raise whatever they like, and quote the file
            return UNREADABLE
        return grid if len(grid.shape) == 3 and 0 not in grid.shape else NOT_3D


def _grid(path: Path) -> Grid:
    affine: npt.NDArray[np.float64]
    if path.name.lower().endswith(NIFTI):
        import nibabel

        image: Any = nibabel.load(path)
        # NIfTI's patient axes are right, front and head; those of DICOM left, back and head.
        affine = np.diag([-1.0, -1.0, 1.0, 1.0]) @ image.affine
        shape = tuple(image.shape)
    else:
        header = nrrd_files.read_header(path)
        shape = tuple(int(side) for side in header["sizes"])
        affine = _nrrd_affine(header)
    sides = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or not are_spacings(sides) or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        raise ValueError
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return Grid(shape, tuple(tuple(row) for row in affine.tolist()))


def _nrrd_affine(header: Any) -> npt.NDArray[np.float64]:
    """Of a header's space, or of its spacings alone."""
    affine = np.eye(4)
    if "space directions" not in header:
        affine[range(3), range(3)] = header.get("spacings", np.ones(3))[:3]
        return affine
    space = str(header.get("space", ""))
    letters = space.upper() if len(space) == 3 else "".join(word[:1] for word in space.upper().split("-"))
    # Of the spaces of the format these three are a patient's; others are taken as they are.
    flips = {"RAS": (-1, -1), "LAS": (1, -1)}.get(letters, (1, 1))
    affine[:3, :3] = np.asarray(header["space directions"], float).T
    affine[:3, 3] = np.asarray(header.get("space origin", np.zeros(3)), float)
    return np.asarray(np.diag([*flips, 1, 1]) @ affine)


def _voxels(path: Path) -> Any:
    """The voxels: a proxy that reads what is asked for of a NIfTI file, an array of an NRRD file."""
    if path.name.lower().endswith(NIFTI):
        import nibabel

        image: Any = nibabel.load(path)
        return image.dataobj if len(image.shape) == 3 else np.asarray(image.dataobj).reshape(image.shape[:3])
    return nrrd_files.read_voxels(path)


def _series(job: ArchiveImport, file: str, grid: Grid) -> GridSeries | str:
    """The series of one volume, or why it is not taken."""
    matrix = np.array(grid.affine)[:3, :3]
    sides = np.linalg.norm(matrix, axis=0)
    across = _across(job, matrix / sides, sides)
    if across is None:
        return NOT_WANTED
    rows, columns = (grid.shape[axis] for axis in range(3) if axis != across)
    if not is_plausible(grid.shape[across], rows, columns):
        return TOO_LARGE
    if grid.shape[across] < job.min_slices:
        return TOO_FEW
    patient = _patient(job, file)
    if patient is None:
        return NO_PATIENT
    along_row, along_column = [axis for axis in range(3) if axis != across]
    orientation = Orientation.of(
        [*(matrix[:, along_row] / sides[along_row]), *_upright(matrix, along_row, along_column)]
    )
    if orientation is None:
        return UNREADABLE
    frames = tuple(Frame(file, index, float(index * sides[across])) for index in range(grid.shape[across]))
    spacing = Spacing(float(sides[along_column]), float(sides[along_row]))
    return GridSeries(
        patient, file, file, job.format_modality, frames, _facts(job, grid, orientation, sides), file=file,
        across=across, turn=orientation.turn, spacing_mm=spacing,
    )  # fmt: skip


def _upright(matrix: npt.NDArray[Any], along_row: int, along_column: int) -> npt.NDArray[Any]:
    """The direction of columns, made perpendicular to that of rows: a sheared grid is taken as a straight one."""
    row = matrix[:, along_row] / np.linalg.norm(matrix[:, along_row])
    column = matrix[:, along_column] - row * (row @ matrix[:, along_column])
    return np.asarray(column / np.linalg.norm(column))


def _across(job: ArchiveImport, axes: npt.NDArray[Any], sides: npt.NDArray[Any]) -> int | None:
    """The axis that slices lie behind one another on: by --plane, else the one of the largest step, else the head's."""
    patient_axis = {"sagittal": 0, "coronal": 1, "axial": 2}
    nearest: list[int] = np.abs(axes).argmax(axis=0).tolist()
    if sorted(nearest) != [0, 1, 2]:
        return None
    if job.plane:
        return nearest.index(patient_axis[job.plane])
    thickest = int(sides.argmax())
    return thickest if sides[thickest] > 1.2 * sides.min() else nearest.index(2)


def _facts(job: ArchiveImport, grid: Grid, orientation: Orientation, sides: npt.NDArray[Any]) -> Facts:
    tilt = orientation.tilt_degrees
    notes = (f"oblique by {tilt:.0f} degrees",) if tilt > OBLIQUE_DEGREES else ()
    size = " x ".join(map(str, grid.shape))
    return Facts(job.format_modality, "", orientation.plane, size, " x ".join(f"{s:.3g}" for s in sides) + " mm", notes)


def _patient(job: ArchiveImport, file: str) -> str | None:
    """The patient of a file: by the regular expression, else the file itself."""
    if job.patient_regex is None:
        return file
    found = re.search(job.patient_regex, file)
    if found is None:
        return None
    return patient_key((found[1] if found.re.groups else found[0]) or "") or None


def _stem(file: str) -> str:
    lower = file.lower()
    return next((file[: -len(suffix)] for suffix in sorted(SUFFIXES, key=len)[::-1] if lower.endswith(suffix)), file)


def _is_mask(file: str, suffix: str) -> bool:
    return file.lower().endswith(SUFFIXES) and _stem(file).endswith(suffix)


def _volume_of(file: str, suffix: str) -> str:
    return _stem(file).removesuffix(suffix)
