"""A `RunView` as lines of at most 80 columns."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from fedhpc.util.text import clock, cut, data_size, fixed
from fedhpc.watch.parts import ago, progress_bar, sparkline
from fedhpc.watch.run_view import RunView

LABEL, COLUMNS, LEAST_BAR = 9, 80, 4


def run_lines(view: RunView, blocks: str) -> list[str]:
    """Return how a run goes, a fact a line.

    Args:
        view: of the run.
        blocks: for the sparkline, from low to high.
    """
    lines = [_head(view), *_who(view)]
    if view.config is None:
        return lines
    lines += [_line("val AUC", _auc(view, blocks)), _line("epsilon", _epsilon(view)), _line("bytes", _bytes(view))]
    lines += [_line("a round", _seconds(view))] if view.records else []
    lines += [_line("sites", text) for text in _sites(view)]
    return lines + [_line("result", text) for text in _result(view)]


def _line(label: str, text: str) -> str:
    return f"{label:<{LABEL}}{text}"


def _head(view: RunView) -> str:
    done, name = len(view.records), cut(view.name, 24)
    if not view.rounds:
        return f"{name}  {view.state}"
    left = "" if view.left_s is None else f"  about {clock(view.left_s)} left"
    told = f"{name}  {view.state}  round {done}/{view.rounds}  "
    width = min(16, max(LEAST_BAR, COLUMNS - len(told) - len(left) - 2))
    return f"{told}{progress_bar(done, view.rounds, width)}{left}"


def _who(view: RunView) -> Iterator[str]:
    if view.state == "killed" and view.holder is not None:
        yield _line("", f"process {view.holder.pid} of this host is gone; the same command goes on from here")
    elif view.state == "stopped":
        yield _line("", "nobody is at work; the same command goes on from here")
    elif view.holder is not None:
        job = f", SLURM job {view.holder.job}" if view.holder.job else ""
        yield _line(
            "", f"on {cut(view.holder.host, 20)}, process {view.holder.pid}{job}, since {view.holder.since[:19]}Z"
        )


def _auc(view: RunView, blocks: str) -> str:
    values = [record["auc_val"] for record in view.records if record["auc_val"] is not None]
    if not values:
        return "not released after a round so far" if view.records else "-"
    return f"{values[-1]:.3f} (best {max(values):.3f})  {sparkline(values, 40, blocks)}"


def _epsilon(view: RunView) -> str:
    config = view.config
    if config is None or config.privacy.epsilon is None:
        return "privacy is off"
    if config.privacy.noise_seed is not None:
        return "void: privacy.noise_seed is set"
    spent = view.records[-1]["epsilon"] if view.records else 0.0
    target = config.privacy.epsilon
    return (
        f"{fixed(spent)} of {target:g} spent, {max(0.0, target - (spent or 0.0)):.3f} left, by the site that spent most"
    )


def _bytes(view: RunView) -> str:
    up, down = (sum(record[key] for record in view.records) for key in ("bytes_up", "bytes_down"))
    if not up and not down:
        return "-"
    last = view.records[-1]
    return (
        f"last round {data_size(last['bytes_up'])} up, {data_size(last['bytes_down'])} down; "
        f"so far {data_size(up)} up, {data_size(down)} down"
    )


def _seconds(view: RunView) -> str:
    seconds: Mapping[str, float] = view.records[-1]["seconds"]
    longest = sorted((name for name in seconds if name != "total"), key=lambda name: -seconds[name])[:2]
    parts = ", ".join(f"{name} {_short(seconds[name])}" for name in longest)
    last = "" if view.idle_s is None or view.ended else f"; the last ended {ago(view.idle_s)}"
    return f"{_short(seconds['total'])} s ({parts}){last}"


def _short(seconds: float) -> str:
    """Return seconds with a digit after the point, or two that are not 0 where they are few.

    >>> _short(41.44), _short(0.0514), _short(0.0)
    ('41.4', '0.051', '0')
    """
    return f"{seconds:.1f}" if seconds >= 1 else f"{seconds:.2g}"


def _sites(view: RunView) -> list[str]:
    """Return which sites are missing, left out, late or found far out; that all are there where that is so."""
    last: Mapping[str, Any] = view.records[-1] if view.records else {}
    found = [f"missing: {', '.join(last['absent'])}"] if last.get("absent") else []
    found += [f"left out of round {last['round']}: {', '.join(last['dropped'])}"] if last.get("dropped") else []
    found += [f"late in round {last['round']}, so not in it: {', '.join(last['late'])}"] if last.get("late") else []
    found += [f"waiting for {one.site}, {one.for_s:.0f} s after the first update" for one in view.waiting]
    found += [f"slow: {one.site}, {one.for_s:.1f} s after the first in round {last.get('round')}" for one in view.slow]
    flagged: Sequence[Mapping[str, Any]] = last.get("flags", ())
    found += [f"far out: {flag['site']} ({flag['reason']})" for flag in flagged]
    names = () if view.config is None else view.config.site_names
    return found or [f"all {len(names)} take part"]


def _result(view: RunView) -> list[str]:
    if view.summary is None:
        return []
    s, interval = view.summary, view.summary["auc_ci95"]
    ends = "" if interval is None else f" ({interval[0]:.3f} to {interval[1]:.3f})"
    return [f"AUC {fixed(s['auc'])}{ends}, F1 {fixed(s['f1'])}, early {fixed(s['sensitivity_early'])}; {s['stopped']}"]
