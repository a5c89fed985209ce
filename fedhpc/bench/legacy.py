"""`run.py bench legacy CONFIG`: what each hospital has from the federation, and from a model of its own.

A config with `personalisation` is run on several built-in cohorts, each with patients and noise of its own. Each
hospital's models are measured on further patients of its machines whom no run has seen, many enough that a hundredth of
AUC shows: its own patients alone, the final model of the federation, its personal model. All patients are synthetic:
nothing here is a release.

Alone means trained without noise on that hospital's patients: with a public backbone the personal head's own recipe
from zero, for another network a run with `mode: local`, of as many epochs as the federation and `fine_tune` together.
"""

import contextlib
import io
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from fedhpc.aggregation.server_momentum import FedAvgM
from fedhpc.api import load_config, train
from fedhpc.bench.accounts import charged_to
from fedhpc.bench.held_out import RESAMPLES, all_predictions, held_out_path, make_held_out, with_interval
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.backbones import NAMES
from fedhpc.models.device import prepare
from fedhpc.models.saved import SavedModel, load_model
from fedhpc.records.intervals import bootstrap_histograms
from fedhpc.records.metrics import EARLY, auc, score_histogram, sensitivity_at
from fedhpc.site.context import SiteContext
from fedhpc.site.data.open_site import OpenSite, open_site
from fedhpc.site.personal.personalise import make_head
from fedhpc.util.arrays import F64, I64
from fedhpc.util.progress import at_work
from fedhpc.util.rng import generator
from fedhpc.util.text import count_of, fitted

WAYS = ("alone", "federated", "personal")
FIGURES = ("auc", "early")


@dataclass(frozen=True)
class Experiment:
    """What is run.

    Attributes:
        config: a config with `data.phantom` and `personalisation`.
        seeds: of the cohorts.
        held_out: new images of each site.
        sets: overrides for all runs.
    """

    config: Path
    seeds: Sequence[int]
    held_out: int
    sets: Sequence[str]


