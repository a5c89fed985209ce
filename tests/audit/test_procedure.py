"""`run.py audit`: its files, its exit status, and what it refuses."""

import html
import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from fedhpc.audit import procedure as verb
from fedhpc.audit.charges import MOST_ROUNDS, PatientCharges
from fedhpc.audit.contact_rows import Row
from fedhpc.audit.findings import WITH_DP
from fedhpc.audit.inversion import Effort, linear_row
from fedhpc.audit.ledger_laws import accountant_laws
from fedhpc.audit.membership import WholeRun
from fedhpc.audit.negative_controls import Trials
from fedhpc.audit.observation import Claim
from fedhpc.audit.report import PUBLIC_RESULT_KEYS, not_attacked, told_part
from fedhpc.audit.secure_laws import observe_secure_units, secure_unit_laws
from fedhpc.audit.target import Subject, Target, find_target, open_subject
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PrivacyError
from fedhpc.models.vector import to_vector
from fedhpc.privacy.places import VARIABLE
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Terms
from fedhpc.records.checkpoint import save_state
from fedhpc.records.run_directory import RunDirectory
from tests.mutation.families import at_sites

SMALL_NETWORK = ("model.name=null", "model.build=fedhpc.bench.round_networks:conv4")
"""Four convolutions in place of 33, which the attacks and laws of the own network take a third of the time for;
those of densenet_small are judged where no patient is trained on, all of its audit with `-m slow`."""


def options(path: Path, **changes: Any) -> verb.Options:
    plain = {"overrides": [], "site": None, "quick": True, "seed": 0, "out": None, "json": False}
    return verb.Options(path=path, **{**plain, **changes})


def one_row(subject: Subject, effort: Effort) -> Iterator[Row]:
    yield linear_row(subject, subject.samples.indices("train")[:1], effort)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """As little as there can be, of inversions the exact one alone: too little to catch that noise is missing."""
    few = Trials(1, 8, 0)
    plan = verb.Plan(few, few, few, WholeRun(1, 100, 1, 0), 50, Effort(1, 1.0, 0))
    monkeypatch.setattr(verb, "plan_of", lambda quick, seed, rounds: plan)
    monkeypatch.setattr(verb, "rows", one_row)
    monkeypatch.setattr(verb, "judged", lambda subject, seed, quick: accountant_laws(Claim.of(subject, seed)))


