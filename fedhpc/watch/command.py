"""Show a run, a sweep or a study until it ends: redrawn in place on a terminal, a block a change elsewhere."""

import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.sweep.directory import SweepDirectory
from fedhpc.util.text import printable
from fedhpc.watch.batch_view import BatchView, batch_lines, view_batch
from fedhpc.watch.parts import ASCII_BLOCKS, BLOCKS
from fedhpc.watch.run_lines import run_lines
from fedhpc.watch.run_view import RunView, view_run

WIDTH = 80
FINISHED = 0
COLOURS = {"failed": "red", "lost": "red", "killed": "red", "missing:": "yellow", "slow:": "yellow"} | {
    "waiting for": "yellow",
    "finished": "green",
}


def watch(path: Path, every_s: float, *, once: bool) -> int:
    """Show it; return 0 when it has ended, however it ended: its own exit status is the run's.

    Args:
        path: of a run, a sweep or a study.
        every_s: how often its files are read.
        once: show it as it stands, and return.

    Raises:
        InputError: there is nothing to watch at `path`.
    """
    console = Console(highlight=False, soft_wrap=True)
    # Asked before `Live` takes the place of standard output.
    blocks = BLOCKS if "utf" in (sys.stdout.encoding or "").lower() else ASCII_BLOCKS
    view = _view(path)
    if once or view.ended or not console.is_terminal:
        return _plain(path, every_s, Shown(console, blocks), once=once)
    with Live(_text(view, blocks), console=console, auto_refresh=False) as live:
        while not view.ended:
            time.sleep(every_s)
            view = _view(path)
            live.update(_text(view, blocks), refresh=True)
    return FINISHED


@dataclass(frozen=True)
class Shown:
    """Where and how it is printed."""

    console: Console
    blocks: str


def _plain(path: Path, every_s: float, shown: Shown, *, once: bool) -> int:
    """Print it now, and again whenever a round or a trial has ended."""
    view = _view(path)
    shown.console.print(_text(view, shown.blocks))
    while not (once or view.ended):
        time.sleep(every_s)
        before, view = view, _view(path)
        if _marks(view) != _marks(before):
            shown.console.print(_text(view, shown.blocks))
    return FINISHED


def _marks(view: RunView | BatchView) -> tuple[object, ...]:
    if isinstance(view, RunView):
        return (view.state, len(view.records), len(view.waiting))
    return tuple(line.state for line in view.lines)


def _view(path: Path) -> RunView | BatchView:
    if SweepDirectory(path).plan.exists():
        return view_batch(path)
    directory = RunDirectory(path)
    if not path.is_dir() or not (directory.config.exists() or directory.lock.holder() is not None):
        raise InputError(
            f"{path}: is no run, sweep or study, or it has not begun yet. Give the directory of one; a run makes its "
            "own as it starts",
            code="run-directory.not-a-run",
        )
    return view_run(path)


def _text(view: RunView | BatchView, blocks: str) -> Text:
    """Return it with colours, which a pipe does not get; what they say is said in words too."""
    lines = run_lines(view, blocks) if isinstance(view, RunView) else batch_lines(view, blocks)
    text = Text("\n".join(printable(line[:WIDTH]) for line in lines))
    text.highlight_words(list(COLOURS), style="bold")
    for word, colour in COLOURS.items():
        text.highlight_words([word], style=colour)
    return text
