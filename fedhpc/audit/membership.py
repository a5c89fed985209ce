"""Who took part? Canaries over a whole run and in the site's real training, and the released model's own answer."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhpc.algorithms.run_state import RunState
from fedhpc.audit.bounds import Scores, ceilings, claimed_epsilon
from fedhpc.audit.canaries import Canaries, CanarySamples, canary_norm, head_canaries, network_canaries
from fedhpc.audit.findings import WITH_DP, Finding, Guarantee, confirmed, epsilon_finding, membership_findings
from fedhpc.audit.mechanism import Mechanism, coins, mechanism_config
from fedhpc.audit.negative_controls import NO_NOISE
from fedhpc.audit.observation import Work, hospital_at_work
from fedhpc.audit.target import Subject
from fedhpc.audit.transmission import WORST_CASE, AuditedSite, released, with_memory
from fedhpc.config.schema import RunConfig
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.privacy.rdp import History, Steps
from fedhpc.site.data.samples import Samples
from fedhpc.site.evaluation import predict
from fedhpc.site.hospital import Hospital
from fedhpc.util.arrays import F64

WHOLE_RUN, REAL_TRAINING, RELEASED = "canaries, whole run", "canaries, real training", "released model's loss"


@dataclass(frozen=True)
class WholeRun:
    """How large the audit of the whole run is: independent runs of `rounds` rounds with `canaries` canaries each."""

    runs: int
    canaries: int
    rounds: int
    seed: int


def history_of(plan: PrivacyPlan, rounds: int) -> History:
    """Return what `rounds` rounds of a plan are to the accountant."""
    return (Steps(plan.noise_multiplier, plan.sample_rate, plan.steps_per_round * rounds),)


@dataclass
class StepCount:
    """The optimiser steps that a hospital really took."""

    taken: int = 0

    def __call__(self, done: int, total: int) -> None:
        """One more."""
        self.taken += 1


@contextmanager
def hospital_with(
    subject: Subject, config: RunConfig, model: nn.Module, samples: Samples, weight: int
) -> Iterator[tuple[Hospital, StepCount]]:
    """The product's own hospital, at the run's plan, with a ledger to throw away: what it trains is not released."""
    count = StepCount()
    work = Work(subject.site, config, subject.plan, model, samples, weight, subject.device, subject.index)
    with hospital_at_work(work, count) as hospital:
        yield hospital, count


def whole_run(subject: Subject, size: WholeRun, on_round: Callable[[], None]) -> list[Finding]:
    """As many rounds as the run has, of canaries alone, at a `Hospital` whose ledger says what they cost.

    The adversary adds up the updates of all rounds: the best test there is for one canary, as noise and contribution
    are the same in each step.
    """
    all_rounds, delta = subject.config.training.rounds, subject.config.privacy.delta
    name = WHOLE_RUN if size.rounds == all_rounds else f"canaries, {size.rounds} of {all_rounds} rounds"
    made: list[tuple[Scores, float, int]] = []

    def attempt(number: int) -> Finding:
        parts = []
        for run in range(size.runs):
            included = coins(size.seed, size.canaries, WHOLE_RUN, number, run)
            scores, (spent, steps) = _one_whole_run(subject, included, size.rounds, on_round)
            parts.append(Scores(scores, included))
        made.append((Scores.pooled(parts), spent, steps))
        return epsilon_finding(name, WITH_DP, made[-1][0], Guarantee(spent, delta))

    found = confirmed(attempt)
    scores, spent, steps = made[0]
    limits = ceilings(history_of(subject.plan, size.rounds))
    return [found, *membership_findings(name, scores, limits), ledger_finding(subject, spent, steps)]


def ledger_finding(subject: Subject, spent: float, steps: int) -> Finding:
    """Whether the ledger charged all steps that were taken: too few, and no lower bound need be above the claim."""
    plan, delta = subject.plan, subject.config.privacy.delta
    taken = round(claimed_epsilon((Steps(plan.noise_multiplier, plan.sample_rate, steps),), delta), 3)
    name, details = "epsilon of all steps taken", {"steps": steps}
    return Finding("ledger", WITH_DP, name, taken, taken, round(spent, 3), "charged", "claim", details)


def _one_whole_run(
    subject: Subject, included: NDArray[np.bool_], rounds: int, on_round: Callable[[], None]
) -> tuple[F64, tuple[float, int]]:
    """(scores f64[canaries], (epsilon by the ledger, steps taken)) after so many rounds."""
    t, sample_rate = subject.config.training, subject.plan.sample_rate
    config = mechanism_config(subject.config, rounds=t.rounds, local_epochs=t.epochs_begun, sample_rate=sample_rate)
    mechanism = Mechanism(config, subject.plan, config.privacy.clip_norm, subject.frozen, subject.device)
    canaries = mechanism.canaries(len(included))
    model = canaries.module.to(subject.device.device)
    start = to_vector(model)
    params, residual = start, np.zeros_like(start)
    with hospital_with(subject, config, model, CanarySamples(included), len(included)) as (hospital, count):
        for round in range(rounds):
            update, residual = with_memory(hospital, RunState(round, params), residual, WORST_CASE)
            params = params + update
            on_round()
        spent = ledger_epsilon(hospital), count.taken
    return mechanism.in_clip_norms(canaries.scores(params - start), len(included)), spent


def ledger_epsilon(hospital: Hospital) -> float:
    """Return what a private hospital's ledger says that it has spent."""
    return hospital.budget.epsilon() or 0.0


