"""What a network must be before it is trained: checks on random images, one clear message each.

A built-in network is known to pass. One of `model.build` or `model.monai` is checked at every start, at every rank. The
checks of the gradients of single units, which privacy rests on, are in `fedhpc.site.per_example.oracle`.

The weights are moved off their initial values first, by a fixed rule: a layer that starts at zero would hide whether
the layers before it learn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedhpc.config.schema import Model
from fedhpc.errors import InputError
from fedhpc.models.loss import loss
from fedhpc.models.task import Task

IMAGES = 4
"""More than a batch needs to show that its images are mixed; few enough for a large network."""
MOVED, FROM_ZERO = 0.1, 0.05
"""How far weights are moved: as a share of their root mean square, and where that is zero."""
TOLERANCE = 1e-3
"""Of the outputs of images alone and in a batch, as a share of the largest: float32 and deep networks."""


@dataclass(frozen=True)
class Probe:
    """A network to be checked: built as for training, its weights moved; random images and their labels (public)."""

    key: str
    network: nn.Module
    images: Tensor
    labels: Tensor

    def output(self, images: Tensor, seed: int = 0) -> Tensor:
        """The logits, with PyTorch's generator at `seed`."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            logits: Tensor = self.network(images)
        return logits

    def refused(self, problem: str, code: str) -> InputError:
        """The error that names the model; `code` is one of the family `model`."""
        return InputError(f"{self.key}: {problem}", code=code)


def probe_of(network: nn.Module, model: Model, task: Task) -> Probe:
    """Return a network to check; its weights are moved.

    Raises:
        InputError: parameters without a size.
    """
    lazy = [name for name, p in network.named_parameters() if isinstance(p, nn.UninitializedParameter)]
    if lazy:
        raise InputError(
            f"{model.key}: parameter {_some(lazy)}: has no size yet. Use no Lazy layer", code="model.parameters"
        )
    fixed = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad and p.is_floating_point():
                size = float(p.square().mean().sqrt())
                p.add_(torch.randn(p.shape, generator=fixed, dtype=p.dtype), alpha=MOVED * size or FROM_ZERO)
    images = torch.rand((IMAGES, *task.image_shape), generator=fixed) * 2 - 1
    labels = torch.arange(IMAGES) % len(task.classes)
    if task.kind == "multilabel":
        labels = torch.randint(0, 2, (IMAGES, len(task.classes)), generator=fixed)
    return Probe(model.key, network.train(), images, labels)


def check_network(probe: Probe, classes: int, *, private: bool, batch_norm_remedy: str) -> None:
    """Check that a network can be trained in a federation.

    Args:
        probe: from `probe_of`.
        classes: the number of logits it must give.
        private: whether it will be trained with DP-SGD.
        batch_norm_remedy: what to do about batch norm in this network.

    Raises:
        InputError: the first problem, with what to do.
    """
    _check_parameters(probe)
    _check_norms(probe, batch_norm_remedy)
    _check_output(probe, classes)
    _check_buffers(probe)
    random = _check_randomness(probe, private)
    _check_images_apart(probe, (False,) if random else (True, False))
    _check_gradients(probe)


def _check_parameters(probe: Probe) -> None:
    trained = {name: p for name, p in probe.network.named_parameters() if p.requires_grad}
    if not trained:
        raise probe.refused(
            "has no parameter that requires a gradient. Leave at least one layer to be trained", "model.parameters"
        )
    other = [f"{name} ({p.dtype})" for name, p in trained.items() if p.dtype != torch.float32]
    if other:
        raise probe.refused(
            f"parameter {_some(other)}: is not float32. Convert the network with .float()", "model.parameters"
        )


def _check_norms(probe: Probe, remedy: str) -> None:
    """Refuse running statistics: they are means over patients, and would leave a hospital without noise."""
    batch, tracking = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm
    named = [(name or "the network", module) for name, module in probe.network.named_modules()]
    found = [name for name, module in named if isinstance(module, batch)]
    if found:
        raise probe.refused(
            f"layer {_some(found)}: batch norm keeps statistics of the batch, so of patients. {remedy}",
            "model.statistics",
        )
    found = [name for name, module in named if isinstance(module, tracking) and module.track_running_stats]
    if found:
        raise probe.refused(
            f"layer {_some(found)}: keeps running statistics of patients. Set track_running_stats=False there",
            "model.statistics",
        )


