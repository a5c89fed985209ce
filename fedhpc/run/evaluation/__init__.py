"""How a run is measured: what rank 0 asks of the sites, what it makes of their answers, with and without privacy.

    after a round (`validate`):  the validation split, if the config asks for it then
    at the end (`measure`):      the validation split: threshold of F1; then the test split, once

Without privacy, or with `evaluation.epsilon: null`, a site's answers are exact score histograms
(`fedhpc.records.metrics`), and the interval comes from DeLong's components. With it they are a few counts with noise
(`fedhpc.site.release`): wide bins of the validation split, then of the test split the two sides of one wide threshold
where the validation split has both error rates equal, or more bins where the noise is small beside the counts. Rank 0
fits binormal ROC curves to them (`fedhpc.run.evaluation.binormal_roc`); its interval is from its own resamples of the
fitted curves, patients and noise drawn anew. Early-stage sensitivity is then that of the *validation* patients: a
third group would cost the test AUC a fifth of its precision.
"""

from collections.abc import Callable

import numpy as np

from fedhpc.privacy.evaluation_plan import plan_evaluation
from fedhpc.records.measured import Measured, mean_of
from fedhpc.records.metrics import auc
from fedhpc.records.rounds import Validation
from fedhpc.run.evaluation.answers import tasks_of
from fedhpc.run.evaluation.curves import law_of
from fedhpc.run.evaluation.exact import exact_counts, measure_exactly
from fedhpc.run.evaluation.private import measure_privately, validation_auc
from fedhpc.run.evaluation.questions import ask, first_question
from fedhpc.run.session import Session
from fedhpc.util.arrays import F32


def validate(session: Session, params_of: Callable[[str], F32], round: int) -> Validation:
    """Return the AUC on the validation splits, at rank 0; nothing elsewhere and in rounds that release nothing.

    Several models (mode=local): the mean over the sites, each with its own.

    Args:
        session: this rank's.
        params_of: gives each site's model by its name, f32[d].
        round: the one just done, from 1 on.

    Raises:
        PayloadError: at rank 0, naming a site whose answer is none.
    """
    config = session.config
    if not config.validates(round):
        return Validation()
    names, one_model = config.site_names, config.mode != "local"
    if not config.private_evaluation:
        val = exact_counts(session, params_of, "val", round)
        if not val:
            return Validation()
        alone = {name: auc(one) for name, one in zip(names, val, strict=True)}
        return Validation(auc(np.sum(val, axis=0)) if one_model else mean_of(list(alone.values())), alone)
    answer = ask(session, params_of, first_question(session, round), round)
    plan = plan_evaluation(config)
    if answer is None or plan is None:
        return Validation()
    law = law_of(config, plan, tasks_of(session), round)
    alone = {name: validation_auc(law, released, 1.0) for name, released in answer.by_site.items()}
    pooled = validation_auc(law, answer.total, law.noises)
    return Validation(pooled if one_model else mean_of(list(alone.values())), alone)


def measure(session: Session, params_of: Callable[[str], F32], model: int) -> Measured | None:
    """Measure one final model (the number `model` of the run's) on all sites; at rank 0, None elsewhere.

    Args:
        session: this rank's.
        params_of: gives each site's model by its name, f32[d]; with rewards another one for each site.
        model: its number.

    Raises:
        PayloadError: at rank 0, naming a site whose answer is none.
    """
    plan = plan_evaluation(session.config)
    if plan is None:
        return measure_exactly(session, params_of)
    return measure_privately(session, params_of, plan.final_stage(model))
