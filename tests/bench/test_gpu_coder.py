"""The coder on the device sends the bits of the coder on the host, on the CPU and on a GPU."""

import numpy as np
import pytest
import torch

from fedhpc.bench.gpu_coder import with_feedback_on_device
from fedhpc.compression.codec import encode
from fedhpc.compression.error_feedback import CompressionConfig, with_feedback
from fedhpc.compression.update import Update
from fedhpc.errors import PayloadError
from tests.support.devices import DEVICES


def vectors(kind: str, size: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    update, residual = rng.standard_normal(size, np.float32), rng.standard_normal(size, np.float32) * np.float32(1e-3)
    if kind == "ties":
        return np.round(update), np.zeros(size, np.float32)
    if kind == "few":
        return np.where(rng.random(size) < 0.01, update, 0).astype(np.float32), np.zeros(size, np.float32)
    return update, residual


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("kind", ["normal", "ties", "few"])
@pytest.mark.parametrize(("density", "value_bits"), [(0.1, 4), (0.1, 3), (0.01, 8), (0.1, 16), (0.3, 32)])
def test_device_sends_the_bits_of_the_host(kind: str, density: float, value_bits: int, where: str) -> None:
    update, residual = vectors(kind, 20_011)
    coding = CompressionConfig(density, value_bits)
    expected, rest = with_feedback(update, residual, coding)
    on_device = [torch.from_numpy(part).to(where) for part in (update, residual)]
    sent, left = with_feedback_on_device(on_device[0], on_device[1], coding)
    assert encode(Update(0, 0, sent)) == encode(Update(0, 0, expected))
    assert left.device.type == where
    np.testing.assert_array_equal(left.cpu().numpy().view(np.uint32), rest.view(np.uint32))


@pytest.mark.parametrize("entry", [np.nan, np.inf, 2.0**127])
def test_entry_that_may_not_be_sent_is_refused_on_device(entry: float) -> None:
    update = torch.tensor([0.0, entry, 1.0])
    with pytest.raises(PayloadError):
        with_feedback_on_device(update, torch.zeros(3), CompressionConfig(0.5))