def _check_output(probe: Probe, classes: int) -> None:
    shape = tuple(probe.images.shape)
    try:
        found = probe.output(probe.images)
    except Exception as error:
        raise probe.refused(
            f"fails on images of shape {shape}: {type(error).__name__}: {_first_line(error)}. The task has "
            f"{shape[1]} channel(s) of {shape[2]} x {shape[3]} pixels: make the network take them (task.image_shape)",
            "model.output",
        ) from None
    wanted = (len(probe.images), classes)
    if not isinstance(found, Tensor) or tuple(found.shape) != wanted or not found.is_floating_point():
        got = f"{found.dtype} {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise probe.refused(
            f"gives {got} for {len(probe.images)} images; the task has {classes} classes and needs float {wanted}: one "
            "logit for each class (len(task.classes)), before softmax or sigmoid",
            "model.output",
        )
    if not torch.isfinite(found).all():
        raise probe.refused(
            "gives values that are not finite for random images. Check its scales and divisions", "model.output"
        )


def _check_buffers(probe: Probe) -> None:
    """Whatever a forward pass keeps of its images is a statistic of patients, whatever the layer is called."""
    before = {name: buffer.clone() for name, buffer in probe.network.named_buffers()}
    probe.output(probe.images)
    after = dict(probe.network.named_buffers())
    changed = [name for name, old in before.items() if name not in after or not torch.equal(after[name], old)]
    added = [name for name in after if name not in before]
    if changed or added:
        raise probe.refused(
            f"buffer {_some([*changed, *added])}: changes with the images that pass, so it keeps a statistic of "
            "patients. Remove it, or compute it of each image alone",
            "model.statistics",
        )


def _check_randomness(probe: Probe, private: bool) -> bool:
    """Return whether a forward pass is random in training.

    Without privacy that is allowed: PyTorch's generator is seeded by run, site and round, so that any number of ranks
    draws the same. With privacy it is not: one more patient would shift the draws of all others, and with a known seed
    move their gradients too, which the noise does not cover.
    """
    one, same = probe.output(probe.images), probe.output(probe.images)
    if not torch.equal(one, same):
        raise probe.refused(
            "gives different outputs for the same images and the same torch seed, so that ranks and restarts would "
            "differ. Draw random numbers with torch only, and keep no state between forward passes",
            "model.random",
        )
    random = not torch.equal(one, probe.output(probe.images, seed=1))
    if private and random:
        raise probe.refused(
            "is random in training (dropout?). With privacy.epsilon one more patient would shift the draws of all "
            "others, which the noise does not cover. Set the dropout probability to 0",
            "model.random",
        )
    probe.network.eval()
    if not torch.equal(probe.output(probe.images), probe.output(probe.images, seed=1)):
        raise probe.refused("is random in evaluation. Use nn.Dropout, which .eval() switches off", "model.random")
    probe.network.train()
    return random


def _check_images_apart(probe: Probe, modes: tuple[bool, ...]) -> None:
    """Check each mode (training or not) in which nothing is random: dropout draws other masks for a batch."""
    for mode in modes:
        probe.network.train(mode)
        together = probe.output(probe.images).detach()
        alone = torch.cat([probe.output(image[None]) for image in probe.images]).detach()
        if not float((together - alone).abs().max()) <= TOLERANCE * float(alone.abs().max()):
            raise probe.refused(
                "gives other logits for an image in a batch than for the image alone: it mixes patients. Keep the "
                "first dimension apart (no mean, softmax or norm over it, no reshape across it)",
                "model.mixes-images",
            )
    probe.network.train()


def _check_gradients(probe: Probe) -> None:
    probe.network.zero_grad()
    try:
        loss(probe.output(probe.images), probe.labels).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise probe.refused(backward_problem(error), "model.gradients") from None
    still = [
        name for name, p in probe.network.named_parameters() if p.requires_grad and (p.grad is None or not p.grad.any())
    ]
    probe.network.zero_grad()
    if still:
        raise probe.refused(
            f"parameter {_some(still)}: gets no gradient, so it would never move. Use it in forward (nothing detached, "
            "no torch.no_grad), or set requires_grad_(False) if it is meant to stay",
            "model.gradients",
        )


def backward_problem(error: Exception) -> str:
    """Return what is wrong with a network whose backward pass fails."""
    text = _first_line(error).partition(" Hint:")[0].rstrip(".")
    if "inplace" in text.replace("-", "").replace(" ", "").lower():
        return (
            f"changes a value in place that its gradient needs ({text}). Use the operation that returns a new tensor: "
            "x = x + y for x += y, torch.relu for torch.relu_, inplace=False"
        )
    return f"its backward pass fails ({text}). Use operations that have a gradient, and detach nothing"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _some(names: list[str], shown: int = 3) -> str:
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")
