"""`run.py privacy`: the plan before any training agrees with the ledger after it; runs add up; errors are told."""

import json
from pathlib import Path

import pytest
import yaml

from fedhpc.cli.main import main
from fedhpc.cli.privacy import report
from fedhpc.cli.privacy_config import planned_charges
from fedhpc.config.loader import load_config
from fedhpc.errors import InputError, PrivacyError
from fedhpc.privacy.accountant import bounds_of
from fedhpc.privacy.ledger import SiteAccount
from fedhpc.privacy.plan import plan_privacy
from fedhpc.privacy.rdp import Steps
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Terms
from fedhpc.privacy.skellam import epsilon_by_rdp
from fedhpc.privacy.spending import Limit, Spending, no_set
from tests.support.accounts import ANYBODY, charge_run, spend, write_patients

NAMES = ("site1", "site2")


@pytest.fixture(autouse=True)
def no_earlier_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this session have charged site ledgers of sites of these names."""
    monkeypatch.setenv("XDG_STATE_HOME", f"{tmp_path}/state")


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    tree = {
        "name": "x",
        "data": {"shards": f"{tmp_path}/{{site}}.h5", "sites": [{"name": n, "weight": 100} for n in NAMES]},
        "training": {"rounds": 3, "local_epochs": 2},
        "privacy": {"epsilon": 2.0, "sample_rate": 1.0},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return tmp_path / "x.yaml"


@pytest.fixture
def site_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hospital of site1 has said where its site ledger lies."""
    monkeypatch.setenv("FEDHPC_SITE_LEDGER", f"{tmp_path}/ledgers/{{site}}")
    return tmp_path / "ledgers" / "site1"


def words(text: str) -> str:
    """A text without its line ends."""
    return " ".join(text.split())


def test_plan_of_a_config(config_file: Path) -> None:
    config = load_config(config_file)
    found = report([config_file], [])
    facts = found.facts
    plan = plan_privacy(config)
    # A whole network, and 100 units a step.
    assert facts["verdict"].startswith("hopeless") and f"verdict: {facts['verdict']}" in words(found.text)
    assert (facts["steps_per_round"], facts["steps"], facts["noise_multiplier"]) == (2, 6, plan.noise_multiplier)
    assert [site["expected_batch"] for site in facts["sites"]] == [100, 100]
    whole = bounds_of(planned_charges(config, plan), 1e-5)
    assert {(site["epsilon_prv"], site["epsilon_rdp"]) for site in facts["sites"]} == {(whole.prv, whole.rdp)}
    epsilons = [entry["epsilon"] for entry in facts["by_round"]]
    assert epsilons == sorted(epsilons)
    assert [entry["round"] for entry in facts["by_round"]] == [1, 2, 3]
    assert 1.98 < epsilons[-1] <= 2.0
    rates = {entry["privacy.sample_rate"]: entry["noise_per_signal"] for entry in facts["other_sample_rates"]}
    assert rates[1.0] < rates[0.2] < rates[0.05], "the larger the rate, the less noise for the same epsilon"


def test_a_slow_site_is_shown_its_own_noise(config_file: Path) -> None:
    """schedule.policy=plan: a quarter of the batch, other noise, and no more epsilon than it may spend."""
    found = report([config_file], ["schedule.policy=plan", "schedule.efforts={site1: 1.0, site2: 0.25}"])
    fast, slow = found.facts["sites"]
    assert (fast["expected_batch"], slow["expected_batch"]) == (100, 25)
    assert fast["noise_multiplier"] == found.facts["noise_multiplier"] > slow["noise_multiplier"]
    assert all(1.98 < site["epsilon_prv"] <= 2.0 for site in (fast, slow))
    assert "site2 0.25; steps and epsilon are the same" in words(found.text)
    measured = report([config_file], ["schedule.policy=plan"])
    assert "speeds are measured at the first start" in words(measured.text)


