"""Makes `phantom_backbone.npz`, the public backbone `phantom`: `python -m data_prep.assets.build_backbone`.

A small densenet learns to measure lesions on public phantoms (`data_prep.phantom.public`): areas of oedema, necrosis
and enhancement, the unevenness of the outline and the like. It never sees a class label, nor a head or a machine of the
built-in cohort. One thread, so that equal versions give equal bits; about a quarter of an hour.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from data_prep.phantom.public import MEASUREMENTS, TRAINING_SEED, public_cohort, public_images
from fedhpc.models.backbones import phantom_network
from fedhpc.site.data.harmonise import harmonise
from fedhpc.util.rng import generator, seed_of

IMAGES, IMAGE_SIZE, HELD_OUT = 24_000, 64, 1_500
EPOCHS, BATCH, LARGEST_LR, WEIGHT_DECAY = 14, 64, 5e-3, 1e-4
OUT = Path(__file__).with_name("phantom_backbone.npz")


def main() -> None:
    """Draw, train, tell how well each measurement is predicted on images held out, write."""
    torch.set_num_threads(1)
    torch.manual_seed(seed_of(TRAINING_SEED, "initial weights"))
    drawn = public_images(public_cohort(TRAINING_SEED, IMAGES, IMAGE_SIZE), processes=2)
    measured = drawn.measurements
    targets = torch.from_numpy((measured - measured.mean(axis=0)) / measured.std(axis=0))
    network = phantom_network(len(MEASUREMENTS))
    rows = generator(TRAINING_SEED, "held out").permutation(IMAGES)
    train(network, drawn.images, targets, rows[HELD_OUT:])
    held_out = rows[:HELD_OUT]
    with torch.no_grad():
        errors = network.eval()(harmonise(drawn.images[held_out])) - targets[held_out]
    explained = 1 - errors.square().mean(dim=0) / targets[held_out].var(dim=0)
    for name, value in zip(MEASUREMENTS, explained.tolist(), strict=True):
        print(f"{name:24} explained variance {value:.2f}")
    np.savez_compressed(OUT, **{name: value.numpy() for name, value in network.state_dict().items()})


def train(network: nn.Module, images: np.ndarray, targets: Tensor, rows: np.ndarray) -> None:
    """AdamW under a one-cycle schedule (Smith and Topin 2018), images mirrored at random in both directions."""
    steps = EPOCHS * (len(rows) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LARGEST_LR, total_steps=steps)
    rng = generator(TRAINING_SEED, "order")
    network.train()
    for _ in tqdm(range(EPOCHS), desc="epochs", disable=None):
        order = rng.permutation(rows)[: len(rows) // BATCH * BATCH]
        for batch in order.reshape(-1, BATCH):
            inputs = harmonise(images[batch])
            for axis in (2, 3):
                inputs = inputs.flip(axis) if rng.random() < 0.5 else inputs
            optimizer.zero_grad()
            nn.functional.smooth_l1_loss(network(inputs), targets[batch]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    main()
