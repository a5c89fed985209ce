"""The two ways to train that the federation is compared with, by the same site code: local-only and centralised."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from fedhpc.algorithms.round_types import Participant
from fedhpc.errors import Interrupted
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import all_agree, require_all_trained, unless_interrupted
from fedhpc.util.arrays import F32
from fedhpc.util.stopwatch import Stopwatch

Models = Mapping[str, F32]


@dataclass(frozen=True)
class Start:
    """The rounds that are done, and each learner's model f32[d] after them."""

    rounds_done: int
    models: Models


def train_separately(
    learners: Sequence[Participant],
    start: Start,
    rounds: int,
    transport: Transport,
    on_round: Callable[[int, Models, Stopwatch], bool],
) -> tuple[Models, str]:
    """Each learner trains its own model for as many rounds of local epochs as a federated run, and exchanges nothing.

    Local-only: the learners are the hospitals. Centralised: there is one, with all samples pooled, ignoring residency.

    Args:
        learners: those of this rank; may be none.
        start: where to begin.
        rounds: of the run.
        transport: the ranks go from round to round together, so that they report and stop together.
        on_round: told of (rounds done, models, seconds); returns whether to go on.

    Returns:
        (the last models, why it ended: "finished", "budget" or "preempted").
    """
    done, models = start.rounds_done, start.models
    while done < rounds:
        if not all_agree(transport, all(learner.can_afford(done) for learner in learners), done + 1):
            return models, "budget"
        watch = Stopwatch()
        with watch.phase("train"):
            trained = unless_interrupted(partial(_one_round, learners, models, done))
            try:
                models = require_all_trained(transport, trained, done + 1)
            except Interrupted:
                return models, "preempted"
        done += 1
        if not on_round(done, models, watch) and done < rounds:
            return models, "preempted"
    return models, "finished"


def _one_round(learners: Sequence[Participant], models: Models, done: int) -> Models:
    return {one.name: models[one.name] + one.train(models[one.name], done) for one in learners}
