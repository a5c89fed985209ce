"""A finished run that goes on: more rounds, and what they cost."""

import math
from collections.abc import Sequence
from dataclasses import replace

from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Charge, bounds_of
from fedhpc.run.session import Session
from fedhpc.site.hospital import Hospital
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks
from fedhpc.util.text import wrapped


def begin(session: Session, first: int) -> None:
    """Write the config, now that all has been checked. Keep the result of a finished run that is continued.

    Args:
        first: how many rounds have been finished.

    Raises:
        PrivacyError: at every rank, where the rounds to come would pass the target epsilon.
    """
    transport = session.transport
    before = broadcast_json(transport, lambda: _rounds_before(session, first))
    if before is not None and session.config.private:
        run_on_all_ranks(transport, lambda: _check_budget(session, first))
    run_on_all_ranks(transport, lambda: None if transport.rank else _written(session, before))


def _rounds_before(session: Session, first: int) -> int | None:
    """For how many rounds a finished run was configured that is now continued; None where none is."""
    directory, config = session.directory, session.config
    earlier = directory.read_config() if first and directory.summary.exists() else None
    if earlier is None:
        return None
    same = (earlier.training.rounds, earlier.privacy.epsilon) == (config.training.rounds, config.privacy.epsilon)
    return None if same else earlier.training.rounds


def _written(session: Session, before: int | None) -> None:
    config, directory = session.declared, session.directory
    if before is not None:
        directory.archive(before)
        personal = f", personal models as personal-{before:04d}.pt" * (config.personalisation.method != "none")
        told = (
            f"continuing a finished run of {before} rounds to {config.training.rounds}: its result is kept as "
            f"summary-{before:04d}.json{personal}; learning rate and averaging are from now on those of "
            f"{config.training.rounds} rounds"
        )
        session.console.say(wrapped(told))
    directory.write_config(config)


def _check_budget(session: Session, first: int) -> None:
    """A finished private run has spent its budget: more rounds need a larger one, which a person must write down."""
    for learner in session.learners:
        _check_learner(session, learner, first)


def _check_learner(session: Session, learner: Hospital, first: int) -> None:
    p, plan, rounds = session.config.privacy, learner.plan, session.config.training.rounds
    if plan is None or p.epsilon is None:
        return
    spent = tuple(charge for charge in learner.budget.ledger.charges if charge.population == "train")
    planned = [
        replace(plan.charge(number), unit=p.unit, insecure=p.noise_seed is not None) for number in range(first, rounds)
    ]
    before, after = _epsilon(spent, p.delta), _epsilon((*spent, *planned), p.delta)
    if after <= p.epsilon:
        return
    # With the noise of the last charge in all rounds to come, what is needed is also what is calibrated for.
    needed = _epsilon((*spent, *(replace(spent[-1], round=number) for number in range(first, rounds))), p.delta)
    raise PrivacyError(
        f"training.rounds={rounds}: {learner.name} has spent epsilon {before:.4g} in {first} rounds; {rounds - first} "
        f"more with noise_multiplier {plan.noise_multiplier:.4g} would make it {after:.4g}, above "
        f"privacy.epsilon={p.epsilon:g} (delta {p.delta:g}). The noise was planned for the run as it was started. Let "
        f"it end there, or allow more: --set privacy.epsilon={math.ceil(needed * 100) / 100 + 0.01:.2f}",
        code="privacy.budget",
    )


def _epsilon(charges: Sequence[Charge], delta: float) -> float:
    return bounds_of(charges, delta).epsilon
