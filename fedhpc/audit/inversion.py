"""Gradient inversion of what left the door: worst cases of one image and one step, and a real round of the run.

Three releases of each: without privacy, with the clip alone, and with DP at the run's noise multiplier.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.audit.door import WORST_CASE, AuditedSite, changed, released
from fedhpc.audit.findings import WITH_DP, Finding, Kind
from fedhpc.audit.mechanism import mechanism_config
from fedhpc.audit.pictures import Likeness, likeness
from fedhpc.audit.reconstruction import (
    Search,
    affordable_iterations,
    input_of_linear,
    linear_on_pixels,
    match_gradient,
    smooth_convolutional,
)
from fedhpc.audit.subject import Subject
from fedhpc.exchange.update import F32
from fedhpc.models import from_vector, to_vector
from fedhpc.rng import generator, seed_of
from fedhpc.site.preprocess import harmonise
from fedhpc.site.privacy import PrivacyPlan
from fedhpc.site.samples import I64

NO_PRIVACY, CLIP_ONLY = "without privacy", "clip only"
SETTINGS = (NO_PRIVACY, CLIP_ONLY, WITH_DP)
RECOGNISABLE = 0.5
"""The SSIM (of features: the cosine) from which a reconstruction counts as recognisable. What the attacks make of noise
alone reaches 0.06 to 0.24 on phantom and MRI images, what they make of an open update 0.97 and more."""
LARGEST_SIDE = 64
SOUGHT = 4
PENALTY = 1e-3
INVERTIBLE = (300, 120.0)
"""Iterations, and seconds at most, of the search on the network that can be inverted: fewer would not be an attack."""
VICTIM, NEAREST = "the image", "most like it in training"


@dataclass(frozen=True)
class Effort:
    """How long searches may take: iterations, fewer where they would pass `budget_s` seconds, and the seed."""

    iterations: int
    budget_s: float
    seed: int


@dataclass(frozen=True)
class Guess:
    """A reconstruction [C, H, W] (or of features, [H, W]) with what it is worth."""

    image: NDArray[np.float32]
    value: float
    caption: tuple[str, ...]
    details: Mapping[str, float]


@dataclass(frozen=True)
class Row:
    """One attack in three settings, private: the original and a guess in each of SETTINGS.

    Attributes:
        attack, note: what was done.
        original, original_caption: what was sought, or what came nearest.
        quantity: what the guesses' values are: "SSIM", or for features "cosine".
        must_work: whether it proves nothing unless it works without privacy.
        details: for audit.json.
    """

    attack: str
    note: str
    quantity: str
    must_work: bool
    original: NDArray[np.float32]
    original_caption: str
    guesses: Mapping[str, Guess]
    details: Mapping[str, float] = field(default_factory=dict)

    def findings(self) -> list[Finding]:
        """Without noise the attack must work, with DP it must not; where it never works nothing is judged."""
        works = self.must_work or self.guesses[NO_PRIVACY].value > RECOGNISABLE
        kinds: dict[str, Kind] = dict.fromkeys(SETTINGS, "control" if self.must_work else "shown")
        kinds[WITH_DP] = "claim" if works else "shown"
        return [self._finding(setting, guess, kinds[setting]) for setting, guess in self.guesses.items()]

    def _finding(self, setting: str, guess: Guess, kind: Kind) -> Finding:
        value, limit_name, details = guess.value, "recognisable from", {**guess.details, **self.details}
        return Finding(self.attack, setting, self.quantity, value, value, RECOGNISABLE, limit_name, kind, details)


class OneUnit:
    """One image, or the features of one, as a whole training split."""

    def __init__(self, inputs: Tensor, label: int) -> None:
        """`inputs` [1, ...], ready for the network (private)."""
        self._inputs = inputs
        self.labels: I64 = np.array([label], np.int64)
        self.patient: NDArray[np.bytes_] = np.array([b"audited"], "S16")
        self.early = np.zeros(1, np.bool_)

    def indices(self, split: str) -> I64:
        """See `Samples`."""
        return np.arange(1 if split == "train" else 0)

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`."""
        return self._inputs[torch.from_numpy(rows)]


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


