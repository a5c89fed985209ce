"""Ways around a hospital's budget: each was open once, and each must be refused or counted.

The patients are real to the program: their shard was not made by the built-in cohort.
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedhpc.bench.accounts import charged_to
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PrivacyError
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.hash_chain import FIRST, Chain, sealed
from fedhpc.privacy.ledger import Ledger, LedgerOwner, RunTerms, SiteAccount
from fedhpc.privacy.places import VARIABLE, Whose, default_folder, site_ledger_folder
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Owner, Request, Terms
from fedhpc.run.start.recorded_heads import check_recorded, recorded_heads
from fedhpc.site.account import (
    SYNTHETIC,
    identities_of,
    open_account,
    permit_exact_evaluation,
    permit_without_privacy,
)
from fedhpc.site.data.shard import Shard
from tests.support.accounts import ANYBODY, charge_run, write_patients

PATIENTS = [f"p{number:02d}" for number in range(12)]
SPLIT = [0] * 8 + [1] * 2 + [2] * 2
CAP = 1.2


def config_of(folder: Path, **privacy: Any) -> RunConfig:
    """A private run on folder/site1.h5 of three rounds, epsilon 1."""
    tree = {
        "name": "run",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": "site1", "weight": 8}]},
        "training": {"rounds": 3, "local_epochs": 1},
        "privacy": {"epsilon": 1.0, "sample_rate": 1.0, **privacy},
    }
    return RunConfig.model_validate(tree)


class Hospital:
    """A shard, an initialised site ledger that allows one run of epsilon 1, and a place for run directories."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.site_ledger, self.runs = folder, folder / "ledgers" / "site1", folder / "runs"
        self.shard = write_patients(folder / "data" / "site1.h5", PATIENTS, SPLIT)
        SiteLedger.create(self.site_ledger, Terms("patient", cap=CAP, require_privacy=True, initialised=True))

    def account(self, data: Path | None = None, **privacy: Any) -> SiteAccount:
        config = config_of(data or self.folder / "data", **privacy)
        with Shard.open(config.data.shard_path("site1"), "site1") as shard:
            return open_account(config, shard)

    def run(self, name: str, data: Path | None = None, rounds: int | None = None, **privacy: Any) -> Ledger:
        """Charge a run of that name, whose rounds are recorded as rank 0 records them."""
        config = config_of(data or self.folder / "data", **privacy)
        account = self.account(data, **privacy)
        check_recorded(config, [account], recorded_heads(self.runs / name, ["site1"]))
        ledger = charge_run(config, account, self.runs / name, rounds)
        record = json.dumps({"account_heads": {"site1": ledger.account_head("site1")}})
        (self.runs / name / "rounds.jsonl").write_text(f"{record}\n", encoding="utf-8")
        (self.runs / name / "config.yaml").write_text(json.dumps(config.model_dump(mode="json")), encoding="utf-8")
        return ledger


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hospital:
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/ledgers/{{site}}")
    return Hospital(tmp_path)


def refused(attempt: Callable[[], object]) -> str:
    with pytest.raises(PrivacyError) as found:
        attempt()
    assert not any(name in str(found.value) for name in PATIENTS)
    return str(found.value)


def test_config_without_cap_meets_the_accounts_cap(hospital: Hospital) -> None:
    hospital.run("one")
    assert "would pass its cap, epsilon 1.2" in refused(lambda: hospital.run("two"))


def test_refusal_by_the_account_is_told_as_such(hospital: Hospital) -> None:
    """Not as if the run's own epsilon were spent, of which nothing is."""
    one = hospital.run("one")
    two = hospital.run("two", rounds=0)
    assert two.epsilon(1e-5) == 0.0 and not two.affords(one.charges[0], 1.0)
    assert "site ledger of site1: one more charge would pass its cap" in two.refused_by_accounts(one.charges[0])


def test_config_asks_for_less_never_for_more(hospital: Hospital) -> None:
    assert "privacy.lifetime_epsilon" in refused(lambda: hospital.run("less", lifetime_epsilon=0.5))
    hospital.run("one", lifetime_epsilon=1e6)
    assert "its cap, epsilon 1.2" in refused(lambda: hospital.run("more", lifetime_epsilon=1e6))


def test_larger_delta_of_a_run_changes_nothing(hospital: Hospital) -> None:
    """The cap is judged at the account's delta; the newcomer's is no argument."""
    hospital.run("one")
    assert "at delta 1e-05" in refused(lambda: hospital.run("two", delta=1e-2))


@pytest.mark.parametrize("delta", [0.5, 0.013, 0.9])
def test_delta_of_a_run_above_a_tenth_of_a_unit_is_refused(tmp_path: Path, delta: float) -> None:
    with pytest.raises(ValueError, match=re.escape("above 1 / (10 x 8 declared units)")):
        config_of(tmp_path, delta=delta)


