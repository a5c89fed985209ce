"""`data.phantom` in a config is no evidence that patients do not exist: models are judged by what shards said."""

from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.models.origin import Origin
from fedhpc.models.saved import save_model, saved_origin
from fedhpc.models.task import Task
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.finished.finish import Models, _save_own
from fedhpc.run.finished.model_card import model_card
from fedhpc.run.start.initial_model import _refuse_if_unprotected, check_backbone


def config_of(folder: str, **sections: Any) -> RunConfig:
    data = {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": "site1", "weight": 8}], **sections.pop("data", {})}
    return RunConfig.model_validate({"name": "x", "data": data, **sections})


@pytest.mark.parametrize("synthetic", [False, True])
def test_model_card_does_not_call_patients_synthetic(synthetic: bool) -> None:
    claimed = config_of("now", data={"phantom": {}}, privacy={"off": True})
    summary = {"synthetic": synthetic, "per_site": {}, "config_digest": "0"}
    summary |= {"parameters": 1, "rounds": 1, "stopped": "finished"}
    card = model_card(claimed, Task(("a", "b"), (1, 8, 8)), summary, calibrated=False)
    assert ("none of them exists" in card) == synthetic


@pytest.mark.parametrize("synthetic", [False, True])
def test_claimed_phantoms_do_not_excuse_an_unprotected_start(tmp_path: Path, synthetic: bool) -> None:
    """Train without privacy under `data.phantom: {}`, then with privacy on the same patients from that model."""
    earlier = config_of("before", data={"phantom": {}}, privacy={"off": True})
    facts = {"config": earlier.model_dump(mode="json"), "synthetic": synthetic}
    facts |= {"classes": ("a", "b"), "image_shape": (1, 8, 8), "f1_thresholds": [1]}
    save_model(tmp_path / "model.pt", nn.Linear(1, 1), facts)
    model = {"name": "frozen", "backbone": str(tmp_path / "model.pt")}
    wanted = config_of("now", model=model, privacy={"epsilon": 1.0, "sample_rate": 1.0})
    with nullcontext() if synthetic else pytest.raises(PrivacyError, match="on these hospitals without privacy"):
        check_backbone(wanted)


@pytest.mark.parametrize("synthetic", [False, True])
def test_model_that_a_site_was_rewarded_with_says_whose_patients_made_it(tmp_path: Path, synthetic: bool) -> None:
    """Written by a rank that has no other site's facts, it said of phantoms that they were patients."""
    session = SimpleNamespace(
        transport=SimpleNamespace(rank=1),
        directory=RunDirectory(tmp_path),
        place=SimpleNamespace(model=nn.Linear(1, 1)),
        task=Task(("a", "b"), (1, 8, 8)),
        declared=config_of("now", privacy={"off": True}),
        facts=(),
        synthetic=synthetic,
        before=(),
    )
    (tmp_path / "sites" / "site1").mkdir(parents=True)
    _save_own(cast(Any, session), Models({}, {"site1": np.zeros(2, np.float32)}))
    assert saved_origin(tmp_path / "sites" / "site1" / "model.pt").synthetic is synthetic


@pytest.mark.parametrize("key", ["backbone", "init_from"])
def test_unprotected_run_is_not_laundered_by_another_hospitals_run(tmp_path: Path, key: str) -> None:
    """A run without privacy, then one with privacy at a hospital of another name, then one at the first hospital."""
    first, elsewhere = config_of("first", privacy={"off": True}), {"sites": [{"name": "other", "weight": 8}]}
    second = config_of("second", data=elsewhere, privacy={"epsilon": 1.0, "sample_rate": 1.0})
    before = [asdict(one) for one in Origin(first, synthetic=False).runs]
    facts = {"config": second.model_dump(mode="json"), "synthetic": False, "before": before}
    facts |= {"classes": ("a", "b"), "image_shape": (1, 8, 8), "f1_thresholds": [1]}
    save_model(tmp_path / "model.pt", nn.Linear(1, 1), facts)
    origin, private = saved_origin(tmp_path / "model.pt"), {"epsilon": 1.0, "sample_rate": 1.0}
    assert origin.runs == Origin(second, synthetic=False, before=Origin(first, synthetic=False).runs).runs
    with pytest.raises(PrivacyError, match=f"{key}.*on these hospitals without privacy .run x."):
        _refuse_if_unprotected(f"model.{key}=model.pt", origin, config_of("third", privacy=private))
    for harmless in (
        config_of("third", data={"sites": [{"name": "third", "weight": 8}]}, privacy=private),
        config_of("third", privacy={"off": True}),
    ):
        _refuse_if_unprotected(f"model.{key}=model.pt", origin, harmless)
