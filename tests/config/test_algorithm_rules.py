"""Which algorithm goes with which option: allowed, or refused with the key and the reason."""

from typing import Any

import pytest
from pydantic import ValidationError

from fedhpc.config.schema import RunConfig

SITES = [{"name": name, "weight": 100} for name in ("a", "b", "c")]
DP: dict[str, Any] = {"privacy.epsilon": 1.0}
SECURE = {
    **DP,
    "privacy.trust": "sites",
    "privacy.colluding_sites": 1,
    "privacy.sample_rate": 1.0,
    "training.local_epochs": 1,
    "exchange.density": 1.0,
}
SPARSE: dict[str, Any] = {"exchange.density": 0.1}
ADAM: dict[str, Any] = {"training.optimizer": "adam"}
MOMENTUM: dict[str, Any] = {"server.optimizer": "fedavgm"}
ALONE: dict[str, Any] = {"mode": "local"}
HEAD = {"model.name": "frozen", "model.backbone": "phantom"}
OPTIONS = {"dp": DP, "secure": SECURE, "sparse": SPARSE, "adam": ADAM, "server": MOMENTUM, "local": ALONE}
REFUSED = {
    "fedavg": {},
    "fedprox": {"secure": "algorithm.name=fedprox: with trust=sites"},
    "scaffold": {
        "secure": "algorithm.name=scaffold: with trust=sites",
        "adam": "algorithm.name=scaffold: takes an update for a sum of gradients",
    },
    "fednova": {
        "dp": "algorithm.name=fednova: divides each update",
        "secure": "algorithm.name=fednova: with trust=sites",
        "adam": "algorithm.name=fednova: takes an update for a sum of gradients",
    },
    "feddyn": {
        "secure": "algorithm.name=feddyn: with trust=sites",
        "sparse": "algorithm.name=feddyn, exchange.density=0.1",
        "server": "server.optimizer=fedavgm: FedDyn has a server step",
    },
}
CASES = [(name, option) for name in REFUSED for option in OPTIONS]


def made(changes: dict[str, Any]) -> RunConfig:
    tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": SITES}, "exchange": {"density": 1.0}}
    return RunConfig.model_validate({**tree, "privacy": {"off": False}}).replace(changes)


@pytest.mark.parametrize(("name", "option"), CASES)
def test_algorithm_with_option(name: str, option: str) -> None:
    changes, told = {"algorithm.name": name, **OPTIONS[option]}, REFUSED[name].get(option)
    if told is None:
        assert made(changes).algorithm.name == name
        return
    with pytest.raises(ValidationError) as caught:
        made(changes)
    assert told in str(caught.value)


def test_unknown_algorithm_names_the_known() -> None:
    with pytest.raises(ValidationError, match="allowed: fedavg, fedprox, scaffold, fednova, feddyn"):
        made({"algorithm.name": "fedsgd"})


@pytest.mark.parametrize("name", ["scaffold", "fednova", "feddyn"])
def test_rule_that_is_no_mean_refuses_what_needs_it(name: str) -> None:
    with pytest.raises(ValidationError, match="adds up to zero only where the global update is the weighted mean"):
        made({"algorithm.name": name, "aggregation": {"rule": "coordinate_median"}})


def test_fedprox_goes_with_every_rule() -> None:
    assert made({"algorithm.name": "fedprox", "aggregation": {"rule": "coordinate_median"}}).algorithm.name == "fedprox"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (HEAD, "model.name=frozen has no such layer"),
        ({"algorithm.local_layers": "input"}, "set model.input_layer=true"),
        (HEAD | {"model.input_layer": True}, "model.input_layer: has nothing to learn from"),
        (SECURE, "a site makes no private step of its own"),
        ({"training.average_last": 0.5}, "set average_last=0"),
        ({"personalisation.method": "fine_tune"}, "set personalisation.method=none"),
    ],
)
def test_local_layers_with_option(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError) as caught:
        made({"algorithm.local_layers": "norm", **changes})
    assert told in str(caught.value)


@pytest.mark.parametrize("name", REFUSED)
def test_local_layers_go_with_every_algorithm(name: str) -> None:
    assert made({"algorithm.name": name, "algorithm.local_layers": "norm"}).algorithm.local_layers == "norm"


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"faults.min_sites": 2}, {"scaffold", "feddyn"}),
        ({"faults.min_sites": 3}, set()),
        ({"faults.absent": ["c"], "faults.min_sites": 2}, {"scaffold", "feddyn"}),
        ({"contribution.store_updates": True}, {"scaffold", "fednova", "feddyn"}),
    ],
)
@pytest.mark.parametrize("name", REFUSED)
def test_algorithm_that_needs_all_sites(name: str, changes: dict[str, Any], refused: set[str]) -> None:
    if name not in refused:
        assert made({"algorithm.name": name, **changes}).algorithm.name == name
        return
    with pytest.raises(ValidationError, match=f"algorithm.name={name}, "):
        made({"algorithm.name": name, **changes})
