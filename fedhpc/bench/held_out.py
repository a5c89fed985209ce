"""New synthetic patients whom no run has seen, and intervals of figures over these patients and over runs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from data_prep.phantom import Cohort, default_sites, write_site
from fedhpc.config.schema import RunConfig
from fedhpc.models.device import prepare
from fedhpc.models.saved import SavedModel
from fedhpc.records.metrics import Predictions
from fedhpc.site.data.open_site import OpenSite
from fedhpc.site.evaluation import predict
from fedhpc.util.arrays import F64
from fedhpc.util.files import make_folder

HELD_OUT_SEED, RESAMPLES, SURE = 1_000_500, 400, 1.96


def held_out_path(out: Path, site: str) -> Path:
    """Return the shard of a site's new patients."""
    return out / "held-out" / f"{site}.h5"


def make_held_out(config: RunConfig, images: Mapping[str, int], out: Path) -> None:
    """Write the shards that are not there: so many images of each site's machine, of the config's difficulty."""
    phantom = config.data.phantom
    if phantom is None:
        return
    for site, number in images.items():
        path, alone = held_out_path(out, site), {site: default_sites()[site]}
        if not path.exists():
            make_folder(path.parent)
            cohort = Cohort(HELD_OUT_SEED, number, phantom.image_size, phantom.difficulty, sites=alone)
            write_site(cohort, site, path)


@torch.no_grad()
def all_predictions(saved: SavedModel, opened: OpenSite) -> Predictions:
    """Return a model's output on all patients of a shard, whatever their split."""
    samples, device = opened.samples(saved.backbone), prepare(saved.config.runtime, 0)
    parts = [predict(saved.network, samples, split, device) for split in ("train", "val", "test")]
    fields = ("logits", "labels", "early", "patient")
    return Predictions(*(np.concatenate([getattr(part, name) for part in parts]) for name in fields))


def with_interval(values: F64) -> dict[str, float] | None:
    """Return the mean over runs of values f64[runs, 1 + RESAMPLES] and half of its 95 % interval.

    None where it cannot be told: no patient of theirs is of an early stage, for example.

    The held-out patients are the same in all runs: their part is that of the mean over runs. To it comes the standard
    error over runs, of training patients and noise.

    Args:
        values: in the first column of the patients as they are, then of patients drawn with replacement.
    """
    by_run = values[:, 0]
    if np.isnan(by_run).any():
        return None
    patients = float(np.nanvar(values[:, 1:].mean(axis=0), ddof=1))
    runs = float(by_run.var(ddof=1)) / len(by_run) if len(by_run) > 1 else 0.0
    return {"mean": float(by_run.mean()), "half": SURE * (patients + runs) ** 0.5}
