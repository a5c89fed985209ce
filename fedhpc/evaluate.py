"""A finished model on a shard that it never saw."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.errors import InputError, ShardError
from fedhpc.metrics import bootstrap_aucs, bootstrap_histograms, interval95, metrics, score_histogram
from fedhpc.models import SavedModel, load_model
from fedhpc.rng import generator
from fedhpc.runtime import prepare
from fedhpc.site.evaluation import predict
from fedhpc.site.samples import FeatureSamples, ImageSamples, Samples
from fedhpc.site.shard import Shard


def evaluate(run: Path, shard_path: Path) -> dict[str, Any]:
    """The metrics of a run's model on the test split of a shard, with a 95 % interval by patient-level bootstrap.

    Args:
        run: a run directory, or a model.pt.
        shard_path: a shard of any site with the model's classes and image shape; a training split is not needed.

    Raises:
        InputError: no such model, or a shard that does not fit it.
    """
    path = run if run.suffix == ".pt" else run / "model.pt"
    if not path.exists():
        raise InputError(f"{path}: no such model; give a finished run, or sites/<site>/model.pt of a local-only one")
    saved = load_model(path)
    with Shard.open(shard_path, None, need_train=False) as shard:
        _check_fit(saved, shard, shard_path)
        bench = prepare(saved.config.runtime.model_copy(update={"device": "auto"}), 0)
        predictions = predict(saved.network.to(bench.device), _samples(saved, shard, shard_path), "test", bench)
    config = saved.config.evaluation
    stack = bootstrap_histograms(predictions, config.bootstrap, generator(saved.config.seed, "evaluate"))
    thresholds = np.array(saved.f1_thresholds, np.int64)
    found = asdict(metrics(score_histogram(predictions), thresholds, config.specificity))
    return {"site": shard.site, **found, "auc_ci95": interval95(bootstrap_aucs([stack]))}


def _check_fit(saved: SavedModel, shard: Shard, path: Path) -> None:
    for name, ours, theirs in (
        ("classes", saved.task.classes, shard.classes),
        ("image_shape", saved.task.image_shape, tuple(shard.image_shape)),
    ):
        if ours != theirs:
            raise ShardError(f"{path}: {name} {theirs}; the model was trained on {ours}: prepare the shard alike")
    if not len(shard.indices("test")):
        raise ShardError(f"{path}: has no test split; prepare it with --all-test")


def _samples(saved: SavedModel, shard: Shard, path: Path) -> Samples:
    if saved.backbone is None:
        return ImageSamples(shard)
    return FeatureSamples(shard, saved.backbone, path.parent)
