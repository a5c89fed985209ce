"""Runs under configs that only earlier versions allowed: they are read as they are, and one error ends a resume."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError
from torch import nn

from fedhpc.audit.mechanism import mechanism_config
from fedhpc.audit.target import find_target
from fedhpc.config.schema import RECORDED, RunConfig
from fedhpc.errors import ConfigError, InputError
from fedhpc.models.saved import save_model, saved_config
from fedhpc.records.checkpoint import save_state
from fedhpc.run.start.agreement import Source

REFUSED: dict[str, dict[str, Any]] = {
    "epsilon": {"privacy": {"epsilon": 0.005}},
    "sample-rate": {"privacy": {"epsilon": 1.0, "sample_rate": 1e-6}},
    "site-name": {"data": {"shards": "{site}.h5", "sites": [{"name": "pooled", "weight": 100}]}},
}
RECORD = {"round": 1, "per_site": {}, "ledger_heads": {}, "seconds": {}}


def tree_of(case: str) -> dict[str, Any]:
    sites = [{"name": "a", "weight": 100}, {"name": "b", "weight": 100}]
    return {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": sites},
        "privacy": {"epsilon": 1.0},
        "runtime": {"threads": 1},
        **REFUSED[case],
    }


@pytest.fixture(params=REFUSED)
def begun(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A run directory with one round under a refused config, and that config beside it."""
    text = yaml.safe_dump(tree_of(request.param))
    run = tmp_path / "run"
    (run / "state").mkdir(parents=True)
    (run / "config.yaml").write_text(text, encoding="utf-8")
    (run / "rounds.jsonl").write_text(json.dumps(RECORD) + "\n", encoding="utf-8")
    (tmp_path / "x.yaml").write_text(text, encoding="utf-8")
    return run


def test_resume_says_that_the_run_cannot_go_on(begun: Path) -> None:
    source = Source(begun.parent / "x.yaml", [], begun)
    with pytest.raises(InputError, match=str(begun)) as raised:
        source.load()
    assert raised.value.code == "resume.config-refused"
    with pytest.raises(ConfigError) as new:
        Source(begun.parent / "x.yaml", [], begun.parent / "new").load()
    assert new.value.code == "config", "a new run is told what to correct, and no more"
    with pytest.raises(ConfigError, match=r"training\.rounds"):
        Source(begun.parent / "x.yaml", ["training.rounds=many"], begun).load()


def test_audit_works_with_what_the_run_has_recorded(begun: Path) -> None:
    """It ended with a traceback of the first key that it changed."""
    save_state(begun / "state", "round", 1, {"params": np.zeros(1, np.float32)})
    config = find_target(begun, []).config
    changed = mechanism_config(config, rounds=2, local_epochs=1, sample_rate=1.0)
    assert (changed.training.rounds, changed.privacy.epsilon) == (2, config.privacy.epsilon)
    assert config.without([]) == config


@pytest.mark.parametrize("case", REFUSED)
def test_model_of_such_a_run_is_read(case: str, tmp_path: Path) -> None:
    config = RunConfig.model_validate(tree_of(case), context=RECORDED)
    facts = {"config": config.model_dump(mode="json"), "classes": ["a", "b"], "image_shape": [1, 8, 8]}
    save_model(tmp_path / "model.pt", nn.Linear(1, 1), {**facts, "f1_thresholds": [0, 0]})
    assert saved_config(tmp_path / "model.pt") == config


def test_new_config_is_checked_by_all_rules_when_it_is_changed() -> None:
    with pytest.raises(ValidationError, match=r"privacy\.epsilon=0\.005: below 0\.01"):
        RunConfig.model_validate({**tree_of("epsilon"), "privacy": {"epsilon": 1.0}}).replace(
            {"privacy.epsilon": 0.005}
        )
