"""An aggregator that answers what suits it: what a site has found wrong holds, and what it is charged for is added."""

import json
import socket
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError, PrivacyError
from fedhpc.privacy.plan import PrivacyPlan, check_plans, plan_privacy, site_plans
from fedhpc.run.start.agreement import Source, agree_on_config
from fedhpc.run.start.placement import place_sites
from fedhpc.run.start.site_work import agreed_plans
from fedhpc.site.training.secure_contribution import plan_grid
from fedhpc.transport.base import AloneTransport
from fedhpc.transport.collectives import run_on_all_ranks

NO_PROBLEM = b""


class Answered(AloneTransport):
    """Rank 1 of two; rank 0 broadcasts these payloads, whatever it was told."""

    rank, size = 1, 2

    def __init__(self, payloads: Iterable[bytes]) -> None:
        self._payloads = iter(payloads)

    def gather(self, payloads: object, kind: object, round: int | None = None) -> list[bytes]:
        return []

    def broadcast(self, payload: bytes | None, kind: object, round: int | None = None) -> bytes:
        assert payload is None
        return next(self._payloads)


def config_of(**privacy: object) -> RunConfig:
    sites = [{"name": name, "weight": 100} for name in ("site1", "site2", "site3", "site4")]
    return RunConfig.model_validate(
        {
            "name": "x",
            "data": {"shards": "{site}.h5", "sites": sites},
            "training": {"rounds": 10, "local_epochs": 1},
            "exchange": {"density": 1},
            "privacy": {"epsilon": 1.0, "sample_rate": 1.0, **privacy},
        }
    )


SHARED = config_of(trust="sites", colluding_sites=1)


def test_problem_that_rank_0_keeps_to_itself_ends_the_rank_that_has_it() -> None:
    def fails() -> None:
        raise PrivacyError("the plan is forged", code="privacy.plan")

    with pytest.raises(PayloadError, match=r"the plan is forged \(rank 0 has not passed this on") as raised:
        run_on_all_ranks(Answered([NO_PROBLEM]), fails)
    assert raised.value.code == "privacy.plan"
    # The command line ends all ranks for it, and shows it at this one: an InputError is taken to be at every rank.
    assert not isinstance(raised.value, InputError)


def test_forged_plan_is_refused_whatever_rank_0_says() -> None:
    """Called Laplace noise, a Gaussian step of epsilon 4.4 is charged 1."""
    config = config_of()
    forged = {name: asdict(replace(plan_privacy(config), mechanism="laplace")) for name in config.site_names}
    answers = [NO_PROBLEM, json.dumps(forged).encode(), NO_PROBLEM]
    with pytest.raises(PayloadError, match="does not keep to the protocol"):
        agreed_plans(config, Answered(answers))


@pytest.mark.parametrize("change", [{"privacy.epsilon": 100.0}, {"privacy.epsilon": None, "privacy.off": True}])
def test_other_config_is_refused_whatever_rank_0_says(tmp_path: Path, change: dict[str, object]) -> None:
    own = config_of()
    forged = json.dumps(own.replace(change).model_dump(mode="json")).encode()
    source = Source(own, [], tmp_path / "run")
    with pytest.raises(PayloadError, match="another config than rank 0"):
        agree_on_config(Answered([NO_PROBLEM, NO_PROBLEM, forged, NO_PROBLEM]), source, [])


@pytest.mark.parametrize("node", [socket.gethostname(), f"{socket.gethostname()}.site.org", "trusted-node"])
def test_hospital_that_is_pinned_to_another_node_is_not_played_here(node: str) -> None:
    """Root on this node may be nobody whom that hospital trusts, and its shard may lie on a disk that all nodes see."""
    tree = config_of().model_dump(mode="json")
    tree["data"]["sites"] = [{"name": "site1", "weight": 100}, {"name": "site2", "weight": 100, "node": node}]
    answers = Answered([NO_PROBLEM, json.dumps([0, 1]).encode(), NO_PROBLEM])
    if node == "trusted-node":
        with pytest.raises(PayloadError, match="rank 0 has placed it on"):
            place_sites(RunConfig.model_validate(tree), answers)
    else:
        assert place_sites(RunConfig.model_validate(tree), answers).rank == 1


def test_honest_answers_are_accepted(tmp_path: Path) -> None:
    """The controls: with a true config and true plans nothing is refused."""
    own = json.dumps(SHARED.model_dump(mode="json")).encode()
    source = Source(SHARED, [], tmp_path / "run")
    agreed, _ = agree_on_config(Answered([NO_PROBLEM, NO_PROBLEM, own, NO_PROBLEM]), source, [])
    assert agreed.privacy == SHARED.privacy
    plans = {name: asdict(plan) for name, plan in site_plans(SHARED).items()}
    answers = [NO_PROBLEM, json.dumps(plans).encode(), NO_PROBLEM]
    assert agreed_plans(SHARED, Answered(answers))["site2"] == plan_privacy(SHARED, "site2")


def forged_shares() -> tuple[PrivacyPlan, PrivacyPlan]:
    """(the plan of the first site, whose hospital is the aggregator's; that of all others)."""
    honest = plan_privacy(SHARED)
    return replace(honest, noise_multiplier=0.01), replace(honest, noise_multiplier=1e6)


def test_sites_that_share_the_noise_are_charged_for_what_is_added() -> None:
    """The grid was of the first site's plan and the charge of each one's own: epsilon 40,000 cost the others 0."""
    little, much = forged_shares()
    rounds, delta = SHARED.training.rounds, SHARED.privacy.delta
    assert much.bounds(rounds, delta).epsilon < 1e-2 < 1e4 < little.bounds(rounds, delta).epsilon
    plans = {name: little if name == "site1" else much for name in SHARED.site_names}
    with pytest.raises(PrivacyError, match="share the noise"):
        check_plans(SHARED, plans)
    grid = plan_grid(little.noise_multiplier, 500, (100,) * 4, SHARED.honest_sites, rounds)
    with pytest.raises(PrivacyError, match="charged for"):
        grid.check_noise(much.noise_multiplier, SHARED.honest_sites)


@pytest.mark.parametrize("noise", [0.01, 0.7, 12.7927, 1e5])
def test_planned_grid_has_the_noise_that_is_charged(noise: float) -> None:
    grid = plan_grid(noise, 5124, (840, 630, 370, 260), SHARED.honest_sites, 10)
    grid.check_noise(noise, SHARED.honest_sites)
    for more in (np.nextafter(noise, 2 * noise) + 1e-9 * noise, np.nan):
        with pytest.raises(PrivacyError):
            grid.check_noise(float(more), SHARED.honest_sites)
