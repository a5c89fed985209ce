"""A config that names `$SECRET`: no other rank learns what the environment of a hospital's account holds."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PayloadError, RankErrors
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.places import VARIABLE, Whose, check_other_names, site_ledger_folder
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Owner, Request, Terms
from fedhpc.privacy.unit_sets import Identities
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.preflight.facts import collect
from fedhpc.transport import pki
from fedhpc.transport.base import AloneTransport
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.util import masking
from fedhpc.util.files import read_bytes
from fedhpc.util.masking import expanded, masked
from tests.attacks.test_false_aggregator import NO_PROBLEM, Answered

SECRET = "Zq7secretX"
TREE = {
    "name": "x",
    "data": {"shards": "$WARD/{site}.h5", "sites": [{"name": "site1"}, {"name": "site2"}]},
    "privacy": {"off": True},
}


class Heard(Answered):
    """An `Answered` rank whose payloads are kept."""

    def __init__(self, payloads: Iterable[bytes]) -> None:
        super().__init__(payloads)
        self.sent: list[bytes] = []

    def gather(self, payloads: Sequence[bytes], kind: object, round: int | None = None) -> list[bytes]:  # type: ignore[override]
        self.sent += payloads
        return []


@pytest.fixture(autouse=True)
def nothing_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test starts as a new process does."""
    monkeypatch.setattr(masking, "_HIDDEN", {})


