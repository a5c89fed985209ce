"""What a site accepts of the plan that the aggregator has calibrated."""

from dataclasses import replace

import pytest

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import bounds_of
from fedhpc.privacy.plan import PrivacyPlan, check_plan, plan_privacy

CONFIG = RunConfig.model_validate(
    {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": [{"name": "a", "weight": 9}]},
        "training": {"rounds": 1, "local_epochs": 1},
        "privacy": {"epsilon": 1.0, "sample_rate": 1.0},
    }
)


def test_a_plan_of_another_mechanism_is_charged_less_than_it_costs() -> None:
    """The attack of an aggregator that calls the Gaussian noise of a site Laplace noise, or its steps fewer."""
    forged = PrivacyPlan(1.0, 1.0, 1, "laplace")
    assert forged.bounds(1, 1e-5).epsilon == 1.0, "what would be charged"
    assert bounds_of([replace(forged.charge(0), mechanism="gaussian")], 1e-5).epsilon > 4, "what it would cost"


@pytest.mark.parametrize(
    "forged",
    [
        PrivacyPlan(1.0, 1.0, 1, "laplace"),
        PrivacyPlan(1.0, 1.0, 1, "skellam"),
        PrivacyPlan(1.0, 0.01, 1),
        PrivacyPlan(1.0, 1.0, 2),
        PrivacyPlan(float("nan"), 1.0, 1),
        PrivacyPlan(float("inf"), 1.0, 1),
        PrivacyPlan(-1.0, 1.0, 1),
        PrivacyPlan(0.0, 1.0, 1),
        PrivacyPlan(1e-160, 1.0, 1),
        PrivacyPlan(1e160, 1.0, 1),
    ],
)
def test_a_forged_plan_is_refused(forged: PrivacyPlan) -> None:
    with pytest.raises(PrivacyError, match="does not keep to the protocol"):
        check_plan(CONFIG, forged)


def test_an_honest_plan_is_accepted() -> None:
    check_plan(CONFIG, plan_privacy(CONFIG))
