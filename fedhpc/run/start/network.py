"""The network of a run, the same at every rank; one that is not built in is checked before it is trained."""

import contextlib
import hashlib
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PrivacyError
from fedhpc.models.backbones import Backbone
from fedhpc.models.build import build_model
from fedhpc.models.checks import check_network, check_nothing_kept
from fedhpc.models.device import Device
from fedhpc.models.monai_networks import norm_argument
from fedhpc.models.probe import Probe, backward_problem, probe_of
from fedhpc.models.task import Task
from fedhpc.models.vector import local_entries
from fedhpc.site.per_example.oracle import Sums, check_unit_gradients
from fedhpc.site.training.secure_contribution import mean_by_unit, per_image_gradients
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks


def agreed_network(config: RunConfig, task: Task, backbone: Backbone | None, transport: Transport) -> nn.Module:
    """Build and check the network at every rank, and compare its initial weights.

    Raises:
        InputError: at every rank, with the problem; or naming the ranks whose network is not that of rank 0.
    """
    if not config.model.checked:
        return build_model(config, task, backbone)
    network = run_on_all_ranks(transport, lambda: checked_network(config, task))
    agreed = broadcast_json(transport, lambda: weights_digest(network))
    run_on_all_ranks(transport, lambda: _refuse_other(network, agreed, config, transport.rank))
    return network


def check_before_cohort(config: RunConfig, sites: Sequence[str]) -> None:
    """Check a network that is not built in before the built-in cohort is made for it, which may take minutes.

    Of this cohort the task is known without a shard; `agreed_network` checks that of all others. It changes nothing:
    where the shards of these sites are there nothing is done.

    Raises:
        InputError: the first problem that was found.
    """
    missing = [name for name in sites if not config.data.shard_path(name).exists()]
    if config.data.phantom is None or not missing or not config.model.checked:
        return
    from data_prep.phantom import CLASSES

    size = config.data.phantom.image_size
    checked_network(config, Task(CLASSES, (1, size, size), config.task))


def checked_network(config: RunConfig, task: Task) -> nn.Module:
    """Build a network of `model.build` or `model.monai` and check a second one of its kind.

    Raises:
        InputError: the first problem that was found.
    """
    # What a network of the user's prints is not for standard output, which belongs to `--json`.
    with contextlib.redirect_stdout(sys.stderr):
        return _checked(config, task)


def _checked(config: RunConfig, task: Task) -> nn.Module:
    model = config.model
    network, twin = build_model(config, task), build_model(config, task)
    first = weights_digest(twin)
    probe = probe_of(twin, model, task)
    if weights_digest(network) != first:
        raise probe.refused(
            "built twice, it has different initial weights, so that sites would start from different networks. Draw "
            "them with torch only, whose generator is seeded with the run's seed",
            "model.random",
        )
    batch = config.privacy.max_physical_batch if config.private else config.training.batch_size
    check_network(probe, len(task.classes), batch, private=config.private, batch_norm_remedy=_remedy(config))
    check_nothing_kept(probe, probe_of(build_model(config, task), model, task))
    if config.private:
        _check_private(probe, secure=config.privacy.trust == "sites")
    return network


def _remedy(config: RunConfig) -> str:
    if config.model.monai is None:
        return "Use nn.GroupNorm"
    argument = norm_argument(config.model.monai)
    if argument in config.model.args:
        return f"MONAI keeps it whatever model.args.{argument} says: use another network"
    if argument is None:
        return "It has no argument for another norm: use another network"
    return f"Use group norm: model.args: {{{argument}: [group, {{num_groups: 8}}]}}"


def _check_private(probe: Probe, *, secure: bool) -> None:
    try:
        check_unit_gradients(probe.network, probe.images, probe.labels, _secure_sum if secure else None)
    except (InputError, PrivacyError) as error:
        raise probe.refused(str(error), "model.gradients") from None
    except (RuntimeError, ValueError) as error:
        raise probe.refused(backward_problem(error), "model.gradients") from None


def _secure_sum(model: nn.Module, images: Tensor, labels: Tensor, owner: Tensor, clip_norm: float) -> Sums:
    """Return the sum of clipped unit gradients by the way of privacy.trust=sites."""
    with per_image_gradients(model, Device(torch.device("cpu"), bf16=False)) as gradients:
        units = mean_by_unit(gradients(images, labels), owner)
    factor = (clip_norm / torch.linalg.vector_norm(units, dim=1)).clamp(max=1)
    total = (units * factor[:, None]).sum(0)
    return torch.split(total, [p.numel() for p in model.parameters() if p.requires_grad])


def check_local_layers(config: RunConfig, network: nn.Module) -> None:
    """Refuse a network without the layers that are to stay at the sites.

    Raises:
        InputError: it has none.
    """
    wanted = config.algorithm.local_layers
    if wanted != "none" and not local_entries(network, wanted).size:
        raise InputError(
            f"algorithm.local_layers={wanted}, {config.model.key}: the network has no "
            "normalisation layer with a trained scale or shift. Set local_layers to none",
            code="config",
        )


def weights_digest(network: nn.Module) -> str:
    """SHA-256 of the names, shapes and values of all parameters and buffers."""
    sha = hashlib.sha256()
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    for name, value in network.state_dict().items():
        if isinstance(value, nn.UninitializedParameter):
            continue  # refused by `probe_of`
        sha.update(f"{name} {value.dtype} {tuple(value.shape)} {name in trained}".encode())
        sha.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def _refuse_other(network: nn.Module, agreed: str, config: RunConfig, rank: int) -> None:
    if weights_digest(network) != agreed:
        raise InputError(
            f"{config.model.key}: rank {rank} has built another "
            "network than rank 0 from the same source and seed. Make the function depend on its arguments and on "
            "torch's generator only",
            code="model.ranks-differ",
        )
