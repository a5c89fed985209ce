"""The ledgers: no crash loses a charge, no change goes unseen, many runs share a shard."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.errors import PrivacyError
from fedhpc.privacy.accountant import Charge, bounds_of, total_of
from fedhpc.privacy.hash_chain import Chain
from fedhpc.privacy.ledger import Ledger, Lifetime, lifetime_path, read_ledger

DELTA = 1e-5


def charge(round: int, **other: object) -> Charge:
    return Charge(round, 2.0, 0.1, 20, **other)  # type: ignore[arg-type]


class Place:
    """A shard's folder and run directories beside it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lifetime_file = lifetime_path(folder / "a.h5")

    def run_file(self, run: str = "run") -> Path:
        return self.folder / run / "sites" / "a" / "ledger.jsonl"

    def lifetime(self) -> Lifetime:
        return Lifetime(self.lifetime_file, "a")

    def open(self, run: str = "run", cap: float | None = None) -> Ledger:
        return Ledger(self.run_file(run), ("a", run), [self.lifetime()], (cap, DELTA))


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
    assert again.epsilon(DELTA) == bounds_of([charge(0)] * 3, DELTA).epsilon > bounds_of([charge(0)] * 2, DELTA).epsilon
    assert read_ledger(place.run_file()) == ("a", again.charges)
    attempts = [json.loads(line).get("attempt") for line in place.run_file().read_text().splitlines()]
    assert attempts == [None, 0, 0, 1]


@given(charges=st.integers(0, 3), lifetime_bytes=st.integers(0, 600), run_bytes=st.integers(0, 600))
def test_a_crash_at_any_byte_loses_no_charge(
    tmp_path_factory: pytest.TempPathFactory, charges: int, lifetime_bytes: int, run_bytes: int
) -> None:
    """A charge is two appends, the lifetime's first: let the crash fall after any byte of either."""
    place = Place(tmp_path_factory.mktemp("crash"))
    ledger = place.open()
    for round in range(charges):
        ledger.charge(charge(round))
    before = {path: path.read_bytes() for path in (place.lifetime_file, place.run_file())}
    ledger.charge(charge(charges))
    after = {path: path.read_bytes() for path in before}
    written = len(after[place.lifetime_file]) - len(before[place.lifetime_file])
    whole = lifetime_bytes >= written
    for path, wanted in ((place.lifetime_file, lifetime_bytes), (place.run_file(), run_bytes if whole else 0)):
        path.write_bytes(after[path][: len(before[path]) + wanted])
    again = place.open()
    expected = charges + 1 if whole else charges
    assert again.charges == tuple(charge(round) for round in range(expected))
    again.charge(charge(charges))
    assert place.open().charges == place.lifetime().charges() == (*again.charges,)


