"""What is audited: one site of a run or of a config, with the model that was released last."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from fedhpc.audit.charges import PatientCharges
from fedhpc.config.loader import load_config
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.build import build_model
from fedhpc.models.device import Device, prepare
from fedhpc.models.saved import load_backbone
from fedhpc.models.task import Task
from fedhpc.models.vector import to_vector
from fedhpc.models.whitening import centre
from fedhpc.privacy.plan import PrivacyPlan, plan_privacy
from fedhpc.records.checkpoint import load_state, saved_rounds
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.display import Console
from fedhpc.run.rounds.feature_mean import STATE
from fedhpc.run.start.built_in_cohort import make_phantoms, make_reference
from fedhpc.run.start.network import check_before_cohort, checked_network
from fedhpc.run.start.public_features import public_map
from fedhpc.site.data.open_site import open_site_of_run
from fedhpc.site.data.samples import Samples
from fedhpc.site.data.shard import Shard
from fedhpc.util.arrays import F32


@dataclass(frozen=True)
class Target:
    """A config, and the run directory that it came from (None for a config alone)."""

    config: RunConfig
    run: Path | None

    @property
    def directory(self) -> Path:
        """Where the run is, or would be by default."""
        return Path("runs") / self.config.name if self.run is None else self.run


def find_target(path: Path, overrides: list[str]) -> Target:
    """A run directory or a YAML file, and `--set` overrides for the latter.

    Raises:
        InputError: neither, or nothing that an audit could be of.
    """
    target = _of_run(path, overrides) if path.is_dir() else Target(load_config(path, overrides), None)
    config = target.config
    if config.task != "multiclass":
        raise InputError(
            f"{path}: task={config.task}: the attacks of the audit know single classes only", code="audit.task"
        )
    if config.mode != "federated":
        raise InputError(
            f"{path}: mode={config.mode}: no update leaves a hospital there; audit a federated run",
            code="audit.not-federated",
        )
    if not config.private:
        how = "--set privacy.epsilon=1 shows what it would do" if target.run is None else "audit its config with --set"
        raise InputError(f"{path}: privacy: off, so there is no claim to audit; {how}", code="privacy.off")
    return target


def _of_run(path: Path, overrides: list[str]) -> Target:
    config = RunDirectory(path).read_config()
    if config is None:
        raise InputError(
            f"{path}: holds no config.yaml; give a run directory, or a config file", code="run-directory.not-a-run"
        )
    if overrides:
        raise InputError(
            f"--set {overrides[0]}: {path} is a run and has its config; audit a config file to change it",
            code="command-line",
        )
    if not saved_rounds(path / "state", "round"):
        raise InputError(
            f"{path}: holds no saved round in state/; train it first, or audit its config file",
            code="run-directory.not-a-run",
        )
    return Target(config, path)


@dataclass(frozen=True)
class Subject:
    """One site, open.

    Attributes:
        config: the run's.
        site, index, weight: its public name, place and declared number of units.
        shard, samples: private.
        model: of the run, with `params` set.
        params: f32[d], the global parameters that were released last, or the initial ones.
        rounds_done: how many rounds made them.
        plan: the noise that the run claims.
        device: where to compute.
        charges: what trainings with noise on all of its patients are charged to.
    """

    config: RunConfig
    site: str
    index: int
    weight: int
    shard: Shard
    samples: Samples
    task: Task
    model: nn.Module
    params: F32
    rounds_done: int
    plan: PrivacyPlan
    device: Device
    charges: PatientCharges

    @property
    def frozen(self) -> bool:
        """Whether a linear head on fixed features is all that is trained."""
        return self.config.model.backbone is not None

    @property
    def round(self) -> int:
        """The round whose learning rate is used: the last one done, or the first one."""
        return max(self.rounds_done - 1, 0)


@contextmanager
def open_subject(target: Target, site: str | None) -> Iterator[Subject]:
    """Open the shard of `site` (None: the first), make a missing phantom shard, load the model.

    Raises:
        InputError: an unknown site, a bad shard, parameters of another model, noise that cannot be planned.
    """
    config = target.config
    name = site or config.site_names[0]
    if name not in config.site_names:
        raise InputError(f"--site {name}: unknown; allowed: {', '.join(config.site_names)}", code="command-line")
    console = Console(speaks=True, out=sys.stderr)
    check_before_cohort(config, [name])
    make_phantoms(config, [name], console)
    make_reference(config, console)
    # An audit may run on another machine than the run did.
    device = prepare(config.runtime.model_copy(update={"device": "auto"}), 0)
    with open_site_of_run(config, name) as opened:
        shard = opened.shard
        backbone = load_backbone(config.model.backbone) if config.model.backbone else None
        task = Task(shard.classes, shard.image_shape)
        model = checked_network(config, task) if config.model.checked else build_model(config, task, backbone)
        model = model.to(device.device)
        if backbone is not None and config.model.features is not None:
            public_map(config, backbone.to(device.device), task.image_shape[-1]).load_into(model)
            _centre(target, model)
        params, rounds_done = _params(target, model)
        index = config.site_names.index(name)
        yield Subject(
            config=config,
            site=name,
            index=index,
            weight=config.data.sites[index].weight or 1,
            shard=shard,
            samples=opened.samples(None if backbone is None else backbone.to(device.device)),
            task=task,
            model=model,
            params=params,
            rounds_done=rounds_done,
            plan=plan_privacy(config, name),
            device=device,
            charges=PatientCharges(config, shard),
        )


def _centre(target: Target, model: nn.Module) -> None:
    """Set the mean of the features that the run has released; of a config alone there is none yet."""
    if target.config.model.feature_mean == "sites" and target.run is not None:
        centre(model, load_state(target.run / "state", STATE, 0)["mean"].astype(np.float32))


def _params(target: Target, model: nn.Module) -> tuple[F32, int]:
    initial = to_vector(model)
    if target.run is None:
        return initial, 0
    folder = target.run / "state"
    last = saved_rounds(folder, "round")[-1]
    params = load_state(folder, "round", last)["params"].astype(np.float32, copy=False)
    if params.size != initial.size:
        raise InputError(
            f"{folder}: round {last} has {params.size} parameters, the model of its config has {initial.size}; "
            "restore the run directory, or the shard that it was trained on",
            code="resume.other-state",
        )
    return params, last
