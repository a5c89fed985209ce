"""Run under mpirun: each rank takes private steps on no data at all, and sends what it would release: noise alone."""

import json
import sys

import numpy as np
import torch
from torch import nn

from fedhpc.site.training.dp_sgd import NoiseConfig, PrivateStep, entropy
from fedhpc.site.training.optimizers import Sgd
from fedhpc.transport.mpi import connect

STEPS, ROUNDS, SIZE = 2, 2, 800


def released(seed: int | None, site: str, round: int) -> np.ndarray:
    """The updates of the steps of one round, float32[STEPS * SIZE]."""
    model = nn.Linear(SIZE, 1, bias=False)
    nn.init.zeros_(model.weight)
    fresh = entropy(seed, site, round)
    step = PrivateStep.wrap(model, Sgd(model.parameters(), lr=1.0), NoiseConfig(1.0, 1.0, 1.0, fresh.noise))
    updates = []
    for _ in range(STEPS):
        before = model.weight.detach().clone()
        step(torch.zeros(0, SIZE), torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), True)
        updates.append((model.weight.detach() - before).flatten().numpy())
    step.unwrap()
    return np.concatenate(updates)


def main() -> None:
    """Gather the ranks' noise for each seed, and write it as a JSON array [seed, rank * round, STEPS * SIZE]."""
    transport = connect()
    rows = []
    for seed in json.loads(sys.argv[1]):
        mine = [released(seed, f"site{transport.rank + 1}", round).tobytes() for round in range(ROUNDS)]
        rows.append([np.frombuffer(payload, np.float32).tolist() for payload in transport.gather(mine, "update")])
    if transport.rank == 0:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
