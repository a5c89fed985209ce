"""What a site accepts of the plan that the aggregator has calibrated."""

from dataclasses import replace

import pytest

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import CALIBRATION_SLACK, bounds_of
from fedhpc.privacy.plan import PrivacyPlan, check_plan, plan_privacy, site_plans

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


def planned(rounds: int, efforts: dict[str, float]) -> RunConfig:
    sites = [{"name": name, "weight": 100} for name in efforts]
    changes = {"data.sites": sites, "training.rounds": rounds, "schedule.policy": "plan", "schedule.efforts": efforts}
    return CONFIG.replace(changes)


@pytest.mark.parametrize(("rounds", "effort", "ratio"), [(30, 0.5, 1.02), (30, 0.1, 1.18), (10, 0.1, 1.5)])
def test_a_slow_site_pays_in_noise_and_not_in_epsilon(rounds: int, effort: float, ratio: float) -> None:
    """The ratios of the noise in the mean gradient are published; steps and epsilon are those of the other sites."""
    config = planned(rounds, {"a": 1.0, "b": effort})
    fast, slow = site_plans(config).values()
    assert slow.sample_rate == effort
    assert slow.steps_per_round == fast.steps_per_round
    assert slow.noise_multiplier / effort / fast.noise_multiplier == pytest.approx(ratio, abs=0.02)
    for plan in (fast, slow):
        assert 1 - CALIBRATION_SLACK <= plan.bounds(rounds, 1e-5).epsilon <= 1


def test_the_plan_of_another_site_is_refused() -> None:
    """A slow site that was given the noise of a fast one would charge a sample rate that it does not draw with."""
    config = planned(1, {"a": 1.0, "b": 0.5})
    plans = site_plans(config)
    check_plan(config, plans["b"], "b")
    for site, other in (("a", "b"), ("b", "a")):
        with pytest.raises(PrivacyError, match="does not keep to the protocol"):
            check_plan(config, plans[other], site)
