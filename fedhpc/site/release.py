"""What a site releases of its validation or test patients with privacy on: a few weighted counts with noise.

    scores of the split -> one-vs-rest log odds -> K bins by public edges -> integer weights -> + noise -> rank 0

A threshold may have a width: an image whose score is near it counts in part on either side, by how far it is across.

Formal guarantee. Adding or removing one unit (a patient, or an image with privacy.unit=image) moves the vector of
weighted counts by at most `Weights.l1` in the L1 norm, since the unit's images have so much weight together and each
adds its weight to one bin a task, or to neighbouring bins in parts whose sum is its weight. An image's scores are a
function of the image alone: `fedhpc.site.evaluation.predict` and `fedhpc.site.data.samples.FeatureSamples` compute each
by itself. With discrete Laplace noise of scale l1 / epsilon the
release is epsilon-private by itself (`fedhpc.privacy.laplace`), and with privacy.trust=sites the sum over the honest
sites' releases is. The edges and their widths are public: from an earlier private release, or fixed.

Several classes: an image is once among the positives of its own class and K - 1 times among the negatives of others.
The former weigh K - 1 times as much, so that both have the same noise for their number. Several findings: an image may
be among the positives of any number of them, up to all. So positives weigh as negatives: whatever its findings are, an
image adds its weight to the bins of each of the K tasks, K times its weight in all.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from pydantic import ConfigDict, Field, TypeAdapter, field_validator, model_validator
from pydantic.dataclasses import dataclass as checked

from fedhpc.config.model import TaskKind
from fedhpc.errors import PrivacyError
from fedhpc.privacy.laplace import laplace_integers
from fedhpc.privacy.noise import KeyStream
from fedhpc.records.metrics import Predictions, one_vs_rest
from fedhpc.util.arrays import F32, F64, I64

WHOLE = 840
"""The weight of an image of a patient with few images; divisible by 1 to 8, so that most other weights are exact."""
MOST_BINS = 64
Edge = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]


@checked(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class Question:
    """What rank 0 asks of every site (public).

    Attributes:
        stage: see `fedhpc.privacy.evaluation_plan`.
        split: "val" or "test".
        groups: 2: negatives and positives; 3: negatives, positives of late and of early stage.
        edges: of the bins, in log odds, for each task.
        widths: of the edges of each task, in log odds; none: edges without a width.
    """

    stage: Annotated[int, Field(ge=1, le=2**31)]
    split: Literal["val", "test"]
    groups: Literal[2, 3]
    edges: Annotated[tuple[tuple[Edge, ...], ...], Field(min_length=1, max_length=1000)]
    widths: tuple[Annotated[Edge, Field(ge=0)], ...] = ()

    @field_validator("edges")
    @classmethod
    def _rising(cls, edges: tuple[tuple[float, ...], ...]) -> tuple[tuple[float, ...], ...]:
        first = len(edges[0])
        if not 1 <= first < MOST_BINS or any(len(one) != first or list(one) != sorted(set(one)) for one in edges):
            raise ValueError(f"edges: each task needs the same number of rising edges, at most {MOST_BINS - 1}")
        return edges

    @model_validator(mode="after")
    def _apart(self) -> Self:
        if not self.widths:
            return self
        if len(self.widths) != len(self.edges):
            raise ValueError("widths: one for each task, or none")
        if any((np.diff(edges) < width).any() for edges, width in zip(self.edges, self.widths, strict=True)):
            raise ValueError("widths: no larger than the distance between two edges")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(tasks, groups, bins) of the answer."""
        return len(self.edges), self.groups, len(self.edges[0]) + 1

    def digest(self, params: F32) -> str:
        """Of the question and the model that it is about."""
        return hashlib.sha256(
            repr((self.stage, self.split, self.groups, self.edges, self.widths)).encode() + params.data
        ).hexdigest()


QUESTION = TypeAdapter(Question)


