"""`run.py contribution RUN`: who contributed how much to a run, from the updates that it has kept.

What may judge 2^n models? With privacy on the updates are released, but the patients of a validation split are not: the
utilities of all coalitions on them would be one more release, which `evaluation.epsilon` does not cover, and of 2^n
private answers each would get 2^-n of it. So models are judged on labelled images that are public, or by no data at
all, by the directions of the updates (CGSV). A shard of the run's own hospitals is refused, unless its patients are
synthetic or the run had no privacy to begin with; so are patients whom a site ledger on this node knows, whatever
name their shard has.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from fedhpc.aggregation.contribution import History
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PrivacyError
from fedhpc.models.device import Device, prepare
from fedhpc.models.saved import SavedModel, load_model
from fedhpc.models.vector import from_vector
from fedhpc.privacy.plan import site_plans
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.records.metrics import one_vs_rest
from fedhpc.records.run_directory import RunDirectory
from fedhpc.records.weighted_auc import patient_resamples, weighted_aucs
from fedhpc.run.finished.contribution_table import Draws, Judge, table_of
from fedhpc.run.rounds.stored_updates import read_history
from fedhpc.site.account import SYNTHETIC, folder_on_this_node, identities_of
from fedhpc.site.data.open_site import open_site
from fedhpc.site.data.samples import Samples
from fedhpc.site.data.shard import Shard
from fedhpc.site.evaluation import predict
from fedhpc.site.training.update_scale import update_scales
from fedhpc.util.arrays import F32, F64, I64
from fedhpc.util.rng import generator

Logits = Callable[[F32], NDArray[np.float32]]


@dataclass(frozen=True)
class Judged:
    """What the coalitions' models are judged on.

    Attributes:
        shards: labelled images that are public; none: the directions of the updates alone.
        split: of the shards, "val" or "test".
        draws: resamples of patients, and draws of the noise.
    """

    shards: tuple[Path, ...] = ()
    split: str = "val"
    draws: int = 200


def contribution(run: Path, judged: Judged) -> dict[str, Any]:
    """Return every site's Shapley value, leave-one-out and CGSV, with 95 % intervals, as plain values.

    Raises:
        InputError: a run that has kept no updates, or shards that do not fit its model.
        PrivacyError: a shard of patients whom the run was to protect.
    """
    directory = RunDirectory(run)
    config = directory.read_config()
    if config is None:
        raise InputError(f"{run}: is no run directory, config.yaml is missing", code="run-directory.not-a-run")
    history = read_history(directory, config)
    draws = Draws(judged.draws, noise_deviations(config, history), generator(config.seed, "contribution"))
    with _judge(config, directory, judged) as judge:
        return {"run": str(run), **table_of(config.site_names, history, judge, draws)}


def noise_deviations(config: RunConfig, history: History) -> F64 | None:
    """Return the standard deviation of the noise of every round and site, f64[T, n]; None where it is not known."""
    if not config.private:
        return None
    plans = list(site_plans(config).values())
    scales = [update_scales(config, plans, history.weights, t) for t in range(len(history.updates))]
    known = [[one.noise for one in scale] for scale in scales if scale is not None and all(one.exact for one in scale)]
    return np.array(known) if len(known) == len(scales) else None


@dataclass(frozen=True)
class Labelled:
    """Labelled images (public) and how models see them; see `Judge`.

    Attributes:
        name: what they are, for the table.
        classes: whose AUC is a utility each.
        logits: from parameters f32[d] to logits f32[n, K].
        labels: of the images.
        patient: S[n], pseudonyms.
    """

    name: str
    classes: tuple[str, ...]
    logits: Logits
    labels: I64
    patient: NDArray[np.bytes_]

    def utility(self, models: F32, times: F64) -> F64:
        """See `Judge`."""
        found = np.empty((len(times), len(models), len(self.classes)))
        for m, params in enumerate(models):
            scores, positive = one_vs_rest(self.logits(params), self.labels)
            for k in range(scores.shape[1]):
                found[:, m, k] = weighted_aucs(scores[:, k], positive[:, k], times)
        return found

    def resampled(self, draws: int, rng: np.random.Generator) -> F64:
        """See `Judge`."""
        return patient_resamples(self.patient, draws, rng)

    @property
    def images(self) -> int:
        """See `Judge`."""
        return len(self.labels)


@contextmanager
def _judge(config: RunConfig, directory: RunDirectory, judged: Judged) -> Iterator[Judge | None]:
    """Give what judges the models while the shards are open; None where there are none."""
    if not judged.shards:
        yield None
        return
    saved = load_model(directory.model)
    device = prepare(config.runtime.model_copy(update={"device": "auto"}), 0)
    saved.network.to(device.device)
    with ExitStack() as stack:
        opened = [stack.enter_context(open_site(path)) for path in judged.shards]
        for path, one in zip(judged.shards, opened, strict=True):
            _check(config, saved, one.shard, path, judged.split)
        samples = [one.samples(saved.backbone) for one in opened]
        rows = [one.indices(judged.split) for one in samples]
        parts = [_logits(saved, one, judged.split, device) for one in samples]
        pairs = list(zip(samples, rows, strict=True))
        labels = np.concatenate([one.labels[mine] for one, mine in pairs])
        _check_classes(saved, labels, judged.split)
        patient = [np.char.add(f"{k}:".encode(), one.patient[mine]) for k, (one, mine) in enumerate(pairs)]
        yield Labelled(
            name=_name([one.shard.site for one in opened], judged.split, sum(map(len, rows))),
            classes=saved.task.measured,
            logits=lambda params: np.concatenate([part(params) for part in parts]),
            labels=labels,
            patient=np.concatenate(patient),
        )


def _check_classes(saved: SavedModel, labels: I64, split: str) -> None:
    positive = one_vs_rest(np.zeros((len(labels), len(saved.task.classes)), np.float32), labels)[1]
    lacking = [name for k, name in enumerate(saved.task.measured) if len(set(positive[:, k].tolist())) < 2]
    if lacking:
        raise InputError(
            f"--on: the {split} splits have no image with or none without {', '.join(lacking)}, so that a model has no "
            "AUC on them. Give more shards, or --split test",
            code="contribution",
        )


def _name(sites: Sequence[str], split: str, images: int) -> str:
    return f"AUC on {images:,} images ({', '.join(sites)}: {split})"


def _logits(saved: SavedModel, samples: Samples, split: str, device: Device) -> Logits:
    """Return what gives the logits of any parameters; of a head, what lies below is computed once."""
    network = saved.network

    def whole(params: F32) -> NDArray[np.float32]:
        from_vector(network, params)
        return predict(network, samples, split, device).logits

    if saved.backbone is None or not isinstance(network, nn.Sequential):
        return whole
    body, head = network[:-1], network[-1]
    with torch.no_grad():
        seen = body(samples.inputs(samples.indices(split)).to(device.device))

    def of_head(params: F32) -> NDArray[np.float32]:
        from_vector(network, params)
        with torch.no_grad():
            found: NDArray[np.float32] = head(seen).cpu().numpy()
        return found

    return of_head


def _check_no_patient(config: RunConfig, shard: Shard, path: Path) -> None:
    """Refuse patients of the run under another site's name: those whom a site ledger that can be read here knows."""
    everybody = identities_of(shard, ("train", "val", "test"))
    for site in config.site_names:
        folder = folder_on_this_node(config, site)
        if all(os.access(folder / name, os.R_OK) for name in ("key", "ledger.jsonl")) and SiteLedger(
            folder
        ).has_charged(everybody):
            raise PrivacyError(
                f"{path}: some of its patients were charged to the site ledger of {site}, and this run protects them. "
                "Give labelled images that are public, or none: CGSV needs none",
                code="privacy.contribution",
            )


def _check(config: RunConfig, saved: SavedModel, shard: Shard, path: Path, split: str) -> None:
    # `data.phantom` of the config is no evidence: each shard says whether its patients exist.
    protected = config.private and not shard.created_by.startswith(SYNTHETIC)
    if protected and shard.site in config.site_names:
        raise PrivacyError(
            f"{path}: is a shard of site {shard.site}, whose patients this run protects: the utilities of "
            f"{2 ** len(config.data.sites)} models on them would be a release that no epsilon covers. Give labelled "
            "images that are public, or none: CGSV needs none",
            code="privacy.contribution",
        )
    if protected:
        _check_no_patient(config, shard, path)
    for name, ours, theirs in (
        ("classes", saved.task.classes, tuple(shard.classes)),
        ("image_shape", saved.task.image_shape, tuple(shard.image_shape)),
        ("labels", saved.task.kind, shard.kind),
    ):
        if ours != theirs:
            raise InputError(
                f"{path}: {name} {theirs}; the model was trained on {ours}: prepare the shard alike",
                code="shard.differ",
            )
    if not len(shard.indices(split)):
        raise InputError(
            f"{path}: its {split} split is empty. Give --split test or another shard", code="shard.empty-split"
        )
