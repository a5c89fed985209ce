"""Gradient inversion of what was sent: worst cases of one image and one step, and a real round of the run.

Three releases of each: without privacy, with the clip alone, and with DP at the run's noise multiplier.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.audit.contact_rows import NEAREST, VICTIM, Guess, Row
from fedhpc.audit.contact_sheet import HIGHEST_PSNR_DB, Likeness, likeness
from fedhpc.audit.features import feature_row, real_feature_row
from fedhpc.audit.reconstruction import (
    Search,
    affordable_iterations,
    input_of_linear,
    linear_on_pixels,
    match_gradient,
    smooth_convolutional,
)
from fedhpc.audit.releases import NO_PRIVACY, one_step_releases, real_releases
from fedhpc.audit.target import Subject
from fedhpc.models.vector import from_vector
from fedhpc.site.data.harmonise import harmonise
from fedhpc.util.arrays import I64
from fedhpc.util.rng import generator, seed_of

LARGEST_SIDE = 64
SOUGHT = 4
BLOCK = 256
PENALTY = 1e-3
INVERTIBLE = (300, 120.0)
"""Iterations, and seconds at most, of the search on the network that can be inverted: fewer would not be an attack."""


@dataclass(frozen=True)
class Effort:
    """How long searches may take: iterations, fewer where they would pass `budget_s` seconds, and the seed."""

    iterations: int
    budget_s: float
    seed: int


def rows(subject: Subject, effort: Effort) -> Iterator[Row]:
    """All attacks, the exact ones first. The victim is a random image of the training split."""
    train = subject.samples.indices("train")
    victim = generator(effort.seed, "inverted image").choice(train, 1)
    yield linear_row(subject, victim, effort)
    yield convolutional_row(subject, victim, effort)
    if subject.frozen:
        yield feature_row(subject, victim)
        yield real_feature_row(subject)
    else:
        yield own_network_row(subject, victim, effort)
        yield real_row(subject, effort)


def small(images: Tensor) -> Tensor:
    """Images [n, C, ...] with no side above LARGEST_SIDE, harmonised anew: a search on more pixels takes too long."""
    shrink = max(images.shape[2:]) / LARGEST_SIDE
    if shrink <= 1:
        return images
    size = tuple(max(1, round(side / shrink)) for side in images.shape[2:])
    return harmonise(nn.functional.interpolate(images, size=size, mode="area").numpy())


def _seeded(make: Callable[[], nn.Module], seed: int, subject: Subject) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "attacked network"))
        return make().to(subject.device.device)


def _image_guess(guess: Tensor, original: Tensor) -> Guess:
    """Beside the one original [1, C, H, W]."""
    (alike,) = likeness(guess.cpu(), original)
    return _captioned(guess, alike)


def _captioned(guess: Tensor, alike: Likeness) -> Guess:
    capped = ">= " if alike.psnr_db == HIGHEST_PSNR_DB else ""
    caption = (f"SSIM {alike.ssim:.2f}", f"PSNR {capped}{alike.psnr_db:.1f} dB")
    return Guess(guess.cpu().numpy(), alike.ssim, caption, {"ssim": alike.ssim, "psnr_db": alike.psnr_db})


def _seen(subject: Subject, rows: I64) -> Tensor:
    """Return the images of `rows` as the network sees them: float32 [n, C, H, W] (private)."""
    return harmonise(subject.shard.read(rows), subject.config.chain_of(subject.site))


def linear_row(subject: Subject, victim: I64, effort: Effort) -> Row:
    """Return the exact attack on a linear layer on pixels."""
    image, label = (
        _seen(subject, victim),
        int(subject.samples.labels[victim[0]]),
    )
    classes, shape = len(subject.task.classes), image.shape[1:]
    model = _seeded(lambda: linear_on_pixels(shape, classes), effort.seed, subject)
    updates = one_step_releases(subject, model, image, label)
    guesses = {
        setting: _image_guess(torch.from_numpy(input_of_linear(update, classes)).view(shape), image)
        for setting, update in updates.items()
    }
    note = "one image, one step, linear layer on pixels; division"
    return Row(
        "inversion, linear layer",
        note,
        "SSIM",
        must_work=True,
        original=image[0].numpy(),
        original_caption=VICTIM,
        guesses=guesses,
    )


def convolutional_row(subject: Subject, victim: I64, effort: Effort) -> Row:
    """Return the search on a convolutional network that can be inverted."""
    image, label = (
        small(_seen(subject, victim)),
        int(subject.samples.labels[victim[0]]),
    )
    shape, classes = tuple(image.shape[1:]), len(subject.task.classes)
    model = _seeded(lambda: smooth_convolutional(shape, classes), effort.seed, subject)
    note = "one image, one step, smooth convolutional network; search"
    enough = replace(effort, iterations=INVERTIBLE[0], budget_s=INVERTIBLE[1])
    return _searched(
        subject, model, Victim(image, label), enough, Attack("inversion, convolutions", note, must_work=True)
    )


def own_network_row(subject: Subject, victim: I64, effort: Effort) -> Row:
    """The same search on the run's own network, at the released parameters."""
    image, label = (
        small(_seen(subject, victim)),
        int(subject.samples.labels[victim[0]]),
    )
    from_vector(subject.model, subject.params)
    note = f"one image, one step, {subject.config.model.label}; search"
    attack = Attack("inversion, own network", note, must_work=False)
    return _searched(subject, subject.model, Victim(image, label), effort, attack)


