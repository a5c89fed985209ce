"""The training loss by the kind of labels: softmax cross entropy, or sigmoid and binary cross entropy per finding."""

from typing import Literal

from torch import Tensor
from torch.nn import functional as F


def loss(logits: Tensor, labels: Tensor, reduction: Literal["none", "mean", "sum"] = "mean") -> Tensor:
    """Return the loss of images.

    Args:
        logits: [n, K].
        labels: int64 [n], a class each: softmax cross entropy; or [n, K], 1 for each finding that is there: the mean
            over the findings of the binary cross entropy of a sigmoid.
        reduction: over the images; "none" gives [n].
    """
    if labels.ndim == 1:
        return F.cross_entropy(logits, labels, reduction=reduction)
    each = F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none").mean(dim=1)
    return each if reduction == "none" else each.mean() if reduction == "mean" else each.sum()
