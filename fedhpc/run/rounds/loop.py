"""One start of a run, from the last round that is whole on every rank's disk to the end.

    find that round, open the privacy ledgers, print the header                            (_opened)
    for round t = first .. T-1:                                  (federate, or train_separately for the baselines)
        every site trains from x_t; rank 0 averages what they send; all step to x_{t+1}
        measure x_{t+1} on the validation splits, save it, record the round                (close_round)
    measure the last model on the test splits, write summary.json and model.pt             (finish)

The steps of a round, FedAvg's Algorithm 1 (McMahan et al. 2017), are in `fedhpc.algorithms.fedavg`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from fedhpc.algorithms.baselines import Start, train_separately
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.round_types import RoundResult
from fedhpc.algorithms.run_state import RunState, rewarded
from fedhpc.errors import InputError
from fedhpc.models.vector import to_vector
from fedhpc.records.checkpoint import load_state, save_state
from fedhpc.records.rounds import Traffic
from fedhpc.run.finished.final_models import shared_models
from fedhpc.run.finished.finish import GLOBAL, Models, finish
from fedhpc.run.rounds.continuation import begin
from fedhpc.run.rounds.feature_mean import centre_features
from fedhpc.run.rounds.late_updates import agreed_timing
from fedhpc.run.rounds.resume import Resumed, resume_point
from fedhpc.run.rounds.round_end import Closing, Progress, Ran, close_round
from fedhpc.run.rounds.round_terms import round_terms
from fedhpc.run.rounds.saved_state import fresh_average, loaded_state, save_run_state
from fedhpc.run.rounds.tracking import open_sinks, tell
from fedhpc.run.session import POOLED, Session
from fedhpc.run.start.header import introduce
from fedhpc.run.start.site_ledgers import open_ledgers
from fedhpc.transport.collectives import broadcast_json, outgoing, run_on_all_ranks
from fedhpc.transport.messages import said
from fedhpc.util.arrays import F32
from fedhpc.util.memory import give_back_freed_memory
from fedhpc.util.stopwatch import Stopwatch
from fedhpc.util.text import wrapped


@dataclass(frozen=True)
class Ended:
    """How this start of a run ended.

    Attributes:
        why: "finished", "budget" or "preempted"; the same at every rank.
        models: the final ones; none where it was preempted.
    """

    why: str
    models: Models


def run(session: Session, stop_after: int | None, on_begin: Callable[[int], None]) -> Ended:
    """Train from where the run directory stands to the end of the run, or for `stop_after` rounds more.

    Args:
        session: this rank's.
        stop_after: None: no limit.
        on_begin: called at rank 0 with the number of finished rounds, before the first round of this start.

    Raises:
        InputError: a run directory that cannot be resumed.
        SiteError: a site failed while others may wait for it.
    """
    resumed = resume_point(session)
    progress = _opened(session, resumed, stop_after)
    run_on_all_ranks(session.transport, lambda: None if session.transport.rank else on_begin(resumed.first))
    session.transport.limit_waits(session.declared.faults.round_timeout_s)
    give_back_freed_memory()  # of reading the shards and of their search
    session.notice.begin_rounds(speaks=session.transport.rank == 0)
    train_rounds = _federated if session.config.mode == "federated" else _separate
    models, stopped = train_rounds(session, resumed, progress)
    if stopped == "preempted":
        by = f" ({session.notice.by})" if session.notice.given else ""
        left = f"stopped early{by} in {session.directory.path}; the same command goes on from here"
        session.console.say(wrapped(left))
        return Ended(stopped, Models({}))
    done = broadcast_json(session.transport, lambda: len(progress.records))
    if stopped == "budget":
        _say_budget(session, done)
    give_back_freed_memory()  # of training
    finish(session, models, progress.records, stopped)
    tell(progress.sinks, lambda sink: sink.finish(session.directory.read_summary()))
    return Ended(stopped, models)


def _opened(session: Session, resumed: Resumed, stop_after: int | None) -> Progress:
    """Open the ledgers, release what comes before the rounds, print the header; return what grows from here on."""
    lifetimes = open_ledgers(session, resumed.heads)
    begin(session, resumed.first)
    centre_features(session, resumed)
    sinks = () if session.transport.rank else open_sinks(session.directory, session.config, resumed.records)
    progress = Progress(stop_after, resumed.records, sinks)
    introduce(session, resumed.first, lifetimes)
    return progress


def _say_budget(session: Session, done: int) -> None:
    """Say what ends the run after `done` rounds: what each learner has spent, would spend and may spend.

    Raises:
        InputError: at every rank, where the budget does not allow one round.
    """
    transport = session.transport
    refusals = run_on_all_ranks(transport, lambda: [learner.budget.refusal(done) for learner in session.learners])
    mine = outgoing(transport, "\n".join(filter(None, refusals)))
    lines = [said(payload) for payload in transport.gather([mine.encode()], "control")]

    def numbers_of_all() -> str:
        numbers = "\n".join(filter(None, lines))
        if done:
            return numbers
        raise InputError(
            f"{session.directory.path}: the privacy budget does not allow one round; no model was made:\n{numbers}",
            code="privacy.budget",
        )

    numbers = broadcast_json(transport, numbers_of_all)
    session.console.say(f"the privacy budget ends the run after round {done}:\n{numbers}")


def _federated(session: Session, resumed: Resumed, progress: Progress) -> tuple[Models, str]:
    """Federated averaging; the final model, and why it ended: "finished", "budget" or "preempted"."""
    terms, start = round_terms(session, agreed_timing(session, resumed.first)), loaded_state(session, resumed)
    average = fresh_average(session).resumed(start.public)

    def own_layers(state: RunState) -> None:
        for site in session.sites:
            site.evaluator.at_home = partial(terms.local.at_site, kept=state.sites[site.name])

    own_layers(start)

    def on_round(result: RoundResult) -> bool:
        nonlocal average
        state = result.state
        own_layers(state)
        average = average.after(state.round, state.params)
        released = average.released(state.params)
        ran = Ran(result.traffic or Traffic(), result.watch, result.dropped, result.flags, result.arrivals)
        saved = replace(state, public={**state.public, **average.arrays()})
        models = Models({GLOBAL: released}, rewarded(state))
        closing = Closing(state.round, models.of(GLOBAL), lambda: save_run_state(session, resumed.owners, saved))
        return close_round(session, closing, ran, progress)

    try:
        state, stopped = federate(session.sites, start, terms, session.transport, on_round)
    finally:
        terms.close()
    return Models({GLOBAL: average.released(state.params)}, rewarded(state)), stopped


def _separate(session: Session, resumed: Resumed, progress: Progress) -> tuple[Models, str]:
    """Every hospital alone, or all of them pooled at rank 0; the final models, and why it ended."""
    directory, first, owners = session.directory, resumed.first, resumed.owners
    initial = to_vector(session.place.model)

    def loaded() -> dict[str, F32]:
        names = [learner.name for learner in session.learners]
        if not first:
            return dict.fromkeys(names, initial)
        return {name: load_state(directory.site(name), "model", first, owners[name])["params"] for name in names}

    def on_round(done: int, models: Mapping[str, F32], watch: Stopwatch) -> bool:
        def save() -> None:
            for name, params in models.items():
                save_state(directory.site(name), "model", done, {"params": params}, owners[name])

        return close_round(session, Closing(done, _chooser(session, models), save), Ran(Traffic(), watch), progress)

    start = run_on_all_ranks(session.transport, loaded)
    rounds = session.config.training.rounds
    models, stopped = train_separately(session.learners, Start(first, start), rounds, session.transport, on_round)
    return Models(shared_models(session, models)), stopped


def _chooser(session: Session, models: Mapping[str, F32]) -> Callable[[str], F32]:
    """Return which model belongs to a site: its own, or the pooled one."""
    return (lambda _: models[POOLED]) if session.config.mode == "centralised" else (lambda name: models[name])
