"""What a reader must know of runs beside their numbers: what is not private, not complete, not by the config."""

from collections.abc import Sequence

from fedhpc.records.summary import GIVEN_AWAY
from fedhpc.report.rows import Row

MOST_NAMES = 4
PROTECTION = {
    "none": "a rehearsal, in which the aggregator's process held the sites' own vectors.",
    "honest-but-curious": "it protects only from an aggregator that keeps to the protocol.",
    "malicious": "it protects from an aggregator that may send what it likes, as far as the CA is not its own.",
}


def warnings_of(rows: Sequence[Row]) -> list[str]:
    """Return what voids or limits a result, the gravest first."""
    every = bool(rows) and all(row.stress for row in rows)
    return [*insecure_notes(rows), *exact_notes(rows), *absent_notes(rows), *(stress_notes(rows) if every else ())]


def notes_of(rows: Sequence[Row]) -> list[str]:
    """Return what the numbers of the tables mean."""
    notes = [
        "Early: the sensitivity for early lesions, at the config's specificity. 95 % interval: over the test patients "
        "of one run, and over the noise of a private evaluation; it says nothing of other seeds. Up, down: bytes sent "
        "in a round, over all hospitals."
    ]
    deltas = sorted({row.delta for row in rows if row.delta is not None})
    if deltas:
        notes.append(
            f"Epsilon at delta {', '.join(f'{delta:g}' for delta in deltas)}, by each run's own ledger, for training "
            "patients. Private runs on the same patients add up: `run.py privacy SHARD` tells the sum."
        )
    return [*notes, *released_notes(rows), *stress_notes(rows), *_trust_notes(rows)]


def released_notes(rows: Sequence[Row]) -> list[str]:
    """Return what private runs have released of validation and test patients, with noise."""
    asked = sorted({row.evaluation_epsilon for row in rows if row.evaluation_epsilon is not None})
    if not asked:
        return []
    return [
        f"Validation and test patients have an epsilon of their own, of at most "
        f"{', '.join(f'{epsilon:g}' for epsilon in asked)} a run: their metrics contain its noise."
    ]


def exact_notes(rows: Sequence[Row]) -> list[str]:
    """Return which private runs have released exact metrics."""
    exact = [row for row in rows if row.released_exactly]
    return [f"NOT PRIVATE in {_named(exact)}: {GIVEN_AWAY}."] if exact else []


def insecure_notes(rows: Sequence[Row]) -> list[str]:
    """Return which runs have no guarantee though an epsilon was asked for."""
    seeded = [row for row in rows if row.insecure]
    if not seeded:
        return []
    return [f"INSECURE: privacy.noise_seed was set in {_named(seeded)}: the noise can be removed, no epsilon holds."]


def absent_notes(rows: Sequence[Row]) -> list[str]:
    """Return which runs have rounds without a declared hospital, a note a run."""
    return [f"INCOMPLETE: {row.name} has rounds without {row.absent}." for row in rows if row.absent]


def stress_notes(rows: Sequence[Row]) -> list[str]:
    """Return which runs are stress tests."""
    stressed = [row for row in rows if row.stress]
    if len(stressed) == 1:
        return [f"STRESS TEST: {stressed[0].name}: {stressed[0].stress}, on purpose. Its model is not for use."]
    return [f"STRESS TEST in {_named(stressed)}, on purpose. These models are not for use."] if stressed else []


def _trust_notes(rows: Sequence[Row]) -> list[str]:
    """Against whom secure aggregation has protected, a note a level."""
    notes = []
    for level, meaning in PROTECTION.items():
        there = [row for row in rows if row.protects_from_aggregator == level]
        if there:
            left = max(row.epsilon_if_unmasked or 0.0 for row in there)
            notes.append(
                f"Secure aggregation of {_named(there)}: {meaning} If that fails, epsilon {left:.2f} is left at most."
            )
    return notes


def _named(rows: Sequence[Row]) -> str:
    """Return the names of some runs; of many the first ones and how many more."""
    names = [row.name for row in rows]
    if len(names) <= MOST_NAMES + 1:
        return ", ".join(names)
    return f"{', '.join(names[:MOST_NAMES])} and {len(names) - MOST_NAMES} more"
