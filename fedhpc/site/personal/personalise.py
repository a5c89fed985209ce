"""Make, measure and keep the personal model of one hospital. What it writes is as private as the shard."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.config.personalisation import Personalisation
from fedhpc.config.schema import RunConfig
from fedhpc.models.backbones import NAMES
from fedhpc.models.own_features import OwnFeatures
from fedhpc.models.saved import save_model
from fedhpc.models.task import Task
from fedhpc.models.vector import from_vector
from fedhpc.records.intervals import bootstrap_histograms, interval95
from fedhpc.records.metrics import METRICS, Counts, Predictions, f1_thresholds, metrics, score_histogram
from fedhpc.site.context import SiteContext
from fedhpc.site.data.samples import Samples
from fedhpc.site.evaluation import predict
from fedhpc.site.personal.fine_tuning import fine_tune
from fedhpc.site.personal.last_layer import global_head, head_inputs, last_layer, set_head
from fedhpc.site.personal.personal_head import Candidate, PersonalHead, fit_head
from fedhpc.site.training.local_sgd import LocalRound
from fedhpc.util.arrays import F32, F64, I64
from fedhpc.util.files import PRIVATE, make_folder, read_json, reported, write_json
from fedhpc.util.rng import generator

MODEL, RECORD = "personal.pt", "personal.json"


@dataclass(frozen=True)
class Personal:
    """What a personal model is made of, beside the hospital's samples.

    Attributes:
        site: the hospital's name (public).
        task: of the run (public).
        params: of the final model, f32[d] (public).
        folder: the site's folder in the run directory, for `personal.pt` and `personal.json`.
        synthetic: whether no patient of the run exists.
    """

    site: str
    task: Task
    params: F32
    folder: Path
    synthetic: bool = False


@dataclass(frozen=True)
class Tested:
    """One model on the hospital's own test split (private): metrics, resampled by patient f64[resamples, M]."""

    values: dict[str, float | None]
    resampled: F64
    thresholds: I64


def check_network(wanted: Personalisation, network: nn.Module) -> None:
    """Check before the first round that the network can be personalised.

    Raises:
        InputError: its last layer is not linear, and the config needs it to be.
    """
    if wanted.method == "head" or (wanted.method == "fine_tune" and wanted.layers == "last"):
        last_layer(network)


@dataclass(frozen=True)
class Made:
    """A personal model (private).

    Attributes:
        network: the model itself.
        chosen, candidates: what it was chosen from.
        alone: the same kind of head, fitted to the hospital's patients alone; None where the features are not public,
            so that alone the hospital would have others.
        facts: what more it takes to rebuild the network.
    """

    network: nn.Module
    chosen: Candidate
    candidates: Sequence[Candidate]
    alone: nn.Module | None
    facts: Mapping[str, Any]


def personalise(work: Personal, samples: Samples, place: SiteContext, at_home: Callable[[F32], F32]) -> None:
    """Make the personal model of a hospital; write it, and what it is worth beside the final model.

    It gives nothing back: the model was trained without noise, and the number of epochs, the strength of the ridge and
    every metric are statistics of the hospital's patients too. They stay in two files of mode 0600.

    Args:
        work: what to start from, and where to write.
        samples: the hospital's (private).
        place: config, network (left changed) and device.
        at_home: puts the site's own values of layers that stay at home into f32[d].

    Raises:
        InputError: a last layer that does not give the logits.
        FileError: a file cannot be written.
    """
    config, network = place.config, place.model
    from_vector(network, at_home(work.params))
    shared = _tested(network, samples, place)
    tuned = config.personalisation.method == "fine_tune"
    made = _fine_tuned(work, samples, place) if tuned else make_head(samples, place)
    own = _tested(made.network, samples, place)
    facts = {"config": _unprotected(config), **asdict(work.task), "f1_thresholds": own.thresholds.tolist()}
    make_folder(work.folder)
    keep_earlier(work.folder, config.training.rounds)
    whose = {"personal": work.site, "synthetic": work.synthetic}
    save_model(work.folder / MODEL, made.network, {**facts, **whose, **made.facts}, mode=PRIVATE)
    alone = None if made.alone is None else _tested(made.alone, samples, place)
    record = {
        "site": work.site,
        "rounds": config.training.rounds,
        "method": config.personalisation.method,
        "chosen": _plain(made.chosen),
        "candidates": [_plain(one) for one in made.candidates],
        "n_test": len(samples.indices("test")),
        "specificity": config.evaluation.specificity,
        "final": _told(shared),
        "personal": _told(own),
        "gain": _gain(shared, own),
        "alone": None if alone is None else _told(alone),
        "gain_over_alone": None if alone is None else _gain(alone, own),
    }
    write_json(work.folder / RECORD, record, mode=PRIVATE)