@pytest.mark.usefixtures("same_entropy")
@pytest.mark.parametrize(
    "network", [pytest.param(SMALL_NETWORK, id="conv4"), pytest.param((), marks=pytest.mark.slow, id="densenet_small")]
)
def test_quick_audit_of_a_config(
    run_here: Callable[..., Any], config_file: Path, tmp_path: Path, network: tuple[str, ...]
) -> None:
    # Four steps a round, which is enough for every attack. That `--quick` trains no more in a round, others show.
    sets = ["training.local_epochs=1", *network]
    words = ["audit", config_file, "--quick", "--out", tmp_path, "--json"]
    done = run_here([*words, *(word for pair in sets for word in ("--set", pair))])
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    kept = json.loads((tmp_path / "sites" / "site1" / "audit.json").read_text(encoding="utf-8"))
    assert told == told_part(kept) and {key: told[key] for key in told if key != "findings"}.items() <= kept.items()
    unnoised = {(one["attack"], one["setting"]) for one in kept["findings"] if one["unnoised"]}
    attacks = {attack for attack, _ in unnoised}
    assert {"inversion, linear layer", "inversion, real round", "real patients", "canaries, real training"} <= attacks
    assert ("canaries, real training", WITH_DP) not in unnoised
    figures = {len(one) for one in told["findings"] if (one["attack"], one["setting"]) in unnoised}
    assert figures == {len(PUBLIC_RESULT_KEYS)}
    assert 2 <= told["settings"]["charged_rounds"] <= MOST_ROUNDS
    assert list(told)[:2] == ["verdict", "passed"] and told["verdict"].startswith("Verdict: passed.")
    assert told["passed"] and told["site"] == "site1" and told["rounds_done"] == 0
    verdicts = {finding["verdict"] for finding in told["findings"]}
    assert verdicts == {"holds", "caught", "-"}
    private = tmp_path / "sites" / "site1"
    page = (private / "audit.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page and "http" not in page
    assert page.index("Verdict:") < page.index("<img") < page.index("<table")
    for finding in told["findings"]:
        assert html.escape(finding["attack"]) in page
    with Image.open(private / "inversion.png") as sheet:
        assert sheet.width > 900


@pytest.mark.usefixtures("tiny")
def test_a_control_that_is_not_caught_is_told_and_ends_with_1(
    audited_config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A run this time: its config and last saved round; pictures go into the site's own folder."""
    monkeypatch.setenv("COLUMNS", "200")
    run = tmp_path / "run"
    directory = RunDirectory(run)
    directory.write_config(audited_config)
    with open_subject(Target(audited_config, None), None) as initial:
        save_state(run / "state", "round", 2, {"params": to_vector(initial.model) + 1})
    assert verb.audit(options(run)) == 1
    out = capsys.readouterr().out
    assert "no noise: NOT CAUGHT" in caplog.text
    assert "NOT CAUGHT" in out and str(run / "sites" / "site1" / "audit") in out
    assert out.rstrip().splitlines()[-1].startswith("Verdict: FAILED. The audit of site1 does not support epsilon 1 ")
    told = json.loads((run / "sites" / "site1" / "audit" / "audit.json").read_text(encoding="utf-8"))
    assert told["rounds_done"] == 2 and not told["passed"]
    assert "released model's loss" in {finding["attack"] for finding in told["findings"]}
    private = sorted((run / "sites" / "site1" / "audit").iterdir())
    assert [path.name for path in private] == ["audit.html", "audit.json", "inversion.png"]
    assert {stat.S_IMODE(path.stat().st_mode) for path in private} == {0o600}
    kept = [line for line in out.splitlines() if line.startswith("released model's loss")]
    assert len(kept) == 2 and all("(kept in the site's folder)" in line for line in kept)
    outside = json.loads((run / "audit" / "site1.json").read_text(encoding="utf-8"))
    assert [path.name for path in (run / "audit").iterdir()] == ["site1.json"]
    assert {tuple(finding) for finding in outside["findings"]} == {("attack", "setting", "kind", "verdict")}
    assert "settings" not in outside and "measured" not in str(outside)
    assert not (run / "sites" / "site1" / "ledger.jsonl").exists()


@pytest.fixture
def site_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[float], SiteLedger]:
    """Make the hospital's account with a cap."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "account"))
    return lambda cap: SiteLedger.create(tmp_path / "account", Terms("patient", cap=cap, initialised=True))


@pytest.mark.usefixtures("tiny")
def test_training_of_patients_is_charged_to_the_account(
    config_file: Path, tmp_path: Path, site_ledger: Callable[[float], SiteLedger], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every audit anew: the noise is drawn anew, too."""
    ledger, spent = site_ledger(100.0), [0.0]
    for count in (1, 2):
        verb.audit(options(config_file, out=tmp_path / "out"))
        ledger.refresh()
        entries = ledger.entries("charge")
        assert len({entry["ledger"] for entry in entries}) == count
        assert {(entry["run"], entry["site"], entry["population"]) for entry in entries} == {
            ("audit of audited", "site1", "train")
        }
        spent.append(ledger.groups()[0].epsilon)
        assert "charged to the site ledger" in capsys.readouterr().out
    assert spent[0] < spent[1] < spent[2]


@pytest.mark.usefixtures("tiny", "same_entropy")
def test_audit_past_the_cap_is_refused_but_for_canaries(
    config_file: Path, tmp_path: Path, site_ledger: Callable[[float], SiteLedger], capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = site_ledger(0.01)
    with pytest.raises(PrivacyError, match=r"would pass its cap, epsilon 0\.01 .*--no-real-patients"):
        verb.audit(options(config_file, out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    verb.audit(options(config_file, out=tmp_path / "out", real_patients=False))
    assert "canaries alone: no patient was trained on" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "site1.json").read_text(encoding="utf-8"))["real_patients"] is False
    told = json.loads((tmp_path / "out" / "sites" / "site1" / "audit.json").read_text(encoding="utf-8"))
    assert not any(finding["unnoised"] for finding in told["findings"])
    # Nothing but canaries was replaced by less: these are all laws of a densenet_small.
    claims = {finding["attack"]: finding["verdict"] for finding in told["findings"] if finding["kind"] == "claim"}
    assert "noise of each tensor" in claims and set(claims.values()) == {"holds"}, claims
    assert not (tmp_path / "out" / "sites" / "site1" / "inversion.png").exists()
    ledger.refresh()
    assert not ledger.entries("charge")


def test_audit_that_may_begin_may_end(subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is judged before the first round is what all rounds cost."""
    begun = []
    for cap in (0.01, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        monkeypatch.setenv(VARIABLE, str(tmp_path / str(cap)))
        ledger = SiteLedger.create(tmp_path / str(cap), Terms("patient", cap=cap, initialised=True))
        charges = PatientCharges(subject.config, subject.shard)
        try:
            charges.check(subject.plan)
        except PrivacyError:
            continue
        for _ in range(MOST_ROUNDS):
            charges.pay(subject.plan)
        ledger.refresh()
        assert len(ledger.entries("charge")) == charges.rounds == MOST_ROUNDS
        begun.append(cap)
    assert begun and 0.01 not in begun


def test_a_public_noise_seed_is_a_violation(audited_config: RunConfig) -> None:
    assert verb.noise_source(audited_config).verdict == "holds"
    privacy = audited_config.privacy.model_copy(update={"noise_seed": 1})
    assert verb.noise_source(audited_config.model_copy(update={"privacy": privacy})).verdict == "VIOLATED"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("privacy=off", "no claim to audit"),
        ("mode=local", "no update leaves a hospital"),
        ("training.rounds=0", "training.rounds"),
    ],
)
def test_what_cannot_be_audited_is_refused(config_file: Path, override: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_target(config_file, [override])


def test_runs_that_cannot_be_audited_are_refused(audited_config: RunConfig, config_file: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.yaml"):
        find_target(tmp_path, [])
    RunDirectory(tmp_path).write_config(audited_config)
    with pytest.raises(InputError, match="no saved round"):
        find_target(tmp_path, [])
    with pytest.raises(InputError, match="is a run and has its config"):
        find_target(tmp_path, ["seed=1"])
    save_state(tmp_path / "state", "round", 1, {"params": np.zeros(5, np.float32)})
    with pytest.raises(InputError, match="has 5 parameters"), open_subject(find_target(tmp_path, []), None):
        pass
    with (
        pytest.raises(InputError, match="--site nowhere: unknown"),
        open_subject(find_target(config_file, []), "nowhere"),
    ):
        pass


def test_config_of_the_fixture_is_what_the_file_says(audited_config: RunConfig, config_file: Path) -> None:
    assert RunConfig.model_validate(yaml.safe_load(config_file.read_text(encoding="utf-8"))) == audited_config


def test_other_algorithm_is_named_as_not_attacked(audited_config: RunConfig) -> None:
    assert not_attacked(audited_config) == ""
    changed = audited_config.replace({"algorithm.name": "fedprox", "server": {"optimizer": "fedadam"}})
    assert "algorithm.name=fedprox, server.optimizer=fedadam" in not_attacked(changed)


def test_units_of_a_secure_sum_are_observed_through_the_hospital() -> None:
    """Nearly without noise, which a hospital gives no share of but where it is charged for no more."""
    claim = at_sites()
    laws = list(secure_unit_laws(claim, observe_secure_units(claim)))
    assert len(laws) == 3 and all(law.passed for law in laws), laws
