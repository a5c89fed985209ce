"""The product's own hospital under observation: what its optimiser was given at every step of a round.

A step's private gradient is read off the parameters before and after it, through the step callback of `SiteContext`;
with SGD it follows from two successive moves whatever the momentum is. So what is judged is `Hospital.train` itself.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.audit.canaries import CanarySamples
from fedhpc.audit.mechanism import mechanism_config
from fedhpc.audit.target import Subject
from fedhpc.config.schema import RunConfig
from fedhpc.models.device import Device
from fedhpc.models.vector import to_vector
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.context import SiteContext
from fedhpc.site.data.samples import Samples
from fedhpc.site.hospital import Hospital
from fedhpc.site.training.local_sgd import OnStep
from fedhpc.util.arrays import F32, I64

NO_TARGET = 1e300
MOMENTUM = 0.9
"""Of the observed steps: an optimiser with a memory, in which a gradient without noise could hide."""


@dataclass(frozen=True)
class Claim:
    """What is promised, and the model that it is promised for; no data.

    Attributes:
        config: the run's.
        plan: the noise that the run claims.
        model: of the run, at any parameters; it is copied before it is trained.
        input_shape: of one input of the model, without the batch.
        classes: how many.
        head: whether the model is a linear head on fixed features.
        device: where to compute.
        seed: of the audit's own coins; never of noise.
    """

    config: RunConfig
    plan: PrivacyPlan
    model: nn.Module
    input_shape: tuple[int, ...]
    classes: int
    head: bool
    device: Device
    seed: int

    @classmethod
    def of(cls, subject: Subject, seed: int) -> "Claim":
        """That of an opened site; its first image gives the shape."""
        one = subject.samples.inputs(subject.samples.indices("train")[:1])
        return cls(
            config=subject.config,
            plan=subject.plan,
            model=subject.model,
            input_shape=tuple(one.shape[1:]),
            classes=len(subject.task.classes),
            head=subject.frozen,
            device=subject.device,
            seed=seed,
        )

    def with_noise(self, factor: float) -> "Claim":
        """The same with `factor` of the noise: how a broken implementation looks."""
        return replace(self, plan=replace(self.plan, noise_multiplier=factor * self.plan.noise_multiplier))


@dataclass(frozen=True)
class Work:
    """What one observed hospital trains: by which config and plan, which model, on what, declared as how many units."""

    site: str
    config: RunConfig
    plan: PrivacyPlan
    model: nn.Module
    samples: Samples
    weight: int
    device: Device
    index: int = 0


@contextmanager
def hospital_at_work(work: Work, on_step: OnStep) -> Iterator[Hospital]:
    """The product's own hospital, with ledgers to throw away: what it trains here is not released.

    Trainings whose results are shown are charged to the site's own account by `fedhpc.audit.charges`.
    """
    with tempfile.TemporaryDirectory(prefix="fedhpc-audit-") as scratch:
        # No target: rounds without noise, or more of them than the run has, pass any. What they cost is written down.
        # A secure sum must have one.
        target = NO_TARGET if work.config.privacy.trust == "sites" else None
        config = work.config.replace({"data.shards": f"{scratch}/{{site}}.h5", "privacy.epsilon": target})
        place = SiteContext(config, work.model, work.device, work.plan, on_step)
        hospital = Hospital(work.site, work.index, work.weight, work.samples, place)
        hospital.keep_ledger(Path(scratch) / "ledger.jsonl", "audit")
        yield hospital


@dataclass
class Steps:
    """A step callback that keeps some entries of the parameters after each step."""

    model: nn.Module
    entries: I64
    seen: list[F32] = field(default_factory=list)

    def __call__(self, done: int, total: int) -> None:
        """One more."""
        self.seen.append(to_vector(self.model)[self.entries])


def private_gradients(work: Work, rounds: int, entries: I64 | None = None) -> F32:
    """Return the negative gradient that the optimiser was given, f32[rounds, steps, entries], in clip norms.

    In these units the sum of the clipped gradients of a batch is a sum of vectors of length 1 at most, and the noise
    has the noise multiplier. Every round starts from the same parameters.

    Args:
        work: with SGD, a constant rate, no weight decay.
        rounds: how many.
        entries: which parameters, of all of them where None.
    """
    start = to_vector(work.model)
    chosen = np.arange(start.size) if entries is None else entries
    watched = Steps(work.model, chosen)
    t, plan = work.config.training, work.plan
    found = []
    with hospital_at_work(work, watched) as hospital:
        for round in range(rounds):
            watched.seen.clear()
            hospital.train(start, round)
            positions = np.stack([start[chosen], *watched.seen]).astype(np.float64)
            moves = np.diff(positions, axis=0)
            before = np.concatenate([np.zeros_like(moves[:1]), moves[:-1]])
            found.append((moves - t.momentum * before).astype(np.float32))
    scale = plan.sample_rate * work.weight / (t.lr * work.config.privacy.clip_norm)
    gradients: F32 = np.stack(found) * np.float32(scale)
    return gradients


def observed_config(claim: Claim, rounds: int, lr: float) -> RunConfig:
    """SGD with momentum and a rate so small, or on a model so made, that each unit's gradient stays what it was."""
    t, q = claim.config.training, claim.plan.sample_rate
    config = mechanism_config(claim.config, rounds=rounds, local_epochs=t.epochs_begun, sample_rate=q)
    # The audit may take more rounds than the run at the run's noise: its target is not what is looked at here.
    epsilon = 10 * (config.privacy.epsilon or 1.0)
    return config.replace({"training.lr": lr, "training.momentum": MOMENTUM, "privacy.epsilon": epsilon})


class NumberedBlanks(CanarySamples):
    """Canaries whose image, or features, are zeros of a shape: for a run's own network with canaries beside it."""

    def __init__(self, included: NDArray[np.bool_], shape: tuple[int, ...]) -> None:
        super().__init__(included)
        self._shape = shape

    def inputs(self, rows: I64) -> Tensor:
        """See `Samples`: zeros, and the number in one more channel or column."""
        number = torch.from_numpy((rows + 1).astype(np.float32)).view(-1, *[1] * len(self._shape))
        blank = torch.zeros(len(rows), *self._shape)
        return torch.cat([blank, number.expand(-1, 1, *self._shape[1:])], dim=1)