def test_delta_of_an_account_above_a_tenth_of_a_unit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/ledgers/{{site}}")
    for delta in (0.5, 0.002, 0.0):
        with pytest.raises(InputError, match="delta="):
            Terms("patient", delta, initialised=True)
    SiteLedger.create(tmp_path / "ledgers" / "site1", Terms("patient", 9e-4, 1.0, initialised=True))
    write_patients(tmp_path / "site1.h5", PATIENTS, SPLIT)
    tree = config_of(tmp_path).model_dump(mode="json")
    tree["data"]["sites"][0]["weight"] = 1000
    with Shard.open(tmp_path / "site1.h5", "site1") as shard, pytest.raises(PrivacyError, match="10 x 1000 declared"):
        open_account(RunConfig.model_validate(tree), shard)


@pytest.mark.parametrize(
    ("cap", "declared", "refused"), [(1.0, 1.0, False), (1.0, 2.0, False), (1.0, 0.5, True), (None, 2.0, True)]
)
def test_account_that_allows_more_than_declared_is_refused(
    cap: float | None, declared: float, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a report shows as a hospital's cap is at least what its account keeps to."""
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/ledgers/{{site}}")
    SiteLedger.create(tmp_path / "ledgers" / "site1", Terms("patient", cap=cap, initialised=True))
    write_patients(tmp_path / "site1.h5", PATIENTS, SPLIT)
    tree = config_of(tmp_path).model_dump(mode="json")
    tree["data"]["sites"][0]["lifetime_cap"] = declared
    with Shard.open(tmp_path / "site1.h5", "site1") as shard:
        if not refused:
            open_account(RunConfig.model_validate(tree), shard)
            return
        with pytest.raises(PrivacyError, match="its account allows more"):
            open_account(RunConfig.model_validate(tree), shard)


def test_other_place_in_the_config_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    real = Whose("site1", tmp_path / "site1.h5", synthetic=False)
    elsewhere = f"{tmp_path}/fresh/{{site}}"
    assert site_ledger_folder(real, elsewhere) == tmp_path / "fresh" / "site1"
    SiteLedger.create(default_folder("site1"), Terms("patient", cap=1.0, initialised=True))
    with pytest.raises(PrivacyError, match="the hospital has initialised"):
        site_ledger_folder(real, elsewhere)
    monkeypatch.setenv(VARIABLE, f"{tmp_path}/hospital/{{site}}")
    assert site_ledger_folder(real, elsewhere) == tmp_path / "hospital" / "site1", "the hospital's setting comes first"


def renamed(hospital: Hospital, names: list[str]) -> Callable[[], SiteAccount]:
    """Open the account of a config that calls the site "clinic"."""
    write_patients(hospital.folder / "renamed" / "clinic.h5", names, SPLIT)
    tree = config_of(hospital.folder / "renamed").model_dump(mode="json")
    tree["data"]["sites"][0]["name"] = "clinic"

    def attempt() -> SiteAccount:
        with Shard.open(hospital.folder / "renamed" / "clinic.h5", "clinic") as shard:
            return open_account(RunConfig.model_validate(tree), shard)

    return attempt


@pytest.mark.parametrize("place", ["ledgers/{site}", "ledgers/{site}/account", None])
def test_other_name_of_the_site_leads_to_no_other_budget(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, place: str | None
) -> None:
    """{site} in the place of the account is the name that a config gives, at the default place as well."""
    if place is None:
        monkeypatch.delenv(VARIABLE)
        monkeypatch.setenv("XDG_STATE_HOME", str(hospital.folder / "state"))
        hospital.site_ledger = default_folder("site1")
    else:
        monkeypatch.setenv(VARIABLE, f"{hospital.folder}/other/{place}")
        hospital.site_ledger = hospital.folder / "other" / place.format(site="site1")
    SiteLedger.create(hospital.site_ledger, Terms("patient", cap=CAP, initialised=True))
    hospital.run("one")
    said = refused(renamed(hospital, [PATIENTS[0], *(f"new{number}" for number in range(11))]))
    assert str(hospital.site_ledger.resolve()) in said and "which the hospital has initialised" in said
    strangers = renamed(hospital, [f"new{number}" for number in range(12)])()
    assert not strangers.ledger.terms.initialised, "another hospital's patients have an account of their own"


def test_account_made_before_under_another_name_is_seen(hospital: Hospital) -> None:
    """The other way round: spent under the new name first, then the hospital's own account is used."""
    account = renamed(hospital, PATIENTS)()
    charge_run(config_of(hospital.folder), account, hospital.runs / "first", rounds=1)
    assert "which an earlier run has made" in refused(lambda: hospital.run("two"))


def test_config_cannot_call_real_patients_synthetic(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """data.phantom in a config moves the account beside the shards of the built-in cohort only."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", str(hospital.folder / "state"))
    tree = config_of(hospital.folder / "data").model_dump(mode="json")
    tree["data"]["phantom"] = {}
    with Shard.open(hospital.shard, "site1") as shard:
        account = open_account(RunConfig.model_validate(tree), shard)
    assert account.ledger.folder == default_folder("site1")


def test_shard_cannot_call_charged_patients_synthetic(hospital: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    """An edited created_by moves the account beside the copy, without a cap."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", str(hospital.folder / "state"))
    SiteLedger.create(default_folder("site1"), Terms("patient", cap=CAP, initialised=True))
    forged = write_patients(hospital.folder / "forged" / "site1.h5", PATIENTS, SPLIT, created_by=f"{SYNTHETIC} 1")
    strangers = [f"new{name}" for name in PATIENTS]
    write_patients(hospital.folder / "made" / "site1.h5", strangers, SPLIT, created_by=f"{SYNTHETIC} 1")
    hospital.run("one")
    assert "says that its patients are synthetic" in refused(lambda: hospital.run("two", forged.parent))
    assert hospital.account(hospital.folder / "made").ledger.folder.parent == hospital.folder / "made"


def copied(hospital: Hospital) -> Path:
    (hospital.folder / "copy").mkdir()
    return Path(shutil.copy(hospital.shard, hospital.folder / "copy" / "site1.h5")).parent


def linked(hospital: Hospital) -> Path:
    (hospital.folder / "link").mkdir()
    (hospital.folder / "link" / "site1.h5").symlink_to(hospital.shard)
    return hospital.folder / "link"


def other_fold(hospital: Hospital) -> Path:
    """Who was tested on is trained on."""
    return write_patients(hospital.folder / "fold" / "site1.h5", PATIENTS, SPLIT[::-1]).parent


def other_pseudonyms(hospital: Hospital) -> Path:
    """A new import with another seed: the pixels are the same."""
    names = [f"x{name}" for name in PATIENTS]
    images = np.array([np.random.default_rng([32, *n.encode()]).integers(0, 256, (1, 32, 32)) for n in PATIENTS])
    return write_patients(hospital.folder / "seed" / "site1.h5", names, SPLIT, images=images.astype(np.uint8)).parent


def other_size(hospital: Hospital) -> Path:
    """A new import at another size: the pseudonyms are the same."""
    return write_patients(hospital.folder / "size" / "site1.h5", PATIENTS, SPLIT, size=48).parent


def few_of_them(hospital: Hospital) -> Path:
    """One of the patients among strangers."""
    names = [PATIENTS[0], *(f"new{number}" for number in range(11))]
    return write_patients(hospital.folder / "few" / "site1.h5", names, SPLIT).parent


def only_evaluated(hospital: Hospital) -> Path:
    """Trained patients as test patients, strangers to train on."""
    names = [*(f"new{number}" for number in range(8)), *PATIENTS[:4]]
    return write_patients(hospital.folder / "evaluated" / "site1.h5", names, SPLIT).parent


@pytest.mark.parametrize("disguise", [copied, linked, other_fold, other_pseudonyms, other_size, few_of_them])
def test_same_patients_in_disguise_are_charged_to_the_same_account(
    hospital: Hospital, disguise: Callable[[Hospital], Path]
) -> None:
    hospital.run("one")
    data = disguise(hospital)
    assert "would pass its cap" in refused(lambda: hospital.run("two", data))


def test_strangers_have_their_own_budget(hospital: Hospital) -> None:
    hospital.run("one")
    data = write_patients(hospital.folder / "others" / "site1.h5", [f"new{n}" for n in range(12)], SPLIT).parent
    hospital.run("two", data)
    groups = SiteLedger(hospital.site_ledger).groups()
    assert sorted(group.patients for group in groups) == [8, 8], "two sets of trained patients"
    assert max(group.epsilon for group in groups) < CAP


def test_evaluated_patient_pays_for_training_before(hospital: Hospital) -> None:
    """In training in one fold and in test in another: both are charged to that patient."""
    hospital.run("one")
    account = hospital.account(only_evaluated(hospital))
    spent = Ledger(hospital.runs / "eval" / "ledger.jsonl", LedgerOwner("site1", "eval"), [account], RunTerms())
    evaluation = Charge(0, 4.0, 1.0, 1, population="evaluation")
    assert not spent.affords(evaluation, 100)
    assert spent.affords(Charge(0, 4.0, 1.0, 1), 100), "the strangers that are trained on have spent nothing"


def lines_of(hospital: Hospital) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (hospital.site_ledger / "ledger.jsonl").read_text().splitlines()]


