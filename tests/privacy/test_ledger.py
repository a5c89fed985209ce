"""A run's ledger and the site ledger: no crash loses a charge, no change goes unseen, many runs share an account."""

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedhpc.cli.privacy_spent import runs_of
from fedhpc.errors import PrivacyError
from fedhpc.privacy import anchored_chain
from fedhpc.privacy.accountant import Charge, Population, bounds_of, total_of
from fedhpc.privacy.hash_chain import Chain
from fedhpc.privacy.ledger import Ledger, LedgerOwner, RunTerms, SiteAccount, read_ledger
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Answer, Terms
from fedhpc.privacy.unit_sets import Identities

DELTA = 1e-5
TRAINED = Identities((b"p1", b"p2"), (b"i1", b"i2", b"i3"), 2)
EVALUATED = Identities((b"p3",), (b"i4",), 1)
WHO: Mapping[Population, Identities] = {"train": TRAINED, "evaluation": EVALUATED}


def charge(round: int, **other: object) -> Charge:
    return Charge(round, 2.0, 0.1, 20, **other)  # type: ignore[arg-type]


class Place:
    """A site ledger and run directories beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.account_folder = folder / "account"

    def run_file(self, run: str = "run") -> Path:
        return self.folder / run / "sites" / "a" / "ledger.jsonl"

    def account(self) -> SiteLedger:
        return SiteLedger.open_or_create(self.account_folder, Terms("patient", DELTA))

    def open(self, run: str = "run", cap: float | None = None) -> Ledger:
        account = SiteAccount.of(self.account(), "a", WHO)
        return Ledger(self.run_file(run), LedgerOwner("a", run), [account], RunTerms(DELTA, cap))

    def files(self) -> list[Path]:
        return [self.account_folder / "ledger.jsonl", self.account_folder / "anchor.json", self.run_file()]


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_what_was_charged_is_there_after_a_restart(place: Place) -> None:
    first = place.open()
    assert first.epsilon(DELTA) == 0
    for round in (0, 1, 1):
        first.charge(charge(round))
    again = place.open()
    assert again.charges == first.charges == (charge(0), charge(1), charge(1))
    assert again.head == first.head
    assert again.account_head("a") == first.account_head("a") != first.account_head("b") == ""
    assert again.epsilon(DELTA) == bounds_of([charge(0)] * 3, DELTA).epsilon > bounds_of([charge(0)] * 2, DELTA).epsilon
    assert read_ledger(place.run_file()) == ("a", again.charges)
    attempts = [json.loads(line).get("attempt") for line in place.run_file().read_text().splitlines()]
    assert attempts == [None, 0, 0, 1]


def test_pooled_run_charges_every_site_of_one_account(place: Place) -> None:
    """Where the hospital's setting names one folder for all sites, each opens it for itself."""
    opened = [SiteAccount.of(place.account(), site, WHO) for site in ("a", "b")]
    for start in range(2):
        ledger = Ledger(place.run_file(), LedgerOwner("pooled", "run"), opened)
        ledger.charge(charge(start))
        ledger.begin_answer(charge(9, population="evaluation"), 1e9, "val", due=not start)
    for site in ("a", "b"):
        assert place.account().charges(ledger.id, site) == ledger.charges
        assert place.account().answers(Answer(ledger.id, site, 9, "val")) == 2
        assert place.account().has_head(ledger.account_head(site))
    alone = [one["epsilon_training"]["patient"] for one in runs_of(place.account())]
    assert alone == [ledger.epsilon(DELTA)] * 2, "no patient is of both sites"


def test_patient_in_two_shards_of_an_account_is_judged_for_both(place: Place) -> None:
    """One charge a shard within the cap each, and together above it: the second is refused."""
    opened = [SiteAccount.of(place.account(), site, WHO) for site in ("a", "b")]
    once, twice = (place.account().largest_with([[charge(0)] * n, [charge(0)]]) for n in (0, 1))
    place.account().change(Terms("patient", DELTA, cap=(once + twice) / 2), "between one and two")
    ledger = Ledger(place.run_file(), LedgerOwner("pooled", "run"), opened)
    with pytest.raises(PrivacyError, match="site ledger of b: one more charge would pass its cap"):
        ledger.charge(charge(0))
    assert place.account().groups()[0].epsilon <= (once + twice) / 2


