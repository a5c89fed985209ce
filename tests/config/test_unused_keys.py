"""A key that would have no effect is refused, and allowed where it has one."""

from typing import Any

import pytest
from pydantic import ValidationError

from fedhpc.config.schema import RunConfig
from fedhpc.config.unused_keys import DEPENDENT

FEATURES = {"model.name": "frozen", "model.backbone": "phantom", "data.public_reference": "r.h5", "model.features": 5}
REWARDED = {"rewards.altruism": 2.0, "federation.aggregator_rank": "dedicated"}
HEAD = {"personalisation.method": "head"}
TUNED = {"personalisation.method": "fine_tune"}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "model.whitening": (0.3, FEATURES),
    "privacy.feature_mean_noise": (8.0, {**FEATURES, "model.feature_mean": "sites", "privacy.sample_rate": 1.0}),
    "privacy.max_images_per_patient": (2, {"privacy.unit": "patient"}),
    "rewards.memory": (0.5, REWARDED),
    "personalisation.strengths": ([0.1], HEAD),
    "personalisation.features": ("kept", HEAD),
    "personalisation.epochs": (3, TUNED),
    "personalisation.lr": (0.5, TUNED),
    "personalisation.layers": ("last", TUNED),
}
"""Key -> a value that is not its default, and with what it has an effect."""


def made(changes: dict[str, Any]) -> RunConfig:
    sites = [{"name": name, "weight": 100} for name in ("a", "b")]
    tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": sites}, "privacy": {"epsilon": 1.0, "unit": "image"}}
    return RunConfig.model_validate(tree).replace(changes)


def test_cases_name_every_key() -> None:
    assert set(CASES) == {one.key for one in DEPENDENT}


@pytest.mark.parametrize("key", CASES)
def test_key_without_effect_is_refused(key: str) -> None:
    value, used = CASES[key]
    needs = next(one.needs for one in DEPENDENT if one.key == key)
    with pytest.raises(ValidationError) as caught:
        made({key: value})
    assert f"{key}={value}: has no effect without {needs}. Set {needs}, or remove {key}" in str(caught.value)
    section, name = key.split(".")
    plain = made({**used, key: value}).model_dump(mode="json")
    assert plain[section][name] == value