def write_lines(hospital: Hospital, lines: list[dict[str, Any]]) -> None:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (hospital.site_ledger / "ledger.jsonl").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("kept", [0, 1, 2, 3])
def test_shortened_ledger_is_refused(hospital: Hospital, kept: int) -> None:
    hospital.run("one")
    write_lines(hospital, lines_of(hospital)[:kept])
    assert "was shortened" in refused(lambda: SiteLedger(hospital.site_ledger))


def test_edited_and_resealed_ledger_is_refused(hospital: Hospital) -> None:
    """All is sealed anew, as whoever has this repository and no key can do it."""
    hospital.run("one")
    lines, head = lines_of(hospital), FIRST
    for line in lines:
        del line["seal"]
        if line["kind"] == "charge":
            line["noise_multiplier"] = 1e6
        line["previous"] = head
        head = line["seal"] = sealed({key: value for key, value in line.items() if key != "seal"})
    write_lines(hospital, lines)
    assert len(Chain(hospital.site_ledger / "ledger.jsonl").entries) == len(lines), "a chain without a key accepts it"
    assert "was changed after it was written" in refused(lambda: SiteLedger(hospital.site_ledger))


def test_torn_line_that_no_crash_left_is_refused(hospital: Hospital) -> None:
    hospital.run("one")
    path = hospital.site_ledger / "ledger.jsonl"
    path.write_bytes(path.read_bytes() + b'{"previous": "')
    assert "is not whole" in refused(lambda: hospital.run("two"))