@dataclass(frozen=True)
class Weights:
    """How much images count (public): `l1` is the most that one unit adds to all counts together."""

    tasks: int
    counted: int
    kind: TaskKind = "multiclass"

    @property
    def positive(self) -> int:
        """How many times as much a positive counts as a negative."""
        return 1 if self.kind == "multilabel" else max(1, self.tasks - 1)

    @property
    def image(self) -> int:
        """The weight of one image over all tasks, in units of its own weight."""
        if self.kind == "multilabel":
            return self.tasks
        return 1 if self.tasks == 1 else 2 * self.positive

    @property
    def l1(self) -> int:
        """The L1 sensitivity of the counts to one unit."""
        return WHOLE * self.counted * self.image

    def of_images(self, owner: I64) -> I64:
        """The weight of each image by the number of its unit, int64[n]: WHOLE, less where a unit has many images."""
        each = np.bincount(owner)
        out: I64 = WHOLE * self.counted // np.maximum(each, self.counted)[owner]
        return out


def weighted_counts(predictions: Predictions, question: Question, weights: Weights, unit: str) -> I64:
    """Return the counts without noise, int64[tasks, groups, bins] (private).

    Raises:
        PrivacyError: where a unit weighs more than the noise is for, which the weights rule out.
    """
    scores, positive = one_vs_rest(predictions.logits, predictions.labels)
    tasks, groups, bins = question.shape
    if scores.shape[1] != tasks:
        raise PrivacyError(f"a release of {tasks} tasks was asked for, the model has {scores.shape[1]}")
    n = len(predictions.labels)
    owner = np.arange(n) if unit == "image" else np.unique(predictions.patient, return_inverse=True)[1]
    weight = weights.of_images(owner)
    added = weight * np.where(positive, weights.positive, 1).sum(axis=1)
    if (np.bincount(owner, weights=added) > weights.l1).any():
        raise PrivacyError("a unit weighs more than the evaluation's noise covers: this is a fault")
    counts = np.zeros((tasks, groups, bins), np.int64)
    for task in range(tasks):
        group = np.where(positive[:, task], 1 + (predictions.early & (groups == 3)), 0)
        whole = weight * np.where(positive[:, task], weights.positive, 1)
        width = question.widths[task] if question.widths else 0.0
        parts = divided(whole, scores[:, task], np.array(question.edges[task]), width)
        if (parts < 0).any() or not np.array_equal(parts.sum(axis=1), whole):
            raise PrivacyError("an image adds more to the bins than its weight: this is a fault")
        np.add.at(counts[task], group, parts)
    return counts


def divided(whole: I64, scores: F64, edges: F64, width: float) -> I64:
    """Return what each image adds to each bin, int64[n, bins]: never negative, and its whole weight in all.

    Args:
        whole: int64[n], the weights.
        scores: f64[n], finite.
        edges: f64[bins - 1], rising, at least `width` apart.
        width: of an edge; what is above it grows linearly from nothing to all across it.

    >>> divided(np.array([8, 8, 8]), np.array([-3.0, 0.5, 1.0]), np.array([0.0]), 2.0).tolist()
    [[8, 0], [2, 6], [0, 8]]
    """
    distance = scores[:, None] - edges
    across = np.clip(distance, -width, width)
    share = np.clip(across / width + 0.5, 0, 1) if width else (distance >= 0).astype(np.float64)
    above = np.floor(share * whole[:, None]).astype(np.int64)
    ends = ((0, 0), (1, 0)), ((0, 0), (0, 1))
    out: I64 = np.pad(above, ends[0]) - np.pad(above, ends[1])
    out[:, 0] += whole
    return out


def with_noise(counts: I64, epsilon: float, weights: Weights, share: int, stream: KeyStream) -> I64:
    """Return the release: `counts` and this site's share of the noise that makes it `epsilon`-private."""
    noise = laplace_integers(weights.l1 / epsilon, share, counts.size, stream)
    return counts + noise.reshape(counts.shape)
