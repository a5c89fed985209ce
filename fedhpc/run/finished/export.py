"""`run.py export RUN --onnx FILE`: a finished model as one ONNX file, checked against PyTorch by onnxruntime.

The file takes harmonised images float32 [n, C, H, W] and gives logits float32 [n, K]: the frozen backbone, if there is
one, and the network. What it cannot hold stands in its metadata: classes, the chain of `harmonise`, calibration.
"""

import importlib.util
import json
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fedhpc.errors import InputError, PrivacyError
from fedhpc.models.saved import SavedModel, load_model
from fedhpc.records.calibration import plain
from fedhpc.run.finished.evaluate import Tested, model_path
from fedhpc.util.arrays import F32
from fedhpc.util.files import write_bytes
from fedhpc.util.output import nothing_printed
from fedhpc.util.rng import generator

INSTALL = "pip install 'fedhpc[export]'"
NEEDED = ("onnx", "onnxruntime")
OPSET = 18
CHECKED_IMAGES = (1, 5)
DARK_SHARE = 4
"""One part in so many of the sides of these images shows nothing."""
TOLERANCE = 1e-4
"""Of a logit, as a share of the largest one and absolutely: float32 sums in another order."""


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        path: of the file.
        size_bytes: of it.
        difference: the largest between a logit of onnxruntime and of PyTorch, over the largest logit or 1.
    """

    path: Path
    size_bytes: int
    difference: float


def export(run: Path, path: Path) -> Exported:
    """Write the model of a run as ONNX, after it has given PyTorch's logits in onnxruntime.

    Raises:
        InputError: no such model, a missing library, a network that ONNX cannot hold, or other logits: nothing is
            written.
        PrivacyError: a hospital's personal model, which must not leave it.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"onnx: {', '.join(missing)} not installed, and needed for export. Install with: {INSTALL}",
            code="model.export",
        )
    saved = load_model(model_path(run, Tested()))
    if saved.personal is not None:
        raise PrivacyError(
            f"{run}: is the personal model of site {saved.personal}, trained without noise on its patients. It never "
            "leaves that hospital: export the run's model.pt",
            code="privacy.personal",
        )
    network = nn.Sequential(*([] if saved.backbone is None else [saved.backbone]), saved.network).eval()
    content = _with_facts(_onnx(network, saved), saved)
    difference = _difference(content, network, saved)
    if not difference <= TOLERANCE:
        raise InputError(
            f"{path}: onnxruntime's logits differ from PyTorch's by {difference:.2g} of the largest; allowed: "
            f"{TOLERANCE:g}. Nothing was written. Other versions of {', '.join(NEEDED)} may help",
            code="model.export",
        )
    write_bytes(path, content)
    return Exported(path, len(content), difference)


def _onnx(network: nn.Module, saved: SavedModel) -> bytes:
    """Return the bytes of the model, for any number of images."""
    import onnx

    try:
        # PyTorch prints the whole graph of a network that it cannot export.
        with warnings.catch_warnings(), nothing_printed(), tempfile.TemporaryDirectory() as folder:
            warnings.simplefilter("ignore")
            path = Path(folder) / "model.onnx"
            # By tracing: 2 s where the newer exporter takes 30 s and one more library. What tracing gets wrong, as a
            # branch that depends on the images, the comparison of logits finds.
            torch.onnx.export(
                network,
                (torch.from_numpy(_images(saved, 2)),),
                path,
                input_names=["images"],
                output_names=["logits"],
                dynamic_axes={"images": {0: "n"}, "logits": {0: "n"}},
                opset_version=OPSET,
                dynamo=False,
            )
            content = path.read_bytes()
        onnx.checker.check_model(onnx.load_from_string(content))
    except Exception as error:  # exporter and checker raise whatever they like at a network that they cannot follow
        raise InputError(
            f"onnx: PyTorch cannot export this network ({type(error).__name__}). Use model.pt with `run.py predict`",
            code="model.export",
        ) from error
    return content


def _with_facts(content: bytes, saved: SavedModel) -> bytes:
    import onnx

    model = onnx.load_from_string(content)
    facts: dict[str, Any] = {
        "classes": list(saved.task.classes),
        "task": saved.task.kind,
        "image_shape": list(saved.task.image_shape),
        "harmonise": [step.model_dump(mode="json") for step in saved.config.harmonise],
        "harmonise_of_sites": {
            site.name: [step.model_dump(mode="json") for step in site.harmonise]
            for site in saved.config.data.sites
            if site.harmonise
        },
        "calibration": plain(saved.calibrations),
        "run": saved.config.name,
    }
    for key, value in facts.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = f"fedhpc.{key}", value if isinstance(value, str) else json.dumps(value)
    return bytes(model.SerializeToString())


def _images(saved: SavedModel, count: int) -> F32:
    """Random images as harmonised ones are, mean 0, standard deviation 1, dark at two edges: `cropped` cuts them."""
    shape = (count, *saved.task.image_shape)
    shown = [np.arange(side) >= side // DARK_SHARE for side in shape[-2:]]
    drawn = generator(0, "export", count).standard_normal(shape)
    images = np.where(shown[0][:, None] & shown[1], drawn, drawn.min())
    pixels = tuple(range(2, len(shape)))
    images = images - images.mean(axis=pixels, keepdims=True)
    return np.asarray(images / np.maximum(images.std(axis=pixels, keepdims=True), 1e-6), np.float32)


@torch.no_grad()
def _difference(content: bytes, network: nn.Module, saved: SavedModel) -> float:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    worst = 0.0
    for count in CHECKED_IMAGES:
        images = _images(saved, count)
        ours = network(torch.from_numpy(images)).numpy()
        theirs = np.asarray(session.run(["logits"], {"images": images})[0])
        if theirs.shape != ours.shape:
            return float("inf")
        worst = max(worst, float(np.abs(theirs - ours).max()) / max(1.0, float(np.abs(ours).max())))
    return worst


def export_text(done: Exported) -> str:
    """Return what was done."""
    return (
        f"{done.path}: {done.size_bytes / 1e6:.1f} MB. Takes harmonised images, gives logits; classes, harmonisation "
        f"and calibration are in its metadata. onnxruntime's logits differ from PyTorch's by at most "
        f"{done.difference:.1e} (allowed {TOLERANCE:g})"
    )