@pytest.mark.parametrize("gone", ["key", "anchor.json", "ledger.jsonl", "sets"])
def test_removed_part_is_refused(hospital: Hospital, gone: str) -> None:
    hospital.run("one")
    path = hospital.site_ledger / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(lambda: hospital.run("two"))


def test_key_that_others_can_read_is_refused(hospital: Hospital) -> None:
    (hospital.site_ledger / "key").chmod(0o640)
    assert "chmod 600" in refused(lambda: hospital.run("one"))


def test_folder_that_others_can_write_to_is_refused(hospital: Hospital) -> None:
    """With an umask of 002, as many clusters have it, a group could remove the account: the next has no cap."""
    before = os.umask(0o002)
    try:
        shared = hospital.folder / "new" / "site1"
        SiteLedger.create(shared, Terms("patient", cap=CAP, initialised=True))
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (shared.parent, shared)] == [0o700, 0o700]
    hospital.site_ledger.chmod(0o775)
    assert "chmod go-w" in refused(lambda: hospital.run("one"))


def test_account_in_an_open_folder_is_not_begun(hospital: Hospital) -> None:
    """It was left with a key and no ledger, which is an account that is lost."""
    folder = hospital.folder / "given"
    folder.mkdir()
    folder.chmod(0o775)
    terms = Terms("patient", cap=CAP, initialised=True)
    for make in (SiteLedger.create, SiteLedger.open_or_create):
        assert "chmod go-w" in refused(lambda make=make: make(folder, terms))
    folder.chmod(0o755)
    assert SiteLedger.open_or_create(folder, terms).terms.cap == CAP


def test_older_copy_of_the_whole_folder_is_seen_by_the_records(hospital: Hospital) -> None:
    shutil.copytree(hospital.site_ledger, hospital.folder / "backup")
    hospital.run("one")
    shutil.rmtree(hospital.site_ledger)
    shutil.copytree(hospital.folder / "backup", hospital.site_ledger)
    assert "the records of run one" in refused(lambda: hospital.run("two"))


def test_ledger_made_anew_is_seen_by_the_records(hospital: Hospital) -> None:
    hospital.run("one")
    lost = SiteLedger(hospital.site_ledger).id
    shutil.rmtree(hospital.site_ledger)
    assert lost in refused(lambda: hospital.run("two"))
    (hospital.folder / "link").symlink_to(hospital.folder / "data")
    for spelling in ("data/../data", "link"):
        assert lost in refused(lambda way=spelling: hospital.run("two", data=hospital.folder / way))
    SiteLedger(hospital.site_ledger).note("accept_lost", {"account": lost, "reason": "the disk is broken"})
    hospital.run("two")