@dataclass(frozen=True)
class Victim:
    """The image that is sought, f32[1, C, H, W], and its label (private)."""

    image: Tensor
    label: int


@dataclass(frozen=True)
class Attack:
    """An attack's name, a note for the report, and whether the audit fails where it finds nothing without privacy."""

    name: str
    note: str
    must_work: bool


def _searched(subject: Subject, model: nn.Module, victim: Victim, effort: Effort, attack: Attack) -> Row:
    image, device = victim.image, subject.device.device
    labels = torch.tensor([victim.label], device=device)
    updates = one_step_releases(subject, model, image, victim.label)
    shape = tuple(image.shape[1:])
    iterations = affordable_iterations(model, labels, shape, effort.iterations, effort.budget_s)
    search = Search(iterations, PENALTY, effort.seed)
    guesses = {}
    for setting, update in updates.items():
        found = match_gradient(model, torch.from_numpy(update).to(device), labels, shape, search)
        guesses[setting] = _image_guess(found[0], image)
    original, details = image[0].numpy(), {"iterations": iterations}
    return Row(attack.name, attack.note, "SSIM", attack.must_work, original, VICTIM, guesses, details)


def real_row(subject: Subject, effort: Effort) -> Row:
    """A search for SOUGHT images at once in a real round; a guess is held against the training image most like it."""
    train = subject.samples.indices("train")
    blocks = np.array_split(train, -(-len(train) // BLOCK))
    originals = torch.cat([small(_seen(subject, block)) for block in blocks])
    shape, device = tuple(originals.shape[1:]), subject.device.device
    labels = torch.arange(SOUGHT, device=device) % len(subject.task.classes)
    updates = real_releases(subject)
    iterations = affordable_iterations(subject.model, labels, shape, effort.iterations, effort.budget_s)
    search = Search(iterations, PENALTY, effort.seed)
    guesses, nearest = {}, {}
    for setting, update in updates.items():
        found = match_gradient(subject.model, torch.from_numpy(update).to(device), labels, shape, search)
        guesses[setting], nearest[setting] = _best(found.cpu(), originals)
    note = f"a real round of the site ({len(train)} images), {subject.config.model.label}; search"
    details = {"iterations": iterations, "images": len(train)}
    original = originals[nearest[NO_PRIVACY]].numpy()
    return Row(
        "inversion, real round",
        note,
        "SSIM",
        must_work=False,
        original=original,
        original_caption=NEAREST,
        guesses=guesses,
        details=details,
    )


def _best(found: Tensor, originals: Tensor) -> tuple[Guess, int]:
    """(the guess that is most like any original, that original's place)."""
    alike = [likeness(guess, originals) for guess in found]
    table = np.array([[one.ssim for one in each] for each in alike])
    g, o = np.unravel_index(table.argmax(), table.shape)
    return _captioned(found[g], alike[g][o]), int(o)
