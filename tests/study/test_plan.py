"""The cells of the shipped study: all points of its grids, each with a name, a config and an account of its own."""

import itertools
from pathlib import Path

import pytest

from fedhpc.errors import ConfigError
from fedhpc.records.study import Size
from fedhpc.study.config import load_study
from fedhpc.study.plan import plan_study

STUDY = Path(__file__).resolve().parents[2] / "configs" / "study.yaml"
KINDS = {
    "federated", "centralised", "local", "stress", "legacy", "early", "schedule", "contribution", "planted", "audit",
    "codec",
}  # fmt: skip


@pytest.mark.parametrize("size", ["quick", "medium", "full"])
def test_plan_has_every_point_once(size: Size, tmp_path: Path) -> None:
    config = load_study(STUDY, [], size=size)
    planned = plan_study(config, STUDY, tmp_path, size=size)
    cells = planned.study.cells
    assert {cell.kind for cell in cells} == KINDS
    assert len({cell.name for cell in cells}) == len(cells) == len(planned.sweep.trials)
    for name, part in config.parts.items():
        found = [(c.epsilon, c.density, c.seed) for c in cells if (c.kind, c.part) == ("federated", name)]
        assert found == list(itertools.product(part.epsilons, part.densities, part.seeds))
        beside = {(c.epsilon, c.density) for c in cells if c.paper and c.part == name}
        assert beside == {(part.paper.epsilon, part.paper.density)}, "the paper's point is on the grid"


def test_cell_config_is_that_of_its_point(tmp_path: Path) -> None:
    planned = plan_study(load_study(STUDY, [], size="quick"), STUDY, tmp_path, size="quick")
    for cell, trial in zip(planned.study.cells, planned.sweep.trials, strict=True):
        assert cell.name == trial.name == trial.config.name
        assert trial.config.privacy.epsilon == cell.epsilon
        assert cell.density is None or cell.kind == "codec" or trial.config.exchange.density == cell.density
        if cell.epsilon is not None:
            assert trial.config.privacy.site_ledger == f"{tmp_path}/elements/{cell.name}/accounts/{{site}}"
        assert trial.trains or trial.commands
        assert not any("{dir}" in word or "{config}" in word for words in trial.commands for word in words)


def test_one_part_leaves_out_tests_of_others(tmp_path: Path) -> None:
    config = load_study(STUDY, [], size="quick", parts=["network"])
    kinds = {cell.kind for cell in plan_study(config, STUDY, tmp_path, size="quick").study.cells}
    assert kinds == {"federated", "centralised", "local", "codec"}


@pytest.mark.parametrize(
    ("override", "named"),
    [("parts.head.epsilons=[-1]", "parts.head=-1"), ("stress.part=tail", "stress.part=tail"),
     ("parts.head.set.training.lr=no", "training.lr"), ("audit.seeds=[1]", "audit.seeds"),
     ("stress.cases=[sunspot]", "sunspot"), ("legacy.site=site9", "legacy.site=site9"),
     ("schedule.site=site9", "schedule.site=site9"), ("codec.value_bits=99", "codec.value_bits"),
     ("parts.head.paper.epsilon=3", "parts.head.paper: epsilon=3"), ("parts.head.seeds=[0, 0]", "listed twice"),
     ("parts.head.densities=[1.0, 0.1, 1.0]", "listed twice"), ("schedule.epsilons=[1.0, 1.0]", "listed twice")],
)  # fmt: skip
def test_wrong_key_is_named(override: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=named.replace(".", r"\.")):
        plan_study(load_study(STUDY, [override], size="quick"), STUDY, tmp_path, size="quick")


@pytest.mark.parametrize("override", ["parts=3", "parts=[head]", "parts={3: {}}", "audit={part: [head]}"])
@pytest.mark.parametrize("parts", [[], ["head"]])
def test_parts_of_another_type_are_one_message(override: str, parts: list[str]) -> None:
    with pytest.raises(ConfigError):
        load_study(STUDY, [override], size="quick", parts=parts)


def test_unknown_part_is_refused() -> None:
    with pytest.raises(ConfigError, match="--parts tail"):
        load_study(STUDY, [], size="quick", parts=["tail"])