def run(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Do all runs that are not done yet, and give a row a site.

    Raises:
        InputError: a config that does not fit, or a run that failed.
    """
    config = load_config(experiment.config, list(experiment.sets))
    if config.data.phantom is None or config.personalisation.method == "none":
        raise InputError(
            f"{experiment.config}: needs data.phantom and personalisation.method; `bench legacy` makes cohorts itself",
            code="command-line",
        )
    make_held_out(config, dict.fromkeys(config.site_names, experiment.held_out), out)
    found: dict[str, list[F64]] = {site: [] for site in config.site_names}
    for seed in experiment.seeds:
        with at_work(f"cohort {seed}"):
            mine = _run_on(config, seed, out)
            for site, figures in found.items():
                figures.append(_figures(_models(mine, site, out, seed), held_out_path(out, site)))
        print(f"cohort {seed} done", file=sys.stderr, flush=True)
    rows = [_row(site, np.array(figures)) for site, figures in found.items()]
    return {"config": str(experiment.config), "seeds": list(experiment.seeds), "rows": rows}


def _run_on(config: RunConfig, seed: int, out: Path) -> RunConfig:
    """Train on the cohort of a seed, and return its config; that of seed 0 is the config's own."""
    phantom_seed = 0 if config.data.phantom is None else config.data.phantom.seed
    changes: dict[str, object] = {"seed": seed, "runtime.threads": 1}
    if seed:
        changes |= {"data.phantom.seed": phantom_seed + seed, "data.shards": f"{out}/cohort{seed}/{{site}}.h5"}
        (out / f"cohort{seed}").mkdir(exist_ok=True)
    mine = config.replace(changes)
    _train(mine, out / f"run{seed}", out)
    if config.model.backbone not in NAMES:
        _train(alone_config(mine), out / f"alone{seed}", out)
    return mine


def alone_config(config: RunConfig) -> RunConfig:
    """Return the config of local training, whose epochs are those of the federation and of going on locally.

    Momentum that the server has in the federation, the local optimiser has alone. It begins anew with each round, so
    that rounds are whole epochs.
    """
    own, training, server = config.personalisation, config.training, config.server
    epochs = training.rounds * training.local_epochs + (own.epochs if own.method == "fine_tune" else 0)
    momentum = max(training.momentum, server.momentum) if isinstance(server, FedAvgM) else training.momentum
    changes = {
        "training.rounds": math.ceil(epochs / training.epochs_begun),
        "training.local_epochs": training.epochs_begun,
        "training.momentum": momentum,
        "training.average_last": 0.0,
    }
    alone = {"mode": "local", "privacy": {"off": True}, "personalisation": {}, "server": {}, "aggregation": {}}
    return config.replace({**alone, **changes})


def _train(config: RunConfig, directory: Path, out: Path) -> None:
    if (directory / "summary.json").exists():
        return
    with charged_to(out / "accounts"), contextlib.redirect_stdout(io.StringIO()):
        train(config, directory)


def _models(config: RunConfig, site: str, out: Path, seed: int) -> list[SavedModel]:
    """Return the models of a site, in the order of WAYS."""
    run = out / f"run{seed}"
    federated, personal = load_model(run / "model.pt"), load_model(run / "sites" / site / "personal.pt")
    if config.model.backbone not in NAMES:
        return [load_model(out / f"alone{seed}" / "sites" / site / "model.pt"), federated, personal]
    alone = load_model(run / "model.pt")
    with open_site(config.data.shard_path(site)) as opened:
        network = _alone(alone, opened)
    return [SavedModel(network, alone.backbone, alone.config, alone.task, alone.f1_thresholds), federated, personal]


def _alone(saved: SavedModel, opened: OpenSite) -> nn.Module:
    place = SiteContext(saved.config, saved.network, prepare(saved.config.runtime, 0), None, lambda done, all: None)
    made = make_head(opened.samples(saved.backbone), place).alone
    if made is None:
        raise ValueError("a head on a public backbone has a model of one hospital alone")
    return made


def _figures(models: Sequence[SavedModel], held_out: Path) -> F64:
    """Return AUC and early-stage sensitivity of models on all patients of a shard, f64[1 + RESAMPLES, WAYS, FIGURES].

    The first row is of the patients as they are, the others of patients drawn with replacement, the same for all.
    """
    found = []
    with open_site(held_out) as opened:
        for saved in models:
            predictions = all_predictions(saved, opened)
            specificity = saved.config.evaluation.specificity
            stack = bootstrap_histograms(predictions, RESAMPLES, generator(0, "legacy"))
            all_counts = [score_histogram(predictions), *(one.astype(np.int64) for one in stack)]
            found.append([_two(counts, specificity) for counts in all_counts])
    return np.moveaxis(np.array(found, np.float64), 0, 1)


def _two(counts: I64, specificity: float) -> list[float]:
    figures = (auc(counts), sensitivity_at(counts, specificity, (EARLY,)))
    return [np.nan if one is None else one for one in figures]


def _row(site: str, figures: F64) -> dict[str, Any]:
    """Return a site's figures f64[seeds, 1 + RESAMPLES, WAYS, FIGURES] with 95 % intervals over patients and runs.

    Differences of models are paired by patient; `gain` is that of the personal model. None stands for a figure that its
    new patients do not tell.
    """
    row: dict[str, Any] = {"site": site}
    for k, figure in enumerate(FIGURES):
        for w, way in enumerate(WAYS):
            row[f"{way}_{figure}"] = with_interval(figures[:, :, w, k])
        for w, way in enumerate(WAYS[:2]):
            row[f"gain_over_{way}_{figure}"] = with_interval(figures[:, :, 2, k] - figures[:, :, w, k])
        row[f"federated_over_alone_{figure}"] = with_interval(figures[:, :, 1, k] - figures[:, :, 0, k])
    return row


def text(result: Mapping[str, Any]) -> str:
    """Return the tables for a person."""
    tables = []
    for figure, name in (("auc", "AUC"), ("early", "early-stage sensitivity")):
        gains = (f"federated_over_alone_{figure}", *(f"gain_over_{way}_{figure}" for way in WAYS[:2]))
        keys = (*(f"{way}_{figure}" for way in WAYS), *gains)
        rows = [(row["site"], *(_cell(row[key], key in gains) for key in keys)) for row in result["rows"]]
        head = ("site", *WAYS, "fed. - alone", "personal - alone", "personal - fed.")
        tables.append(f"{name}, mean of {count_of(len(result['seeds']), 'cohort')}, ± 95 %\n{fitted([head, *rows])}")
    return "\n\n".join(tables)


def _cell(value: Mapping[str, float] | None, signed: bool) -> str:
    if value is None:
        return "-"
    number = f"{value['mean']:+.3f}" if signed else f"{value['mean']:.3f}"
    return f"{number} ±{value['half']:.3f}"