@settings(max_examples=40)
@given(charges=st.integers(0, 2), stage=st.integers(0, 3), cut=st.floats(0, 1))
def test_a_crash_at_any_byte_loses_no_charge(
    tmp_path_factory: pytest.TempPathFactory, charges: int, stage: int, cut: float
) -> None:
    """The writes of a charge: anchor (announced), line of the account, anchor, line of the run. Crash within any."""
    place = Place(tmp_path_factory.mktemp("crash"))
    ledger = place.open()
    for round in range(charges):
        ledger.charge(charge(round))
    account, anchor, run = place.files()
    before = {path: path.read_bytes() for path in place.files()}
    announced = []
    with pytest.MonkeyPatch.context() as patch:
        real = anchored_chain.replace_whole
        patch.setattr(anchored_chain, "replace_whole", lambda path, text: (announced.append(text), real(path, text)))
        ledger.charge(charge(charges))
    after = {path: path.read_bytes() for path in place.files()}

    def part(path: Path, done: bool, under_way: bool) -> bytes:
        new = after[path][len(before[path]) :]
        return after[path] if done else before[path] + (new[: int(cut * len(new))] if under_way else b"")

    account.write_bytes(part(account, stage > 1, stage == 1))
    anchor.write_bytes({0: before[anchor], 1: announced[0], 2: announced[0]}.get(stage, announced[1]))
    run.write_bytes(part(run, False, stage == 3))
    again = place.open()
    assert again.charges == tuple(charge(round) for round in range(charges + (stage > 0)))
    again.charge(charge(charges))
    reopened = place.open()
    assert reopened.charges == place.account().charges(reopened.id, "a") == again.charges


@settings(max_examples=60)
@given(which=st.integers(0, 5), where=st.floats(0, 1, exclude_max=True), flip=st.integers(1, 127))
def test_a_changed_byte_is_seen(tmp_path_factory: pytest.TempPathFactory, which: int, where: float, flip: int) -> None:
    """Whichever byte of whichever file: it is refused, or nothing was lost."""
    place = Place(tmp_path_factory.mktemp("changed"))
    ledger = place.open()
    for round in range(2):
        ledger.charge(charge(round))
    path = [*place.files(), place.account_folder / "key", *(place.account_folder / "sets").iterdir()][which]
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= flip
    path.write_bytes(content)
    try:
        opened = place.open(cap=100.0)
        opened.affords(charge(2), 100.0)
        assert opened.charges == ledger.charges
    except PrivacyError as error:
        assert str(place.folder) in str(error)


@pytest.mark.parametrize("which", ["run", "account"])
@pytest.mark.parametrize("lines", [(0,), (1,), (2,), (1, 2), (2, 3)])
def test_removed_lines_are_seen(place: Place, which: str, lines: tuple[int, ...]) -> None:
    ledger = place.open()
    for round in range(3):
        ledger.charge(charge(round))
    path = place.run_file() if which == "run" else place.files()[0]
    kept = [line for number, line in enumerate(path.read_text().splitlines(True)) if number not in lines]
    path.write_text("".join(kept))
    with pytest.raises(PrivacyError, match=r"ledger\.jsonl"):
        place.open()


def test_a_last_line_cut_from_the_run_is_seen_by_the_head_of_the_record(place: Place) -> None:
    """Even where an older copy of the whole site ledger is put back with it."""
    ledger = place.open()
    ledger.charge(charge(0))
    early, older = ledger.head, {path: path.read_bytes() for path in place.files()}
    ledger.charge(charge(1))
    recorded = ledger.account_head("a")
    for path, content in older.items():
        path.write_bytes(content)
    cut = place.open()
    assert cut.charges == (charge(0),)
    cut.check_head(early)
    with pytest.raises(PrivacyError, match="cut or swapped"):
        cut.check_head(ledger.head)
    assert not place.account().has_head(recorded)


def test_a_new_account_lacks_what_the_run_was_charged(place: Place) -> None:
    place.open().charge(charge(0))
    for path in (*place.files()[:2], place.account_folder / "key"):
        path.unlink()
    for path in (place.account_folder / "sets").iterdir():
        path.unlink()
    (place.account_folder / "sets").rmdir()
    with pytest.raises(PrivacyError, match="does not hold the 1 charges"):
        place.open()