def keep_earlier(folder: Path, rounds: int) -> None:
    """Rename what a run of other than so many rounds has left here: a finished run was continued.

    The record is renamed last: it says which rounds the model is of, should the rank end in between.
    """
    record = folder / RECORD
    earlier = read_json(record, "Remove it").get("rounds", rounds) if record.exists() else rounds
    if earlier == rounds:
        return
    for path in (folder / MODEL, record):
        if path.exists():
            with reported(path, "renamed"):
                path.rename(path.with_name(f"{path.stem}-{earlier:04d}{path.suffix}"))


def _fine_tuned(work: Personal, samples: Samples, place: SiteContext) -> Made:
    local = LocalRound(place.model, samples, place.config, work.site, 0, place.device, lambda done, all: None)
    tuned = fine_tune(local)
    return Made(place.model, tuned.chosen, tuned.candidates, None, {})


def make_head(samples: Samples, place: SiteContext) -> Made:
    """Fit the correction of the last layer, and with `features: all` of all features of the backbone beside it.

    Args:
        samples: the hospital's (private).
        place: config, device and network: set to the final model, and left changed.
    """
    config = place.config
    network, facts = place.model, {}
    if config.model.features is not None and config.personalisation.features == "all":
        whole = samples.inputs(samples.indices("train"))
        network = OwnFeatures(place.model, whole.shape[1], last_layer(place.model).out_features).to(place.device.device)
        network.standardise(whole.to(place.device.device))
        facts = {"own_features": whole.shape[1]}
    train, val = (head_inputs(network, samples, split, place.device) for split in ("train", "val"))
    shared, strengths = global_head(network), config.personalisation.strengths

    def fitted(start: Tensor) -> PersonalHead:
        return fit_head(start, train, val, strengths, generator(config.seed, "personal folds"))

    head, alone = fitted(shared), None
    if config.model.backbone in NAMES:
        alone = copy.deepcopy(network)
        set_head(alone, fitted(torch.zeros_like(shared)).matrix)
    set_head(network, head.matrix)
    return Made(network, head.chosen, head.candidates, alone, facts)


def _unprotected(config: RunConfig) -> dict[str, Any]:
    """Return the run's config as that of a model without privacy, which a personal one is, whatever the run was."""
    return {**config.model_dump(mode="json"), "privacy": {"off": True}}


def _tested(network: nn.Module, samples: Samples, place: SiteContext) -> Tested:
    config = place.config
    val, test = (predict(network, samples, split, place.device) for split in ("val", "test"))
    thresholds = f1_thresholds(score_histogram(val))
    values = dict(metrics(score_histogram(test), thresholds, config.evaluation.specificity).values)
    return Tested(values, _resampled(test, thresholds, config), thresholds)


def _resampled(test: Predictions, thresholds: I64, config: RunConfig) -> F64:
    """Every metric of patients drawn with replacement, the same ones for every model; NaN where it is not defined."""
    stack = bootstrap_histograms(test, config.evaluation.bootstrap, generator(config.seed, "personal"))
    specificity = config.evaluation.specificity
    rows = [
        [metric.exact(Counts(one.astype(np.int64), thresholds, specificity)) for metric in METRICS] for one in stack
    ]
    return np.array([[np.nan if value is None else value for value in row] for row in rows])


def _told(tested: Tested) -> dict[str, Any]:
    ends = {f"{metric.key}_ci95": interval95(tested.resampled[:, k]) for k, metric in enumerate(METRICS)}
    return {**tested.values, **ends}


def _gain(shared: Tested, own: Tested) -> dict[str, Any]:
    """Return what the personal model has more than the final one; its interval is over the same patients of both."""
    found: dict[str, Any] = {}
    for k, metric in enumerate(METRICS):
        before, after = shared.values[metric.key], own.values[metric.key]
        found[metric.key] = None if before is None or after is None else after - before
        found[f"{metric.key}_ci95"] = interval95((own.resampled - shared.resampled)[:, k])
    return found


def _plain(one: Candidate) -> dict[str, float | None]:
    """Infinities as null, which JSON has none of."""
    return {
        name: value if math.isfinite(value) else None
        for name, value in (("setting", one.setting), ("val_loss", one.val_loss))
    }
