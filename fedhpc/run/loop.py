"""`train`: open the session, drive the rounds, keep the run directory, finish with `summary.json` and `model.pt`."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from fedhpc.aggregation.base import Flag
from fedhpc.algorithms.baselines import Start, train_separately
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.round_types import RoundResult
from fedhpc.algorithms.run_state import RunState, rewarded
from fedhpc.compression.codec import encode
from fedhpc.compression.error_feedback import CompressionConfig, with_feedback
from fedhpc.compression.update import AGGREGATOR, ArraySpec, Update, pack_arrays, unpack_arrays
from fedhpc.errors import InputError, PayloadError, in_round
from fedhpc.models.vector import parameter_count, to_vector
from fedhpc.records.checkpoint import load_state, save_state
from fedhpc.records.rounds import FLOAT32_BYTES, NONE_LATE, Arrivals, RoundEnd, Traffic, record_of
from fedhpc.run.continuation import begin
from fedhpc.run.display import flag_lines, header, round_line
from fedhpc.run.evaluation import validate
from fedhpc.run.feature_mean import centre_features
from fedhpc.run.finish import GLOBAL, Models, finish, reports_of
from fedhpc.run.late_updates import agreed_timing
from fedhpc.run.resume import Resumed, resume_point
from fedhpc.run.round_terms import round_terms, secure_mean
from fedhpc.run.saved_state import fresh_average, loaded_state, save_run_state
from fedhpc.run.secure_channel import wire_line
from fedhpc.run.session import POOLED, Session, open_ledgers, session_trust
from fedhpc.run.tracking import Sink, open_sinks, tell
from fedhpc.secagg.protocol import round_bytes
from fedhpc.transport.collectives import all_agree, broadcast_json, run_on_all_ranks
from fedhpc.transport.messages import of_each
from fedhpc.util.arrays import F32
from fedhpc.util.memory import give_back_freed_memory
from fedhpc.util.rng import generator
from fedhpc.util.stopwatch import Stopwatch
from fedhpc.util.text import wrapped

LOG = logging.getLogger(__name__)

LIKE_ALL = 1 << 20
"""How many entries of an update are drawn to tell how small it will be."""


@dataclass(frozen=True)
class Closing:
    """How a round is closed: its number, the model of each site by name, and what saves it at this rank."""

    round: int
    params_of: Callable[[str], F32]
    save: Callable[[], None]


@dataclass
class Progress:
    """What grows while a run goes on; the records, and where else their points go (`tracking`), are rank 0's."""

    stop_after: int | None
    records: list[dict[str, Any]] = field(default_factory=list)
    sinks: Sequence[Sink] = ()
    done_here: int = 0
    round_started: float = field(default_factory=time.monotonic)


@dataclass(frozen=True)
class Ran:
    """What a round took: bytes, seconds by phase, the sites that are not in its mean, are far out, or are late."""

    traffic: Traffic
    watch: Stopwatch
    dropped: tuple[str, ...] = ()
    flags: tuple[Flag, ...] = ()
    arrivals: Arrivals = NONE_LATE


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
    lifetimes = open_ledgers(session, resumed.heads)
    begin(session, resumed.first)
    centre_features(session, resumed)
    progress = Progress(stop_after, resumed.records, _sinks(session, resumed))
    _introduce(session, resumed.first, lifetimes)
    run_on_all_ranks(session.transport, lambda: None if session.transport.rank else on_begin(resumed.first))
    session.transport.limit_waits(session.declared.faults.round_timeout_s)
    give_back_freed_memory()  # of reading the shards and of their search
    drive = _federated if session.config.mode == "federated" else _separate
    session.notice.begin_rounds(speaks=session.transport.rank == 0)
    models, stopped = drive(session, resumed, progress)
    if stopped == "preempted":
        by = f" ({session.notice.by})" if session.notice.given else ""
        session.console.say(
            wrapped(f"stopped early{by} in {session.directory.path}; the same command goes on from here")
        )
        return Ended(stopped, Models({}))
    done = broadcast_json(session.transport, lambda: len(progress.records))
    numbers = _budget_numbers(session, done) if stopped == "budget" else ""
    if not done:
        raise InputError(
            f"{session.directory.path}: the privacy budget does not allow one round; no model was made:\n{numbers}",
            code="privacy.budget",
        )
    if numbers:
        session.console.say(f"the privacy budget ends the run after round {done}:\n{numbers}")
    give_back_freed_memory()  # of training
    finish(session, models, progress.records, stopped)
    tell(progress.sinks, lambda sink: sink.finish(session.directory.read_summary()))
    return Ended(stopped, models)


