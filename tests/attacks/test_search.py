"""The search for pixels as an oracle: a sender who steers an update's bytes must not learn whose image it meets.

A payload of a private run carries noise, but bytes of it can be steered: the parameters that the aggregator sends are
multiplied by `training.weight_decay` (1e-4 by default) and SCAFFOLD's control variate is added as it is, both after the
noise. What is chosen to be sent, and the gaps between it, then follow the sender's choice and not the noise. Where a
payload with a known image's bytes was refused, the run's end told whether the image is in the shard: of any split, for
certain, and at no epsilon.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedhpc.compression.codec import encode
from fedhpc.compression.error_feedback import CompressionConfig, with_feedback
from fedhpc.compression.update import Update
from fedhpc.config.schema import RunConfig
from fedhpc.errors import PayloadError
from fedhpc.models.device import Device
from fedhpc.models.vector import parameter_count
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.run.start.open_session import _note_of
from fedhpc.site.context import SiteContext
from fedhpc.site.hospital import Hospital
from fedhpc.transport.egress_log import read_log
from fedhpc.transport.pixel_scan import ImageSearch
from fedhpc.util.arrays import F32
from fedhpc.util.log import LogFile
from tests.transport.test_egress_log import opened

INPUTS, UNITS, DENSITY = 4096, 100, 0.1
PLAN = PrivacyPlan(2.0, 1.0, 1)
PIXELS = np.random.default_rng(0).permutation(np.arange(60, 220, dtype=np.uint8))[:16]
"""Of an image that the attacker knows, and whose patient he looks for."""


class Strangers:
    """The training patients, none of whom the attacker knows (private)."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self._inputs = nn.functional.normalize(torch.randn(UNITS, INPUTS), dim=1)
        self.labels, self.early = np.arange(UNITS) % 2, np.zeros(UNITS, np.bool_)
        self.patient = np.array([f"p{row}" for row in range(UNITS)], "S8")

    def indices(self, split: str) -> np.ndarray:
        return np.arange(UNITS if split == "train" else 0)

    def inputs(self, rows: np.ndarray) -> Tensor:
        return self._inputs[torch.from_numpy(rows)]


def steering_parameters(size: int) -> F32:
    """As large as a site takes, at places whose gaps are the pixels; the other places to be sent lie side by side."""
    jumps = 1 + np.cumsum(PIXELS.astype(np.int64) + 1)
    beside = round(size * DENSITY) - len(jumps)
    places = np.concatenate([np.arange(beside), beside - 2 + jumps])
    params = np.zeros(size, np.float32)
    params[places] = 9e3
    return params


def payload_of_a_round(folder: Path) -> bytes:
    """Of a private round of FedAvg with the defaults of a config, from parameters that were made for it."""
    sites = [{"name": name, "weight": UNITS} for name in "ab"]
    tree = {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": sites},
        "training": {"local_epochs": 1},
        "privacy": {"epsilon": 1e300, "sample_rate": 1.0},
    }
    config, model = RunConfig.model_validate(tree), nn.Linear(INPUTS, 2, bias=False)
    place = SiteContext(config, model, Device(torch.device("cpu"), bf16=False), PLAN, lambda *_: None)
    site = Hospital("b", 1, UNITS, Strangers(), place)
    site.keep_ledger(folder / "ledger.jsonl", "run")
    update = site.train(steering_parameters(parameter_count(model)), 0)
    coding = CompressionConfig(config.exchange.density, config.exchange.value_bits)
    return encode(Update(1, 0, with_feedback(update, np.zeros_like(update), coding)[0]))


def steered_payload(folder: Path) -> bytes:
    """The first of the payloads that holds the pixels: by the noise of the round one in four does not (15 of 60)."""
    search = ImageSearch(blocks_of(PIXELS))
    for name in map(str, range(40)):
        (folder / name).mkdir()
        payload = payload_of_a_round(folder / name)
        if search.found(payload) is not None:
            return payload
    pytest.fail("none of 40 payloads holds the pixels that the sender chose")


def blocks_of(pixels: np.ndarray) -> np.ndarray:
    return pixels.view("<u8").reshape(-1, 2)


def test_refusal_of_a_steered_update_would_tell_whose_image_is_in_the_shard(tmp_path: Path) -> None:
    """The control, and the defence: with privacy on the same leaves with the image in the shard and without it."""
    payload = steered_payload(tmp_path)
    other = np.roll(PIXELS, 5)
    assert ImageSearch(blocks_of(PIXELS)).found(payload) is not None
    assert ImageSearch(blocks_of(other)).found(payload) is None
    left = []
    for name, pixels in (("with", PIXELS), ("without", other)):
        channel, wire = opened(tmp_path / name)
        noted: list[str] = []
        channel.search_for("b", blocks_of(pixels), noted.append)
        channel.gather([b"of a", payload], "update", 1)
        (entry,) = read_log(tmp_path / name / "b.jsonl")
        left.append((wire.passed, entry.bytes, entry.sha256, entry.searched))
        assert ["also those of an image of this site" in text for text in noted] == [True] * (name == "with")
        refusing, _ = opened(tmp_path / f"{name} refusing")
        refusing.search_for("b", blocks_of(pixels))
        if name == "with":
            with pytest.raises(PayloadError, match="those of an image"):
                refusing.gather([b"of a", payload], "update", 1)
    assert left[0] == left[1]


def test_find_that_cannot_be_written_down_ends_nothing(tmp_path: Path) -> None:
    """Who may write to a run directory could put a link in the place of the log, and learn of a find by the error."""
    sites = [{"name": name, "weight": UNITS} for name in "ab"]
    tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": sites}, "privacy": {"epsilon": 1.0}}
    (tmp_path / "log.txt").symlink_to(tmp_path / "theirs")
    for path in (tmp_path / "log.txt", tmp_path / "log.txt" / "below"):
        note = _note_of(RunConfig.model_validate(tree), LogFile(path, 1, "b"))
        channel, wire = opened(tmp_path)
        channel.search_for("b", blocks_of(PIXELS), note)
        channel.gather([b"of a", PIXELS.tobytes()], "update", 1)
        assert len(wire.passed) == 1
    assert not (tmp_path / "theirs").exists()


@pytest.mark.parametrize("kind", ["hello", "control"])
def test_what_carries_no_noise_is_refused_in_a_private_run_too(tmp_path: Path, kind: str) -> None:
    channel, wire = opened(tmp_path)
    channel.search_for("b", blocks_of(PIXELS), lambda text: None)
    payloads = [PIXELS.tobytes()] if kind == "control" else [b"of a", PIXELS.tobytes()]
    with pytest.raises(PayloadError, match="those of an image"):
        channel.gather(payloads, kind)  # type: ignore[arg-type]
    assert wire.passed == []


def test_log_of_what_left_does_not_tell_one_image_more(tmp_path: Path) -> None:
    """Once it held the number of blocks as a power of two: with 8 blocks 8, and without one of them 4."""
    found = []
    for count in (7, 8):
        channel, _ = opened(tmp_path / str(count))
        pixels = np.random.default_rng(0).integers(0, 256, 16 * count, np.uint8)
        channel.search_for("b", blocks_of(pixels))
        channel.gather([b"of a", b"of b"], "update")
        found.append([entry.searched for entry in read_log(tmp_path / str(count) / "b.jsonl")])
    assert found == [[1], [1]]
