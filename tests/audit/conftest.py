"""One small site for all audit tests: making it costs a second, and importing torch several."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedhpc.audit.target import Subject, Target, open_subject
from fedhpc.config.schema import RunConfig

TREE = {
    "name": "audited",
    "data": {
        "shards": "",
        "sites": [{"name": name, "weight": 40} for name in ("site1", "site2", "site3", "site4")],
        "phantom": {"images": 100, "image_size": 32, "difficulty": 0.0},
    },
    "training": {"rounds": 3, "local_epochs": 2, "batch_size": 16},
    "privacy": {"epsilon": 1.0, "sample_rate": 0.25},
    "runtime": {"threads": 1},
}


@pytest.fixture(scope="session")
def audited_config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A private federated run of densenet_small on 32 x 32 phantoms; the shard of a site is made on first use."""
    shards = str(tmp_path_factory.mktemp("shards") / "{site}.h5")
    return RunConfig.model_validate({**TREE, "data": {**TREE["data"], "shards": shards}})


@pytest.fixture(scope="session")
def subject(audited_config: RunConfig) -> Iterator[Subject]:
    """Its first site, at the initial model."""
    with open_subject(Target(audited_config, None), None) as opened:
        yield opened


@pytest.fixture(scope="session")
def config_file(audited_config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same config as a file."""
    path = tmp_path_factory.mktemp("config") / "audited.yaml"
    path.write_text(yaml.safe_dump(audited_config.model_dump(mode="json")), encoding="utf-8")
    return path


@pytest.fixture
def same_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the operating system gives is the same in every run of a test.

    A lower bound of 95 % confidence is above what is true in one of twenty runs, and four of four are in one of 160,000
    (`findings.confirmed`): a suite would see that.
    """
    monkeypatch.setattr(os, "urandom", random.Random(0).randbytes)