def one_step_releases(subject: Subject, model: nn.Module, inputs: Tensor, label: int) -> dict[str, F32]:
    """What leaves the door after one step on one unit, in each of SETTINGS: `model` keeps its parameters.

    With a learning rate of 1, no momentum and all entries sent, the update is minus the gradient.
    """
    config = mechanism_config(subject.config, rounds=1, local_epochs=1, sample_rate=1.0)
    config = changed(config, training={"lr": 1.0, "batch_size": 1})
    params, samples, found = to_vector(model), OneUnit(inputs, label), {}
    for setting, plan in _plans(replace(subject.plan, sample_rate=1.0, steps_per_round=1)).items():
        site = AuditedSite(subject.site, subject.index, model, samples, config, plan, 1, subject.bench)
        found[setting] = released(site, params, 0, WORST_CASE)
    from_vector(model, params)
    return found


def _plans(plan: PrivacyPlan) -> dict[str, PrivacyPlan | None]:
    return {NO_PRIVACY: None, CLIP_ONLY: replace(plan, noise_multiplier=0.0), WITH_DP: plan}


def small(images: Tensor) -> Tensor:
    """Images [n, C, H, W] with no side above LARGEST_SIDE, harmonised anew: a search on more pixels takes too long."""
    height, width = images.shape[2:]
    shrink = max(height, width) / LARGEST_SIDE
    if shrink <= 1:
        return images
    size = (max(1, round(height / shrink)), max(1, round(width / shrink)))
    return harmonise(nn.functional.interpolate(images, size=size, mode="area").numpy())


def _seeded(make: Callable[[], nn.Module], seed: int, subject: Subject) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_of(seed, "attacked network"))
        return make().to(subject.bench.device)


def _image_guess(guess: Tensor, original: Tensor) -> Guess:
    """Beside the one original [1, C, H, W]."""
    (alike,), _ = likeness(guess.cpu(), original)
    return _captioned(guess, alike)


def _captioned(guess: Tensor, alike: Likeness) -> Guess:
    caption = (f"SSIM {alike.ssim:.2f}", f"PSNR {alike.psnr_db:.1f} dB")
    return Guess(guess.cpu().numpy(), alike.ssim, caption, {"ssim": alike.ssim, "psnr_db": alike.psnr_db})


def linear_row(subject: Subject, victim: I64, effort: Effort) -> Row:
    """The exact attack on a linear layer on pixels."""
    image, label = harmonise(subject.shard.read(victim)), int(subject.samples.labels[victim[0]])
    classes, shape = len(subject.task.classes), image.shape[1:]
    model = _seeded(lambda: linear_on_pixels(shape, classes), effort.seed, subject)
    updates = one_step_releases(subject, model, image, label)
    guesses = {
        setting: _image_guess(torch.from_numpy(input_of_linear(update, classes)).view(shape), image)
        for setting, update in updates.items()
    }
    note = "one image, one step, linear layer on pixels; division"
    return Row("inversion, linear layer", note, "SSIM", True, image[0].numpy(), VICTIM, guesses)


def convolutional_row(subject: Subject, victim: I64, effort: Effort) -> Row:
    """The search on a convolutional network that can be inverted."""
    image, label = small(harmonise(subject.shard.read(victim))), int(subject.samples.labels[victim[0]])
    shape = (image.shape[1], image.shape[2], image.shape[3])
    model = _seeded(lambda: smooth_convolutional(shape, len(subject.task.classes)), effort.seed, subject)
    note = "one image, one step, smooth convolutional network; search"
    enough = replace(effort, iterations=INVERTIBLE[0], budget_s=INVERTIBLE[1])
    return _searched(subject, model, (image, label), enough, ("inversion, convolutions", note, True))


def own_network_row(subject: Subject, victim: I64, effort: Effort) -> Row:
    """The same search on the run's own network, at the released parameters."""
    image, label = small(harmonise(subject.shard.read(victim))), int(subject.samples.labels[victim[0]])
    from_vector(subject.model, subject.params)
    note = f"one image, one step, {subject.config.model.name}; search"
    return _searched(subject, subject.model, (image, label), effort, ("inversion, own network", note, False))


