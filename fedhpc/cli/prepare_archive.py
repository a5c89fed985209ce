"""`run.py prepare dicom|nifti`: the options that archives have in common, and what is done with them."""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhpc.cli.common import Parser, add_output_file
from fedhpc.cli.status import FINISHED, INTERRUPTED, TERMINATED

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from data_prep.importers.job import ArchiveImport

DICOM = (
    "{run} prepare dicom /archive -o shards --site north --lesion slice",
    "{run} prepare dicom /archive -o shards --site south --labels a.csv \\\n"
    "      --modality MR --plane axial --max-slices 20",
)
DICOM_TEXT = """Import a tree of DICOM files: CT and MR volumes, CR, DX and MG images. With
--site the archive is that of one hospital; with --sites it is divided, for studies.
Labels come from contours (RTSTRUCT) and segments (DICOM-SEG) by --lesion, or from
a table by --labels.

A shard holds pixels, label, split, modality, stage and a pseudonym, nothing else of
a file. Pseudonyms need a secret, made on first use and never to be given away.
Images whose headers speak of text in the pixels are refused. Shards are as private
as the images: the outline of a head or body is in every slice of it."""

NIFTI = (
    "{run} prepare nifti volumes -o shards --site north --lesion slice",
    "{run} prepare nifti volumes -o shards --site north --labels a.csv \\\n"
    "      --patient-regex '^(P[0-9]+)/' --plane axial",
)
NIFTI_TEXT = """Import NIfTI (.nii, .nii.gz) and NRRD (.nrrd, .nhdr) volumes. Labels come from
masks beside them (p1_mask.nii.gz beside p1.nii.gz) by --lesion, or from a table by
--labels, joined on file or patient.

Of a header only the grid is read. For what a shard holds see `prepare dicom`."""
NPZ = (
    "{run} prepare npz scans.npz -o shards --classes no yes --site north",
    "{run} prepare npz scans.npz -o shards --classes no yes --sites 2",
)
NPZ_TEXT = """Import a .npz file of images uint8, uint16 or float32 [n, H, W], [n, C, H, W]
or, of volumes, [n, C, D, H, W], labels [n] and patients [n]; modality, early and split [n] where there are any.
Patients become pseudonyms under the secret of the site."""


def add_dicom(kinds: "_SubParsersAction[Parser]") -> None:
    """Add `prepare dicom`."""
    parser = kinds.add_parser("dicom", help="a tree of DICOM files")
    parser.describe(DICOM_TEXT, DICOM)
    parser.add_argument("source", type=Path, metavar="DIR", help="the archive's folder")
    _add_common(parser)
    series = parser.add_argument_group("which series")
    series.add_argument(
        "--modality", nargs="+", type=str.upper, default=[], metavar="CT|MR|...", help="take these only"
    )
    series.add_argument("--plane", choices=("axial", "coronal", "sagittal"), help="take volumes of this plane only")
    series.add_argument("--description", metavar="REGEX", help="searched in the series description")
    series.add_argument("--min-slices", type=int, default=1, metavar="N", help="fewer make no volume")
    series.add_argument(
        "--patient-regex", metavar="REGEX", help="of files without PatientID: its group is the patient, in the path"
    )
    series.add_argument("--blank", type=Path, metavar="FILE", help="device rules beside data_prep/assets/blanking.yaml")
    series.add_argument("--ocr", action="store_true", help="leave out images in which tesseract finds text")
    sheet = "contact sheet of images that may show text"
    add_output_file(series, "--quarantine", suffix=".png", text=sheet, metavar="PNG")
    parser.set_defaults(action=_dicom)


def add_nifti(kinds: "_SubParsersAction[Parser]") -> None:
    """Add `prepare nifti`."""
    parser = kinds.add_parser("nifti", help="NIfTI and NRRD volumes with masks")
    parser.describe(NIFTI_TEXT, NIFTI)
    parser.add_argument("source", type=Path, metavar="DIR", help="the folder of the volumes")
    _add_common(parser)
    series = parser.add_argument_group("which volumes")
    series.add_argument("--modality", dest="format_modality", type=str.upper, default="OT", metavar="MR|CT|...",
                        help="of all volumes: CT is windowed in Hounsfield units")  # fmt: skip
    series.add_argument("--mask-suffix", default="_mask", metavar="TEXT", help="of a mask's name, behind its volume's")
    series.add_argument("--image-suffix", default="", metavar="TEXT", help="of a volume's, in a mask's place")
    series.add_argument("--patient-regex", metavar="REGEX", help="its group is the patient, in the path")
    series.add_argument("--plane", choices=("axial", "coronal", "sagittal"), help="cut slices of this plane")
    series.add_argument("--min-slices", type=int, default=1, metavar="N", help="fewer make no volume")
    parser.set_defaults(action=_nifti)