def test_alternative_out_of_reach_refuses_nothing(config_file: Path) -> None:
    """A target that the config reaches and a shorter run could not."""
    sets = ["privacy.epsilon=30000", "privacy.sample_rate=1.0", "training.local_epochs=1", "training.rounds=30"]
    found = report([config_file], sets)
    noise = {one["training.rounds"]: one["noise_multiplier"] for one in found.facts["other_rounds"]}
    assert noise[1] is None and noise[20] is None and noise[100] > found.facts["noise_multiplier"]
    assert "training.rounds=1 1 out of reach -" in words(found.text)


def test_what_earlier_runs_spent_is_added(config_file: Path, site_ledger: Path) -> None:
    spend(load_config(config_file), "site1", site_ledger, config_file.with_name("one"))
    first, second = report([config_file], []).facts["sites"]
    assert (first["runs_before"], second["runs_before"]) == (1, 0)
    alone, both = (float(site["spent_after"].split()[1]) for site in (second, first))
    assert alone < both < 2 * alone


def test_a_sweep_spends_the_sum(config_file: Path) -> None:
    """Two configs on the same patients: more than either, less than their plain sum."""
    other = config_file.with_name("y.yaml")
    other.write_text("extends: x.yaml\nname: y\nprivacy: {epsilon: 1.0}\n", encoding="utf-8")
    found = report([config_file, other], [])
    assert [facts["name"] for facts in found.facts["configs"]] == ["x", "y"]
    assert 2.0 < float(found.facts["together"][0]["sites"]["site1"].split()[1]) < 3.0
    assert "On the same patients (x, y; " in words(found.text)


