"""Work of unknown length says that it goes on, also within one long step, and says nothing where it is short."""

import io
import re
import time
from pathlib import Path

import pytest

from fedhpc.util import progress
from fedhpc.util.progress import at_work, progress_in_tenths

LIMIT_S = 30


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def wait_for(stream: io.StringIO, text: str, times: int) -> None:
    until = time.monotonic() + LIMIT_S
    while stream.getvalue().count(text) < times and time.monotonic() < until:
        time.sleep(0.005)


@pytest.mark.parametrize(("stream", "ends"), [(io.StringIO(), "\n"), (Terminal(), progress.CLEAR_LINE)])
def test_one_long_step_is_reported_until_it_ends(
    stream: io.StringIO, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("FIRST_S", "EVERY_S", "REDRAW_S"):
        monkeypatch.setattr(progress, name, 0.01)
    with pytest.raises(KeyError), at_work("planning", stream) as begins:
        wait_for(stream, "planning, 0 s", 1)
        begins("round 3")
        wait_for(stream, "planning: round 3, ", 3)
        raise KeyError
    text = stream.getvalue()
    assert text.count("planning: round 3, ") >= 3 and text.endswith(ends)
    time.sleep(0.05)
    assert stream.getvalue() == text, "nothing after the work"


def test_short_work_is_silent() -> None:
    for stream in (io.StringIO(), Terminal()):
        with at_work("planning", stream) as begins:
            begins("round 3")
        assert stream.getvalue() == ""


@pytest.mark.parametrize("total", [7, 64, 1000])
def test_progress_in_tenths_hides_the_count(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a shard: the console is seen outside its hospital."""
    clock = iter(range(0, 10**6, 30))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    for stream in (io.StringIO(), Terminal()):
        assert list(progress_in_tenths(range(total), total, "features of site", stream)) == list(range(total))
        lines = stream.getvalue().splitlines()
        assert lines and all(re.fullmatch(r"features of site: \d?0 %, about \d+0 s left", line) for line in lines)


def test_site_reports_no_counts_of_a_shard() -> None:
    root = Path(progress.__file__).parents[1] / "site"
    sources = [path.read_text(encoding="utf-8") for path in root.rglob("*.py")]
    assert sum("import progress_in_tenths" in text for text in sources) == 1
    assert not any(re.search(r"import .*\b(progress|Beat|tqdm)\b", text) for text in sources)
