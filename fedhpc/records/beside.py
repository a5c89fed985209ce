"""Finished runs on the same data in the folder that a run lies in, to compare it with."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.records.summary import data_digest

LOG = logging.getLogger(__name__)

T = TypeVar("T")
UNFIT = (InputError, OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError)
"""What rubbish in the place of a summary raises."""


def newest_beside(here: Path, config: RunConfig, show: Callable[[Path, Mapping[str, Any]], T | None]) -> list[T]:
    """Return what `show` makes of the newest run of each other mode on the same data, beside the run at `here`.

    What lies there may be of another program or another user: what cannot be shown is left out, with a warning.

    Args:
        here: the run directory.
        config: of that run.
        show: takes a run directory and its summary; None: it is passed over.
    """
    found: dict[str, tuple[float, T]] = {}
    for path in sorted(here.resolve().parent.glob("*/summary.json")):
        try:
            summary, changed_s = RunDirectory(path.parent).read_summary(), path.stat().st_mtime
            mode = str(summary["mode"])
            same = summary.get("data") == data_digest(config) and mode != config.mode
            newer = same and changed_s > found.get(mode, (0.0,))[0]
            shown = show(path.parent, summary) if newer else None
        except UNFIT as error:
            reason = str(error) if isinstance(error, InputError) else f"{path}: {type(error).__name__}"
            LOG.warning("left out of the comparison: %s", reason)
            continue
        if shown is not None:
            found[mode] = (changed_s, shown)
    return [one for _, one in found.values()]
