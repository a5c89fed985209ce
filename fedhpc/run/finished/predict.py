"""`run.py predict RUN --input FILES`: the calibrated scores of a finished model for new images.

It runs inside one hospital and sends nothing. What it writes is as private as the images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from data_prep.importers.recipe import Depth, Recipe
from data_prep.unlabelled import Batch, Inputs, batches
from fedhpc.config.harmonise import Chain
from fedhpc.errors import InputError, PrivacyError, ShardError
from fedhpc.models.device import Device, prepare
from fedhpc.models.saved import SavedModel, load_model
from fedhpc.models.task import Task
from fedhpc.records.calibration import sigmoid
from fedhpc.records.metrics import one_vs_rest
from fedhpc.run.finished.evaluate import Tested, model_path
from fedhpc.site.data.harmonise import harmonise
from fedhpc.site.data.shard import Shard
from fedhpc.util.arrays import F64
from fedhpc.util.csv_text import csv_text

UNCALIBRATED = (
    "the run has released no counts of validation patients that would tell what its scores mean: probabilities are the "
    "network's own, and positive is from even odds on"
)


@dataclass(frozen=True)
class Scored:
    """The scores of some images (private).

    Attributes:
        names, places: see `Batch`.
        log_odds, probability: f64[n, T], of each of `names_of` the tasks against all others.
        positive: bool[n, T], at the operating point.
    """

    names: tuple[str, ...]
    places: tuple[int, ...]
    log_odds: F64
    probability: F64
    positive: np.ndarray


@dataclass(frozen=True)
class Prediction:
    """What `predict` has found.

    Attributes:
        tasks: the classes or findings that are scored.
        rows: of each input.
        thresholds: log odds from which on each task is positive.
        specificity: that they keep on validation patients; None: uncalibrated.
        personal: the hospital whose own model it is.
    """

    tasks: tuple[str, ...]
    rows: tuple[Scored, ...]
    thresholds: tuple[float, ...]
    specificity: float | None
    personal: str | None

    @property
    def images(self) -> int:
        """How many there are."""
        return sum(len(part.names) for part in self.rows)


def predict(run: Path, tested: Tested, inputs: Inputs, note: Callable[[str], None]) -> Prediction:
    """Return the scores of all images of the inputs.

    Args:
        run: a run directory, or a model.pt.
        tested: which model; its shard is not used.
        inputs: what to read; the size of the images is the model's.
        note: is given lines for the person at the screen.

    Raises:
        InputError: no such model, inputs that give no image or of another shape than the model's.
        PrivacyError: a hospital's personal model, for another hospital's shard.
    """
    saved = load_model(model_path(run, tested))
    _check_place(saved, tested, inputs)
    wanted = replace(inputs, recipe=_recipe(saved.task, inputs.recipe))
    device = prepare(saved.config.runtime.model_copy(update={"device": "auto"}), 0)
    network = nn.Sequential(*([] if saved.backbone is None else [saved.backbone]), saved.network).to(device.device)
    chain = _chain(saved, tested, inputs, note)
    scored = tuple(_scored(saved, network.eval(), device, _Harmonised(chain, batch)) for batch in batches(wanted, note))
    if not saved.calibrations:
        note(UNCALIBRATED)
    found = saved.calibrations
    return Prediction(
        saved.task.measured,
        scored,
        tuple(one.threshold for one in found) or (0.0,) * len(saved.task.measured),
        found[0].specificity if found else None,
        saved.personal,
    )


@dataclass(frozen=True)
class _Harmonised:
    """A batch, and the chain that it goes through before the network."""

    chain: Chain
    batch: Batch


def _recipe(task: Task, given: Recipe) -> Recipe:
    """Return the recipe with the model's size, and of 3-D patches its number of planes."""
    *planes, size = task.image_shape[1:-1]
    slice_mm = given.depth.slice_mm if given.depth else None
    depth = Depth(planes[0], slice_mm) if planes else None
    return replace(given, square=replace(given.square, size=size), depth=depth)


