"""What one rank alone finds wrong at its hospital is told to all of them: no rank waits for another that has left."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pytest

from fedhpc.errors import PayloadError, PrivacyError, ShardError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.rounds.loop import _say_budget
from fedhpc.run.session import Session
from fedhpc.run.start.open_session import _search_for
from fedhpc.run.start.site_ledgers import open_ledgers
from fedhpc.transport.channel import Channel
from fedhpc.transport.collectives import run_on_all_ranks
from tests.attacks.test_environment import Heard
from tests.attacks.test_false_aggregator import NO_PROBLEM


def raises(*_: object) -> NoReturn:
    raise PrivacyError("the ledger was cut", code="privacy.ledger-damaged")


def session_of(rank: Heard, **budget: Any) -> Session:
    learner = SimpleNamespace(name="site2", budget=SimpleNamespace(**budget), keep_ledger=lambda *_: None)
    found = SimpleNamespace(
        transport=rank,
        learners=[learner],
        accounts=(),
        directory=RunDirectory(Path("none")),
        config=SimpleNamespace(private=True),
    )
    return cast(Session, found)


def test_ledger_read_at_the_end_of_the_budget(tmp_path: Path) -> None:
    rank = Heard([NO_PROBLEM])
    with pytest.raises(PayloadError, match="the ledger was cut"):
        _say_budget(session_of(rank, refusal=raises), 3)
    assert rank.sent == [b"privacy.ledger-damaged\nthe ledger was cut"]


def test_forecast_of_a_site_ledger() -> None:
    rank = Heard([NO_PROBLEM])
    with pytest.raises(PayloadError, match="the ledger was cut"):
        open_ledgers(session_of(rank, forecast=raises), {})
    assert rank.sent == [b"privacy.ledger-damaged\nthe ledger was cut"]


def test_shard_that_changes_before_it_is_searched_for(tmp_path: Path) -> None:
    """Its own log has what the others must not know."""

    class Changed:
        site, n, image_shape, dtype = "site2", 1, (1, 8, 8), SimpleNamespace(itemsize=1)

        def read(self, _: object) -> NoReturn:
            raise ShardError("its images changed on disk", private="row 7 differs", code="shard.changed")

    rank, directory = Heard([NO_PROBLEM]), RunDirectory(tmp_path)
    channel, config = Channel(rank, {}, None), SimpleNamespace(private=False)
    with pytest.raises(PayloadError, match="changed on disk"):
        run_on_all_ranks(rank, lambda: _search_for(cast(Any, config), directory, channel, [cast(Any, Changed())]))
    assert rank.sent == [b"shard.changed\nits images changed on disk"]
    assert "row 7 differs" in (tmp_path / "sites" / "site2" / "log.txt").read_text(encoding="utf-8")
