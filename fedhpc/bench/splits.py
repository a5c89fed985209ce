"""`run.py bench splits CONFIG... IMAGES`: how far a result on one folder of images depends on split and noise.

One split and one draw of the noise give one number. Here configs are run on many random splits of the same images into
hospitals, training, validation and test, several times each, with and without privacy, at one or more epsilons. A
config with `data.public_reference: phantoms` has public images that anybody has, another those of the same collection,
which a hospital may not have; one with `privacy.trust: sites` gives the rows of shared noise, another those of local.

Every run is `run.py train` on shards that `prepare images` made. Only the features of the frozen backbone are computed
once for all splits: those of an image do not depend on the hospital that it is in. All runs are charged to accounts in
the output folder. Test AUC is measured exactly (`evaluation.epsilon: null`): it is the experiment's, not a release.
"""

import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.image_job import ImageImport
from data_prep.images import import_images
from data_prep.phantom.public import write_reference
from fedhpc.api import load_config, train
from fedhpc.bench.accounts import charged_to
from fedhpc.bench.feature_store import Collection, FeatureStore, quietly
from fedhpc.config.data import PHANTOMS
from fedhpc.errors import InputError
from fedhpc.models.saved import load_backbone
from fedhpc.util.files import write_bytes
from fedhpc.util.progress import at_work
from fedhpc.util.text import fitted

COLLECTION = "collection"
SITES, SKEW, VAL_SHARE = 4, 0.5, 0.02


@dataclass(frozen=True)
class Experiment:
    """What is run.

    Attributes:
        configs: configs with `model.features`, whose shards and reference are replaced.
        images: class folders, as for `prepare images`.
        splits, draws: the number of random splits, and of private runs on each.
        reference: how many public images; taken from the collection, or drawn as phantoms.
        size: pixels a side of the stored images.
        epsilons: each config is run with each; empty: with its own.
        sets: overrides of the configs, for all runs.
    """

    configs: Sequence[Path]
    images: Path
    splits: int
    draws: int
    reference: int
    size: int
    epsilons: Sequence[float]
    sets: Sequence[str]


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        config: the config's file.
        reference: where the public images are from.
        noise: "local" (each hospital adds all of it), "shared" (secure aggregation) or "off".
        epsilon: None without privacy.
        words: overrides of the config.
        key: changes with any value of the config.
    """

    config: Path
    reference: str
    noise: str
    epsilon: float | None
    words: tuple[str, ...]
    key: str

    @property
    def name(self) -> str:
        """As in the names of run directories."""
        return f"{self.reference}-{self.noise}-{self.key}"


def run(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Do all runs that are not done yet, and give a row a setting.

    Raises:
        InputError: a config that does not fit, or a run that failed.
    """
    settings = [setting for path in experiment.configs for setting in _settings(experiment, path)]
    backbone = load_backbone(_common_backbone(experiment))
    _make_phantoms(experiment, out)
    features = FeatureStore(Collection(experiment.images, experiment.size), backbone, out)
    found: dict[Setting, list[list[float]]] = {setting: [] for setting in settings}
    for split in range(experiment.splits):
        with at_work(f"split {split + 1} of {experiment.splits}") as begins:
            folder = _split(experiment, features, split, out)
            for setting in settings:
                begins(setting.name)
                draws = range(experiment.draws if setting.epsilon else 1)
                found[setting].append([_auc(experiment, folder, setting, draw) for draw in draws])
        print(f"split {split + 1} of {experiment.splits} done", file=sys.stderr, flush=True)
    rows = [_row(setting, found[setting]) for setting in settings]
    return {"configs": list(map(str, experiment.configs)), "set": list(experiment.sets), "rows": rows}


def _settings(experiment: Experiment, path: Path) -> Iterator[Setting]:
    """The rows of one config: its reference at each epsilon, and without privacy, where noise is local."""
    config = load_config(path, list(experiment.sets))
    own = [] if config.privacy.epsilon is None else [config.privacy.epsilon]
    noise = "shared" if config.privacy.trust == "sites" else "local"
    reference = PHANTOMS if config.data.public_reference == PHANTOMS else COLLECTION
    for epsilon in experiment.epsilons or own:
        yield _setting(experiment, path, reference, noise, epsilon)
    if noise == "local":
        yield _setting(experiment, path, reference, "off", None)