def test_older_ledger_beside_the_shard_is_taken_over_once(hospital: Hospital) -> None:
    """Also from a copy of the shard that brings a copy of it; a torn one is refused."""
    older = Chain(hospital.shard.with_suffix(".ledger.jsonl"))
    with older.locked():
        older.append({"lifetime_ledger_of": "site1", "time": "2026"})
        older.append({"ledger": "x", "run": "old", "round": 0, "noise_multiplier": 3.0, "sample_rate": 1.0, "steps": 1,
                      "mechanism": "gaussian", "unit": "patient", "insecure": False, "time": "2026"})  # fmt: skip
    for _ in range(2):
        hospital.account()
    copy = copied(hospital)
    shutil.copy(older.path, copy / older.path.name)
    entries = hospital.account(copy).ledger.entries("charge")
    assert [(entry["run"], entry["noise_multiplier"]) for entry in entries] == [("old", 3.0)]
    assert "would pass its cap" in refused(lambda: hospital.run("one"))
    older.path.write_bytes(older.path.read_bytes() + b"{")
    assert "not whole" in refused(hospital.account)


OLDER_CHARGE = {"ledger": "x", "run": "old", "round": 0, "noise_multiplier": 3.0, "sample_rate": 1.0, "steps": 1}
OLDER_CHARGE |= {"mechanism": "gaussian", "unit": "patient", "insecure": False, "time": "2026"}
LIFTED = {
    "unit": "patient",
    "delta": 1e-5,
    "cap": 1e6,
    "require_privacy": False,
    "allow_off": True,
    "initialised": True,
}


@pytest.mark.parametrize(
    "forged",
    [
        {"kind": "terms", **LIFTED, "reason": "x", "time": "2026"},
        {**OLDER_CHARGE, "kind": "terms", **LIFTED},
        {**OLDER_CHARGE, "steps": -100_000},
        {**OLDER_CHARGE, "steps": 0},
        {**OLDER_CHARGE, "sample_rate": -1.0},
        {**OLDER_CHARGE, "noise_multiplier": -3.0},
        {**OLDER_CHARGE, "noise_multiplier": float("nan")},
        {**OLDER_CHARGE, "mechanism": "none"},
        {"kind": "accept_lost", "account": "x", "reason": "x", "time": "2026"},
    ],
    ids=str,
)
def test_forged_ledger_beside_the_shard_lifts_no_cap(hospital: Hospital, forged: dict[str, Any]) -> None:
    """It has no key: a file of two lines beside a shard set the cap of the account, or gave budget back."""
    hospital.run("one")
    older = Chain(hospital.shard.with_suffix(".ledger.jsonl"))
    with older.locked():
        older.append({"lifetime_ledger_of": "site1", "time": "2026"})
        older.append(forged)
    before = SiteLedger(hospital.site_ledger)
    said = refused(lambda: hospital.run("two"))
    after = SiteLedger(hospital.site_ledger)
    assert "is no charge of an older ledger" in said or "would pass its cap" in said
    assert (after.terms, after.entries("accept_lost")) == (before.terms, [])
    assert after.groups()[0].epsilon >= before.groups()[0].epsilon


SPENDER = """
import sys, time
from pathlib import Path
from tests.attacks.test_budget import Hospital, config_of
from tests.support.accounts import charge_run
from fedhpc.errors import PrivacyError
hospital = Hospital.__new__(Hospital)
hospital.folder, hospital.runs = Path(sys.argv[1]), Path(sys.argv[1]) / "runs"
config, account = config_of(hospital.folder / "data", epsilon=float(sys.argv[3])), hospital.account()
print("ready", flush=True)
sys.stdin.readline()
try:
    charge_run(config, account, hospital.runs / sys.argv[2])
    print("done")
except PrivacyError as error:
    print("refused", error)
"""


