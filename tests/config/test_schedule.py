"""The section `schedule`: what each site does, by speeds and weights, and what is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from fedhpc.config.schema import RunConfig

SITES = [{"name": "a", "weight": 400}, {"name": "b", "weight": 100, "speed": 0.5}, {"name": "c", "speed": 0.1}]


LATE = {"policy": "deadline", "deadline_s": 3}


def config(**sections: Any) -> RunConfig:
    sites = [{"weight": 200, **site} for site in SITES]
    base = {"name": "x", "data": {"shards": "{site}.h5", "sites": sites}, "privacy": {"epsilon": 1.0}}
    return RunConfig.model_validate({**base, "schedule": {"policy": "plan"}, **sections})


def test_a_small_slow_site_does_all_of_its_work() -> None:
    """A quarter of the largest site's images at half of its speed are done in half of its time."""
    assert [config().effort(site) for site in "abc"] == [1.0, 1.0, 0.2]
    assert [config(schedule={}).effort(site) for site in "abc"] == [1.0] * 3


def test_plan_is_the_same_without_a_site() -> None:
    """Without the largest site the others would be planned otherwise: the plan is by all that are declared."""
    assert config().without(["a"]).effort("c") == 0.2


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"mode": "local"}, "schedule.policy=plan: mode=local"),
        ({"privacy": {"off": True}}, "algorithm.name=fedavg"),
        ({"schedule": {"policy": "wait", "efforts": {"a": 1.0, "b": 1.0, "c": 0.5}}}, "schedule.efforts"),
        ({"schedule": {"policy": "plan", "efforts": {"a": 1.0, "b": 0.5}}}, "schedule.efforts"),
        ({"schedule": {"policy": "plan", "efforts": {"a": 1.0, "b": 1.0, "c": 0.001}}}, "0.01"),
        (
            {
                "privacy": {"epsilon": 1.0, "trust": "sites", "colluding_sites": 1, "sample_rate": 1.0},
                "training": {"local_epochs": 1},
                "exchange": {"density": 1.0},
            },
            "schedule.policy=plan, privacy.trust=sites: the noise is complete only in the sum",
        ),
        ({"schedule": {"deadline_s": 1}}, "schedule.deadline_s: only with schedule.policy=deadline"),
        ({"schedule": {"policy": "deadline"}}, "schedule.deadline_s is missing"),
        ({"schedule": LATE, "mode": "local"}, "schedule.policy=deadline: mode=local"),
        ({"schedule": LATE, "faults": {"round_timeout_s": 2}}, "taken for dead after faults.round_timeout_s=2"),
        ({"schedule": LATE, "aggregation": {"rule": "krum"}}, "schedule.policy=deadline, aggregation.rule=krum"),
        ({"schedule": LATE, "algorithm": {"name": "scaffold"}}, "schedule.policy=deadline, algorithm.name=scaffold"),
        ({"schedule": LATE, "contribution": {"store_updates": True}}, "schedule.policy=deadline: rewards"),
        ({"schedule": LATE, "stress": {"case": "sign_flip", "sites": ["c"]}}, "schedule.policy=deadline, stress.case"),
        (
            {
                "privacy": {"epsilon": 1.0, "trust": "sites", "colluding_sites": 1, "sample_rate": 1.0},
                "training": {"local_epochs": 1},
                "exchange": {"density": 1.0},
                "schedule": LATE,
            },
            "schedule.policy=deadline, privacy.trust=sites: the masks",
        ),
        (
            {"stress": {"case": "slow", "sites": ["c"], "strength": 0.5}},
            "stress.strength=0.5",
        ),
    ],
)
def test_unfit_combinations_are_refused(sections: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=key):
        config(**sections)


def test_fednova_is_allowed_without_privacy_only() -> None:
    off = {"privacy": {"off": True}, "algorithm": {"name": "fednova"}}
    assert config(**off).effort("c") == 0.2
    with pytest.raises(ValidationError, match="fednova: divides"):
        config(algorithm={"name": "fednova"})
