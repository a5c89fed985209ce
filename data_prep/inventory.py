"""What an import found, took and left out, and why: one table, so that nothing is dropped silently (private).

File names can identify patients. The table on the screen names at most three files of each kind; all of them are
written to a file only on request (`--list-files`), and that file is as private as the images.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from data_prep.names import shown
from fedhpc.util.csv_text import csv_text
from fedhpc.util.text import count_of, first_names


@dataclass(frozen=True)
class LeftOut:
    """A file or a folder that is not imported.

    Attributes:
        path: relative to the source; a folder's stands for all files in it.
        reason: why, the same words for all of a kind.
        files: how many files it stands for.
        detail: what is known of this one beside the reason.
    """

    path: PurePath
    reason: str
    files: int = 1
    detail: str = ""

    @property
    def text(self) -> str:
        """Its name, escaped, with what is known of it."""
        name = shown(self.path) + (f"/ ({self.files} files)" if self.files != 1 else "")
        return f"{name} ({self.detail})" if self.detail else name


@dataclass(frozen=True)
class Inventory:
    """All files of a source, each with what became of it.

    Attributes:
        source: the folder, as it was given.
        taken: the images that are in a shard, with their class.
        left: everything else.
        notes: what is worth knowing of images that were taken.
    """

    source: PurePath
    taken: Sequence[tuple[PurePath, str]]
    left: Sequence[LeftOut]
    notes: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The table: how many files were found and taken, then a line for each reason with its first three names."""
        left_files = sum(entry.files for entry in self.left)
        lines = [
            f"found {count_of(len(self.taken) + left_files, 'file')} in {shown(self.source)}",
            f"  taken {count_of(len(self.taken), 'image')}: {_per_class(name for _, name in self.taken)}",
            *(
                f"    of them {len(names):,} {what}: {first_names(names)}"
                for what, names in self.notes.items()
                if names
            ),
            f"  left out {count_of(left_files, 'file')}" + (":" if self.left else ""),
        ]
        return "\n".join(lines + [f"    {line}" for line in reasons(self.left)])

    def csv(self) -> str:
        """Every file on a line of its own: file, what became of it (taken or left out), class or reason."""
        taken = [(shown(path), "taken", name, 1) for path, name in self.taken]
        left = [
            (shown(entry.path), "left out", ": ".join(filter(None, (entry.reason, entry.detail))), entry.files)
            for entry in self.left
        ]
        return csv_text([("file", "outcome", "class_or_reason", "files"), *taken, *left])


def reasons(left: Iterable[LeftOut]) -> list[str]:
    """A line for each reason, the commonest first: how many files, why, three names."""
    kinds: dict[str, list[LeftOut]] = {}
    for entry in left:
        kinds.setdefault(entry.reason, []).append(entry)
    counts = {reason: sum(entry.files for entry in entries) for reason, entries in kinds.items()}
    return [
        f"{counts[reason]:,} {reason}: {first_names([entry.text for entry in kinds[reason]])}"
        for reason in sorted(kinds, key=lambda reason: -counts[reason])
    ]


def _per_class(names: Iterable[str]) -> str:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return ", ".join(f"{shown(name)} {counts[name]:,}" for name in sorted(counts))