def both_at_once(folder: Path, runs: tuple[str, str], epsilon: float) -> list[str]:
    """Two real processes that begin to charge at the same moment."""
    command = [sys.executable, "-c", SPENDER, str(folder)]
    pipe: Mapping[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    started = [subprocess.Popen([*command, run, str(epsilon)], **pipe) for run in runs]
    for process in started:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
    for process in started:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return [process.communicate(timeout=120)[0] for process in started]


def test_two_jobs_at_once_cannot_pass_the_cap(hospital: Hospital) -> None:
    said = both_at_once(hospital.folder, ("one", "two"), 1.0)
    assert any("would pass its cap" in text for text in said), said
    ledger = SiteLedger(hospital.site_ledger)
    assert max(group.epsilon for group in ledger.groups()) <= CAP
    assert len(ledger.entries("charge")) >= 3


def test_two_jobs_at_once_cannot_pass_the_target_of_a_run(hospital: Hospital) -> None:
    SiteLedger(hospital.site_ledger).change(Terms("patient", cap=100.0, initialised=True), "room for both")
    said = both_at_once(hospital.folder, ("one", "one"), 1.0)
    assert sum("would pass the run's epsilon 1" in text for text in said) >= 1, said
    charges = Ledger(
        hospital.runs / "one" / "sites" / "site1" / "ledger.jsonl",
        LedgerOwner("site1", "one"),
        [hospital.account()],
        RunTerms(),
    )
    assert len(charges.charges) == 3 and charges.epsilon(1e-5) <= 1.0


def spend_until_refused(folder: Path) -> int:
    """Charge the account in `folder` again and again; how many charges returned before one was refused."""
    ledger = SiteLedger(folder)
    units, owner = ledger.register(ANYBODY["train"]), Owner("id", "run", "site1")
    for count in range(1000):
        try:
            ledger.charge(Request(Charge(count, 50.0, 1.0, 1), units, owner))
        except PrivacyError as error:
            assert "cannot be locked or written" in str(error)
            return count
    pytest.fail("no charge was refused")


def check_after(folder: Path, charged: int) -> None:
    """A charge that failed counts, or never began; and the ledger goes on."""
    ledger = SiteLedger(folder)
    counted = len(ledger.entries("charge"))
    assert charged <= counted <= charged + 1
    units, owner = ledger.register(ANYBODY["train"]), Owner("id", "run", "site1")
    ledger.charge(Request(Charge(1000, 50.0, 1.0, 1), units, owner))
    assert len(SiteLedger(folder).entries("charge")) == counted + 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own, small enough to be filled."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("this process may not mount a file system; the test of short writes runs everywhere")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_loses_no_charge(small_disk: Path) -> None:
    SiteLedger.create(small_disk / "account", Terms("patient", cap=50.0, initialised=True))
    with (small_disk / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while filler.write(bytes(4096)):
            pass
    os.truncate(small_disk / "filler", (small_disk / "filler").stat().st_size - 5 * 4096)
    charged = spend_until_refused(small_disk / "account")
    (small_disk / "filler").unlink()
    check_after(small_disk / "account", charged)


@pytest.mark.parametrize("more_bytes", [0, 1, 100, 3000])
def test_short_write_loses_no_charge(tmp_path: Path, more_bytes: int) -> None:
    """The limit on a file's size lets a write through in part, then fails it."""
    SiteLedger.create(tmp_path / "account", Terms("patient", cap=50.0, initialised=True))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = (tmp_path / "account" / "ledger.jsonl").stat().st_size
    resource.setrlimit(resource.RLIMIT_FSIZE, (max(size, 1500) + more_bytes, hard))
    try:
        charged = spend_until_refused(tmp_path / "account")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    check_after(tmp_path / "account", charged)


def test_short_write_leaves_the_runs_ledger_whole(hospital: Hospital) -> None:
    ledger = hospital.run("one", rounds=1)
    path = hospital.runs / "one" / "sites" / "site1" / "ledger.jsonl"
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    chain = Chain(path)
    with pytest.raises(PrivacyError, match="cannot be locked or written"), chain.locked():
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 100, hard))
        try:
            chain.append({"what": "x" * 1000})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert hospital.run("one", rounds=0).charges == ledger.charges


@pytest.mark.parametrize("off", [False, True])
@pytest.mark.parametrize("allowed", [False, True])
def test_run_without_privacy_needs_the_config_and_the_hospital(hospital: Hospital, off: bool, allowed: bool) -> None:
    tree = config_of(hospital.folder / "data").model_dump(mode="json")
    tree["privacy"] |= {"epsilon": None, "off": off}
    config = RunConfig.model_validate(tree)
    ledger = SiteLedger(hospital.site_ledger)
    if allowed:
        ledger.change(replace(ledger.terms, allow_off=True), "a baseline")
    with Shard.open(hospital.shard, "site1") as shard:
        if off and allowed:
            permit_without_privacy(config, [shard], "plain")
            assert [e["run"] for e in SiteLedger(hospital.site_ledger).entries("without_privacy")] == ["plain"]
        else:
            assert "demands privacy" in refused(lambda: permit_without_privacy(config, [shard], "plain"))


