"""The floor of `run.py bench round`: forked processes that train and average through shared memory, nothing else.

`python -m fedhpc.bench.round_floor JOB.json`: the process reads the pixels, forks, and each process trains its
sites one after the other. No checks, no messages, no checkpoint, no log; PyTorch is imported once for all of them.
Initial weights, order of the images and optimiser are those of a run with dense exchange: it makes the same model but
for the rounding of sums.

    job     {"images": FILE.npz, "sites": [NAME, ...], "weights": [...], "placement": [[0, 3], [1, 2]],
             "network": "conv4" or "resnet18", "rounds", "local_epochs", "batch_size", "lr", "momentum",
             "weight_decay", "seed", "progress": FILE, "out": FILE}
    result  {"rounds": [{"train", "exchange", "total"}, ...] in seconds, of the process of the first site; "auc"}
"""

import json
import math
import mmap
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fedhpc.bench.round_networks import conv4
from fedhpc.models.resnet import resnet18
from fedhpc.models.task import Task
from fedhpc.util.files import append_line, write_text
from fedhpc.util.rng import generator, seed_of


@dataclass(frozen=True)
class Images:
    """Pixels f32[n, C, H, W] of one split of one site, standardised one by one, and their labels."""

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Turn:
    """Which site trains in which round: the order of its images is a function of both."""

    site: str
    round: int


@dataclass(frozen=True)
class Shared:
    """What all processes see: sums of weighted parameters, one row a process, and the global parameters f32[d]."""

    sums: NDArray[np.float32]
    params: NDArray[np.float32]
    barrier: Any


def main(job_file: str) -> None:
    """Run the job and write its result."""
    torch.set_num_threads(1)
    job = json.loads(Path(job_file).read_text(encoding="utf-8"))
    train = _images(job, "train")
    model = _network(job, tuple(train[0].pixels.shape[1:]))
    size, processes = sum(p.numel() for p in model.parameters()), len(job["placement"])
    block = mmap.mmap(-1, 4 * size * (processes + 1))
    flat = np.frombuffer(block, np.float32).reshape(processes + 1, size)
    flat[-1] = _vector(model)
    shared = Shared(flat[:-1], flat[-1], get_context("fork").Barrier(processes))
    children = []
    for place in range(1, processes):
        child = os.fork()
        if not child:
            _rounds(job, place, model, train, shared)
            os._exit(0)
        children.append(child)
    rounds = _rounds(job, 0, model, train, shared)
    failed = [status for child in children if (status := os.waitpid(child, 0)[1])]
    if failed:
        sys.exit(1)
    _load(model, shared.params)
    auc = _auc(model, _images(job, "test"))
    write_text(Path(job["out"]), json.dumps({"rounds": rounds, "auc": auc}))


def _images(job: dict[str, Any], split: str) -> list[Images]:
    """Each site's split; the arrays of the file are named `<site's number>.<split>.pixels` and `.labels`."""
    found = []
    with np.load(job["images"]) as file:
        for site in range(len(job["sites"])):
            x = torch.from_numpy(file[f"{site}.{split}.pixels"].astype(np.float32))
            x = (x - x.mean((2, 3), keepdim=True)) / x.std((2, 3), correction=0, keepdim=True)
            found.append(Images(x, torch.from_numpy(file[f"{site}.{split}.labels"])))
    return found


def _network(job: dict[str, Any], image_shape: tuple[int, ...]) -> nn.Module:
    torch.manual_seed(seed_of(job["seed"], "initial weights"))
    if job["network"] == "conv4":
        return conv4(Task(("no", "yes"), (image_shape[0], image_shape[1], image_shape[2])))
    return resnet18(image_shape[0], 2)


def _rounds(
    job: dict[str, Any], place: int, model: nn.Module, train: Sequence[Images], shared: Shared
) -> list[dict[str, float]]:
    """Train and average with the other processes, to the last round."""
    sites, weights = job["placement"][place], job["weights"]
    found = []
    for number in range(job["rounds"]):
        began = time.monotonic()
        row = shared.sums[place]
        row[:] = 0
        for site in sites:
            _load(model, shared.params)
            _train(model, train[site], job, Turn(job["sites"][site], number))
            row += np.float32(weights[site]) * _vector(model)
        trained = time.monotonic()
        shared.barrier.wait()
        if place == 0:
            shared.params[:] = shared.sums.sum(axis=0) / np.float32(sum(weights))
        shared.barrier.wait()
        ended = time.monotonic()
        found.append({"train": trained - began, "exchange": ended - trained, "total": ended - began})
        if place == 0:
            append_line(Path(job["progress"]), "round", durable=False)
    return found


def _train(model: nn.Module, images: Images, job: dict[str, Any], turn: Turn) -> None:
    optimizer = torch.optim.SGD(model.parameters(), job["lr"], job["momentum"], weight_decay=job["weight_decay"])
    count = len(images.labels)
    for epoch in range(job["local_epochs"]):
        order = generator(job["seed"], turn.site, turn.round, epoch, "shuffle").permutation(count)
        for rows in map(torch.from_numpy, np.array_split(order, math.ceil(count / job["batch_size"]))):
            optimizer.zero_grad()
            value = nn.functional.cross_entropy(model(images.pixels[rows]), images.labels[rows])
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()


def _vector(model: nn.Module) -> NDArray[np.float32]:
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).numpy()


@torch.no_grad()
def _load(model: nn.Module, vector: NDArray[np.float32]) -> None:
    start = 0
    for p in model.parameters():
        p.copy_(torch.from_numpy(vector[start : start + p.numel()]).view_as(p))
        start += p.numel()


@torch.no_grad()
def _auc(model: nn.Module, test: Sequence[Images]) -> float:
    """Return the share of pairs of a positive and a negative test image that the logits order rightly."""
    model.eval()
    logits = [model(part) for one in test for part in torch.split(one.pixels, 256)]
    scores = torch.cat([one[:, 1] - one[:, 0] for one in logits]).numpy()
    labels = torch.cat([one.labels for one in test]).numpy()
    difference = scores[labels == 1][:, None] - scores[labels == 0][None]
    return float(((difference > 0) + 0.5 * (difference == 0)).mean())


if __name__ == "__main__":
    main(sys.argv[1])
