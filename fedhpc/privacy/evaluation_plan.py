"""What a run releases of validation and test patients with privacy on, and what each release costs. All of it public.

Validation, test and training patients are disjoint (the shard check refuses a patient in two splits), so each patient
is in the releases of one split only. A *stage* is one release of the validation split, at the end followed by one of
the test split; it is charged once, to the population `evaluation`, since no patient is in both (parallel composition:
McSherry 2009, Theorem 4). All stages of a run together cost `evaluation.epsilon`.
"""

import math
from dataclasses import dataclass, replace

from fedhpc.config.schema import RunConfig
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.plan import PrivacyPlan

COUNTED_SHARE = 0.5
"""A patient's images count as at most this share of privacy.max_images_per_patient: noise follows the patient with most
images. With 1 to 4 images a patient, half of 4 has a seventh less noise for its weight than three quarters; that the
images of some then weigh less than those of others moves the AUC by a tenth of that noise."""


@dataclass(frozen=True)
class EvaluationPlan:
    """The stages of a run.

    Attributes:
        epsilon: of all stages together.
        curve: after which rounds the validation split is released, before the end.
        models: how many final models are measured: one, or one a site with mode=local.
        rounds: of the run.
        counted: as how many images a patient counts at most.
        unit: "patient" or "image".
        insecure: whether the noise comes from privacy.noise_seed.
    """

    epsilon: float
    curve: tuple[int, ...]
    models: int
    rounds: int
    counted: int
    unit: str
    insecure: bool

    @property
    def final_epsilon(self) -> float:
        """Of each final stage: all of the budget, or half of it where earlier rounds share the other half."""
        return self.epsilon / (2 if self.curve else 1) / self.models

    def stage_epsilon(self, stage: int) -> float:
        """Of a stage: a round of the curve, or a number from `final_stage` on."""
        return self.epsilon / 2 / len(self.curve) if stage <= self.rounds else self.final_epsilon

    def final_stage(self, model: int) -> int:
        """Return the number of the stage that measures a final model."""
        return self.rounds + 1 + model

    @property
    def charges(self) -> tuple[Charge, ...]:
        """What all stages of the run cost, in their order."""
        final = (self.final_stage(model) for model in range(self.models))
        return tuple(self.charge(stage) for stage in (*self.curve, *final))

    def charge(self, stage: int) -> Charge:
        """Return what a stage costs every validation and test patient."""
        return Charge(
            round=stage,
            noise_multiplier=1 / self.stage_epsilon(stage),
            sample_rate=1.0,
            steps=1,
            mechanism="laplace",
            unit="image" if self.unit == "image" else "patient",
            insecure=self.insecure,
            population="evaluation",
        )


def plan_evaluation(config: RunConfig) -> EvaluationPlan | None:
    """Return the plan of a run; None where its evaluation is not private (no privacy, or evaluation.epsilon=null)."""
    p, e = config.privacy, config.evaluation
    if not config.private or e.epsilon is None:
        return None
    rounds = config.training.rounds
    return EvaluationPlan(
        epsilon=e.epsilon,
        curve=tuple(range(e.every, rounds, e.every)) if e.every else (),
        models=len(config.data.sites) if config.mode == "local" else 1,
        rounds=rounds,
        counted=1 if p.unit == "image" else math.ceil(COUNTED_SHARE * p.max_images_per_patient),
        unit=p.unit,
        insecure=p.noise_seed is not None,
    )


def counts_note(config: RunConfig) -> str:
    """Return what the released number of test images is; empty where evaluation is not private: it is exact then."""
    plan = plan_evaluation(config)
    if plan is None:
        return ""
    most = "" if plan.unit == "image" else f", and of a patient at most {plan.counted} count"
    return f"The numbers of test images contain noise{most}."


def charges_of_run(config: RunConfig, plan: PrivacyPlan) -> list[Charge]:
    """All charges that a private run means to make: of its training in its order, then of its evaluation."""
    p, evaluation = config.privacy, plan_evaluation(config)
    insecure = p.noise_seed is not None
    charges = plan.charges(config.training.rounds)
    trained = [replace(charge, unit=p.unit, insecure=insecure) for charge in charges]
    return [*trained, *(evaluation.charges if evaluation is not None else ())]
