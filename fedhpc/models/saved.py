"""`model.pt`: a finished model on disk, and what another run takes from one."""

import io
import json
import pickle
import struct
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from fedhpc.config.loader import with_new_names
from fedhpc.config.model import Model
from fedhpc.config.model_source import COPY, place_of
from fedhpc.config.schema import RECORDED, RunConfig
from fedhpc.errors import InputError, PrivacyError
from fedhpc.models.backbones import NAMES, Backbone, VolumeBackbone, public_backbone
from fedhpc.models.build import build_model, replace_module
from fedhpc.models.monai_networks import import_networks
from fedhpc.models.offline import offline
from fedhpc.models.origin import ANCESTORS, Ancestor, Origin
from fedhpc.models.own_features import OwnFeatures
from fedhpc.models.task import Task
from fedhpc.records.calibration import Calibration
from fedhpc.util.files import READABLE, read_bytes, write_bytes
from fedhpc.util.regular_file import check_stored


@dataclass(frozen=True)
class SavedModel:
    """A finished model: `network` takes harmonised images, or features of `backbone` where there is one.

    `personal` names the hospital whose own model it is, trained without noise; None: it is a run's model.
    `calibrations` are those of each task; none where the run has released no validation counts. `synthetic`, `before`:
    see `Origin`.
    """

    network: nn.Module
    backbone: Backbone | None
    config: RunConfig
    task: Task
    f1_thresholds: tuple[int, ...]
    personal: str | None = None
    calibrations: tuple[Calibration, ...] = ()
    synthetic: bool = False
    before: tuple[Ancestor, ...] = ()

    @property
    def origin(self) -> Origin:
        """Whence it comes."""
        return Origin(self.config, self.synthetic, self.before)


def save_model(path: Path, model: nn.Module, facts: dict[str, Any], *, mode: int = READABLE) -> None:
    """Write weights only, with the JSON `facts` (config, classes, image_shape, f1_thresholds) to rebuild the model.

    `synthetic` among them says whether none of its patients exist, by what all shards say of their origin, and `before`
    which runs it goes back to.

    `facts` of a personal model have `personal`, the name of its hospital, too, and `own_features` where it is an
    `OwnFeatures` of so many.

    Raises:
        FileError: where it cannot be written; a model that was there before is still there.
    """
    buffer = io.BytesIO()
    torch.save({"state_dict": model.state_dict(), "facts": json.dumps(facts)}, buffer)
    write_bytes(path, buffer.getbuffer(), mode=mode)


@dataclass(frozen=True)
class _Content:
    """What is in a `model.pt`, before anything is built."""

    weights: dict[str, torch.Tensor]
    config: RunConfig
    task: Task
    f1_thresholds: tuple[int, ...]
    personal: str | None
    own_features: int | None
    calibrations: tuple[Calibration, ...]
    synthetic: bool
    before: tuple[Ancestor, ...]


def load_model(path: Path) -> SavedModel:
    """Read a `model.pt`, without unpickling any code.

    Where the model is of `model.build`, the copy of its source in the run directory is executed; its SHA-256 is that in
    `model.pt`. A `model.pt` alone executes nothing, and nothing is asked of another host for a network of MONAI.

    Raises:
        InputError: it is none, its facts and its weights do not fit together, or the copy is missing or another.
    """
    content = _read(path)
    config = content.config
    backbone = load_backbone(config.model.backbone) if config.model.backbone else None
    own = config.model_copy(update={"model": _rebuilt(config.model, path)}) if config.model.checked else config
    try:
        if own.model.monai is not None:
            # Before the guard: a package that is installed may ask for a program as it is imported.
            import_networks()
        with offline() if own.model.monai is not None else nullcontext():
            network = build_model(own, content.task, backbone)
        if content.own_features is not None:
            network = OwnFeatures(network, content.own_features, len(content.task.classes))
        network.load_state_dict(content.weights)
    except UNREADABLE as error:
        raise _no_model(path, error) from None
    return SavedModel(
        network.eval(),
        backbone,
        config,
        content.task,
        content.f1_thresholds,
        content.personal,
        content.calibrations,
        content.synthetic,
        content.before,
    )


def saved_config(path: Path) -> RunConfig:
    """Return the config of a `model.pt`; see `saved_origin`."""
    return saved_origin(path).config