@pytest.mark.parametrize("forged", ["clinic", "site1"])
def test_run_without_privacy_goes_around_no_account(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, forged: str
) -> None:
    """A copy of the shard under another site's name, or one that claims to be of the built-in cohort."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_STATE_HOME", str(hospital.folder / "state"))
    SiteLedger.create(default_folder("site1"), Terms("patient", cap=CAP, require_privacy=True, initialised=True))
    hospital.run("one")
    made_by = {"created_by": f"{SYNTHETIC} 1"} if forged == "site1" else {}
    folder, strangers = hospital.folder / "forged", [f"new{name}" for name in PATIENTS]
    tree = config_of(folder).model_dump(mode="json")
    tree["data"]["sites"][0]["name"] = forged
    tree["privacy"] |= {"epsilon": None, "off": True}
    config = RunConfig.model_validate(tree)
    for names in (PATIENTS, strangers):
        write_patients(folder / f"{forged}.h5", names, SPLIT, **made_by)
        with Shard.open(folder / f"{forged}.h5", forged) as shard:
            if names == PATIENTS:
                assert "which the hospital has" in refused(lambda: permit_without_privacy(config, [shard], "plain"))
            else:
                permit_without_privacy(config, [shard], "plain")


def test_image_charge_on_a_patient_account_counts_all_images_of_a_patient(tmp_path: Path) -> None:
    """Three images of one patient in image unit cost that patient more than one image of each of three."""
    spent = []
    for name, patients in (("same", ["p", "p", "p", "q"]), ("each", ["p", "r", "s", "q"])):
        images = np.array([np.random.default_rng(n).integers(0, 256, (1, 32, 32)) for n in range(4)], np.uint8)
        shard = write_patients(tmp_path / name / "site1.h5", patients, [0, 0, 0, 1], images=images)
        ledger = SiteLedger.create(tmp_path / name / "account", Terms("patient"))
        with Shard.open(shard, "site1") as opened:
            units = ledger.register(identities_of(opened, ("train",)))
        ledger.charge(Request(Charge(0, 4.0, 0.5, 5, unit="image"), units, Owner("id", "run", "site1")))
        spent.append(ledger.groups()[0].epsilon)
    assert spent[0] > 1.5 * spent[1]


def test_cap_of_one_run_is_committed_to_it(hospital: Hospital) -> None:
    """Epsilon 1 by PRV fits a cap of 1, which the filter alone would refuse; then nothing else fits, for good."""
    folder = hospital.folder / "ledgers" / "other"
    account = SiteAccount.of(SiteLedger.create(folder, Terms("patient", cap=1.0, initialised=True)), "site1", ANYBODY)
    config = config_of(hospital.folder)
    charge_run(config, account, hospital.runs / "one", rounds=1)
    assert "is committed to another run" in refused(
        lambda: charge_run(config, account, hospital.runs / "two", rounds=1)
    )
    ledger = charge_run(config, account, hospital.runs / "three" / ".." / "one", rounds=0)
    for round in (1, 2):
        ledger.charge(replace(ledger.charges[0], round=round), 1.0)
    assert SiteLedger(folder).groups()[0].epsilon <= 1.0
    assert "would pass" in refused(lambda: ledger.charge(replace(ledger.charges[0], round=2)))
    SiteLedger(folder).change(Terms("patient", cap=3.0, initialised=True), "more")
    charge_run(config, account, hospital.runs / "two", rounds=1)


def test_grant_only_raises(hospital: Hospital) -> None:
    ledger = SiteLedger(hospital.site_ledger)
    for terms in (Terms("patient", cap=1.0), Terms("patient"), Terms("image", cap=5.0)):
        with pytest.raises(InputError) as refused:
            ledger.change(terms, "less")
        assert refused.value.code == "privacy.site-terms"
    with pytest.raises(InputError, match="initialised"):
        SiteLedger.create(hospital.site_ledger, Terms("patient", cap=9.0, initialised=True))


def test_account_with_a_second_name_is_refused(hospital: Hospital) -> None:
    """`cp -al` of its folder: two jobs would charge one file under two locks."""
    hospital.run("one", rounds=1)
    shutil.copytree(hospital.site_ledger, hospital.folder / "other", copy_function=os.link)
    assert "has 2 names (hard links)" in refused(lambda: hospital.run("one", rounds=1))


def test_sets_and_records_hold_no_pseudonym(hospital: Hospital) -> None:
    """Nor its plain hash: without the site's key a candidate cannot be looked up."""
    hospital.run("one")
    content = b"".join(path.read_bytes() for path in hospital.site_ledger.rglob("*") if path.is_file())
    for name in PATIENTS:
        plain = hashlib.sha256(name.encode()).digest()
        assert not any(part in content for part in (name.encode(), plain[:8], plain.hex()[:16].encode()))


def test_nobody_else_can_hold_the_locks(hospital: Hospital) -> None:
    """To hold a lock for ever it is enough to open its file, for reading."""
    hospital.run("one", rounds=1)
    locks = sorted(hospital.folder.rglob("*.lock"))
    assert {path.name for path in locks} == {"ledger.jsonl.lock", "making.lock"}
    assert not any(path.stat().st_mode & 0o077 for path in locks)
    held = [path for path in locks if path.name == "ledger.jsonl.lock"]
    for path in held:
        path.chmod(0o644)  # as an earlier version has made it
    hospital.run("one", rounds=1)
    assert not any(path.stat().st_mode & 0o077 for path in held)


