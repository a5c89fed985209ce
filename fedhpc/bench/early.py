"""`run.py bench early CONFIG`: early-stage sensitivity, federated against centralised, on new patients.

The test split of a cohort has few early-stage patients: one of them more or less is more than a tolerance. Here both
kinds of runs are trained on the config's own synthetic cohort, and measured on as many new patients as are asked for,
the same for all. The difference is paired by patient and by seed; its interval is over new patients and over runs.

The operating point has the config's specificity, once over all sites and once at each site by itself. Nothing here is
a release: all patients are synthetic.
"""

import contextlib
import io
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.api import load_config, train
from fedhpc.bench.accounts import charged_to
from fedhpc.bench.held_out import RESAMPLES, all_predictions, held_out_path, make_held_out, with_interval
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.saved import load_model
from fedhpc.records.intervals import bootstrap_histograms
from fedhpc.records.metrics import EARLY, auc, score_histogram, sensitivity_at
from fedhpc.site.data.open_site import open_site
from fedhpc.util.arrays import F64, I64
from fedhpc.util.progress import at_work
from fedhpc.util.rng import generator
from fedhpc.util.text import count_of, fitted

CENTRALISED, FEDERATED = "centralised", "federated"
WAYS = (CENTRALISED, FEDERATED)
FIGURES = {
    "auc": "AUC",
    "early": "early sensitivity, one threshold",
    "early_own": "early sensitivity, each site's own",
}


@dataclass(frozen=True)
class Experiment:
    """What is run.

    Attributes:
        config: a config of federated runs with `data.phantom`.
        sets: overrides for all runs.
        centralised: further overrides of the centralised ones.
        seeds: one run of each kind for each.
        held_out: new images of all sites together, shared out by the declared weights.
    """

    config: Path
    sets: Sequence[str]
    centralised: Sequence[str]
    seeds: Sequence[int]
    held_out: int

    def overrides(self, way: str, seed: int) -> list[str]:
        """Return what to set for one run. Its evaluation is exact: it is of synthetic patients, and not read here."""
        own = ["privacy=off", "mode=centralised", *self.centralised] if way == CENTRALISED else []
        return [*self.sets, *own, f"seed={seed}", "evaluation.epsilon=null"]


def run(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Do all runs that are not done yet, and compare them on the new patients.

    Raises:
        InputError: a config that does not fit, or a run that failed.
    """
    config = load_config(experiment.config, experiment.overrides(FEDERATED, experiment.seeds[0]))
    if config.data.phantom is None or config.mode != "federated":
        raise InputError(
            f"{experiment.config}: `bench early` needs data.phantom and mode=federated; it makes the new patients",
            code="command-line",
        )
    images = shared_out(experiment.held_out, {one.name: one.weight or 1 for one in config.data.sites})
    make_held_out(config, images, out)
    found = []
    for seed in experiment.seeds:
        with at_work(f"seed {seed}"):
            runs = [_trained(experiment, way, seed, out) for way in WAYS]
            found.append(np.stack([_figures(one, config, out) for one in runs], axis=1))
        print(f"seed {seed} done", file=sys.stderr, flush=True)
    figures = np.stack(found)
    if np.isnan(figures[:, 0]).any():
        raise InputError(
            f"--held-out={experiment.held_out}: no image among them is of an early stage; raise it", code="command-line"
        )
    return {
        "config": str(experiment.config),
        "seeds": list(experiment.seeds),
        "held_out": sum(images.values()),
        "early": int(figures[0, 0, 0, -1]),
        "specificity": config.evaluation.specificity,
        "rows": [{"figure": name, **_row(figures[..., k])} for k, name in enumerate(FIGURES)],
    }


def shared_out(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Return so many images by site, in proportion to the weights, a few at least.

    >>> shared_out(1000, {"a": 3.0, "b": 1.0})
    {'a': 750, 'b': 250}
    """
    return {site: max(10, round(total * weight / sum(weights.values()))) for site, weight in weights.items()}


def _trained(experiment: Experiment, way: str, seed: int, out: Path) -> Path:
    """Return the directory of a finished run."""
    directory = out / f"{way}{seed}"
    if not (directory / "summary.json").exists():
        config = load_config(experiment.config, experiment.overrides(way, seed))
        with charged_to(out / "accounts"), contextlib.redirect_stdout(io.StringIO()):
            train(config, directory)
    return directory


def _figures(run: Path, config: RunConfig, out: Path) -> F64:
    """Return FIGURES of a run's model on the new patients, and how many early-stage images they have.

    Returns:
        f64[1 + RESAMPLES, FIGURES + 1].

        The first row is of the patients as they are, the others of patients drawn with replacement, the same for all
        runs.
    """
    saved, pooled, own = load_model(run / "model.pt"), np.zeros(()), []
    for site in config.site_names:
        with open_site(held_out_path(out, site)) as opened:
            predictions = all_predictions(saved, opened)
        stack = bootstrap_histograms(predictions, RESAMPLES, generator(0, "early", site))
        counts = np.concatenate([score_histogram(predictions)[None], stack.astype(np.int64)])
        pooled = pooled + counts
        own.append(_found_early(counts, config.evaluation.specificity))
    hits, early = np.sum(own, axis=0).T
    rows = [_pooled(counts.astype(np.int64), config.evaluation.specificity) for counts in pooled]
    return np.column_stack([np.array(rows), hits / np.maximum(early, 1), early])


def _pooled(counts: I64, specificity: float) -> tuple[float, float]:
    figures = (auc(counts), sensitivity_at(counts, specificity, (EARLY,)))
    area, early = (np.nan if one is None else one for one in figures)
    return area, early


def _found_early(stack: I64, specificity: float) -> F64:
    """Return early-stage images found at a site's own operating point, and all of them, f64[1 + RESAMPLES, 2]."""
    totals = stack[:, :, EARLY].sum(axis=(1, 2)).astype(np.float64)
    shares = [sensitivity_at(counts, specificity, (EARLY,)) or 0.0 for counts in stack]
    return np.column_stack([np.array(shares) * totals, totals])


def _row(values: F64) -> dict[str, Any]:
    """Return a figure f64[seeds, 1 + RESAMPLES, WAYS] of both ways and their difference, with 95 % intervals."""
    each = {way: with_interval(values[:, :, k]) for k, way in enumerate(WAYS)}
    return {**each, "difference": with_interval(values[:, :, 1] - values[:, :, 0])}


def text(result: Mapping[str, Any]) -> str:
    """Return the table for a person."""
    rows = [
        (FIGURES[row["figure"]], *(f"{row[way]['mean']:.3f} ±{row[way]['half']:.3f}" for way in WAYS),
         f"{row['difference']['mean']:+.3f} ±{row['difference']['half']:.3f}")
        for row in result["rows"]
    ]  # fmt: skip
    over = f"{result['held_out']:,} new images, {result['early']:,} of an early stage"
    told = f"{over}; mean of {count_of(len(result['seeds']), 'seed')}, ± 95 %; specificity {result['specificity']:g}"
    return f"{told}\n{fitted([('', *WAYS, 'difference'), *rows])}"
