"""What an archive held that is not in a shard, and why: counted on the screen, listed by code in rejects.csv.

A file's name may be a patient's. So the table names files by codes of the site's secret; `--find CODE` tells, at the
site only, which file a code stands for.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from data_prep.importers.secret import Pseudonyms
from data_prep.importers.tree import files_below
from data_prep.importers.volume import Reject
from data_prep.names import shown
from fedhpc.errors import ShardError
from fedhpc.util.csv_text import csv_text

NAME = "rejects.csv"


def reject_table(rejects: Iterable[Reject], codes: Pseudonyms) -> str:
    """Return the table: file, images of it, why. Equal lines are counted."""
    lines = Counter((codes.file(reject.file), reject.why) for reject in rejects)
    ordered = sorted(lines.items(), key=lambda line: line[0][::-1])
    return csv_text([("file", "images", "why"), *((file, count, why) for (file, why), count in ordered)])


def reject_summary(rejects: Sequence[Reject]) -> list[str]:
    """Return a line for each reason, the commonest first."""
    counts = Counter(reject.why for reject in rejects)
    return [f"{count:,} {why}" for why, count in sorted(counts.items(), key=lambda one: (-one[1], one[0]))]


def find_code(source: Path, code: str, codes: Pseudonyms) -> str:
    """Return the path of the file that a code stands for (private: for the terminal of the site only).

    Raises:
        ShardError: no file below the source has it.
    """
    for file in files_below(source):
        if codes.file(file) == code:
            return shown(source / file)
    raise ShardError(
        f"find={code}: no file below {shown(source)} has this code under this secret. Take the codes of {NAME} and the "
        "secret of that import",
        code="prepare",
    )