def add_npz(kinds: "_SubParsersAction[Parser]") -> None:
    """Add `prepare npz`."""
    parser = kinds.add_parser("npz", help="a NumPy archive of images, labels and patients")
    parser.describe(NPZ_TEXT, NPZ)
    parser.add_argument("source", type=Path, metavar="FILE", help="the .npz file")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="the folder of the shards")
    parser.add_argument("--classes", nargs="+", required=True, metavar="NAME", help="of the labels 0, 1, ...")
    parser.add_argument("--secret", type=Path, metavar="FILE", help="(default: ~/.config/fedhpc/site_secret)")
    parser.add_argument("--replace", action="store_true", help="remove the shards of another import from OUT first")
    parser.add_argument("--pixel-range", type=float, nargs=2, metavar=("LOW", "HIGH"), help="of float32 images: public")
    _add_hospitals(parser.add_argument_group("hospitals and splits"))
    parser.set_defaults(action=_npz)


def _add_common(parser: Parser) -> None:
    parser.add_argument("-o", "--out", type=Path, metavar="OUT", help="the folder of the shards")
    parser.add_argument("--dry-run", action="store_true", help="show what is there and would be taken, write no shard")
    parser.add_argument("--find", metavar="CODE", help="name the file that a code of rejects.csv stands for")
    parser.add_argument("--secret", type=Path, metavar="FILE", help="(default: ~/.config/fedhpc/site_secret)")
    parser.add_argument("--replace", action="store_true", help="remove the shards of another import from OUT first")
    parser.add_argument(
        "--follow-links", action="store_true", help="read files outside of DIR that links name (folders: never)"
    )
    _add_labels(parser.add_argument_group("labels"))
    _add_images(parser.add_argument_group("images"))
    division = parser.add_argument_group("hospitals and splits")
    _add_hospitals(division)
    _add_slabs(division)


def _add_labels(group: Any) -> None:
    group.add_argument("--labels", type=Path, metavar="CSV", help="a table: label, and file, series, study or patient")
    group.add_argument("--lesion", choices=("slice", "patch"), help="label slices (of a grid: blocks) or patches")
    group.add_argument("--roi", metavar="REGEX", help="searched in the names of contours (default: all count)")
    group.add_argument("--patch-mm", type=float, default=50.0, metavar="MM", help="side of a patch")
    group.add_argument(
        "--least-mm2", type=float, default=10.0, metavar="MM2", help="smaller ones leave their slice out"
    )
    group.add_argument("--early-mm", type=float, default=30.0, metavar="MM", help="largest diameter of early ones")
    group.add_argument(
        "--negatives", type=float, metavar="X", help="images without lesion for each one with it (default: all slices)"
    )
    group.add_argument("--classes", nargs="+", metavar="NAME", help="in order (default: sorted)")


def _add_images(group: Any) -> None:
    group.add_argument("--size", type=int, default=64, metavar="PIXELS", help="pixels a side")
    group.add_argument("--pixel-mm", type=float, metavar="MM", help="of a pixel (default: all of the image fits in)")
    group.add_argument(
        "--window", nargs="+", default=["wide"], metavar="NAME",
        help="of CT, a channel each: wide, lung, mediastinum, soft, bone, brain, subdural, stroke, liver; "
        "hu alone for Hounsfield units",
    )  # fmt: skip
    group.add_argument("--stack", type=int, default=1, metavar="N", help="neighbouring slices as channels (2.5-D)")
    group.add_argument("--depth", type=int, metavar="N", help="3-D patches of N planes: around lesions, or a grid")
    group.add_argument("--slice-mm", type=float, metavar="MM", help="between their planes (default: as their pixels)")
    group.add_argument("--every-mm", type=float, default=0.0, metavar="MM", help="least distance of slices taken")
    group.add_argument("--max-slices", type=int, metavar="N", help="or 3-D patches, of one series, evenly spaced")


def _add_hospitals(group: Any) -> None:
    group.add_argument("--site", metavar="NAME", help="all is of this hospital")
    group.add_argument("--sites", type=int, default=4, metavar="N", help="divide among hospitals, for studies")
    group.add_argument("--skew", type=float, metavar="ALPHA", help="Dirichlet alpha of the label skew")
    group.add_argument("--seed", type=int, default=0, metavar="N", help="of the division")
    group.add_argument("--all-test", action="store_true", help="no training split")
    group.add_argument("--val-share", type=float, default=0.1, metavar="SHARE", help="of patients, for validation")


