"""A network to be checked before it is trained, with random images, and what its passes give.

The weights are moved off their initial values first, by a fixed rule: a layer that starts at zero would hide whether
the layers before it learn.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fedhpc.config.model import Model
from fedhpc.errors import InputError
from fedhpc.models.loss import loss
from fedhpc.models.task import Task
from fedhpc.util.text import first_names

IMAGES = 4
"""More than a batch needs to show that its images are mixed; few enough for a large network."""
MOVED, FROM_ZERO = 0.1, 0.05
"""How far weights are moved: as a share of their root mean square, and where that is zero."""


@dataclass(frozen=True)
class Probe:
    """A network to be checked: built as for training, its weights moved; random images and their labels (public)."""

    key: str
    network: nn.Module
    images: Tensor
    labels: Tensor

    def output(self, images: Tensor, seed: int = 0) -> Tensor:
        """Return the logits, with PyTorch's generator at `seed`.

        Raises:
            InputError: the forward pass fails.
        """
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            try:
                logits: Tensor = self.network(images)
            except Exception as error:
                shape = tuple(images.shape)
                raise self.refused(
                    f"fails on images of shape {shape}: {type(error).__name__}: {first_line(error)}. The task has "
                    f"{shape[1]} channel(s) of {' x '.join(map(str, shape[2:]))} pixels: make the network take them "
                    "(task.image_shape), and any number of them",
                    "model.output",
                ) from None
        return logits

    def draws(self) -> bool:
        """Whether a forward pass draws random numbers of PyTorch, also where the output is the same by chance."""
        with torch.random.fork_rng(devices=[]):
            before = torch.get_rng_state()
            self.network(self.images)
            return not torch.equal(before, torch.get_rng_state())

    def refused(self, problem: str, code: str) -> InputError:
        """Return the error that names the model; `code` is one of the family `model`."""
        return InputError(f"{self.key}: {problem}", code=code)


def probe_of(network: nn.Module, model: Model, task: Task) -> Probe:
    """Return a network to check; its weights are moved.

    Raises:
        InputError: parameters without a size.
    """
    lazy = [name for name, p in network.named_parameters() if isinstance(p, nn.UninitializedParameter)]
    if lazy:
        raise InputError(
            f"{model.key}: parameter {first_names(lazy)}: has no size yet. Use no Lazy layer", code="model.parameters"
        )
    fixed = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in network.parameters():
            if p.requires_grad and p.is_floating_point():
                size = float(p.square().mean().sqrt())
                p.add_(torch.randn(p.shape, generator=fixed, dtype=p.dtype), alpha=MOVED * size or FROM_ZERO)
    images = _harmonised(fixed, task.image_shape)
    labels = torch.arange(IMAGES) % len(task.classes)
    if task.kind == "multilabel":
        labels = torch.randint(0, 2, (IMAGES, len(task.classes)), generator=fixed)
    return Probe(model.key, network.train(), images, labels)


def _harmonised(generator: torch.Generator, shape: tuple[int, ...]) -> Tensor:
    """Random images [IMAGES, *shape] as a site harmonises its own: each of mean 0 and standard deviation 1.

    Their extremes lie from 2 to above 10, so that a decision by the largest pixel of a batch shows.
    """
    powers = (4.0 ** torch.arange(IMAGES)).view(-1, *[1] * len(shape))
    images = torch.rand((IMAGES, *shape), generator=generator) ** powers
    pixels = tuple(range(2, images.ndim))
    centred = images - images.mean(dim=pixels, keepdim=True)
    return centred / centred.square().mean(dim=pixels, keepdim=True).sqrt().clamp_min(1e-6)


def gradient_of(probe: Probe, images: Tensor) -> Tensor:
    """Return the gradient of the mean loss, flat; the network's own is zero afterwards.

    Raises:
        InputError: the backward pass fails.
    """
    probe.network.zero_grad()
    try:
        loss(probe.output(images), probe.labels).backward()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise probe.refused(backward_problem(error), "model.gradients") from None
    trained = [p for p in probe.network.parameters() if p.requires_grad]
    found = torch.cat([torch.zeros(p.numel()) if p.grad is None else p.grad.reshape(-1) for p in trained])
    probe.network.zero_grad()
    return found


def backward_problem(error: Exception) -> str:
    """Return what is wrong with a network whose backward pass fails."""
    text = first_line(error).partition(" Hint:")[0].rstrip(".")
    if "inplace" in text.replace("-", "").replace(" ", "").lower():
        return (
            f"changes a value in place that its gradient needs ({text}). Use the operation that returns a new tensor: "
            "x = x + y for x += y, torch.relu for torch.relu_, inplace=False"
        )
    return f"its backward pass fails ({text}). Use operations that have a gradient, and detach nothing"


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0]
