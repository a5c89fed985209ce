"""All files below a folder, in the same order everywhere, and which of them are not opened."""

import os
from pathlib import Path

from data_prep.names import shown
from fedhpc.errors import ShardError

NO_FILE = "a link to nothing, a pipe or a device, not a file"
LINKED_FOLDER = "a link to a folder, which is not followed"
LINKED_OUT = "a link to a file outside of the archive (--follow-links reads it)"


def files_below(source: Path) -> list[str]:
    """Return the paths of all files below `source`, relative, sorted by their bytes.

    A link to a folder is one of them, and not followed: see `refusal`.

    Raises:
        ShardError: no such folder, one inside it that cannot be listed, or no file at all.
    """
    if not source.is_dir():
        raise ShardError(f"{shown(source)}: is no folder. Give the folder of the archive's files", code="prepare")
    found: list[str] = []
    closed: list[OSError] = []
    for folder, below, names in os.walk(source, onerror=closed.append):
        linked = [name for name in below if os.path.islink(os.path.join(folder, name))]
        found += [os.path.relpath(os.path.join(folder, name), source) for name in (*names, *linked)]
    if closed:
        # Not by name: a folder of an archive is often called after its patient.
        raise ShardError(
            f"{shown(source)}: {len(closed)} folders in it cannot be listed. Make them readable", code="prepare"
        )
    if not found:
        raise ShardError(f"{shown(source)}: holds no file. Give the folder of the archive's files", code="prepare")
    return sorted(found, key=os.fsencode)


def refusal(source: Path, file: str, follow_links: bool = False) -> str:
    """Return why a file must not be opened; empty where it may be.

    Args:
        source: the archive's folder.
        file: path below it.
        follow_links: read files outside of it that links name.
    """
    path = source / file
    if not path.is_file():
        return LINKED_FOLDER if path.is_dir() else NO_FILE
    return "" if follow_links or not path.is_symlink() or is_inside(path, source) else LINKED_OUT


def is_inside(path: Path, folder: Path) -> bool:
    """Return whether a path leads to a place below a folder, whatever links and dots it goes through."""
    return path.resolve().is_relative_to(folder.resolve())