def _add_slabs(group: Any) -> None:
    group.add_argument(
        "--slabs", type=int, default=1, metavar="N",
        help="cut volumes into N pieces that count as patients: for trying out only, as splits are not by patient",
    )  # fmt: skip


def _dicom(options: argparse.Namespace) -> int:
    from data_prep.importers.dicom import find

    return _do(options, find, "dicom")


def _nifti(options: argparse.Namespace) -> int:
    from data_prep.importers.nifti import find

    if options.patient_regex is None and not options.find:
        told = "each file counts as a patient of its own; where patients have several, give --patient-regex"
        print(f"note: {told}", file=sys.stderr)
    return _do(options, find, "nifti")


def _npz(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from data_prep.importers.arrays import ArraysImport, import_arrays
    from data_prep.importers.secret import default_path
    from data_prep.names import shown

    given = {field.name: getattr(options, field.name) for field in fields(ArraysImport)}
    given |= {"classes": tuple(options.classes), "secret": options.secret or default_path()}
    given["pixel_range"] = tuple(options.pixel_range) if options.pixel_range else None
    for path in import_arrays(ArraysImport(**given)):
        print(shown(path))
    return FINISHED


def _do(options: argparse.Namespace, finder: Callable[..., Any], name: str) -> int:
    from data_prep.importers.pipeline import dry_run, import_archive
    from data_prep.importers.rejects import find_code
    from data_prep.importers.secret import site_pseudonyms
    from data_prep.names import shown
    from fedhpc.errors import FedhpcError, ShardError, public_cause

    job = _job(options)
    if options.find:
        print(find_code(job.source, options.find, site_pseudonyms(job.secret, job.out)))
        return FINISHED
    try:
        if options.dry_run:
            print(dry_run(job, finder))
            return FINISHED
        paths = import_archive(job, finder, name)
    except (KeyboardInterrupt, SystemExit) as stop:
        by, status = ("Ctrl-C", INTERRUPTED) if isinstance(stop, KeyboardInterrupt) else ("SIGTERM", TERMINATED)
        print(f"stopped by {by}: no shard was written; the same command goes on where this ended", file=sys.stderr)
        return status
    except FedhpcError:
        raise
    except MemoryError:
        raise ShardError(
            f"{shown(job.source)}: the memory does not suffice. Free some, and start again: what is finished is kept",
            code="prepare",
        ) from None
    except Exception as error:
        # Its own words may quote a header or the name of a file, which may be a patient's.
        raise ShardError(
            f"{shown(job.source)}: the import failed, {public_cause(error)}. Send this line to the makers of fedhpc; "
            "what is finished is kept",
            code="internal",
        ) from None
    for path in paths:
        print(shown(path))
    return FINISHED


def _job(options: argparse.Namespace) -> "ArchiveImport":
    from dataclasses import fields

    from data_prep.importers.job import ArchiveImport
    from data_prep.importers.lesions import LesionRule
    from data_prep.importers.recipe import Depth, Recipe
    from data_prep.importers.resample import Square
    from data_prep.importers.secret import default_path
    from fedhpc.errors import InputError

    if options.out is None and not (options.dry_run or options.find):
        raise InputError("out: missing. Name the folder of the shards by -o, or add --dry-run", code="command-line")
    if options.slice_mm is not None and options.depth is None:
        raise InputError("slice_mm: has no effect without depth. Add --depth N", code="command-line")
    told = {field.name: getattr(options, field.name, None) for field in fields(ArchiveImport)}
    given: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    if options.lesion:
        patch_mm = options.patch_mm if options.lesion == "patch" else None
        lesion = LesionRule(patch_mm, options.least_mm2, options.early_mm, options.negatives, options.roi)
    else:
        lesion = None
    recipe = Recipe(
        Square(options.size, options.pixel_mm), tuple(options.window), options.stack, options.every_mm,
        options.max_slices, lesion, Depth(options.depth, options.slice_mm) if options.depth is not None else None,
    )  # fmt: skip
    given |= {
        "out": options.out or Path("shards"),
        "secret": options.secret or default_path(),
        "modality": tuple(getattr(options, "modality", ())),
        "classes": tuple(options.classes) if options.classes else None,
        "recipe": recipe,
    }
    return ArchiveImport(**given)
