"""A finished model on a shard that it never saw."""

import contextlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fedhpc.errors import InputError, ShardError
from fedhpc.models.device import prepare
from fedhpc.models.saved import SavedModel, load_model
from fedhpc.records.intervals import bootstrap_aucs, bootstrap_histograms, interval95
from fedhpc.records.metrics import METRICS, lower_edge, metrics, score_histogram
from fedhpc.run.display import findings_lines
from fedhpc.site.data.open_site import open_site
from fedhpc.site.data.shard import Shard
from fedhpc.site.evaluation import predict
from fedhpc.util.rng import generator


@dataclass(frozen=True)
class Tested:
    """What a model is tested on, and which.

    Attributes:
        shard: the file; None: the shard of `site` by the run's config.
        site: a site of the run; None: `shard` is of any.
        personal: test the personal model of `site`, not the run's.
    """

    shard: Path | None = None
    site: str | None = None
    personal: bool = False


def evaluate(run: Path, tested: Tested) -> dict[str, Any]:
    """The exact metrics of a run's model on the test split of a shard, with a 95 % interval by patient-level bootstrap.

    It runs inside one hospital and sends nothing: what it prints is exact, so it stays with those who may see the
    shard's patients. The resamples stay in this process.

    Args:
        run: a run directory, or a model.pt.
        tested: on which shard, with the model's classes and image shape; a training split is not needed.

    Returns:
        `site`, `split`, the metrics with `auc_ci95`, the `specificity` of the sensitivities, and `thresholds`: the log
        odds from which on each class is called positive, chosen for F1 on the run's validation patients.

    Raises:
        InputError: no such model, or a shard that does not fit it.
    """
    saved = load_model(model_path(run, tested))
    shard_path = tested.shard or _shard_path(saved, str(tested.site))
    with open_site(shard_path) as opened:
        shard = opened.shard
        site = replace(opened, chain=saved.config.chain_of(shard.site))
        _check_fit(saved, shard, shard_path)
        device = prepare(saved.config.runtime.model_copy(update={"device": "auto"}), 0)
        # What a network of the user's prints is not for standard output, which belongs to `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            predictions = predict(saved.network.to(device.device), site.samples(saved.backbone), "test", device)
    config = saved.config.evaluation
    stack = bootstrap_histograms(predictions, config.bootstrap, generator(saved.config.seed, "evaluate"))
    thresholds = np.array(saved.f1_thresholds, np.int64)
    found = metrics(score_histogram(predictions), thresholds, config.specificity)
    names = saved.task.measured
    by_finding = dict(zip(names, found.by_class, strict=True)) if saved.task.kind == "multilabel" else None
    return {
        "site": shard.site,
        "split": "test",
        "n_images": found.n_images,
        **found.values,
        **({} if by_finding is None else {"per_finding": by_finding}),
        "auc_ci95": interval95(bootstrap_aucs([stack])),
        "specificity": config.specificity,
        "thresholds": {name: lower_edge(int(bin)) for name, bin in zip(names, thresholds, strict=True)},
    }


def model_path(run: Path, tested: Tested) -> Path:
    """Return the file of the model that is meant: `run` itself where it is one, else one in that run directory.

    Raises:
        InputError: there is no such file.
    """
    if run.suffix == ".pt":
        path = run
    else:
        path = run / "sites" / str(tested.site) / "personal.pt" if tested.personal else run / "model.pt"
    if not path.exists():
        raise InputError(
            f"{path}: no such model. "
            + (
                "A run with personalisation.method leaves it at the hospital itself"
                if tested.personal
                else "Give a finished run, or sites/<site>/model.pt of a local-only one"
            ),
            code="run-directory.not-a-run",
        )
    return path


def _shard_path(saved: SavedModel, site: str) -> Path:
    if site not in saved.config.site_names:
        raise InputError(
            f"--site={site}: is no site of the run. Give one of: {', '.join(saved.config.site_names)}",
            code="command-line",
        )
    return saved.config.data.shard_path(site)


def evaluation_text(found: Mapping[str, Any]) -> str:
    """Return what `evaluate` has found, for a terminal.

    >>> found = {"site": "a", "split": "test", "n_images": 9, "auc": 0.98, "auc_ci95": (0.9, 1.0), "f1": None}
    >>> found |= {"sensitivity": 0.5, "sensitivity_early": None, "specificity": 0.9, "thresholds": {"ill": -0.25}}
    >>> print(evaluation_text(found))
    site a, split test: 9 images
    AUC                     0.980 (95 % interval 0.900 to 1.000, patients resampled)
    F1                      - (a class is missing in this split), at log odds of ill >= -0.25
    sensitivity             0.500 at specificity 0.9
    early-stage sensitivity - (no image of an early stage, or a class is missing), at specificity 0.9
    """
    ends, at = found["auc_ci95"], ", ".join(f"{name} >= {edge:g}" for name, edge in found["thresholds"].items())
    missing = "- (a class is missing in this split)"
    interval = "" if ends is None else f" (95 % interval {ends[0]:.3f} to {ends[1]:.3f}, patients resampled)"
    said = {
        "auc": interval,
        "f1": f", at log odds of {at}",
        **dict.fromkeys(("sensitivity", "sensitivity_early"), f" at specificity {found['specificity']:g}"),
    }
    lacking = {"sensitivity_early": "- (no image of an early stage, or a class is missing),"}
    lines = [f"site {found['site']}, split {found['split']}: {found['n_images']} images"]
    for metric in METRICS:
        value = found[metric.key]
        number = lacking.get(metric.key, missing) if value is None else f"{value:.3f}"
        lines.append(f"{metric.name:23} {number}{said.get(metric.key, '')}")
    return "\n".join([*lines, *findings_lines(found)])


def _check_fit(saved: SavedModel, shard: Shard, path: Path) -> None:
    for name, ours, theirs in (
        ("classes", saved.task.classes, shard.classes),
        ("image_shape", saved.task.image_shape, tuple(shard.image_shape)),
        ("labels", saved.task.kind, shard.kind),
    ):
        if ours != theirs:
            raise ShardError(
                f"{path}: {name} {theirs}; the model was trained on {ours}: prepare the shard alike",
                code="shard.differ",
            )
    if not len(shard.indices("test")):
        raise ShardError(f"{path}: has no test split; prepare it with --all-test", code="shard.empty-split")
