"""A toy metric, whole in this file: the share of the test images that are positive."""

from fedhpc.records import metrics
from fedhpc.records.metrics import NEGATIVE, Counts, Metric


def prevalence(counts: Counts) -> float:
    """Of the first task."""
    return 1 - float(counts.test[0, NEGATIVE].sum()) / float(counts.test[0].sum())


def register() -> None:
    """Put it into the table."""
    metrics.METRICS = (*metrics.METRICS, Metric("prevalence", "prevalence", "prev.", prevalence))