def _sinks(session: Session, resumed: Resumed) -> Sequence[Sink]:
    return () if session.transport.rank else open_sinks(session.directory, session.config, resumed.records)


def _budget_numbers(session: Session, done: int) -> str:
    """What each learner that cannot afford one more round has spent, would spend and may spend; the same at all."""
    told = "\n".join(filter(None, (learner.budget.refusal(done) for learner in session.learners)))
    lines = [payload.decode() for payload in session.transport.gather([told.encode()], "control")]
    return broadcast_json(session.transport, lambda: "\n".join(filter(None, lines)))


def _introduce(session: Session, first: int, lifetimes: Sequence[str]) -> None:
    if session.transport.rank:
        return
    session.console.say(header(session.config, session.facts, _header_facts(session)))
    for line in lifetimes:
        session.console.say(wrapped(line))
    if first:
        session.console.say(f"resuming after round {first}")
    session.console.start_round(first, session.config.training.rounds, None)


def _header_facts(session: Session) -> dict[str, Any]:
    config, plan, terms = session.config, session.place.plan, round_terms(session)
    d, sites = parameter_count(session.place.model), len(config.data.sites)
    secure = secure_mean(session)
    up, more_down = (_payload_bytes(d, terms.up), 0) if secure is None else round_bytes(secure.terms)
    facts: dict[str, Any] = {
        "threads": config.runtime.threads,
        "precision": config.runtime.precision,
        "parameters": d,
        "sparse_up_bytes": sites * terms.algorithm.vectors * up,
        "sparse_down_bytes": sites * (terms.algorithm.vectors * _payload_bytes(d, terms.down) + more_down),
        "dense_bytes": sites * d * FLOAT32_BYTES,
        "wire": wire_line(config, session.transport.size),
        "absent": session.absent,
        "plans": session.plans,
    }
    if plan is not None:
        facts |= {
            "planned_epsilon": plan.bounds(config.training.rounds, config.privacy.delta).epsilon,
            "noise_multiplier": plan.noise_multiplier,
            "feature_mean_noise": plan.feature_mean_noise,
            "trust": session_trust(session),
        }
    return facts


def _payload_bytes(size: int, coding: CompressionConfig) -> int:
    """About what a payload will take: one of Gaussian numbers does, a million of which stand for all."""
    drawn = min(size, LIKE_ALL)
    update = generator(0, "like an update").standard_normal(drawn, np.float32)
    sent, _ = with_feedback(update, np.zeros_like(update), CompressionConfig(coding.density, coding.value_bits))
    return len(encode(Update(AGGREGATOR, 0, sent))) * size // drawn


def _federated(session: Session, resumed: Resumed, progress: Progress) -> tuple[Models, str]:
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
        return _close_round(session, closing, ran, progress)

    try:
        state, stopped = federate(session.sites, start, terms, session.transport, on_round)
    finally:
        terms.close()
    return Models({GLOBAL: average.released(state.params)}, rewarded(state)), stopped


def _separate(session: Session, resumed: Resumed, progress: Progress) -> tuple[Models, str]:
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

        return _close_round(session, Closing(done, _chooser(session, models), save), Ran(Traffic(), watch), progress)

    start = run_on_all_ranks(session.transport, loaded)
    rounds = session.config.training.rounds
    models, stopped = train_separately(session.learners, Start(first, start), rounds, session.transport, on_round)
    return Models(shared(session, models)), stopped


