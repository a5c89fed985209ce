"""The epsilon beside a model covers all that the model was made of: lost sites, and the runs before it."""

import json
from dataclasses import replace

import numpy as np
import pytest

from fedhpc.config.schema import RunConfig
from fedhpc.models.task import Task
from fedhpc.records.metrics import unknown
from fedhpc.records.site_report import SiteReport
from fedhpc.records.summary import summary_of
from fedhpc.run.finished.finish import spent
from fedhpc.run.finished.model_card import model_card
from fedhpc.run.start.initial_model import cost_of

CONFIG = RunConfig.model_validate(
    {
        "name": "second",
        "data": {"shards": "{site}.h5", "sites": [{"name": "a", "weight": 100}, {"name": "b", "weight": 100}]},
        "privacy": {"epsilon": 1.0},
    }
)
SLOW, FAST = (SiteReport(name, epsilon, None, name, "0" * 16) for name, epsilon in (("a", 0.4), ("b", 0.9)))


def test_lost_site_that_has_spent_most_is_counted() -> None:
    """With schedule.policy=deadline a fast site is charged for more rounds than a slow one that stays to the end."""
    records = [{"epsilon": FAST.epsilon, "evaluation_epsilon": 0.5}, {"epsilon": SLOW.epsilon}]
    assert spent([SLOW], records) == {"epsilon": 0.9, "evaluation_epsilon": 0.5}
    assert spent([replace(SLOW, epsilon=0.95)], records)["epsilon"] == 0.95
    assert spent([replace(SLOW, epsilon=None)], []) == {"epsilon": None, "evaluation_epsilon": None}


def card(config: RunConfig, **more: object) -> str:
    last = {
        "per_site": {"a": {"epsilon": 0.4}},
        "epsilon": 0.4,
        "bytes_up": 0,
        "bytes_down": 0,
        "seconds": {"total": 1},
    }
    found = summary_of(config, [last], {**unknown().values, "parameters": 8, "stopped": "finished", "auc_ci95": None})
    plain = json.loads(json.dumps({**found, **more}, default=np.ndarray.tolist))
    return " ".join(model_card(config, Task(("healthy", "ill"), (1, 8, 8)), plain, calibrated=False).split())


@pytest.mark.parametrize(("epsilon", "told"), [(8.0, "epsilon 8, delta 1e-05"), (None, "an epsilon that is not known")])
def test_card_of_a_run_that_starts_from_another_says_what_that_cost(epsilon: float | None, told: str) -> None:
    """A run of epsilon 0.4 that moves the model of a run of epsilon 8 by little releases that model."""
    start = {"run": "first", "epsilon": epsilon, "delta": 1e-5}
    assert f"the model of run first, which was to cost {told}: about a patient of both runs" in card(
        CONFIG, init_from=start
    )
    assert "come on top" in card(CONFIG.replace({"model.name": "frozen", "model.backbone": "runs/first/model.pt"}))
    ours = card(CONFIG.replace({"model.name": "frozen", "model.backbone": "efficientnet_lite0"}))
    assert "come on top" not in ours and "It starts from" not in ours


def test_cost_of_a_run_whose_noise_can_be_taken_off_is_not_known() -> None:
    assert cost_of(CONFIG) == {"epsilon": 1.0, "delta": CONFIG.privacy.delta}
    for key, value in (("privacy.noise_seed", 3), ("privacy.epsilon", None)):
        assert cost_of(CONFIG.replace({key: value})) == {"epsilon": None, "delta": None}


def test_card_says_that_a_lost_site_may_have_spent_more_than_is_recorded() -> None:
    told = "No site spends more than what the run was to cost, epsilon 1."
    assert told in card(CONFIG, absent={"b": 2})
    assert told not in card(CONFIG)
