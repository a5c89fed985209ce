"""The values of all sites with their intervals: as plain values, and as a table of 80 columns."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from fedhpc.aggregation.contribution import (
    History,
    Uncertain,
    coalition_models,
    cosine_utility,
    cosine_values,
    leave_one_out,
    same_updates,
    shapley,
    uncertain,
)
from fedhpc.util.arrays import F32, F64
from fedhpc.util.text import fitted, fixed, wrapped

COSINE = "cosine of the updates (no image was used)"


class Judge(Protocol):
    """Gives models their utilities on labelled images (public)."""

    @property
    def name(self) -> str:
        """What it judges, and on which images."""

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes whose AUC is a utility each."""

    @property
    def images(self) -> int:
        """How many images."""

    def utility(self, models: F32, times: F64) -> F64:
        """The AUC f64[draws, M, T] of models f32[M, d] for each class, under weightings f64[draws, n] of the images."""

    def resampled(self, draws: int, rng: np.random.Generator) -> F64:
        """Weightings f64[draws, n]: resamples of patients."""


@dataclass(frozen=True)
class Draws:
    """What the intervals are over.

    Attributes:
        number: of resamples of patients, and of draws of the noise.
        deviations: f64[T, n], the noise of each round and site; None: it is none, or not known.
        rng: of the simulation.
    """

    number: int
    deviations: F64 | None
    rng: np.random.Generator


@dataclass(frozen=True)
class Found:
    """One kind of value of all sites, overall and by class."""

    overall: Uncertain
    by_class: tuple[Uncertain, ...] = ()


def table_of(sites: Sequence[str], history: History, judge: Judge | None, draws: Draws) -> dict[str, Any]:
    """Return the facts of the table.

    Args:
        sites: their names.
        history: what the run has received.
        judge: gives models their utilities; None: the cosines of the updates do.
        draws: what the intervals are over.
    """
    noisy = [] if draws.deviations is None else _redrawn(history, draws)
    found = {"cgsv": _cosines(history, noisy)}
    ends = {"none": 0.0, "all": 1.0}
    if judge is None:
        values, over_noise = cosine_utility(history), np.array([cosine_utility(one) for one in noisy])
        found |= _games(values[:, None], np.empty((0, len(values), 1)), over_noise[..., None])
    else:
        once = np.ones((1, judge.images))
        models = coalition_models(history)
        values = judge.utility(models, once)[0]
        over_patients = judge.utility(models, judge.resampled(draws.number, draws.rng))
        over_noise = np.array([judge.utility(coalition_models(one), once)[0] for one in noisy])
        found |= _games(values, over_patients, over_noise)
        ends = {"none": float(values[0].mean()), "all": float(values[-1].mean())}
    return {
        "sites": list(sites),
        "rounds": len(history.updates),
        "utility": COSINE if judge is None else judge.name,
        "utilities": ends,
        "classes": [] if judge is None or len(judge.classes) < 2 else list(judge.classes),
        "draws": draws.number,
        "noise": draws.deviations is not None,
        "values": {kind: _plain(sites, one.overall) for kind, one in found.items()},
        "by_class": _by_class(sites, judge, found["shapley"]),
        "not_apart": _not_apart(sites, found["shapley"].overall),
        "same_updates": [[sites[i] for i in sorted(group)] for group in same_updates(history)],
    }


def _redrawn(history: History, draws: Draws) -> list[History]:
    """Return the history with the noise of a run drawn anew and added: what another run would have seen at most."""
    if draws.deviations is None:
        return []
    return [history.with_noise(draws.deviations, draws.rng) for _ in range(draws.number)]


def _cosines(history: History, noisy: Sequence[History]) -> Found:
    values, drawn = cosine_values(history), np.array([cosine_values(one) for one in noisy])
    return Found(uncertain(values, np.empty((0, len(values))), drawn.reshape(-1, len(values))))


