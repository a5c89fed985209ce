"""A key that would have no effect is refused, and allowed where it has one."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from fedhpc.config.loader import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.config.unused_keys import DEPENDENT
from fedhpc.errors import ConfigError
from fedhpc.records.run_directory import RunDirectory

FEATURES = {"model.name": "frozen", "model.backbone": "phantom", "data.public_reference": "r.h5", "model.features": 5}
REWARDED = {"rewards.altruism": 2.0, "federation.aggregator_rank": "dedicated"}
HEAD = {"personalisation.method": "head"}
TUNED = {"personalisation.method": "fine_tune"}
CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "model.whitening": (0.3, FEATURES),
    "model.feature_norm": ("stages", FEATURES),
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


def written(folder: Path, changes: dict[str, Any]) -> RunConfig:
    sites = [{"name": name, "weight": 100} for name in ("a", "b")]
    tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": sites}, "privacy": {"epsilon": 1.0, "unit": "image"}}
    (folder / "c.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return load_config(folder / "c.yaml", [f"{key}={json.dumps(value)}" for key, value in changes.items()])


def test_cases_name_every_key() -> None:
    assert set(CASES) == {one.key for one in DEPENDENT}


@pytest.mark.parametrize("key", CASES)
def test_key_without_effect_is_refused(key: str, tmp_path: Path) -> None:
    value, used = CASES[key]
    needs = next(one.needs for one in DEPENDENT if one.key == key)
    with pytest.raises(ConfigError) as caught:
        written(tmp_path, {key: value})
    assert f"{key}={value}: has no effect without {needs}. Set {needs}, or remove {key}" in str(caught.value)
    section, name = key.split(".")
    plain = written(tmp_path, {**used, key: value}).model_dump(mode="json")
    assert plain[section][name] == value


def test_resolved_config_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """It holds all defaults of its version, used or not, and some have changed."""
    plain = written(tmp_path, {}).model_dump(mode="json")
    plain["privacy"]["feature_mean_noise"] = 8.0
    directory = RunDirectory(tmp_path)
    directory.config.write_text(yaml.safe_dump(plain), encoding="utf-8")
    found = directory.read_config()
    assert found is not None and found.privacy.feature_mean_noise == 8.0