def saved_origin(path: Path) -> Origin:
    """Return whence a `model.pt` comes that a run may start from; builds and executes nothing.

    Raises:
        InputError: it is none.
        PrivacyError: it is a hospital's personal model, which a run would carry to all others.
    """
    content = _read(path)
    if content.personal is not None:
        raise PrivacyError(
            f"{path}: is the personal model of site {content.personal}, trained without noise on its patients; a run "
            "would carry it to other hospitals. Give the model.pt of the run",
            code="privacy.personal",
        )
    return Origin(content.config, content.synthetic, content.before)


def _read(path: Path) -> _Content:
    content = read_bytes(path)
    try:
        check_stored(content)
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        facts = json.loads(saved["facts"])
        config = RunConfig.model_validate(with_new_names(facts["config"]), context=RECORDED)
        task = Task(tuple(facts["classes"]), tuple(facts["image_shape"]), config.task)
        thresholds = tuple(int(value) for value in facts["f1_thresholds"])
        personal, more = facts.get("personal"), facts.get("own_features")
        return _Content(
            weights=saved["state_dict"],
            config=config,
            task=task,
            f1_thresholds=thresholds,
            personal=None if personal is None else str(personal),
            own_features=None if more is None else int(more),
            calibrations=tuple(map(Calibration.read, facts.get("calibration", ()))),
            # What a config says is no evidence; models of earlier versions have nothing else.
            synthetic=bool(facts.get("synthetic", config.data.phantom is not None)),
            before=ANCESTORS.validate_python(facts.get("before", ())),
        )
    except (*UNREADABLE, ValidationError) as error:
        raise _no_model(path, error) from None


def _rebuilt(model: Model, path: Path) -> Model:
    """The section that the network is built from again: the source in the run directory, no weights from elsewhere."""
    if model.build is None:
        return model.model_copy(update={"args": {k: v for k, v in model.args.items() if k not in ELSEWHERE}})
    if model.source_sha256 is None:
        raise InputError(
            f"{path}: does not say which source model.build={model.label} is of: none is executed. Give the model.pt "
            "that the run wrote",
            code="model.saved",
        )
    # `runs/x/model.pt`, or of a local-only run `runs/x/sites/<site>/model.pt`.
    copies = [folder / COPY for folder in (path.resolve().parent, *path.resolve().parents[2:3])]
    copy = next((one for one in copies if one.is_file()), None)
    if copy is None:
        raise InputError(
            f"{path}: its network is of model.build={model.label}, and {COPY}, the copy of its source, is not there. "
            "Give the run directory, or put the file beside model.pt",
            code="model.saved",
        )
    return model.model_copy(update={"build": f"{copy}:{place_of(str(model.build))[1]}"})


ELSEWHERE = ("pretrained", "pretrained_url")
"""Arguments of MONAI's networks by which they load weights, which all are in `model.pt`."""
MALFORMED = (RuntimeError, OSError, EOFError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError)
UNREADABLE = (*MALFORMED, AssertionError, ImportError, MemoryError, struct.error, pickle.UnpicklingError)
"""What torch's unpickler raises at bytes that are no model: its machine checks little of what it reads."""


def _no_model(path: Path, error: Exception) -> InputError:
    cause = str(error).partition("\n")[0]
    return InputError(
        f"{path}: is not the model.pt of a fedhpc run ({type(error).__name__}: {cause}). Give the one that a finished "
        "run of this version wrote",
        code="model.saved",
    )


def load_backbone(source: str) -> Backbone:
    """A public extractor by its name (see `backbones.public_backbone`), or a fedhpc `model.pt` without its head.

    Raises:
        InputError: where there is no such backbone.
    """
    if source in NAMES:
        return public_backbone(source)
    if not Path(source).is_file():
        raise InputError(
            f"model.backbone={source}: no such file; allowed: {', '.join(NAMES)} or the model.pt of a run",
            code="model.backbone",
        )
    model = saved_config(Path(source)).model
    if model.backbone is not None:
        raise InputError(
            f"model.backbone={source}: is itself a head on a backbone; give a whole network's model.pt",
            code="model.backbone",
        )
    if model.checked:
        raise InputError(
            f"model.backbone={source}: is a network of {model.label}, whose last layer is not known. Give the model.pt "
            "of a built-in network; to go on with the network itself use model.init_from",
            code="model.backbone",
        )
    saved = load_model(Path(source))
    whole, inside = (saved.network.get_submodule("network"), "network.") if model.input_layer else (saved.network, "")
    name = inside + ("fc" if hasattr(whole, "fc") else "class_layers.out")
    dim = int(saved.network.get_submodule(name).in_features)  # type: ignore[arg-type]
    replace_module(saved.network, name, nn.Identity())
    kind = Backbone if saved.task.dims == 2 else VolumeBackbone
    return kind(saved.network, dim, image_size=None)
