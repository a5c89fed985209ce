"""A model measured on one site's own splits: predictions stay here, score histograms leave."""

import numpy as np
import torch
from torch import nn

from fedhpc.models.device import Device
from fedhpc.records.metrics import Predictions
from fedhpc.site.data.samples import Samples

BATCH = 256


@torch.no_grad()
def predict(model: nn.Module, samples: Samples, split: str, bench: Device, alone: bool = False) -> Predictions:
    """The model's logits on one split (private).

    With `alone` each image goes through the network by itself, so that its logits are a function of the image and of
    nothing else. In a batch they are rounded by the batch's size: one patient more would move the last bits of others,
    and with them all counts at an edge that an aggregator has put there.
    """
    rows = samples.indices(split)
    model.eval()
    blocks = [np.empty((0, 0), np.float32)] if not len(rows) else []
    for start in range(0, len(rows), BATCH):
        images = samples.inputs(rows[start : start + BATCH]).to(bench.device)
        with bench.autocast():
            parts = torch.split(images, 1 if alone else BATCH)
            blocks += [model(part).float().cpu().numpy() for part in parts]
    model.train()
    return Predictions(np.concatenate(blocks), samples.labels[rows], samples.early[rows], samples.patient[rows])