def _games(values: F64, over_patients: F64, over_noise: F64) -> dict[str, Found]:
    """Return Shapley and leave-one-out of utilities f64[2^n, T], f64[draws, 2^n, T] and f64[draws, 2^n, T]."""
    found = {}
    for name, value_of in (("shapley", shapley), ("leave_one_out", leave_one_out)):
        exact = value_of(values)
        sets = [_drawn(value_of, drawn, exact.shape) for drawn in (over_patients, over_noise)]
        overall = uncertain(exact.mean(axis=1), *(one.mean(axis=2) for one in sets))
        by_class = [uncertain(exact[:, k], *(one[:, :, k] for one in sets)) for k in range(exact.shape[1])]
        found[name] = Found(overall, tuple(by_class))
    return found


def _drawn(value_of: Any, utilities: F64, shape: tuple[int, ...]) -> F64:
    """Return the values f64[draws, n, T] of drawn utilities; a draw without a class has none."""
    if not len(utilities):
        return np.empty((0, *shape))
    values = np.moveaxis(value_of(np.moveaxis(utilities, 0, -1)), -1, 0)
    return np.asarray(values[~np.isnan(values).any(axis=(1, 2))])


def _plain(sites: Sequence[str], one: Uncertain) -> dict[str, dict[str, Any]]:
    return {
        site: {
            "value": float(one.values[i]),
            "ci95": list(one.interval(i)),
            "sd_patients": float(one.patients[i]),
            "sd_noise": float(one.noise[i]),
            "ranks": list(one.ranks()[i]),
        }
        for i, site in enumerate(sites)
    }


def _by_class(sites: Sequence[str], judge: Judge | None, found: Found) -> dict[str, dict[str, dict[str, Any]]]:
    if judge is None or len(judge.classes) < 2:
        return {}
    return {name: _plain(sites, one) for name, one in zip(judge.classes, found.by_class, strict=True)}


def _not_apart(sites: Sequence[str], one: Uncertain) -> list[list[str]]:
    """Return the pairs of sites whose values cannot be told apart."""
    pairs = [(i, j) for i in range(len(sites)) for j in range(i)]
    return [[sites[j], sites[i]] for i, j in pairs if not one.apart(i, j)]


def table_text(facts: dict[str, Any]) -> str:
    """Return the facts for a terminal."""
    ends = facts["utilities"]
    told = f"utility: {facts['utility']}; {fixed(ends['none'])} of no site, {fixed(ends['all'])} of all"
    noise = "patients and redrawn noise" if facts["noise"] else "patients; there is no noise, or its scale is not known"
    if not facts["utility"].startswith("AUC"):
        noise = "redrawn noise" if facts["noise"] else "nothing: neither images nor noise"
    head = ("site", "rank", "Shapley", "leave-one-out", "CGSV")
    kinds = ("shapley", "leave_one_out", "cgsv")
    rows = [
        (site, _rank(facts["values"]["shapley"][site]), *(_cell(facts["values"][kind][site]) for kind in kinds))
        for site in facts["sites"]
    ]
    lines = [wrapped(told), "", fitted([head, *rows]), *_class_lines(facts), ""]
    lines.append(wrapped(f"± 95 % over {noise}, {facts['draws']} draws each"))
    if facts["not_apart"]:
        pairs = ", ".join(" and ".join(pair) for pair in facts["not_apart"])
        lines.append(wrapped(f"cannot be told apart by Shapley value: {pairs}"))
    for group in facts["same_updates"]:
        lines.append(wrapped(f"sent the same update, bit for bit, in at least one round: {', '.join(group)}"))
    return "\n".join(lines)


def _class_lines(facts: Mapping[str, Any]) -> list[str]:
    """Return a table of the Shapley value by class, where there are several."""
    if not facts["by_class"]:
        return []
    rows = [
        (site, *(f"{_rank(one[site])}: {one[site]['value']:+.3f}" for one in facts["by_class"].values()))
        for site in facts["sites"]
    ]
    return ["", "rank and Shapley value by class", fitted([("site", *facts["by_class"]), *rows])]


def _rank(one: Mapping[str, Any]) -> str:
    first, last = one["ranks"]
    return str(first) if first == last else f"{first}-{last}"


def _cell(one: Mapping[str, Any]) -> str:
    low, high = one["ci95"]
    return f"{one['value']:+.3f} ±{(high - low) / 2:.3f}" if high > low else f"{one['value']:+.3f}"