@pytest.mark.parametrize("allowed", [False, True])
def test_exact_evaluation_needs_the_hospital(hospital: Hospital, allowed: bool) -> None:
    """A config alone cannot release exact counts of patients whose account demands privacy, in a private run either."""
    tree = config_of(hospital.folder / "data").model_dump(mode="json")
    config, ledger = RunConfig.model_validate(tree), SiteLedger(hospital.site_ledger)
    exact = RunConfig.model_validate({**tree, "evaluation": {"epsilon": None}})
    if allowed:
        ledger.change(replace(ledger.terms, allow_off=True), "a baseline")
    with Shard.open(hospital.shard, "site1") as shard:
        account = open_account(exact, shard)
        permit_exact_evaluation(config, [shard], [account], "noisy")
        if not allowed:
            assert "evaluation.epsilon=null" in refused(
                lambda: permit_exact_evaluation(exact, [shard], [account], "exact")
            )
            return
        permit_exact_evaluation(exact, [shard], [account], "exact")
    (entry,) = SiteLedger(hospital.site_ledger).entries("without_privacy")
    assert (entry["run"], entry["units"]) == ("exact", account.units["evaluation"].digest)


@pytest.mark.parametrize("synthetic", [False, True])
def test_benchmark_leads_away_from_no_hospitals_account(hospital: Hospital, synthetic: bool) -> None:
    """Whatever data.phantom says, only shards of synthetic patients are charged to a benchmark's own accounts."""
    who = f"{SYNTHETIC} 1" if synthetic else "a test"
    names = [f"new{name}" for name in PATIENTS]
    data = write_patients(hospital.folder / "bench" / "site1.h5", names, SPLIT, created_by=who).parent
    tree = config_of(data).model_dump(mode="json")
    tree["data"]["phantom"] = {}
    with charged_to(hospital.folder / "out"), Shard.open(data / "site1.h5", "site1") as shard:
        account = open_account(RunConfig.model_validate(tree), shard)
    assert account.ledger.folder == (hospital.folder / "out" / "site1" if synthetic else hospital.site_ledger)


def test_benchmark_of_charged_patients_called_synthetic_is_refused(hospital: Hospital) -> None:
    hospital.run("one")
    forged = write_patients(hospital.folder / "forged" / "site1.h5", PATIENTS, SPLIT, created_by=f"{SYNTHETIC} 1")
    with charged_to(hospital.folder / "out"):
        assert "says that its patients are synthetic" in refused(lambda: hospital.account(forged.parent))


@pytest.mark.parametrize("benchmark", [False, True])
def test_charged_patients_called_synthetic_under_another_name_are_refused(
    hospital: Hospital, monkeypatch: pytest.MonkeyPatch, benchmark: bool
) -> None:
    """Where the hospital's own setting holds {site}, another name of the site leads beside its account."""
    hospital.run("one")
    monkeypatch.setenv(VARIABLE, str(hospital.site_ledger.parent / "{site}"))
    shutil.move(hospital.site_ledger, hospital.site_ledger.parent / "site9")
    forged = write_patients(hospital.folder / "forged" / "site1.h5", PATIENTS, SPLIT, created_by=f"{SYNTHETIC} 1")
    with charged_to(hospital.folder / "out") if benchmark else contextlib.nullcontext():
        assert "says that its patients are synthetic" in refused(lambda: hospital.account(forged.parent))


def test_grant_over_a_grant_that_it_has_not_seen_is_refused(hospital: Hospital) -> None:
    """Or a cap that is raised would bring back an exception that was just taken back."""
    one, two = SiteLedger(hospital.site_ledger), SiteLedger(hospital.site_ledger)
    one.change(replace(one.terms, allow_off=True), "an exception", seen=one.terms)
    seen = SiteLedger(hospital.site_ledger).terms
    two.change(replace(seen, allow_off=False), "taken back", seen=seen)
    with pytest.raises(InputError, match="changed meanwhile"):
        one.change(replace(seen, cap=9.0), "more", seen=seen)
    assert not SiteLedger(hospital.site_ledger).terms.allow_off


@pytest.mark.parametrize(
    "record",
    [
        "[" * 100_000,
        '{"account_heads": {"site1": 7}}',
        '{"account_heads": ["site1"]}',
        '{"account_heads": {"site1": null}}',
        '{"account_heads": {"site1": "other:0123456789abcdef"}}',
        '{"acc',
    ],
)
def test_rubbish_beside_a_run_ends_no_run(hospital: Hospital, record: str) -> None:
    """Whoever may write to the folder of all runs; of other shards it says nothing about this account."""
    other = hospital.runs / "other"
    other.mkdir(parents=True)
    (other / "rounds.jsonl").write_text(f"{record}\n", encoding="utf-8")
    (other / "config.yaml").write_text("data: {shards: '/elsewhere/{site}.h5'}\n", encoding="utf-8")
    hospital.run("one")
    (other / "config.yaml").write_text("data: {shards: [1, 2]}\n", encoding="utf-8")
    hospital.run("one", rounds=0)