def test_another_sites_ledger_is_refused(place: Place) -> None:
    place.open().charge(charge(0))
    with pytest.raises(PrivacyError, match="ledger of site a, this is b"):
        Ledger(place.run_file(), LedgerOwner("b", "run"))


@pytest.mark.parametrize("content", ["", "\n", "{}\n", '{"site": "a", "round": 0}\n', "[1]\n", "\x00\x01\n"])
def test_what_is_no_ledger_is_refused(place: Place, content: str) -> None:
    place.run_file().parent.mkdir(parents=True)
    place.run_file().write_text(content)
    if not content:
        assert place.open().charges == ()  # made, and not yet written to
    else:
        with pytest.raises(PrivacyError, match=r"ledger\.jsonl line 1"):
            place.open()


def test_runs_at_the_same_time_share_an_account(place: Place) -> None:
    """Each with a file of its own, all with one account, made by the first: no line is lost, and the chain holds."""

    def spend(number: int) -> None:
        ledger = place.open(f"run{number}")
        for round in range(3):
            ledger.charge(charge(round))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(spend, range(8)))
    entries = place.account().entries("charge")
    by_run = {run: [e["round"] for e in entries if e["run"] == run] for run in (f"run{n}" for n in range(8))}
    assert by_run == {f"run{n}": [0, 1, 2] for n in range(8)}
    assert len(entries) == 24


def test_append_without_the_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without `locked`"):
        Chain(tmp_path / "x").append({})


def test_a_lower_cap_holds_over_runs(place: Place) -> None:
    """Two runs that each could afford one more charge, but not both; the account's own accountant judges."""
    first = place.open("one")
    first.charge(charge(0))
    first.charge(charge(1))
    two = place.account().largest_with(())
    third = place.open("three", cap=two + 0.01)
    assert not third.affords(charge(0), 100)
    with pytest.raises(PrivacyError, match=r"would pass privacy\.lifetime_epsilon"):
        third.charge(charge(0))
    assert third.charges == () and len(place.account().entries("charge")) == 2


def test_a_run_may_not_pass_its_own_target(place: Place) -> None:
    ledger = place.open()
    ledger.charge(charge(0))
    both = bounds_of([charge(0)] * 2, DELTA).epsilon
    assert ledger.affords(charge(1), both)
    assert not ledger.affords(charge(1), both - 1e-6)
    with pytest.raises(PrivacyError, match="would pass the run's epsilon"):
        ledger.charge(charge(1), both - 1e-6)
    assert ledger.charges == (charge(0),)


def test_noise_from_a_known_seed_fits_under_no_cap(place: Place) -> None:
    seeded = charge(0, insecure=True)
    with pytest.raises(PrivacyError, match="noise_seed"):
        place.open("one", cap=10.0).charge(seeded)
    place.open("two").charge(seeded)
    assert not place.open("three", cap=10.0).affords(charge(0), 100)


def test_populations_are_never_added(place: Place) -> None:
    """A patient is trained on or evaluated on in one run, never both: each population has its own epsilon."""
    ledger = place.open()
    ledger.charge(charge(0))
    alone = ledger.epsilon(DELTA)
    evaluated = charge(0, population="evaluation")
    assert ledger.affords(evaluated, alone)
    ledger.charge(evaluated)
    ledger.charge(evaluated)
    assert place.open().epsilon(DELTA) == alone
    assert place.open().epsilon(DELTA, population="evaluation") == bounds_of([evaluated] * 2, DELTA).epsilon > alone
    total = total_of(ledger.charges, DELTA)
    assert total.by_unit["patient"].epsilon == alone < total.evaluation["patient"].epsilon
    attempts = [json.loads(line).get("attempt") for line in place.run_file().read_text().splitlines()]
    assert attempts == [None, 0, 0, 1]


def test_total_keeps_units_apart() -> None:
    total = total_of([charge(0), charge(0, unit="image"), charge(1, unit="image")], DELTA)
    assert total.by_unit["image"].epsilon > total.by_unit["patient"].epsilon == bounds_of([charge(0)], DELTA).epsilon
    assert "per image and" in total.text
    assert "more than can be said" in total_of([charge(0, insecure=True)], DELTA).text


def test_a_place_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrivacyError, match="cannot be written"):
        SiteLedger.open_or_create(tmp_path / "file" / "account", Terms("patient", DELTA))
