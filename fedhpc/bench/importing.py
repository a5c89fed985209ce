"""`run.py bench import`: how fast and in how much memory an archive of DICOM files becomes a shard.

The files are generated. Beside it stands the least that any reader does: pydicom reads each file, and numpy holds its
pixels in Hounsfield units. Both run as programs of their own. CPU time is compared, since wall time is the machine's.
"""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.errors import InputError
from fedhpc.util.progress import progress
from fedhpc.util.text import table

CHECKOUT = Path(__file__).resolve().parents[2]
SLICES = 100
"""Of one volume, which is one patient's."""
PART = 4
"""Memory is compared with that of an import of so many times fewer files."""
BARE = """
import sys
from pathlib import Path
import numpy as np
import pydicom
for path in sorted(Path(sys.argv[1]).rglob("*.dcm")):
    dataset = pydicom.dcmread(path)
    pixels = dataset.pixel_array.astype(np.float32) * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
"""
NOTHING = "import sys\nimport numpy\nimport pydicom\n"


@dataclass(frozen=True)
class ImportBenchmark:
    """What to import.

    Attributes:
        files: how many.
        size: pixels a side.
        folder: for the files and the shard; what is in it from before is removed.
    """

    files: int
    size: int
    folder: Path


@dataclass(frozen=True)
class Cost:
    """Of one program: wall and CPU seconds, largest resident memory of any of its processes in MB."""

    wall_s: float
    cpu_s: float
    memory_mb: float


def measure(wanted: ImportBenchmark) -> dict[str, Any]:
    """Generate, read barely, import a part and all of it; return files, seconds, memory and the ratio of CPU time.

    Raises:
        InputError: too few files for a part to have three patients, or one of the programs failed.
    """
    if wanted.files < 3 * PART * SLICES:
        raise InputError(f"files={wanted.files}: too few. Take {3 * PART * SLICES:,} or more", code="command-line")
    shutil.rmtree(wanted.folder / "archive", ignore_errors=True)
    generate(wanted)
    source = wanted.folder / "archive"
    start = _cost([sys.executable, "-c", NOTHING])
    bare = _cost([sys.executable, "-c", BARE, source])
    part = _cost(_command(wanted, source / "a", "part"))
    whole = _cost(_command(wanted, source, "whole"))
    shutil.rmtree(source)
    return {
        "files": wanted.files,
        "size": wanted.size,
        "bare": vars(bare),
        "import_part": vars(part),
        "import": vars(whole),
        "start_cpu_s": start.cpu_s,
        "cpu_ratio": whole.cpu_s / bare.cpu_s,
        "memory_ratio": whole.memory_mb / part.memory_mb,
    }


def bench_text(found: dict[str, Any]) -> str:
    """Return the table of what was measured."""
    rows = [["", "files", "wall s", "CPU s", "files/CPU s", "memory MB"]]
    sizes = {"bare": found["files"], "import_part": found["files"] // PART, "import": found["files"]}
    names = {"bare": "pydicom + numpy", "import_part": "import of a part", "import": "import"}
    for key, files in sizes.items():
        cost = found[key]
        rate = files / cost["cpu_s"]
        rows.append([names[key], f"{files:,}", f"{cost['wall_s']:.1f}", f"{cost['cpu_s']:.1f}", f"{rate:,.0f}",
                     f"{cost['memory_mb']:.0f}"])  # fmt: skip
    note = f"import over bare: {found['cpu_ratio']:.2f} of CPU time; memory of all over a part: "
    return f"{table(rows)}\n{note}{found['memory_ratio']:.2f}"


def generate(wanted: ImportBenchmark) -> None:
    """Write volumes of CT slices, all of them different, and a table of labels."""
    from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
    from pydicom.uid import UID, ExplicitVRLittleEndian

    random = np.random.default_rng(0)
    y, x = np.indices((wanted.size, wanted.size)) / wanted.size - 0.5
    body = (np.hypot(y, x) < 0.4) * 1000 + random.integers(0, 200, (wanted.size, wanted.size))
    dataset = FileDataset("", Dataset(), file_meta=FileMetaDataset(), preamble=b"\0" * 128)
    meta = dataset.file_meta
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = dataset.SOPClassUID = UID("1.2.840.10008.5.1.4.1.1.2")
    dataset.Modality, dataset.ImageType, dataset.KVP = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], 120
    dataset.Rows = dataset.Columns = wanted.size
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    dataset.RescaleIntercept, dataset.RescaleSlope, dataset.PixelSpacing = -1024, 1, [0.8, 0.8]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    for number in progress(range(wanted.files), wanted.files, "generating", unit="file"):
        patient, row = divmod(number, SLICES)
        meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = UID(
            f"1.2.826.0.1.3680043.8.498.{patient}.9.{row + 1}"
        )
        dataset.StudyInstanceUID = UID(f"1.2.826.0.1.3680043.8.498.{patient}.8")
        dataset.SeriesInstanceUID = UID(f"1.2.826.0.1.3680043.8.498.{patient}.9")
        dataset.PatientID, dataset.InstanceNumber = f"p{patient}", row + 1
        dataset.ImagePositionPatient = [0, 0, 2.0 * row]
        dataset.PixelData = np.roll(body, (number // wanted.size, number % wanted.size), (0, 1)).astype("<u2").tobytes()
        part = "a" if patient < wanted.files // SLICES // PART else "b"
        path = wanted.folder / "archive" / part / f"{patient}" / f"{row}.dcm"
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
    patients = range(-(-wanted.files // SLICES))
    lines = "".join(f"p{patient},{'ab'[patient % 2]}\n" for patient in patients)
    (wanted.folder / "labels.csv").write_text(f"patient,label\n{lines}", encoding="ascii")


def _command(wanted: ImportBenchmark, source: Path, out: str) -> list[str | Path]:
    shutil.rmtree(wanted.folder / out, ignore_errors=True)
    words: list[str | Path] = [sys.executable, CHECKOUT / "run.py", "prepare", "dicom", source]
    words += ["-o", wanted.folder / out, "--site", "north", "--labels", wanted.folder / "labels.csv"]
    return [*words, "--secret", wanted.folder / "secret"]


def _cost(command: Sequence[str | Path]) -> Cost:
    start_s = time.monotonic()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    told = process.stderr.read().decode(errors="replace")
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise InputError(f"a program of the benchmark failed: {told.strip()[-500:]}", code="bench.failed")
    return Cost(time.monotonic() - start_s, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
