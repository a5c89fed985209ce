"""A log that only its owner may read: entries with their time, appended, mode 0600."""

from datetime import UTC, datetime
from pathlib import Path

from fedhpc.util.files import PRIVATE, append_line, make_folder


def write_log(path: Path, text: str) -> None:
    """Append `text` as one entry; its lines after the first are indented.

    Raises:
        FileError: where it cannot be written.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    make_folder(path.parent)
    append_line(path, f"{now} " + text.strip().replace("\n", "\n    "), mode=PRIVATE)
