"""Private trials add up: what is announced is what ledgers will say, and a cap refuses just those that do not fit."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedhpc.cli.main import main
from fedhpc.privacy.evaluation_plan import charges_of_run
from fedhpc.privacy.plan import plan_privacy
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Owner, Request, Terms
from fedhpc.privacy.spending import Limit, Spending, no_set
from fedhpc.sweep.budget import budget_of
from fedhpc.sweep.config import Trial
from tests.support.accounts import ANYBODY, spend
from tests.support.tiny_sweeps import load_sweep, write_sweep

BEFORE = "spent before, by the site ledgers seen from here"


def trials_of(folder: Path, **privacy: Any) -> tuple[Trial, ...]:
    """Three private trials of epsilon 1, 2 and 4, and one without privacy."""
    more = {"grid": {"privacy.epsilon": [1.0, 2.0, 4.0, None]}, "privacy": {"sample_rate": 1.0, **privacy}}
    return load_sweep(write_sweep(folder, **more, baselines={}), []).trials


def account_of(trial: Trial, site: str) -> Path:
    """The folder of the site ledger of a trial's site, beside the shards that it would make."""
    return trial.config.data.shard_path(site).with_suffix(".site-ledger")


def sum_of(trials: tuple[Trial, ...], cap: float | None = None) -> float:
    """What several runs cost together by the filter; one alone by its own accountant."""
    plans = [charges_of_run(e.config, plan_privacy(e.config)) for e in trials if e.config.private]
    return Spending((), no_set).largest_with(plans, Limit(cap, cap, 1e-5))


def test_the_sum_of_all_private_trials_is_told_for_every_site(tmp_path: Path) -> None:
    trials = trials_of(tmp_path)
    budget = budget_of(trials)
    assert not budget.refused
    assert "3 private runs" in budget.told[0]
    assert "no cap is set" in budget.told[0]
    assert budget.told[1:] == (
        f"  site1, site2, site3, site4: {BEFORE}: epsilon 0.000; after this sweep: epsilon {sum_of(trials):.3f}",
    )


def test_what_was_spent_before_counts_at_the_site_where_it_was(tmp_path: Path) -> None:
    trials = trials_of(tmp_path)
    spend(trials[1].config, "site2", account_of(trials[1], "site2"), tmp_path / "earlier")
    told = budget_of(trials).told[1:]
    assert told[0].startswith(f"  site1, site3, site4: {BEFORE}: epsilon 0.000")
    assert told[1].startswith(f"  site2: {BEFORE}: epsilon 2.")
    assert told[1].endswith(f"{sum_of((*trials, trials[1])):.3f}")


def test_an_attempt_of_its_own_does_not_count_twice(tmp_path: Path) -> None:
    trials = trials_of(tmp_path)
    mine = spend(trials[0].config, "site1", account_of(trials[0], "site1"), tmp_path / trials[0].name)
    assert budget_of(trials, {mine}).told[1].startswith(f"  site1, site2, site3, site4: {BEFORE}: epsilon 0.000")


@pytest.mark.parametrize(("cap", "fitting"), [(100.0, 3), (6.0, 3), (4.2, 2), (1.0, 1), (0.5, 0)])
def test_a_cap_refuses_the_trials_that_do_not_fit_and_no_others(tmp_path: Path, cap: float, fitting: int) -> None:
    trials = trials_of(tmp_path, lifetime_epsilon=cap)
    refused = budget_of(trials).refused
    assert [line.partition(":")[0] for line in refused] == [e.name for e in trials[fitting:3]]
    assert all(f"above privacy.lifetime_epsilon={cap:g}" in line for line in refused)
    for count in range(1, 4):
        assert (sum_of(trials[:count], cap) <= cap) == (count <= fitting)


def test_the_cap_of_the_site_ledger_holds_where_the_config_has_none(tmp_path: Path) -> None:
    trials = trials_of(tmp_path)
    SiteLedger.create(account_of(trials[0], "site3"), Terms("patient", cap=4.2, initialised=True))
    refused = budget_of(trials).refused
    assert [line.partition(":")[0] for line in refused] == ["tiny-002"]
    assert "above the site ledger's cap=4.2" in refused[0]


def test_noise_from_a_known_seed_fits_under_no_cap(tmp_path: Path) -> None:
    seeded = trials_of(tmp_path)[0].config
    account = account_of(trials_of(tmp_path)[0], "site3")
    ledger = SiteLedger.open_or_create(account, Terms("patient"))
    charge = replace(charges_of_run(seeded, plan_privacy(seeded))[0], insecure=True)
    ledger.charge(Request(charge, ledger.register(ANYBODY["train"]), Owner("x", "earlier", "site3")))
    refused = budget_of(trials_of(tmp_path, lifetime_epsilon=50.0)).refused
    assert len(refused) == 3
    assert "without bound" in refused[0]


def test_nothing_is_started_where_any_trial_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = {
        "privacy": {"sample_rate": 1.0, "lifetime_epsilon": 1.5},
        "grid": {"privacy.epsilon": [1.0, 2.0, 3.0, -1.0]},
    }
    config = write_sweep(tmp_path, **more)
    assert main(["sweep", str(config), "--cluster", "local", "--run-dir", str(tmp_path / "run")]) == 2
    err = capsys.readouterr().err
    assert "3 problem(s)" in err, "the invalid one and both that are too dear, at once"
    assert "privacy.epsilon=-1.0" in err
    assert "tiny-001: would bring its patients to epsilon" in err
    assert "tiny-002: would bring its patients to epsilon" in err
    assert not (tmp_path / "run").exists()
    assert not (tmp_path / "data").exists()


def test_a_ledger_that_only_the_hospitals_node_can_find_is_left_to_it(tmp_path: Path) -> None:
    more = {"data": {"shards": "$NOT_SET_HERE/{site}.h5", "sites": [{"name": "a", "weight": 10}]}, "baselines": {}}
    trials = load_sweep(write_sweep(tmp_path, **more, local={"ranks": 1}), []).trials
    budget = budget_of(trials)
    assert not budget.refused
    assert budget.told[1].startswith(f"  a: {BEFORE}: epsilon 0.000")
