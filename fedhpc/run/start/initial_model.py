"""The start from a finished run (`train --init-from RUN`): its parameters are the initial ones of all sites."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from fedhpc.compression.update import ArraySpec, pack_arrays, unpack_arrays
from fedhpc.config.model import Model
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PrivacyError
from fedhpc.models.backbones import NAMES
from fedhpc.models.origin import ANCESTORS, Ancestor, Origin, each_once
from fedhpc.models.saved import SavedModel, load_model, saved_config, saved_origin
from fedhpc.models.task import Task
from fedhpc.models.vector import from_vector, layers_of, parameter_count, to_vector
from fedhpc.records.run_directory import RESTORE, RunDirectory
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks
from fedhpc.util.arrays import F32
from fedhpc.util.files import read_bytes, read_json


def check_initial(config: RunConfig, directory: RunDirectory, transport: Transport) -> None:
    """Check that what `model.init_from` names is there, before all that takes minutes.

    Raises:
        InputError: at every rank, where it is not.
    """
    if config.model.init_from is not None:
        source = str(config.model.init_from)
        run_on_all_ranks(transport, lambda: transport.rank or directory.has_rounds() or model_path(source))


def start_from(config: RunConfig, directory: RunDirectory, task: Task, model: nn.Module, transport: Transport) -> None:
    """Set `model` at every rank to the parameters of the run that `model.init_from` names; nothing without one.

    A run that is resumed has parameters of its own: the other run need not be there any more.

    Raises:
        InputError: at every rank, where there is no finished run, its network is another, or privacy forbids it.
    """
    if config.model.init_from is None:
        return

    def packed() -> bytes:
        if transport.rank or directory.has_rounds():
            return b""
        return pack_arrays({"params": _parameters(config, directory, task, model)})

    payload = run_on_all_ranks(transport, packed)
    received = transport.broadcast(payload if transport.rank == 0 else None, "update")
    if received:
        size = parameter_count(model)
        arrays = unpack_arrays(received, {"params": ArraySpec("<f4", (size,))}, 4 * size)
        from_vector(model, arrays["params"].astype("float32", copy=False))


def _parameters(config: RunConfig, directory: RunDirectory, task: Task, model: nn.Module) -> F32:
    path = model_path(str(config.model.init_from))
    # Another run's source is not executed: it must be this run's own.
    differing = _other_network(saved_config(path).model, config.model)
    saved = None if differing else load_model(path)
    differing = differing if saved is None else _differences(saved, config, task, model)
    if saved is None or differing:
        raise InputError(
            f"model.init_from={config.model.init_from}: its network does not fit this run: {'; '.join(differing)}. "
            "Give a run of the same model section, classes and image shape",
            code="model.init-from",
        )
    _refuse_unprotected(saved, config)
    record = {"path": str(path), "sha256": hashlib.sha256(read_bytes(path)).hexdigest(), "run": saved.config.name}
    runs = [asdict(one) for one in saved.origin.runs]
    directory.write_json(directory.initial, record | cost_of(saved.config) | {"runs": runs})
    return to_vector(saved.network)


def cost_of(config: RunConfig) -> dict[str, float | None]:
    """Return what a run was to cost, since a model that starts from its model gives that away too.

    None where that is not known: without privacy, or by privacy.noise_seed, with which the noise can be taken off.
    """
    p = config.privacy
    known = p.epsilon is not None and p.noise_seed is None
    return {"epsilon": p.epsilon if known else None, "delta": p.delta if known else None}


def model_path(source: str) -> Path:
    """Return the `model.pt` that `model.init_from` stands for.

    Raises:
        InputError: where there is none.
    """
    path = Path(source)
    if path.is_dir():
        path = path / "model.pt"
    if not path.is_file():
        raise InputError(
            f"model.init_from={source}: no such model.pt. Give the directory of a finished run, or a model.pt "
            "(sites/<site>/model.pt of a local-only run)",
            code="model.init-from",
        )
    return path


def _other_network(there: Model, here: Model) -> list[str]:
    keys = ("name", "monai", "build", "args", "source_sha256")
    theirs, ours = there.identity(), here.identity()
    return [f"model.{key} is {theirs[key]!r} there and {ours[key]!r} here" for key in keys if theirs[key] != ours[key]]


def _differences(saved: SavedModel, config: RunConfig, task: Task, model: nn.Module) -> list[str]:
    facts = [
        ("model.backbone", saved.config.model.backbone, config.model.backbone),
        ("classes", saved.task.classes, task.classes),
        ("model.feature_mean", saved.config.model.feature_mean, config.model.feature_mean),
        ("image shape", saved.task.image_shape, task.image_shape),
    ]
    found = [f"{name} is {theirs!r} there and {ours!r} here" for name, theirs, ours in facts if theirs != ours]
    if not found and layers_of(saved.network) != layers_of(model):
        found.append("its layers have other names or sizes")
    if not found and config.model.feature_mean == "sites":
        return ["with model.feature_mean=sites it belongs to the mean of the features that its own run has released"]
    # Buffers hold the public map of model.features: parameters mean nothing on features of another map.
    buffers = [
        name
        for (name, theirs), (_, ours) in zip(saved.network.named_buffers(), model.named_buffers(), strict=False)
        if not found and not theirs.allclose(ours.cpu(), rtol=1e-4, atol=1e-5)
    ]
    return [*found, *([f"its public map ({', '.join(buffers)}) is another: use the same reference"] if buffers else [])]


def _refuse_unprotected(saved: SavedModel, config: RunConfig) -> None:
    _refuse_if_unprotected(f"model.init_from={config.model.init_from}", saved.origin, config)


def check_backbone(config: RunConfig) -> tuple[Ancestor, ...]:
    """Check that a backbone of another run does not hold what this run is to protect; return the runs that it is of.

    Raises:
        PrivacyError: where it was trained on the same patients without privacy.
    """
    source = config.model.backbone
    if source is None or source in NAMES:
        return ()
    origin = saved_origin(Path(source))
    _refuse_if_unprotected(f"model.backbone={source}", origin, config)
    return origin.runs


def runs_before(
    config: RunConfig, directory: RunDirectory, backbone: Sequence[Ancestor], transport: Transport
) -> tuple[Ancestor, ...]:
    """Return the runs that this one goes back to, by its backbone and by its start, at every rank."""

    def started() -> Any:
        known = config.model.init_from is not None and directory.initial.exists()
        return read_json(directory.initial, RESTORE).get("runs", ()) if known else ()

    return each_once([*backbone, *ANCESTORS.validate_python(broadcast_json(transport, started))])


def _refuse_if_unprotected(key: str, origin: Origin, config: RunConfig) -> None:
    """Folds, copies and new imports of the same patients have another data section: sites of the same name count.

    So do the runs that a model was made from: what one of them has learned without privacy is in it still.
    """
    for earlier in origin.runs:
        seeded = earlier.seeded and config.privacy.noise_seed is None
        unprotected = config.private and (not earlier.private or seeded)
        common = set() if earlier.synthetic else set(earlier.sites) & set(config.site_names)
        if unprotected and (common or earlier.data == config.data.identity):
            raise PrivacyError(
                f"{key}: was trained on these hospitals without privacy (run {earlier.run}), so it may hold what "
                "privacy.epsilon is to protect. Start from a run with privacy, or from one on other patients, at sites "
                "of other names",
                code="privacy.not-public",
            )