@given(data=st.data())
def test_a_changed_byte_is_seen(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whichever byte of whichever file: it is refused, or nothing was lost."""
    place = Place(tmp_path_factory.mktemp("changed"))
    ledger = place.open()
    for round in range(2):
        ledger.charge(charge(round))
    path = data.draw(st.sampled_from([place.lifetime_file, place.run_file()]))
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 127))
    path.write_bytes(content)
    try:
        assert place.open().charges == ledger.charges
    except PrivacyError as error:
        assert str(path) in str(error) or str(place.run_file()) in str(error)


@pytest.mark.parametrize("which", ["run", "lifetime"])
@pytest.mark.parametrize("lines", [(0,), (1,), (2,), (1, 2), (2, 3)])
def test_removed_lines_are_seen(place: Place, which: str, lines: tuple[int, ...]) -> None:
    ledger = place.open()
    for round in range(3):
        ledger.charge(charge(round))
    path = place.run_file() if which == "run" else place.lifetime_file
    kept = [line for number, line in enumerate(path.read_text().splitlines(True)) if number not in lines]
    path.write_text("".join(kept))
    with pytest.raises(PrivacyError, match=r"ledger\.jsonl"):
        place.open()


def test_a_last_line_cut_from_both_files_is_seen_by_the_head_of_the_record(place: Place) -> None:
    ledger = place.open()
    ledger.charge(charge(0))
    early = ledger.head
    ledger.charge(charge(1))
    for path in (place.run_file(), place.lifetime_file):
        path.write_text("".join(path.read_text().splitlines(True)[:-1]))
    cut = place.open()
    assert cut.charges == (charge(0),)
    cut.check_head(early)
    with pytest.raises(PrivacyError, match="cut or swapped"):
        cut.check_head(ledger.head)


def test_a_lost_ledger_is_refused(place: Place) -> None:
    place.open().charge(charge(0))
    place.lifetime_file.unlink()
    with pytest.raises(PrivacyError, match="does not hold the 1 charges"):
        place.open()


def test_another_sites_ledger_is_refused(place: Place, tmp_path: Path) -> None:
    place.open()
    with pytest.raises(PrivacyError, match="ledger of site a, this is b"):
        Ledger(place.run_file(), ("b", "run"))
    with pytest.raises(PrivacyError, match="ledger of site a, this is b"):
        Lifetime(place.lifetime_file, "b")


@pytest.mark.parametrize("content", ["", "\n", "{}\n", '{"site": "a", "round": 0}\n', "[1]\n", "\x00\x01\n"])
def test_what_is_no_ledger_is_refused(place: Place, content: str) -> None:
    place.run_file().parent.mkdir(parents=True)
    place.run_file().write_text(content)
    if not content:
        assert place.open().charges == ()  # made, and not yet written to
    else:
        with pytest.raises(PrivacyError, match=r"ledger\.jsonl line 1"):
            place.open()


def test_runs_at_the_same_time_share_a_shard(place: Place) -> None:
    """Each with a file of its own, all with one lifetime: no line is lost, and the chain holds."""
    place.lifetime().open()

    def spend(number: int) -> None:
        ledger = place.open(f"run{number}")
        for round in range(5):
            ledger.charge(charge(round))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(spend, range(8)))
    spendings = place.lifetime().spendings()
    assert sorted(spent.run for spent in spendings) == [f"run{n}" for n in range(8)]
    assert all(spent.charges == tuple(charge(r) for r in range(5)) for spent in spendings)
    assert place.lifetime().charges() and len(Chain(place.lifetime_file).seals) == 41


def test_append_without_the_lock_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="without `locked`"):
        Chain(tmp_path / "x").append({})


def test_the_cap_holds_over_runs(place: Place) -> None:
    """Two runs that each could afford one more charge, but not both."""
    two = bounds_of([charge(0)] * 2, DELTA).epsilon
    first, second = place.open("one", two + 0.01), place.open("two", two + 0.01)
    first.charge(charge(0))
    assert first.affords(charge(1), 100) and second.affords(charge(0), 100)
    first.charge(charge(1))
    assert not second.affords(charge(0), 100)
    with pytest.raises(PrivacyError, match=r"would pass privacy\.lifetime_epsilon"):
        second.charge(charge(0))
    assert second.charges == () and len(place.lifetime().charges()) == 2


def test_a_run_may_not_pass_its_own_target(place: Place) -> None:
    ledger = place.open()
    ledger.charge(charge(0))
    both = bounds_of([charge(0)] * 2, DELTA).epsilon
    assert ledger.affords(charge(1), both)
    assert not ledger.affords(charge(1), both - 1e-6)


@pytest.mark.parametrize(("other", "message"), [({"unit": "image"}, "no one sum"), ({"insecure": True}, "noise_seed")])
def test_a_cap_that_cannot_be_computed_is_refused(place: Place, other: dict[str, object], message: str) -> None:
    place.open("one").charge(charge(0, **other))
    with pytest.raises(PrivacyError, match=message):
        place.open("two", cap=10.0).affords(charge(0), 100)


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


def test_a_read_only_place_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PrivacyError, match="cannot be written"):
        Lifetime(tmp_path / "file" / "a.ledger.jsonl", "a").open()
