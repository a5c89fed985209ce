"""What a dry run shows: the series found, and what would be taken of them. No name, date, UID or free text."""

from collections import Counter
from collections.abc import Sequence

from data_prep.importers.rejects import reject_summary
from data_prep.importers.volume import Facts, Found, Series
from fedhpc.util.text import count_of, fitted

HEAD = ("modality", "protocol", "plane", "size", "spacing", "series", "images", "lesions", "notes")
MOST = 40


def listing(found: Found, without_labels: Sequence[Series]) -> str:
    """Return the table of series, alike ones in one line, then what would be left out.

    Args:
        found: the series that would be taken, and the rejects.
        without_labels: series that no label is known of.
    """
    rows = [list(HEAD), *_rows(found.series)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEAD))]
    padded = [[value.ljust(width) for value, width in zip(row, widths, strict=True)] for row in rows]
    images = sum(len(series.frames) for series in found.series)
    patients = len({series.patient for series in found.series})
    lines = [
        f"found {count_of(found.files, 'file')}; would take {count_of(images, 'image')} of "
        f"{len(found.series):,} series and {count_of(patients, 'patient')} at most",
        fitted(padded) if found.series else "",
    ]
    if without_labels:
        lost = sum(len(series.frames) for series in without_labels)
        lines.append(f"without a label: {len(without_labels):,} series, {count_of(lost, 'image')}")
    reasons = reject_summary(found.rejects)
    lines += [f"would leave out {len(found.rejects):,}:" if reasons else "would leave out nothing"]
    return "\n".join([*filter(None, lines), *(f"  {line}" for line in reasons)])


def _rows(series: Sequence[Series]) -> list[list[str]]:
    """A line for each kind of series, the commonest first."""
    kinds: Counter[tuple[Facts, bool]] = Counter()
    images: Counter[tuple[Facts, bool]] = Counter()
    for one in series:
        kinds[one.facts, one.has_lesions] += 1
        images[one.facts, one.has_lesions] += len(one.frames)
    rows = [
        [
            facts.modality, facts.protocol, facts.plane, facts.size, facts.spacing, str(count),
            str(images[facts, lesions]), "yes" if lesions else "no", ", ".join(facts.notes),
        ]
        for (facts, lesions), count in kinds.most_common(MOST)
    ]  # fmt: skip
    more = len(kinds) - len(rows)
    return [*rows, ["...", f"{more} more kinds", *[""] * 7]] if more > 0 else rows
