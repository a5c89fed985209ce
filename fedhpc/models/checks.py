"""What a network must be before it is trained: checks on random images, one clear message each.

A built-in network is known to pass. One of `model.build` or `model.monai` is checked at every start, at every rank. The
checks of the gradients of single units, which privacy rests on, are in `fedhpc.site.per_example.oracle`.
"""

import random

import numpy as np
import torch
from torch import Tensor, nn

from fedhpc.models.probe import IMAGES, Probe, gradient_of
from fedhpc.util.text import first_names

LARGEST_BATCH = 2**18
"""Values of the images of the largest batch that is tried: 64 images of 64 x 64 pixels."""
TOLERANCE = 1e-3
"""Of the outputs of images alone and in a batch, as a share of the largest: float32 and deep networks."""


def check_network(probe: Probe, classes: int, batch: int, *, private: bool, batch_norm_remedy: str) -> None:
    """Check that a network can be trained in a federation.

    Args:
        probe: from `probe_of`.
        classes: the number of logits it must give.
        batch: images in memory at once in training.
        private: whether it will be trained with DP-SGD.
        batch_norm_remedy: what to do about batch norm in this network.

    Raises:
        InputError: the first problem, with what to do.
    """
    _check_parameters(probe)
    _check_norms(probe, batch_norm_remedy)
    _check_output(probe, classes)
    _check_buffers(probe)
    drawing = _check_randomness(probe, private)
    _check_images_apart(probe, (False,) if drawing else (True, False), batch)
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
            f"parameter {first_names(other)}: is not float32. Convert the network with .float()", "model.parameters"
        )


def _check_norms(probe: Probe, remedy: str) -> None:
    """Refuse running statistics: they are means over patients, and would leave a hospital without noise."""
    batch, tracking = nn.modules.batchnorm._BatchNorm, nn.modules.instancenorm._InstanceNorm
    named = [(name or "the network", module) for name, module in probe.network.named_modules()]
    found = [name for name, module in named if isinstance(module, batch)]
    if found:
        raise probe.refused(
            f"layer {first_names(found)}: batch norm keeps statistics of the batch, so of patients. {remedy}",
            "model.statistics",
        )
    found = [name for name, module in named if isinstance(module, tracking) and module.track_running_stats]
    if found:
        raise probe.refused(
            f"layer {first_names(found)}: keeps running statistics of patients. Set track_running_stats=False there",
            "model.statistics",
        )


def _check_output(probe: Probe, classes: int) -> None:
    found = probe.output(probe.images)
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
            f"buffer {first_names([*changed, *added])}: changes with the images that pass, so it keeps a statistic of "
            "patients. Remove it, or compute it of each image alone",
            "model.statistics",
        )


def _check_randomness(probe: Probe, private: bool) -> bool:
    """Return whether a forward pass is random in training.

    Without privacy that is allowed: PyTorch's generator is seeded by run, site and round, so that any number of ranks
    draws the same. With privacy it is not: one more patient would shift the draws of all others, and with a known seed
    move their gradients too, which the noise does not cover.
    """
    before = _other_generators()
    one, same = probe.output(probe.images), probe.output(probe.images)
    if not torch.equal(one, same) or _other_generators() != before:
        raise probe.refused(
            "gives different outputs for the same images and the same torch seed, so that ranks and restarts would "
            "differ. Draw random numbers with torch only, and keep no state between forward passes",
            "model.random",
        )
    drawing = probe.draws()
    if private and drawing:
        raise probe.refused(
            "is random in training (dropout?). With privacy.epsilon one more patient would shift the draws of all "
            "others, which the noise does not cover. Set the dropout probability to 0",
            "model.random",
        )
    probe.network.eval()
    if probe.draws():
        raise probe.refused("is random in evaluation. Use nn.Dropout, which .eval() switches off", "model.random")
    probe.network.train()
    return drawing


def _other_generators() -> tuple[object, ...]:
    """Return the state of the generators of Python and of numpy."""
    _, keys, *rest = np.random.get_state()
    return random.getstate(), np.asarray(keys).tobytes(), *rest


@torch.no_grad()
def _check_images_apart(probe: Probe, modes: tuple[bool, ...], batch: int) -> None:
    """Check each mode (training or not) in which nothing is random: dropout draws other masks for a batch."""
    largest = min(batch, LARGEST_BATCH // probe.images[0].numel())
    for mode in modes:
        probe.network.train(mode)
        alone = [probe.output(image[None]) for image in probe.images]
        for count in sorted({IMAGES, max(IMAGES, largest)}):
            rows = torch.arange(count) % IMAGES
            together = probe.output(probe.images[rows])
            if any(one.shape != together[:1].shape for one in alone) or len(together) != count:
                raise probe.refused(
                    f"gives {tuple(alone[0].shape)} for one image and {tuple(together.shape)} for {count}. Give a row "
                    "for each image, also of a single one (no squeeze without a dimension)",
                    "model.output",
                )
            wanted = torch.cat(alone)[rows]
            if not float((together - wanted).abs().max()) <= TOLERANCE * float(wanted.abs().max()):
                raise probe.refused(
                    f"gives other logits for an image in a batch of {count} than for the image alone: it mixes "
                    "patients. Keep the first dimension apart (no mean, softmax, maximum or norm over it, no reshape "
                    "across it)",
                    "model.mixes-images",
                )
    probe.network.train()


def check_nothing_kept(probe: Probe, other: Probe) -> None:
    """Check that nothing of the images that passed through a network changes what it does later.

    What a module keeps outside of its buffers, such as a running mean or the first batch in an attribute, neither noise
    nor clipping covers, and a restart loses.

    Args:
        probe: checked by `check_network`.
        other: the same network built anew, which has seen no image.

    Raises:
        InputError: after other images the two give different logits or gradients.
    """
    strangers = 2 * torch.rand(probe.images.shape, generator=torch.Generator().manual_seed(1)) ** 3
    for mode in (False, True):
        other.network.train(mode)
        other.output(strangers)
    gradient_of(other, strangers)
    for mode in (True, False):
        for one in (probe, other):
            one.network.train(mode)
        alike = torch.equal(probe.output(probe.images), other.output(probe.images))
        if mode:
            ours, theirs = (gradient_of(one, probe.images) for one in (probe, other))
            same_size = len(ours) == len(theirs)
            alike = alike and same_size and bool((ours - theirs).norm() <= TOLERANCE * ours.norm())
        if not alike:
            raise probe.refused(
                f"gives other {'logits or gradients' if mode else 'logits in evaluation'} for the same images after "
                "other images have passed: it keeps something of patients between forward passes (a running mean, the "
                "first batch). Keep nothing of images in the module, or compute it of each image alone",
                "model.keeps-statistics",
            )
    probe.network.train()


def _check_gradients(probe: Probe) -> None:
    trained = [(name, p.numel()) for name, p in probe.network.named_parameters() if p.requires_grad]
    parts = torch.split(gradient_of(probe, probe.images), [size for _, size in trained])
    still = [name for (name, _), part in zip(trained, parts, strict=True) if not part.any()]
    if still:
        raise probe.refused(
            f"parameter {first_names(still)}: gets no gradient, so it would never move. Use it in forward (nothing "
            "detached, no torch.no_grad), or set requires_grad_(False) if it is meant to stay",
            "model.gradients",
        )