def shared(session: Session, models: Mapping[str, F32]) -> dict[str, F32]:
    """Every learner's final model at every rank, dense: the baselines are measured on all sites' test splits."""
    packed = session.transport.gather([pack_arrays({name: params}) for name, params in models.items()], "update")
    size = parameter_count(session.place.model)
    names = list(session.config.site_names) if session.config.mode == "local" else [POOLED]
    merged: dict[str, F32] = {}
    if packed:
        for one in of_each(packed, names, "update", lambda name, payload: read_model(name, payload, size)):
            merged |= one
    payload = pack_arrays(merged) if session.transport.rank == 0 else None
    everybody = unpack_arrays(session.transport.broadcast(payload, "update"))
    return {name: params.astype(np.float32, copy=False) for name, params in everybody.items()}


def read_model(name: str, payload: bytes, size: int) -> dict[str, F32]:
    """Return {name: parameters f32[size]} of a learner's final model from its payload.

    Raises:
        PayloadError: another name, type or size, or values that are not finite.
    """
    try:
        params = unpack_arrays(payload, {name: ArraySpec("<f4", (size,))}, 4 * size)[name].astype(np.float32)
    except PayloadError as error:
        raise PayloadError(f"site {name}, update: {error}", code=error.code) from None
    if not np.isfinite(params).all():
        raise PayloadError(f"site {name}, update: its model has entries that are not finite", code="payload.not-finite")
    return {name: params}


def _chooser(session: Session, models: Mapping[str, F32]) -> Callable[[str], F32]:
    """Which model belongs to a site: its own, or the pooled one."""
    return (lambda _: models[POOLED]) if session.config.mode == "centralised" else (lambda name: models[name])


def _close_round(session: Session, closing: Closing, ran: Ran, progress: Progress) -> bool:
    """Evaluate, save, record, tell; whether to go on (the same answer at every rank).

    Saved comes before recorded: of a round that is recorded, every file was written, at every rank.

    Raises:
        InputError: at every rank, where a file cannot be written at any.
    """
    done, watch = closing.round, ran.watch
    with ThreadPoolExecutor(1, "checkpoint") as beside:
        # The disk works while the model is evaluated; neither changes what the other reads.
        saving = beside.submit(closing.save)
        with watch.phase("evaluate"), in_round(done):
            reports, validation = reports_of(session, done), validate(session, closing.params_of, done)
        with watch.phase("checkpoint"):
            run_on_all_ranks(session.transport, saving.result)
    progress.done_here += 1
    LOG.info("round %d is saved", done)
    run_on_all_ranks(session.transport, lambda: _record(session, RoundEnd(done, reports, validation), ran, progress))
    if session.transport.rank == 0:
        _tell(session, done, progress.records)
    progress.round_started = time.monotonic()
    more = progress.stop_after is None or progress.done_here < progress.stop_after
    return all_agree(session.transport, more and not session.notice.given, done)


def _record(session: Session, end: RoundEnd, ran: Ran, progress: Progress) -> None:
    """Append the round's record, at rank 0."""
    if session.transport.rank:
        return
    seconds = {**ran.watch.seconds, "total": time.monotonic() - progress.round_started}
    trust = session_trust(session)
    record = replace(
        record_of(end, ran.traffic, seconds),
        dropped=ran.dropped,
        flags=tuple(asdict(flag) for flag in ran.flags),
        stress=session.config.stress.label if session.config.stress else None,
        absent=session.absent,
        late=ran.arrivals.late,
        staleness=ran.arrivals.staleness,
        protects_from_aggregator=None if trust is None else trust.aggregator,
    ).json()
    session.directory.lock.check_held()
    session.directory.append_round(record)
    progress.records.append(record)
    progress.sinks = tell(progress.sinks, lambda sink: sink.round(record))


def _tell(session: Session, done: int, records: Sequence[Mapping[str, Any]]) -> None:
    rounds = session.config.training.rounds
    session.console.say(round_line(records[-1], rounds))
    for line in flag_lines(records[-1]):
        session.console.say(wrapped(line))
    mean_s = float(np.mean([record["seconds"]["total"] for record in records]))
    session.console.start_round(done, rounds, mean_s)
