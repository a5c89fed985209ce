"""All files below a folder, in the same order everywhere."""

import os
from pathlib import Path

from data_prep.names import shown
from fedhpc.errors import ShardError


def files_below(source: Path) -> list[str]:
    """Return the paths of all files below `source`, relative, sorted by their bytes. Links to folders are not followed.

    Raises:
        ShardError: no such folder, one inside it that cannot be listed, or no file at all.
    """
    if not source.is_dir():
        raise ShardError(f"{shown(source)}: is no folder. Give the folder of the archive's files", code="prepare")
    found: list[str] = []
    closed: list[OSError] = []
    for folder, _, names in os.walk(source, onerror=closed.append):
        found += [os.path.relpath(os.path.join(folder, name), source) for name in names]
    if closed:
        # Not by name: a folder of an archive is often called after its patient.
        raise ShardError(
            f"{shown(source)}: {len(closed)} folders in it cannot be listed. Make them readable", code="prepare"
        )
    if not found:
        raise ShardError(f"{shown(source)}: holds no file. Give the folder of the archive's files", code="prepare")
    return sorted(found, key=os.fsencode)