def _chain(saved: SavedModel, tested: Tested, inputs: Inputs, note: Callable[[str], None]) -> Chain:
    """The chain of the hospital that the images are of: `--site`, or a shard's own; that of all where none is named."""
    own = [site.name for site in saved.config.data.sites if site.harmonise]
    name = tested.site or ""
    if name and name not in saved.config.site_names:
        raise InputError(
            f"--site={name}: is no site of the run. Give one of: {', '.join(saved.config.site_names)}",
            code="command-line",
        )
    if inputs.shard is not None and own and not name:
        with Shard.open(inputs.shard, None, in_memory=False, need_train=False) as shard:
            name = shard.site
    elif own and not name:
        note(f"harmonised as at the sites without a chain of their own; of {', '.join(own)}: give --site")
    return saved.config.chain_of(name)


def _check_place(saved: SavedModel, tested: Tested, inputs: Inputs) -> None:
    """A personal model is for its own hospital: it was trained without noise on patients there."""
    if saved.personal is None:
        return
    if saved.personal != tested.site:
        given = "missing" if tested.site is None else f"is {tested.site}"
        raise PrivacyError(
            f"--site: {given}, and this is the personal model of {saved.personal}, trained without noise on its "
            f"patients. It never leaves that hospital: give --site {saved.personal} there, or the run's model.pt",
            code="privacy.personal",
        )
    if inputs.shard is not None:
        with Shard.open(inputs.shard, None, in_memory=False, need_train=False) as shard:
            if shard.site != saved.personal:
                raise PrivacyError(
                    f"{inputs.shard}: is of site {shard.site}, the model is {saved.personal}'s own, which never "
                    "leaves it. Give a shard of that hospital, or the run's model.pt",
                    code="privacy.personal",
                )


@torch.no_grad()
def _scored(saved: SavedModel, network: nn.Module, device: Device, wanted: _Harmonised) -> Scored:
    batch = wanted.batch
    shape = tuple(batch.images.shape[1:])
    if shape != saved.task.image_shape:
        raise ShardError(
            f"input={batch.names[0]}: gives images of shape {shape}, the model takes {saved.task.image_shape}. Give "
            "the options of the import that made its shards (--window, --stack; 3-D: volumes), or a shard made alike",
            code="shard.differ",
        )
    images = harmonise(batch.images, wanted.chain).to(device.device)
    with device.autocast():
        logits = network(images).float().cpu().numpy()
    labels = np.zeros(len(logits) if saved.task.kind == "multiclass" else logits.shape, np.int64)
    scores, _ = one_vs_rest(logits, labels)
    found = saved.calibrations
    columns = [one.probability(scores[:, k]) for k, one in enumerate(found)]
    probability = np.column_stack(columns) if columns else sigmoid(scores)
    thresholds = np.array([one.threshold for one in found] or [0.0] * scores.shape[1])
    return Scored(batch.names, batch.places, scores, probability, scores >= thresholds)


def scores_csv(found: Prediction) -> str:
    """Return the table: input, image in it, and of each task log odds, probability and whether it is positive."""
    columns = [f"{what} {task}" for task in found.tasks for what in ("log_odds", "probability", "positive")]
    rows: list[list[str | int]] = [["input", "image", *columns]]
    for part in found.rows:
        values = zip(part.names, part.places, part.log_odds, part.probability, part.positive, strict=True)
        for name, place, odds, probability, positive in values:
            rows.append([name, place, *_cells(odds.tolist(), probability.tolist(), positive.tolist())])
    return csv_text(rows)


def _cells(odds: Sequence[float], probability: Sequence[float], positive: Sequence[bool]) -> list[str]:
    triples = zip(odds, probability, positive, strict=True)
    return [text for x, p, yes in triples for text in (f"{x:.4f}", f"{p:.4f}", str(int(yes)))]


def prediction_text(found: Prediction, out: Path) -> str:
    """Return what was done, without a score."""
    at = ", ".join(f"{task} >= {edge:.3g}" for task, edge in zip(found.tasks, found.thresholds, strict=True))
    point = f"log odds of {at}"
    if found.specificity is not None:
        point += f": specificity {found.specificity:g} on validation patients, at whose shares probabilities hold"
    whose = "" if found.personal is None else f", by the own model of {found.personal}"
    return f"{found.images:,} images scored{whose}: {out}, as private as they are. Positive from {point}"
