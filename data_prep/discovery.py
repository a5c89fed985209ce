"""Walk a folder of class folders and say of every file what it is, before any image is decoded.

Links to files are followed, as data-set managers store images that way. Links to folders are not, unless asked for,
since they may lead out of the source or around in a circle.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePath

from PIL import Image

from data_prep.inventory import LeftOut

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
SYSTEM_FOLDERS = ("@eadir", "@recycle", "__macosx", "#recycle", "#snapshot", "$recycle.bin", "lost+found")
SYSTEM_NAMES = (*SYSTEM_FOLDERS, "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r")
ARCHIVES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")
VOLUMES = (".nii", ".nii.gz", ".mha", ".mhd", ".nrrd", ".npy", ".npz", ".h5", ".hdf5", ".mat")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")
IMAGE_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"II*\0", b"MM\0*", b"GIF8", b"RIFF")

HIDDEN = "hidden or of the system"
LINKED_FOLDER = "in a linked folder (--follow-links takes it)"
DANGLING = "a link to nothing (fetch the file, or remove the link)"
NO_CLASS = "in no class folder"
NOT_A_FILE = "not a regular file"
OWN_OUTPUT = "in the output folder"
CLOSED_FOLDER = "a folder that cannot be read"
DICOM = "DICOM, which is not read yet"
VOLUME = "a volume or an array, which prepare images does not read"
ARCHIVE = "an archive (unpack it first)"
RENAMED = "an image by its content, not by its name (give it the suffix of its format)"
OTHER = "no image by its name"

SPLIT_NAMES = {
    "train": 0, "training": 0, "trainset": 0, "train_set": 0, "training_set": 0, "training-set": 0,
    "val": 1, "valid": 1, "validation": 1, "validate": 1, "dev": 1, "validation_set": 1,
    "test": 2, "testing": 2, "tests": 2, "testset": 2, "test_set": 2, "testing_set": 2, "holdout": 2, "hold-out": 2,
}  # fmt: skip


@dataclass(frozen=True)
class ImageFile:
    """A file that is an image by its name (private).

    Attributes:
        path: relative to the source.
        class_name: the name of its class folder.
        split: 0 train, 1 validation, 2 test, where the source has split folders; None elsewhere.
    """

    path: PurePath
    class_name: str
    split: int | None = None


@dataclass(frozen=True)
class Tree:
    """What lies in a source.

    Attributes:
        folders: names of the class folders, or of the split folders, that are not hidden.
        images: image files, by class and then by name.
        left: everything else.
    """

    folders: tuple[str, ...]
    images: tuple[ImageFile, ...]
    left: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Walk:
    """How to walk: the source, the folder of the output (skipped), whether links to folders are followed."""

    source: Path
    out: Path
    follow_links: bool = False


def image_suffixes() -> frozenset[str]:
    """The suffixes of the images that this Pillow reads, in lower case."""
    Image.init()
    known = Image.registered_extensions()
    return frozenset(suffix for suffix, name in known.items() if name in FORMATS and name in Image.OPEN)


def explore(walk: Walk) -> Tree:
    """Return what lies in a source: classes or splits in its top folder, images and everything else below."""
    suffixes, folders = image_suffixes(), []
    images: list[ImageFile] = []
    left: list[LeftOut] = []
    for found in _files(walk, PurePath(), frozenset()):
        if isinstance(found, LeftOut):
            left.append(found)
        elif len(found.parts) == 1:
            left.append(_other(walk.source, found, suffixes) or LeftOut(found, NO_CLASS))
        elif other := _other(walk.source, found, suffixes):
            left.append(other)
        else:
            images.append(ImageFile(found, found.parts[0]))
    for entry in _listed(walk.source):
        if _is_folder(walk, PurePath(entry.name), entry) is None:
            folders.append(entry.name)
    return Tree(tuple(folders), tuple(images), tuple(left))


def by_split(tree: Tree) -> Tree:
    """Return the tree read as split folders with class folders in them; the test split comes first.

    Of two equal images in two splits the first is kept: so the test split stays what its authors made it.
    """
    images, left = [], list(tree.left)
    for image in tree.images:
        split = split_of(image.class_name)
        if len(image.path.parts) < 3 or split is None:
            left.append(LeftOut(image.path, NO_CLASS))
        else:
            images.append(ImageFile(image.path, image.path.parts[1], split))
    images.sort(key=lambda image: -(image.split or 0))
    return Tree(tree.folders, tuple(images), tuple(left))


def split_of(folder: str) -> int | None:
    """The split that a folder is named after; None where it is not."""
    return SPLIT_NAMES.get(folder.lower().replace(" ", "_"))


def _files(walk: Walk, folder: PurePath, above: frozenset[str]) -> Iterator[PurePath | LeftOut]:
    try:
        entries = _listed(walk.source / folder)
    except OSError as error:
        yield LeftOut(folder, CLOSED_FOLDER, 0, error.strerror or "")
        return
    here = above | {os.path.realpath(walk.source / folder)}
    for entry in entries:
        path = folder / entry.name
        reason = _is_folder(walk, path, entry)
        if reason == "":
            yield path if entry.is_file() else LeftOut(path, _special(entry))
        elif reason is not None:
            yield LeftOut(path, reason, _count(entry))
        elif os.path.realpath(entry.path) in here:
            yield LeftOut(path, "a link to a folder that it lies in", 0)
        else:
            yield from _files(walk, path, here)


def _is_folder(walk: Walk, path: PurePath, entry: "os.DirEntry[str]") -> str | None:
    """None: a folder to walk into. Empty: no folder. Else why the file or folder is left out."""
    if entry.name.startswith((".", "~$")) or entry.name.lower() in SYSTEM_NAMES:
        return HIDDEN
    if not entry.is_dir():
        return ""
    if entry.is_symlink() and not walk.follow_links:
        return LINKED_FOLDER
    # A folder of shards in the source is no class.
    if walk.out.exists() and os.path.samefile(entry.path, walk.out):
        return OWN_OUTPUT
    return None


def _listed(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return sorted(entries, key=lambda entry: os.fsencode(entry.name))


def _count(entry: "os.DirEntry[str]") -> int:
    """How many files a file or folder stands for."""
    if not entry.is_dir():
        return 1
    return sum(len(files) for _, _, files in os.walk(entry.path))


def _special(entry: "os.DirEntry[str]") -> str:
    return DANGLING if entry.is_symlink() and not os.path.exists(entry.path) else NOT_A_FILE


def _other(source: Path, path: PurePath, suffixes: frozenset[str]) -> LeftOut | None:
    """Why a regular file is no image by its name; None where it is one."""
    name = path.name.lower()
    if path.suffix.lower() in suffixes:
        return None
    for endings, reason in ((DICOM_SUFFIXES, DICOM), (VOLUMES, VOLUME), (ARCHIVES, ARCHIVE)):
        if name.endswith(endings):
            return LeftOut(path, reason)
    try:
        with (source / path).open("rb") as file:
            head = file.read(132)
    except OSError as error:
        return LeftOut(path, OTHER, 1, error.strerror or "unreadable")
    if head[128:] == b"DICM":
        return LeftOut(path, DICOM)
    return LeftOut(path, RENAMED if head.startswith(IMAGE_MAGIC) else OTHER)