@pytest.fixture
def ward(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that `$WARD` names, through a link."""
    (tmp_path / "disk" / f"{SECRET}-real").mkdir(parents=True)
    folder = tmp_path / SECRET
    folder.symlink_to(tmp_path / "disk" / f"{SECRET}-real")
    monkeypatch.setenv("WARD", str(folder))
    return folder


def config_of(**data: object) -> RunConfig:
    return RunConfig.model_validate({**TREE, "data": {**TREE["data"], **data}})  # type: ignore[dict-item]


def absent_certificate(config: RunConfig) -> object:
    return pki.credentials(config.exchange.pki_folder(config.data, "site2"), "site2")


def damaged_ledger(config: RunConfig) -> object:
    folder = site_ledger_folder(Whose("site2", config.data.shard_path("site2"), synthetic=True), None)
    ledger = SiteLedger.open_or_create(folder, Terms("patient"))
    (folder / "ledger.jsonl").write_text("no ledger\n")
    return SiteLedger(folder).head + ledger.head


def resolved_folder(config: RunConfig) -> object:
    return read_bytes(config.data.shard_path("site2").resolve().parent / "feature.npz")


def quoted(config: RunConfig) -> object:
    raise InputError(f"{str(config.data.shard_path('site2'))!r}: no such file")


@pytest.mark.parametrize(
    "fails",
    [absent_certificate, damaged_ledger, resolved_folder, quoted],
    ids=lambda one: one.__name__,
)
def test_error_of_any_kind_tells_the_variable_only(ward: Path, fails: Callable[[RunConfig], object]) -> None:
    rank = Heard([NO_PROBLEM])
    with pytest.raises(PayloadError) as raised:
        run_on_all_ranks(rank, lambda: fails(config_of()))
    (sent,) = rank.sent
    assert SECRET.encode() not in sent
    assert b"$WARD" in sent
    assert SECRET not in str(raised.value)


def test_preflight_tells_the_variable_only(ward: Path, tmp_path: Path) -> None:
    token = b".preflight-0123456789abcdef"
    rank = Heard([NO_PROBLEM, token])
    assert collect(config_of(), RunDirectory(tmp_path / "run"), rank) == []
    facts = rank.sent[-1]
    assert b"$WARD/site2.h5" in facts
    assert SECRET.encode() not in facts


def test_shard_that_cannot_be_looked_at_is_a_fact(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It ended the one rank with a traceback that shows the path."""
    monkeypatch.setenv("WARD", SECRET * 100)
    rank = Heard([NO_PROBLEM, b".preflight-0123456789abcdef"])
    collect(config_of(), RunDirectory(tmp_path / "run"), rank)
    assert b"cannot be looked at" in rank.sent[-1]
    assert SECRET.encode() not in rank.sent[-1]


def test_value_with_a_dollar_sign_is_no_template(monkeypatch: pytest.MonkeyPatch) -> None:
    """What followed the sign was named as a variable that is not set."""
    monkeypatch.setenv("WARD", f"/disk/pa${SECRET}")
    assert config_of().data.shard_path("site2") == Path(f"/disk/pa${SECRET}/site2.h5")


@pytest.mark.parametrize(
    ("template", "value", "told"),
    [
        ("$WARD/{site}.h5", "d", "$WARD/site2.h5"),
        ("$WARD/{site}.h5", "1", "$WARD/site2.h5"),
        ("$WARD/{site}.h5", "/d", "$WARD/site2.h5"),
        ("${WARD}{site}.h5", "d", "${WARD}site2.h5"),
        ("/$WARD/{site}.h5", "1", "/$WARD/site2.h5"),
    ],
)
def test_short_value_is_masked_in_its_path_only(
    monkeypatch: pytest.MonkeyPatch, template: str, value: str, told: str
) -> None:
    """Every letter d of a message became $WARD, and so did the number of the rank."""
    monkeypatch.setenv("WARD", value)
    path = config_of(shards=template).data.shard_path("site2")
    rest = "is damaged; rank 1, 11 rounds, and/data"
    assert masked(f"{path}: {rest}") == f"{told}: {rest}"


def test_value_that_is_a_link_to_itself_is_masked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    loop = tmp_path / SECRET
    loop.symlink_to(loop)
    monkeypatch.setenv("WARD", str(loop))
    assert masked(str(config_of().data.shard_path("site2"))) == "$WARD/site2.h5"


def test_own_setting_of_a_hospital_is_not_repeated(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    whose = Whose("site2", tmp_path / "site2.h5", synthetic=False)
    monkeypatch.setenv(VARIABLE, f"/{SECRET}/$NOT_SET_HERE/{{site}}")
    rank = Heard([NO_PROBLEM])
    with pytest.raises(PayloadError) as raised:
        run_on_all_ranks(rank, lambda: site_ledger_folder(whose, None))
    assert raised.value.code == "config.variable-unset"
    assert SECRET.encode() not in rank.sent[0]


def test_accounts_beside_are_not_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    above, anybody = tmp_path / SECRET, Identities((b"p",), (b"i",))
    monkeypatch.setenv(VARIABLE, f"{above}/{{site}}")
    other = SiteLedger.open_or_create(above / "other", Terms("patient", cap=5.0, initialised=True))
    charge = Charge(round=0, noise_multiplier=2.0, sample_rate=0.1, steps=1)
    other.charge(Request(charge, other.register(anybody), Owner("run", "run", "other")))
    folder = site_ledger_folder(Whose("site2", tmp_path / "site2.h5", synthetic=False), None)
    ledger = SiteLedger.open_or_create(folder, Terms("patient"))
    rank = Heard([NO_PROBLEM])
    with pytest.raises(PayloadError, match="some of its patients were charged") as raised:
        run_on_all_ranks(rank, lambda: check_other_names(ledger, "site2", anybody))
    assert raised.value.code == "privacy.ledger-other"
    assert SECRET.encode() not in rank.sent[0]
    assert b"charged to $FEDHPC_SITE_LEDGER/../other" in rank.sent[0]


def test_accounts_of_one_rank_at_the_default_place_keep_their_names(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each was shown as the one beside the other: site2/../site1/../site2."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / SECRET))
    folders = [site_ledger_folder(Whose(site, tmp_path / "a.h5", synthetic=False), None) for site in ("site1", "site2")]
    ledgers = [SiteLedger.open_or_create(folder, Terms("patient")) for folder in folders]
    for site, ledger in zip(("site1", "site2"), ledgers, strict=True):
        check_other_names(ledger, site, Identities((b"p",), (b"i",)))
    told = [masked(str(folder)) for folder in folders]
    assert told == [f"$XDG_STATE_HOME/fedhpc/ledgers/{site}" for site in ("site1", "site2")]


def test_one_process_is_told_the_path(ward: Path) -> None:
    """The control: where there is no other rank, the message says which file it is."""
    with pytest.raises(RankErrors, match=f"{SECRET}/pki/site2"):
        run_on_all_ranks(AloneTransport(), lambda: absent_certificate(config_of()))


WORD = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), max_size=20).map(lambda end: SECRET + end)


@given(st.lists(WORD, min_size=1, max_size=3), st.text("/ab.h5-", max_size=6))
def test_mask_leaves_no_value_in_a_path(values: list[str], between: str) -> None:
    names = [f"FEDHPC_TEST_{number}" for number in range(len(values))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masking, "_HIDDEN", {})
        for name, value in zip(names, values, strict=True):
            patch.setenv(name, value)
        template = "/disk/" + between.join(f"${{{name}}}" for name in names)
        path = Path(expanded(template))
        assert SECRET not in masked(f"{path}: is missing; {path / 'x'}, {path.name!r}")
