"""The section `faults`: what it refuses, and the config of the sites that are left."""

from typing import Any

import pytest
from pydantic import ValidationError

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.run.start.membership import without

SITES = ("a", "b", "c", "d")


def tree(faults: dict[str, Any], **more: Any) -> dict[str, Any]:
    sites = [{"name": name, "weight": 40} for name in SITES]
    return {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": sites},
        "privacy": {"off": True},
        "faults": faults,
        **more,
    }


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"absent": ["e"]}, "no such site; allowed: a, b, c, d"),
        ({"min_sites": 5}, "faults.min_sites=5: more than the 4 sites"),
        ({"absent": ["a"]}, "leaves 3 of 4 sites, and faults.min_sites=null asks for 4"),
        ({"absent": ["a", "b"], "min_sites": 3}, "leaves 2 of 4 sites"),
        ({"absent": ["a", "b", "c", "d"], "min_sites": 1}, "asks for 1: bring a site back"),
        ({"on_death": "continue"}, "allows no hospital to be missing"),
        ({"on_death": "continue", "min_sites": 4}, "allows no hospital to be missing"),
        ({"on_death": "ignore"}, "continue"),
        ({"round_timeout_s": 0}, "greater than 0"),
    ],
)
def test_fault_setting_without_meaning_is_refused(faults: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RunConfig.model_validate(tree(faults))


def test_sites_that_are_left_keep_order_and_weights() -> None:
    config = RunConfig.model_validate(tree({"on_death": "continue", "min_sites": 2}))
    left = config.without(["b"])
    assert [(site.name, site.weight) for site in left.data.sites] == [("a", 40), ("c", 40), ("d", 40)]
    assert config.without([]) is config


def test_sites_that_are_left_must_keep_the_rules_of_the_config() -> None:
    secure = {
        "privacy": {"epsilon": 1, "trust": "sites", "colluding_sites": 1, "tolerated_dropouts": 1, "sample_rate": 1},
        "exchange": {"density": 1},
        "training": {"local_epochs": 1},
    }
    config = RunConfig.model_validate(tree({"on_death": "continue", "min_sites": 1}, **secure))
    with pytest.raises(InputError, match=r"without a \(faults\): .*tolerated_dropouts"):
        without(config, ["a"])
