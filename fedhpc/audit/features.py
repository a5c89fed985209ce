"""Gradient inversion of a frozen backbone's head: it gives features, not pixels."""

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.audit.canaries import parts_of_head
from fedhpc.audit.contact_rows import NEAREST, RECOGNISABLE, VICTIM, Guess, Row
from fedhpc.audit.reconstruction import input_of_linear
from fedhpc.audit.releases import NO_PRIVACY, one_step_releases, real_releases
from fedhpc.audit.statistics import LAW_RISK, correlation_limit
from fedhpc.audit.target import Subject
from fedhpc.models.vector import from_vector
from fedhpc.util.arrays import F32, I64

MARGIN = 0.1
"""How much nearer than any other patient's image a training image must be to count as found."""


def feature_row(subject: Subject, victim: I64) -> Row:
    """Return the exact attack on a frozen backbone's head: it gives features, not pixels."""
    features, label = subject.samples.inputs(victim), int(subject.samples.labels[victim[0]])
    from_vector(subject.model, subject.params)
    updates = one_step_releases(subject, subject.model, features, label)
    wanted = _seen(subject, features)
    guesses = {setting: _feature_guess(subject, update, wanted)[0] for setting, update in updates.items()}
    note = "one image, one step, the run's own head: features"
    limit = _by_chance(wanted)
    return Row(
        "inversion, own head",
        note,
        "cosine",
        must_work=True,
        original=_tile(wanted[0]),
        original_caption=VICTIM,
        guesses=guesses,
        limit=limit,
    )


def real_feature_row(subject: Subject) -> Row:
    """The same division in a real round; held against the training image whose features are most like it."""
    train = subject.samples.indices("train")
    others = np.concatenate([subject.samples.indices(split) for split in ("val", "test")])
    wanted, unseen = (_seen(subject, subject.samples.inputs(rows)) for rows in (train, others))
    releases = real_releases(subject)
    found = {setting: _feature_guess(subject, update, wanted) for setting, update in releases.items()}
    guesses = {setting: guess for setting, (guess, _) in found.items()}
    # With few directions, or many images, some image is near whatever is found, and all are near what a class has in
    # common: only what is nearer to a training image than to any of other patients is about a patient.
    by_chance = max(_feature_guess(subject, update, unseen)[0].value for update in releases.values())
    limit = max(_by_chance(wanted), by_chance + MARGIN)
    note = f"a real round of the site ({len(train)} images), the run's own head: features"
    original = _tile(wanted[found[NO_PRIVACY][1]])
    details = {"images": len(train), "nearest_of_other_patients": by_chance}
    return Row(
        "inversion, real round",
        note,
        "cosine",
        must_work=False,
        original=original,
        original_caption=NEAREST,
        guesses=guesses,
        details=details,
        limit=limit,
    )


def _by_chance(wanted: Tensor) -> float:
    """The cosine from which features count as recognised: noise alone is not so near to one of the rows of `wanted`."""
    rows, length = wanted.shape
    return max(RECOGNISABLE, correlation_limit(length, rows, LAW_RISK)) if length > 2 else 1.0


def _seen(subject: Subject, features: Tensor) -> Tensor:
    """Return what the head's linear layer sees of features [n, D]: [n, kept]."""
    front, _ = parts_of_head(subject.model)
    seen: Tensor = front(features.to(subject.device.device)).cpu()
    return seen


def _feature_guess(subject: Subject, update: F32, wanted: Tensor) -> tuple[Guess, int]:
    """(the features in the update beside the most similar row of `wanted`, the place of that row)."""
    _, head = parts_of_head(subject.model)
    found = torch.from_numpy(input_of_linear(update, len(subject.task.classes), head.bias is not None))
    cosine = nn.functional.cosine_similarity(found[None], wanted, dim=1)
    if head.bias is None:
        # The row of the image's class is the input, that of another class its opposite, and nothing but the label says
        # which is which: an adversary tries both.
        found = found * torch.sign(cosine[int(cosine.abs().argmax())])
        cosine = nn.functional.cosine_similarity(found[None], wanted, dim=1)
    best = int(cosine.argmax())
    value = float(cosine[best])
    return Guess(_tile(found), value, (f"cosine {value:.2f}",), {"cosine": value}), best


def _tile(features: Tensor) -> NDArray[np.float32]:
    """Features [n] as a picture [H, W], nearly square."""
    width = math.ceil(math.sqrt(len(features)))
    height = math.ceil(len(features) / width)
    padded = nn.functional.pad(features, (0, height * width - len(features)))
    tile: NDArray[np.float32] = padded.view(height, width).numpy()
    return tile
