"""What rank 0 asks of the sites where evaluation is private, and the answers: a few counts with noise."""

from collections.abc import Callable, Sequence

import numpy as np

from fedhpc.algorithms.secure_fedavg import SumGroup, masked_sum
from fedhpc.compression.update import pack_arrays
from fedhpc.config.schema import RunConfig
from fedhpc.privacy.evaluation_plan import plan_evaluation
from fedhpc.run.evaluation.answers import read_array, tasks_of
from fedhpc.run.evaluation.curves import EDGES, Answer
from fedhpc.run.session import Session
from fedhpc.secagg.masks import SumTerms
from fedhpc.secagg.signatures import SigningSite
from fedhpc.site.hospital import Hospital
from fedhpc.site.release import QUESTION, Question, Weights
from fedhpc.transport.collectives import all_agree, run_on_all_ranks
from fedhpc.transport.messages import of_each, parsed
from fedhpc.util.arrays import F32

LARGEST_RELEASE = 2**55
SUM_WIDTH_BYTES = 8
FIRST_SUM = 2**31
"""Secure sums of evaluation are numbered from here on; those of rounds lie below."""


def evaluated(session: Session) -> tuple[Hospital, ...]:
    """Who answers at this rank: the sites; with private evaluation of a centralised run the pooled patients as one."""
    pooled = session.config.private_evaluation and session.config.mode == "centralised"
    return session.learners if pooled else session.sites


def sum_terms(config: RunConfig, size: int) -> SumTerms:
    """Of the secure sum of an answer: all sites or none.

    A kept answer is sent again, with the same noise, when a run is started again. A second sum without one site would
    then differ from the first by exactly that site's vector, which has but a share of the noise.
    """
    sites, colluding = len(config.data.sites), config.privacy.colluding_sites or 0
    return SumTerms(sites, threshold=sites, size=size, width_bytes=SUM_WIDTH_BYTES, colluding=colluding)


def ask(session: Session, params_of: Callable[[str], F32], question: Question, round: int | None) -> Answer | None:
    """Ask all sites; at rank 0 the answer, else None. None everywhere where a site's budget does not allow it.

    Args:
        session: this rank's.
        params_of: gives each site's model by its name, f32[d].
        question: the same at every rank.
        round: the one just done; None after the last.

    Raises:
        PayloadError: at rank 0, naming a site whose answer is none.
    """
    plan = plan_evaluation(session.config)
    if plan is None:
        raise ValueError("evaluation.epsilon=null: a run whose evaluation is not private asks no such question")
    config, transport, sites = session.config, session.transport, evaluated(session)
    willing = all(site.evaluator.may_answer(params_of(site.name), question) for site in sites)
    if not all_agree(transport, willing, round):
        return None
    weights = Weights(question.shape[0], plan.counted, config.task)
    vectors = run_on_all_ranks(
        transport, lambda: [site.evaluator.answer(params_of(site.name), question, weights) for site in sites]
    )
    if config.privacy.trust == "sites":
        number = FIRST_SUM + 2 * question.stage + (question.split == "test")
        terms = sum_terms(config, int(np.prod(question.shape)))
        mine = {site.index: vector.ravel() for site, vector in zip(sites, vectors, strict=True)}
        group = SumGroup(transport, config.site_names, _about(session, sites, params_of, question))
        total = masked_sum(group, terms, number, mine)
        return None if total is None else Answer(question, total.reshape(question.shape), {})
    payloads = transport.gather([pack_arrays({"counts": vector}) for vector in vectors], "metrics", round)
    if transport.rank:
        return None
    names = config.site_names if config.mode != "centralised" else [site.name for site in sites]
    got = of_each(payloads, names, "metrics", lambda site, one: read_array(site, one, question.shape, LARGEST_RELEASE))
    return Answer(question, np.sum(got, axis=0), dict(zip(names, got, strict=True)) if len(got) > 1 else {})


def _about(
    session: Session, sites: Sequence[Hospital], params_of: Callable[[str], F32], question: Question
) -> dict[int, SigningSite]:
    """Return the signing sites of this rank, each about what it was asked itself.

    One site that is asked something else answers anew, and the others send the answers that they have kept: of two such
    sums the difference is that one site's, with its own share of the noise alone.
    """
    asked = {site.index: site.evaluator.asked(params_of(site.name), question) for site in sites}
    return {index: session.identities[index].about(text.encode()) for index, text in asked.items()}


def first_question(session: Session, stage: int) -> Question:
    """Of a validation split: wide bins that fit any model."""
    return Question(stage=stage, split="val", groups=3, edges=(EDGES,) * tasks_of(session))


def question_from_rank_0(session: Session, question: Question | None) -> Question | None:
    """Rank 0's question, or that there is none, at every rank."""
    text = None
    if session.transport.rank == 0:
        text = b"" if question is None else QUESTION.dump_json(question)
    got = session.transport.broadcast(text, "metrics")
    return parsed(got, QUESTION, "aggregator, metrics") if got else None