def real_training(subject: Subject, count: int, seed: int) -> Iterator[Finding]:
    """One round of the run's network on the site's patients and `count` more units, canaries, as the config trains it.

    A round has a small epsilon, so the bound is near 0; without noise the same canaries must stand out of what left.
    All entries are sent: what top-k keeps back in one round goes out in a later one. Attempts with noise are charged.
    """
    config = subject.config.replace({"privacy.noise_seed": None})
    canaries = _with_canaries(subject, count)
    model = canaries.module.to(subject.device.device)
    start = to_vector(model)

    def attempt(number: int) -> Finding:
        included = coins(seed, count, REAL_TRAINING, number)
        samples = CanarySamples(included, subject.samples)
        subject.charges.pay(subject.plan)
        with hospital_with(subject, config, model, samples, subject.weight) as (hospital, _):
            update = released(hospital, start, subject.round, WORST_CASE)
            claim = Guarantee(ledger_epsilon(hospital), config.privacy.delta)
        return epsilon_finding(REAL_TRAINING, WITH_DP, Scores(canaries.scores(update), included), claim)

    sound = confirmed(attempt)
    yield sound
    included = coins(seed, count, REAL_TRAINING, NO_NOISE)
    samples, quiet = CanarySamples(included, subject.samples), replace(subject.plan, noise_multiplier=0.0)
    site = AuditedSite(subject.site, subject.index, model, samples, config, quiet, subject.weight, subject.device)
    scores = Scores(canaries.scores(released(site, start, subject.round, WORST_CASE)), included)
    unnoised = epsilon_finding(REAL_TRAINING, NO_NOISE, scores, Guarantee(sound.limit, config.privacy.delta))
    yield replace(unnoised, unnoised=True)


def _with_canaries(subject: Subject, count: int) -> Canaries:
    """Return the run's network at the released parameters, and canaries that start at zero."""
    from_vector(subject.model, subject.params)
    classes, norm = len(subject.task.classes), canary_norm(subject.config.privacy.clip_norm, subject.frozen)
    network = copy.deepcopy(subject.model)
    if not subject.frozen:
        return network_canaries(network, count, classes, norm)
    return head_canaries(network, count, classes, norm)


def released_model(subject: Subject) -> list[Finding]:
    """Return whether the released model gives away its site's training patients by a lower loss (Yeom et al. 2018).

    Members are the site's training patients, others those of its validation and test splits. The weakest attack here
    but the one that needs the model alone. An initial model knows nobody: no finding.
    """
    if not subject.rounds_done:
        return []
    from_vector(subject.model, subject.params)
    losses = {split: _loss_by_patient(subject, split) for split in ("train", "val", "test")}
    values = np.concatenate([-loss for loss in losses.values()])
    included = np.repeat([True, False, False], [len(loss) for loss in losses.values()])
    limits = ceilings(history_of(subject.plan, subject.rounds_done), subject.plan.mechanism)
    return [replace(one, unnoised=True) for one in membership_findings(RELEASED, Scores(values, included), limits)]


def _loss_by_patient(subject: Subject, split: str) -> F64:
    """Return the mean cross entropy of each patient's images, f64[patients] (private)."""
    found = predict(subject.model, subject.samples, split, subject.device)
    logits, labels = torch.from_numpy(found.logits), torch.from_numpy(found.labels)
    loss = nn.functional.cross_entropy(logits, labels, reduction="none").numpy()
    _, owner = np.unique(found.patient, return_inverse=True)
    mean: F64 = np.bincount(owner, loss) / np.bincount(owner)
    return mean