def test_same_names_of_other_data_do_not_add_up(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """site1 of one folder and site1 of another are two; what a patient of both would spend is told by account."""
    folder = config_file.parent
    for name, shards in (("same", f"{folder}/{{site}}.h5"), ("other", f"{folder}/other/{{site}}.h5")):
        tree = {"extends": "x.yaml", "name": name, "data": {"shards": shards}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    targets = [config_file, folder / "same.yaml", folder / "other.yaml"]
    monkeypatch.setenv("FEDHPC_SITE_LEDGER", f"{folder}/ledgers/{{site}}")
    facts = report(targets, []).facts
    assert [one["configs"] for one in facts["together"]] == [["x", "same"], ["other"]]
    (twice, once), all_three = (
        [float(one["sites"]["site1"].split()[1]) for one in facts["together"]],
        [float(one["spent_after"].split()[1]) for one in facts["shared_accounts"]],
    )
    assert once == pytest.approx(2.0, abs=0.02) and 1.2 * once < twice < 2 * once
    assert [one["sites"] for one in facts["shared_accounts"]] == [["site1"], ["site2"]]
    assert all(epsilon > twice for epsilon in all_three)
    monkeypatch.delenv("FEDHPC_SITE_LEDGER")
    for path in targets:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        tree.setdefault("data", {})["phantom"] = {"images": 100}
        path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    assert not report(targets, []).facts["shared_accounts"], "the accounts of the built-in cohort lie beside its shards"


@pytest.mark.usefixtures("site_ledger")
def test_forecast_counts_what_is_released_for_evaluation(config_file: Path) -> None:
    """Evaluated patients may spend more than trained ones; the run would be judged by them."""
    (little,) = {site["spent_after"] for site in report([config_file], ["evaluation.epsilon=0.5"]).facts["sites"]}
    (more,) = {site["spent_after"] for site in report([config_file], ["evaluation.epsilon=5"]).facts["sites"]}
    assert (little, more) == ("epsilon 2.000 per patient", "epsilon 5.000 per patient")


def test_planning_is_reported_while_it_lasts(
    config_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedhpc.util.progress.FIRST_S", 0.0)
    report([config_file], [])
    assert capsys.readouterr().err.startswith("planning the noise")


def test_tables_fit_80_columns(config_file: Path, site_ledger: Path) -> None:
    long = ["training.rounds=1000", "privacy.lifetime_epsilon=12.5", "privacy.sample_rate=0.05"]
    spend(load_config(config_file), "site1", site_ledger, config_file.with_name("a-run-with-a-name-of-some-length-001"))
    text = report([config_file], long).text
    assert max(map(len, text.splitlines())) <= 80
    names = [f"p{number}" for number in range(6)]
    shard = write_patients(config_file.with_name("site1.h5"), names, [0, 0, 0, 1, 2, 2])
    for line in report([shard], []).text.splitlines():
        assert len(line) <= 80 or str(config_file.parent) in line


def test_a_shard_tells_what_its_patients_have_spent(config_file: Path, site_ledger: Path) -> None:
    config = load_config(config_file)
    shard = write_patients(config_file.with_name("site1.h5"), ["p", "q", "r"], [0, 1, 2])
    with pytest.raises(PrivacyError, match="FEDHPC_SITE_LEDGER") as refused:
        report([shard], [])
    # Another process may have charged another place: that nothing was charged is not known.
    assert refused.value.code == "privacy.ledger-missing"
    SiteLedger.create(site_ledger, Terms("patient", 1e-6, 20.0, initialised=True))
    for run in ("one", "two"):
        account = SiteAccount.of(SiteLedger(site_ledger), "site1", ANYBODY)
        charge_run(config, account, config_file.with_name(run))
    found = report([shard], [])
    assert [(run["run"], run["charges"]) for run in found.facts["runs"]] == [("one", 3), ("two", 3)]
    twice = [planned_charges(config, plan_privacy(config))] * 2
    expected = Spending((), no_set).largest_with(twice, Limit(20.0, 20.0, 1e-6))
    assert found.facts["epsilon"] == pytest.approx(expected)
    assert (found.facts["delta"], found.facts["cap"]) == (1e-6, 20.0)
    assert "at delta 1e-06" in words(found.text) and "(cap 20)" in words(found.text)
    strangers = write_patients(config_file.with_name("other") / "site1.h5", ["s", "t", "u"], [0, 1, 2])
    assert report([strangers], []).facts["epsilon"] == 0


def test_json_is_all_there_is(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["privacy", str(config_file), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "x"


def test_what_cannot_be_reported(config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(PrivacyError, match="privacy: off"):
        report([config_file], ["privacy=off"])
    with pytest.raises(InputError, match="is no config"):
        report([tmp_path / "nothing"], [])
    with pytest.raises(InputError, match="with configs only"):
        report([tmp_path / "site1.h5", config_file], [])


@pytest.mark.parametrize(("shares", "left"), [(3, 1.8), (10, 3.6)])
def test_epsilon_without_masks_is_that_of_one_share(tmp_path: Path, shares: int, left: float) -> None:
    """What is left of epsilon 1 at a site that the aggregator sees alone, with 1/3 or 1/10 of the noise variance."""
    sites = [{"name": f"s{index}", "weight": 100} for index in range(shares + 1)]
    tree = {
        "name": "x",
        "data": {"shards": f"{tmp_path}/{{site}}.h5", "sites": sites},
        "training": {"rounds": 10, "local_epochs": 1},
        "exchange": {"density": 1},
        "privacy": {"epsilon": 1.0, "sample_rate": 1.0, "trust": "sites", "colluding_sites": 1},
    }
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    found = report([tmp_path / "x.yaml"], [])
    assert round(found.facts["epsilon_if_unmasked"], 1) == left
    assert f"epsilon {found.facts['epsilon_if_unmasked']:.3f}, by that site's own noise" in words(found.text)
    plan = plan_privacy(load_config(tmp_path / "x.yaml"))
    share = plan.charge(0).noise_multiplier / shares**0.5
    exact = epsilon_by_rdp((Steps(share, 1.0, 10),), 1e-5)
    assert exact < found.facts["epsilon_if_unmasked"] < exact * (1 + 1e-6)