def _searched(
    subject: Subject, model: nn.Module, victim: tuple[Tensor, int], effort: Effort, what: tuple[str, str, bool]
) -> Row:
    (image, label), (attack, note, must_work) = victim, what
    labels, device = torch.tensor([label], device=subject.bench.device), subject.bench.device
    updates = one_step_releases(subject, model, image, label)
    shape = tuple(image.shape[1:])
    iterations = affordable_iterations(model, labels, shape, effort.iterations, effort.budget_s)
    search = Search(iterations, PENALTY, effort.seed)
    guesses = {}
    for setting, update in updates.items():
        found = match_gradient(model, torch.from_numpy(update).to(device), labels, shape, search)
        guesses[setting] = _image_guess(found[0], image)
    return Row(attack, note, "SSIM", must_work, image[0].numpy(), VICTIM, guesses, {"iterations": iterations})


def real_releases(subject: Subject) -> dict[str, F32]:
    """What leaves the door after one round as the config has it, in each of SETTINGS, from the released parameters."""
    config = changed(subject.config, privacy={"noise_seed": None})
    found = {}
    for setting, plan in _plans(subject.plan).items():
        site = AuditedSite(
            subject.site, subject.index, subject.model, subject.samples, config, plan, subject.weight, subject.bench
        )
        found[setting] = released(site, subject.params, subject.round, config.exchange)
    from_vector(subject.model, subject.params)
    return found


def real_row(subject: Subject, effort: Effort) -> Row:
    """A search for SOUGHT images at once in a real round; a guess is held against the training image most like it."""
    train = subject.samples.indices("train")
    originals = small(harmonise(subject.shard.read(train)))
    shape, device = tuple(originals.shape[1:]), subject.bench.device
    labels = torch.arange(SOUGHT, device=device) % len(subject.task.classes)
    updates = real_releases(subject)
    iterations = affordable_iterations(subject.model, labels, shape, effort.iterations, effort.budget_s)
    search = Search(iterations, PENALTY, effort.seed)
    guesses, nearest = {}, {}
    for setting, update in updates.items():
        found = match_gradient(subject.model, torch.from_numpy(update).to(device), labels, shape, search)
        guesses[setting], nearest[setting] = _best(found.cpu(), originals)
    note = f"a real round of the site ({len(train)} images), {subject.config.model.name}; search"
    details = {"iterations": iterations, "images": len(train)}
    original = originals[nearest[NO_PRIVACY]].numpy()
    return Row("inversion, real round", note, "SSIM", False, original, NEAREST, guesses, details)


def _best(found: Tensor, originals: Tensor) -> tuple[Guess, int]:
    """(the guess that is most like any original, that original's place)."""
    alike = [likeness(guess, originals)[0] for guess in found]
    table = np.array([[one.ssim for one in each] for each in alike])
    g, o = np.unravel_index(table.argmax(), table.shape)
    return _captioned(found[g], alike[g][o]), int(o)


def feature_row(subject: Subject, victim: I64) -> Row:
    """The exact attack on a frozen backbone's head: it gives features, not pixels."""
    features, label = subject.samples.inputs(victim), int(subject.samples.labels[victim[0]])
    from_vector(subject.model, subject.params)
    updates = one_step_releases(subject, subject.model, features, label)
    wanted = _normalised(features)
    guesses = {setting: _feature_guess(subject, update, wanted)[0] for setting, update in updates.items()}
    note = "one image, one step, the run's own head: features"
    return Row("inversion, own head", note, "cosine", True, _tile(wanted[0]), VICTIM, guesses)


def real_feature_row(subject: Subject) -> Row:
    """The same division in a real round; held against the training image whose features are most like it."""
    train = subject.samples.indices("train")
    wanted = _normalised(subject.samples.inputs(train))
    guesses, nearest = {}, {}
    for setting, update in real_releases(subject).items():
        guesses[setting], nearest[setting] = _feature_guess(subject, update, wanted)
    note = f"a real round of the site ({len(train)} images), the run's own head: features"
    original = _tile(wanted[nearest[NO_PRIVACY]])
    details = {"images": len(train)}
    return Row("inversion, real round", note, "cosine", False, original, NEAREST, guesses, details)


def _normalised(features: Tensor) -> Tensor:
    """What the head's linear layer sees, [n, features]."""
    return nn.functional.layer_norm(features, features.shape[1:])


def _feature_guess(subject: Subject, update: F32, wanted: Tensor) -> tuple[Guess, int]:
    """(the features in the update beside the most similar row of `wanted`, the place of that row)."""
    found = torch.from_numpy(input_of_linear(update, len(subject.task.classes)))
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
