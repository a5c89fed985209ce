"""AUC, F1 and sensitivity from exact score histograms: what a site releases of its predictions without privacy.

A histogram of logit scores per class is additive over sites, so the global metrics come from exact sums of what the
sites sent, to within one bin of 1/64 logit. It is exact: who knows a patient's score sees in its bin whether the
patient is there and in which class. With privacy on, a site therefore sends a few counts with noise instead
(`fedhpc.site.release`), unless `evaluation.epsilon: null` asks for these.

The interval comes from what the patients of each site add to the AUC's variance (`fedhpc.records.intervals`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhpc.util.arrays import F64, I64

BINS, LOGIT_RANGE = 2048, 16.0
NEGATIVE, LATE, EARLY = range(3)


@dataclass(frozen=True)
class Predictions:
    """A model's output on n images of one split (private).

    Attributes:
        logits: f32[n, K], before softmax, or sigmoid where there are several findings.
        labels: int64[n], a class each; or int64[n, K], 1 for each finding that is there.
        early: bool[n], small lesion.
        patient: S16[n].
    """

    logits: NDArray[np.float32]
    labels: I64
    early: NDArray[np.bool_]
    patient: NDArray[np.bytes_]


@dataclass(frozen=True)
class Metrics:
    """Macro one-vs-rest over the classes (for two classes: of the second).

    Attributes:
        values: by the key of each of `METRICS`; None where it cannot be told, as where a split lacks a class.
        n_images: how many images were measured.
        by_class: the same values of each task of `score_histogram`: a class against all else, or a finding.
    """

    values: Mapping[str, float | None]
    n_images: int
    by_class: tuple[Mapping[str, float | None], ...] = ()

    def __getitem__(self, key: str) -> float | None:
        return self.values[key]

    @property
    def auc(self) -> float | None:
        """The area under the ROC curve."""
        return self.values["auc"]


def score_histogram(predictions: Predictions) -> I64:
    """int64[T, 3, BINS]: counts of images by one-vs-rest logit, for negatives, late and early positives.

    T is 1 for two exclusive classes (the second against the first), else the number of classes or findings.
    """
    scores, positive = one_vs_rest(predictions.logits, predictions.labels)
    tasks = scores.shape[1]
    group = np.where(positive, np.where(predictions.early[:, None], EARLY, LATE), NEGATIVE)
    cell = (np.arange(tasks) * 3 + group) * BINS + cell_of(scores)
    return np.bincount(cell.ravel(), minlength=tasks * 3 * BINS).reshape(tasks, 3, BINS)


def one_vs_rest(logits: NDArray[np.float32], labels: I64) -> tuple[F64, NDArray[np.bool_]]:
    """(log odds f64[n, T], is positive bool[n, T]) of each class against all the others.

    Of several findings (labels [n, K]) a logit is the log odds of its finding already.
    """
    z = logits.astype(np.float64)
    if labels.ndim == 2:
        return np.nan_to_num(z, nan=0.0, posinf=1e300, neginf=-1e300), labels == 1
    classes = z.shape[1]
    odds = np.empty_like(z)
    with np.errstate(invalid="ignore"):
        for k in range(classes):
            odds[:, k] = z[:, k] - np.logaddexp.reduce(np.delete(z, k, axis=1), axis=1)
    odds = np.nan_to_num(odds, nan=0.0, posinf=1e300, neginf=-1e300)
    positive = labels[:, None] == np.arange(classes)
    return (odds[:, 1:], positive[:, 1:]) if classes == 2 else (odds, positive)


def bin_of(score: float) -> int:
    """Return the bin of `score_histogram` that a score of any size falls into."""
    return int(cell_of(np.array(score)))


def lower_edge(bin: int) -> float:
    """Return the score at which a bin of `score_histogram` begins, in log odds.

    >>> lower_edge(BINS // 2), lower_edge(bin_of(-0.25))
    (0.0, -0.25)
    """
    return bin * 2 * LOGIT_RANGE / BINS - LOGIT_RANGE


def cell_of(scores: F64) -> I64:
    """Return the bin of each score, int64, 0 to BINS - 1."""
    position = np.floor((scores + LOGIT_RANGE) * (BINS / (2 * LOGIT_RANGE)))
    return np.clip(position, 0, BINS - 1).astype(np.int64)


def auc(histogram: I64) -> float | None:
    """Macro area under the ROC curve of counts int64[T, 3, BINS]; ties within a bin count half.

    >>> counts = np.zeros((1, 3, BINS), np.int64)
    >>> counts[0, NEGATIVE, [1, 5]] = 1
    >>> counts[0, LATE, 5] = 2
    >>> auc(counts)
    0.75
    """
    negative, positive = histogram[:, NEGATIVE], histogram[:, LATE] + histogram[:, EARLY]
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + negative / 2)).sum(axis=1)
    pairs = positive.sum(axis=1) * negative.sum(axis=1)
    return _macro(wins, pairs)


def _macro(numerator: F64 | I64, denominator: F64 | I64) -> float | None:
    """Return the mean ratio over the tasks; None as soon as one task has no denominator."""
    if not denominator.all():
        return None
    return float((numerator / denominator).mean())


def f1_thresholds(histogram: I64) -> I64:
    """int64[T]: the first bin that counts as positive, chosen to maximise F1 on (validation) counts."""
    true_positive, false_positive = _tail(histogram, (LATE, EARLY)), _tail(histogram, (NEGATIVE,))
    positives = true_positive[:, :1]
    f1 = 2 * true_positive / np.maximum(true_positive + false_positive + positives, 1)
    best: I64 = f1.argmax(axis=1)
    return best


def _tail(histogram: I64, groups: tuple[int, ...]) -> I64:
    """int64[T, BINS]: how many images of `groups` lie in a bin or above it."""
    counts = histogram[:, list(groups)].sum(axis=1)
    tail: I64 = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]
    return tail


def f1(histogram: I64, thresholds: I64) -> float | None:
    """Macro F1 of (test) counts at thresholds chosen elsewhere."""
    tasks = np.arange(len(histogram))
    true_positive = _tail(histogram, (LATE, EARLY))[tasks, thresholds]
    false_positive = _tail(histogram, (NEGATIVE,))[tasks, thresholds]
    positives = histogram[:, [LATE, EARLY]].sum(axis=(1, 2))
    if not positives.all():
        return None
    return _macro(2 * true_positive, true_positive + false_positive + positives)


def sensitivity_at(histogram: I64, specificity: float, groups: tuple[int, ...] = (LATE, EARLY)) -> float | None:
    """Macro share of the positives in `groups` found at the lowest threshold with at least this specificity."""
    false_positive, found = _tail(histogram, (NEGATIVE,)), _tail(histogram, groups)
    negatives = false_positive[:, :1]
    # One more threshold, above all bins: there no image is positive and the specificity is 1.
    false_positive, found = (np.pad(counts, ((0, 0), (0, 1))) for counts in (false_positive, found))
    allowed = false_positive <= np.floor((1 - specificity) * negatives + 1e-9)
    return _macro(found[np.arange(len(found)), allowed.argmax(axis=1)], found[:, 0])


@dataclass(frozen=True)
class Counts:
    """What an exact metric is computed from.

    Attributes:
        test: int64[T, 3, BINS], see `score_histogram`.
        thresholds: int64[T], the bin from which on a task is called positive, chosen on validation counts.
        specificity: of the sensitivities.
    """

    test: I64
    thresholds: I64
    specificity: float


@dataclass(frozen=True)
class Metric:
    """One figure of merit. Records, summary, console, report and CSV go through `METRICS` and name none of them.

    Attributes:
        key: its name in summary.json and report.csv.
        name: in a sentence.
        head: of its column in tables; empty: it is in the files alone.
        exact: from counts; None where it cannot be told.
        private: whether a private evaluation releases it (`fedhpc.run.evaluation.private`).
    """

    key: str
    name: str
    head: str
    exact: Callable[[Counts], float | None]
    private: bool = False


METRICS: tuple[Metric, ...] = (
    Metric("auc", "AUC", "AUC", lambda c: auc(c.test), private=True),
    Metric("f1", "F1", "F1", lambda c: f1(c.test, c.thresholds), private=True),
    Metric("sensitivity", "sensitivity", "", lambda c: sensitivity_at(c.test, c.specificity), private=True),
    Metric(
        "sensitivity_early",
        "early-stage sensitivity",
        "early",
        lambda c: sensitivity_at(c.test, c.specificity, (EARLY,)),
        private=True,
    ),
)
"""All metrics, the AUC first. To add one, add its line here."""


def shown_metrics() -> tuple[Metric, ...]:
    """Those with a column of their own beside the AUC's."""
    return tuple(metric for metric in METRICS[1:] if metric.head)


def unknown() -> Metrics:
    """Nothing could be measured."""
    return Metrics(dict.fromkeys(metric.key for metric in METRICS), 0)


def metrics(test: I64, thresholds: I64, specificity: float) -> Metrics:
    """All the metrics of test counts int64[T, 3, BINS]."""
    tasks = (slice(None), *(slice(k, k + 1) for k in range(len(test))))
    overall, *by_class = (
        {metric.key: metric.exact(Counts(test[k], thresholds[k], specificity)) for metric in METRICS} for k in tasks
    )
    return Metrics(overall, int(test[0].sum()), tuple(by_class))