def _setting(experiment: Experiment, path: Path, reference: str, noise: str, epsilon: float | None) -> Setting:
    privacy = "privacy=off" if epsilon is None else f"privacy.epsilon={epsilon:g}"
    words = (*experiment.sets, privacy, "evaluation.epsilon=null", "runtime.threads=1")
    key = load_config(path, list(words)).digest()[:8]
    return Setting(path, reference, noise, epsilon, words, key)


def _common_backbone(experiment: Experiment) -> str:
    """Return the backbone of all configs: the features of one are computed once for all splits."""
    models = [load_config(path, list(experiment.sets)).model for path in experiment.configs]
    unfit = [path for path, model in zip(experiment.configs, models, strict=True) if model.features is None]
    if unfit:
        raise InputError(
            f"{unfit[0]}: model.features is not set; `bench splits` compares public references. Give a config with it",
            code="command-line",
        )
    backbones = {str(model.backbone) for model in models}
    if len(backbones) > 1:
        raise InputError(
            f"model.backbone={', '.join(sorted(backbones))}: `bench splits` takes configs of one backbone. Start it "
            "once for each",
            code="command-line",
        )
    return backbones.pop()


def _make_phantoms(experiment: Experiment, out: Path) -> None:
    if not _reference(experiment, PHANTOMS, out).exists():
        write_reference(_reference(experiment, PHANTOMS, out), experiment.reference, experiment.size)


def _reference(experiment: Experiment, kind: str, folder: Path) -> Path:
    name = f"phantoms-{experiment.reference}-{experiment.size}" if kind == PHANTOMS else "reference"
    return folder / f"{name}.h5"


def _import(experiment: Experiment, out: Path, **more: Any) -> ImageImport:
    return ImageImport(source=experiment.images, out=out, size=experiment.size, **more)


def _split(experiment: Experiment, features: FeatureStore, split: int, out: Path) -> Path:
    """Return the folder with the shards of one random split, each with its features."""
    folder = out / f"split{split:03}"
    if not (folder / "ready").exists():
        job = _import(
            experiment,
            folder,
            sites=SITES,
            skew=SKEW,
            val_share=VAL_SHARE,
            seed=1000 + split,
            reference=experiment.reference,
        )
        for path in quietly(lambda: import_images(job)):
            features.keep_for(path)
        write_bytes(folder / "ready", b"")
    return folder


def _auc(experiment: Experiment, folder: Path, setting: Setting, draw: int) -> float:
    directory = folder / f"{setting.name}-{draw}"
    if not (directory / "summary.json").exists():
        words = [
            *setting.words,
            f"data.shards={folder}/{{site}}.h5",
            f"data.public_reference={_reference(experiment, setting.reference, _home(folder, setting))}",
        ]
        _train(setting.config, directory, words)
    auc: float = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["auc"]
    return auc


def _home(folder: Path, setting: Setting) -> Path:
    return folder.parent if setting.reference == PHANTOMS else folder


def _train(config: Path, directory: Path, sets: Sequence[str]) -> None:
    with charged_to(directory.parent.parent / "accounts", own_shards=True):
        quietly(lambda: train(load_config(config, sets), directory))


def _row(setting: Setting, aucs: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Return the spread over splits of the mean over draws, and the spread over draws on the same split."""
    by_split = [statistics.fmean(draws) for draws in aucs]
    within = [statistics.variance(draws) for draws in aucs if len(draws) > 1]
    return {
        "config": str(setting.config),
        "reference": setting.reference,
        "noise": setting.noise,
        "epsilon": setting.epsilon,
        "splits": len(by_split),
        "auc": statistics.fmean(by_split),
        "auc_sd_of_splits": statistics.stdev(by_split) if len(by_split) > 1 else None,
        "auc_sd_of_noise": statistics.fmean(within) ** 0.5 if within else None,
        "auc_lowest": min(min(draws) for draws in aucs),
        "auc_highest": max(max(draws) for draws in aucs),
        "aucs": [list(draws) for draws in aucs],
    }


def text(result: Mapping[str, Any]) -> str:
    """For a person."""
    head = ("reference", "noise", "epsilon", "splits", "AUC", "SD splits", "SD noise", "lowest", "highest")
    return fitted([head, *(_line(row) for row in result["rows"])])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    spread = [f"{row[key]:.3f}" if row[key] is not None else "-" for key in ("auc_sd_of_splits", "auc_sd_of_noise")]
    ends = (f"{row['auc_lowest']:.3f}", f"{row['auc_highest']:.3f}")
    epsilon = "-" if row["epsilon"] is None else f"{row['epsilon']:g}"
    return (row["reference"], row["noise"], epsilon, str(row["splits"]), f"{row['auc']:.3f}", *spread, *ends)
