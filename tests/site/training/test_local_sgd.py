"""The training loop: the same bits streamed or from memory, pooled rows, mirrored images, cached features."""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.shard_writer import write_shard
from fedhpc.config.schema import RunConfig, Runtime
from fedhpc.config.training import Training
from fedhpc.models.backbones import Backbone
from fedhpc.models.build import build_model
from fedhpc.models.device import Device, prepare
from fedhpc.models.task import Task
from fedhpc.models.vector import from_vector, to_vector
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.data.harmonise import harmonise
from fedhpc.site.data.samples import FeatureSamples, ImageSamples, PooledSamples, reads_files
from fedhpc.site.data.shard import Shard
from fedhpc.site.evaluation import predict
from fedhpc.site.training.dp_sgd import Entropy, Units
from fedhpc.site.training.local_sgd import (
    LocalRound,
    PrivateWork,
    learning_rate,
    mirrored,
    steps_per_epoch,
    train_plain,
    train_private,
)
from fedhpc.util.rng import generator

BENCH = Device(torch.device("cpu"), bf16=False)


def shard_file(folder: Path, site: str = "a", images: int = 40) -> Path:
    rng = generator(0, site, "test")
    folder.mkdir(exist_ok=True)
    write_shard(
        folder / f"{site}.h5",
        site=site,
        classes=("no", "yes"),
        images=rng.integers(0, 256, (images, 1, 32, 32), dtype=np.uint8),
        labels=np.arange(images) % 2,
        patient=np.array([f"{site}{i}".encode() for i in range(images)], "S16"),
        split=np.resize([0, 0, 0, 1, 2], images).astype(np.uint8),
        modality=np.full(images, b"CT", "S2"),
        pixel_range=(0, 255),
        created_by="tests",
    )
    return folder / f"{site}.h5"


def config(**training: object) -> RunConfig:
    tree = {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": [{"name": "a"}]},
        "training": {"batch_size": 8, **training},
    }
    return RunConfig.model_validate(tree)


def trained(samples: ImageSamples, **training: object) -> np.ndarray:
    model = build_model(config(), Task(("no", "yes"), (1, 32, 32)))
    steps: list[tuple[int, int]] = []
    settings = config(local_epochs=2, **training)
    train_plain(LocalRound(model, samples, settings, "a", 0, BENCH, lambda *at: steps.append(at)))
    assert steps == [(n, 6) for n in range(1, 7)]
    return to_vector(model)


def test_streaming_and_memory_train_the_same_bits(tmp_path: Path) -> None:
    path = shard_file(tmp_path)
    with Shard.open(path, "a", in_memory=True) as loaded, Shard.open(path, "a", in_memory=False) as streamed:
        assert (loaded.in_memory, streamed.in_memory) == (True, False)
        assert [reads_files(ImageSamples(shard)) for shard in (loaded, streamed)] == [False, True]
        assert reads_files(PooledSamples([ImageSamples(loaded), ImageSamples(streamed)]))
        np.testing.assert_array_equal(trained(ImageSamples(loaded)), trained(ImageSamples(streamed)))


@pytest.mark.parametrize("change", [{"optimizer": "adam"}, {"random_flip": True}, {"momentum": 0.0}, {"lr": 0.01}])
def test_every_option_of_training_changes_the_result(tmp_path: Path, change: dict[str, object]) -> None:
    with Shard.open(shard_file(tmp_path), "a") as shard:
        assert (trained(ImageSamples(shard)) != trained(ImageSamples(shard), **change)).any()


def test_part_of_an_epoch_trains_on_its_share(tmp_path: Path) -> None:
    with Shard.open(shard_file(tmp_path), "a") as shard:
        samples, read = ImageSamples(shard), []
        model = build_model(config(), Task(("no", "yes"), (1, 32, 32)))
        start, vectors = to_vector(model), []
        for epochs, effort in ((0.5, 1.0), (1, 0.5)):
            from_vector(model, start)
            steps: list[tuple[int, int]] = []
            read.append(steps)
            place = (config(local_epochs=epochs), "a", 0, BENCH, lambda *at, steps=steps: steps.append(at))
            train_plain(LocalRound(model, samples, *place, effort=effort))
            vectors.append(to_vector(model))
        whole = steps_per_epoch(len(samples.indices("train")), config().training)
        assert [len(steps) for steps in read] == [whole // 2] * 2
        np.testing.assert_array_equal(*vectors)


def test_bf16_is_near_fp32_and_not_the_same(tmp_path: Path) -> None:
    vectors = []
    with Shard.open(shard_file(tmp_path), "a") as shard:
        for bf16 in (False, True):
            model = build_model(config(), Task(("no", "yes"), (1, 32, 32)))
            start = to_vector(model)
            device, settings = Device(torch.device("cpu"), bf16), config(local_epochs=1)
            train_plain(LocalRound(model, ImageSamples(shard), settings, "a", 0, device, lambda *_: None))
            vectors.append(to_vector(model))
    assert (vectors[0] != vectors[1]).any()
    assert np.linalg.norm(vectors[1] - vectors[0]) < 0.5 * np.linalg.norm(vectors[0] - start)


@dataclass
class Some:
    """A few rows of other samples, as their training split."""

    of: ImageSamples
    rows: np.ndarray

    def __post_init__(self) -> None:
        self.labels, self.patient, self.early = self.of.labels, self.of.patient, self.of.early

    def indices(self, split: str) -> np.ndarray:
        return self.rows

    def inputs(self, rows: np.ndarray) -> torch.Tensor:
        return self.of.inputs(rows)


def test_tf32_is_asked_of_torch() -> None:
    before = torch.get_num_threads()
    try:
        for precision, expected in (("tf32", "high"), ("fp32", "highest"), ("bf16", "highest")):
            device = prepare(Runtime(device="cpu", threads=1, precision=precision), 0)
            assert (torch.get_float32_matmul_precision(), device.bf16) == (expected, precision == "bf16")
    finally:
        prepare(Runtime(device="cpu", threads=before), 0)


def test_pooled_rows_are_the_sites_rows_in_the_order_asked(tmp_path: Path) -> None:
    with Shard.open(shard_file(tmp_path, "a", 40), "a") as a, Shard.open(shard_file(tmp_path, "b", 25), "b") as b:
        parts = [ImageSamples(a), ImageSamples(b)]
        pooled = PooledSamples(parts)
        rows = np.array([64, 3, 39, 40, 3, 0])
        one_by_one = [parts[0], parts[0], parts[0], parts[1], parts[0], parts[0]]
        local = [24, 3, 39, 0, 3, 0]
        expected = torch.cat([p.inputs(np.array([r])) for p, r in zip([parts[1], *one_by_one[1:]], local, strict=True)])
        torch.testing.assert_close(pooled.inputs(rows), expected, rtol=0, atol=0)
        for split in ("train", "val", "test"):
            assert len(pooled.indices(split)) == len(a.indices(split)) + len(b.indices(split))
        np.testing.assert_array_equal(pooled.labels, np.concatenate([a.labels, b.labels]))


def test_equal_pseudonyms_of_two_sites_are_two_pooled_units(tmp_path: Path) -> None:
    """As one unit, to take the patient of one site away would change the other's clipped gradient and weight too."""
    paths = [shard_file(tmp_path / site, "a") for site in ("one", "two")]
    with Shard.open(paths[0], "a") as a, Shard.open(paths[1], "a") as b:
        parts = [ImageSamples(a), ImageSamples(b)]
        assert set(parts[0].patient) == set(parts[1].patient)
        units = [len(Units.of(samples, "patient", 4).rows) for samples in (PooledSamples(parts), *parts)]
        assert units[0] == units[1] + units[2]


def test_scores_of_an_image_do_not_depend_on_the_others(tmp_path: Path) -> None:
    """Bit for bit: an aggregator may put an edge of its counts between two roundings of all scores."""
    torch.manual_seed(0)
    model = build_model(config(), Task(("no", "yes"), (1, 32, 32)))
    with Shard.open(shard_file(tmp_path), "a") as shard:
        samples = ImageSamples(shard)
        together = predict(model, samples, "train", BENCH, alone=True)
        for count in (1, 2, 3, 5, 8):
            some = Some(samples, samples.indices("train")[-count:])
            few = predict(model, some, "train", BENCH, alone=True)
            np.testing.assert_array_equal(few.logits, together.logits[-count:])


def test_mirrored_images_are_the_image_or_its_mirror() -> None:
    images = torch.arange(64 * 12, dtype=torch.float32).view(64, 1, 3, 4)
    out = mirrored(images, np.random.default_rng(0).random(64))
    same = (out == images).all(dim=(1, 2, 3))
    turned = (out == images.flip(3)).all(dim=(1, 2, 3))
    assert (same ^ turned).all()
    assert 16 < same.sum() < 48


def test_harmonise_each_image_by_itself() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 8, 8), dtype=np.uint8)
    images[4, 1] = 7
    out = harmonise(images)
    torch.testing.assert_close(out.mean(dim=(2, 3)), torch.zeros(5, 2), atol=1e-5, rtol=0)
    spread = out.square().mean(dim=(2, 3))
    assert (spread[4, 1], (out[4, 1] == 0).all()) == (0, True)
    torch.testing.assert_close(spread.flatten()[:-1], torch.ones(9))
    torch.testing.assert_close(harmonise(images[2:3]), out[2:3], rtol=0, atol=0)
    stretched = images[:4].astype(np.uint16) * 200 + 50
    torch.testing.assert_close(harmonise(stretched), out[:4], rtol=1e-4, atol=1e-4)


def test_features_are_computed_once_and_follow_shard_and_weights(tmp_path: Path) -> None:
    class Counting(torch.nn.Module):
        calls = 0

        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            Counting.calls += 1
            return x.mean(dim=(1, 2, 3))[:, None] * self.weight + x.amax(dim=(1, 2, 3))[:, None]

    network = Counting()
    with Shard.open(shard_file(tmp_path), "a") as shard:
        first = FeatureSamples(shard, Backbone(network, 3, None), tmp_path)
        calls = Counting.calls
        again = FeatureSamples(shard, Backbone(network, 3, None), tmp_path)
        assert Counting.calls == calls > 0
        rows = np.array([7, 0])
        torch.testing.assert_close(first.inputs(rows), again.inputs(rows), rtol=0, atol=0)
        torch.testing.assert_close(first.inputs(rows), network(ImageSamples(shard).inputs(rows)))
        with torch.no_grad():
            network.weight += 1
        FeatureSamples(shard, Backbone(network, 3, None), tmp_path)
        assert len(list(tmp_path.glob("*.npy"))) == 2


def test_learning_rate_schedules() -> None:
    cosine, constant = Training(rounds=10, lr=0.5), Training(rounds=10, lr=0.5, lr_schedule="constant")
    assert [learning_rate(constant, t) for t in (0, 9)] == [0.5, 0.5]
    assert learning_rate(cosine, 0) == 0.5
    assert learning_rate(cosine, 5) == pytest.approx(0.25)
    assert 0 < learning_rate(cosine, 9) < 0.02


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "")
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
    return tmp_path / "cache"


def test_compiled_code_is_kept_in_the_accounts_own_cache(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in /tmp under the account's name, where anybody may have put code before."""
    runtime = Runtime(device="cpu", threads=1, compile=True)
    before = os.umask(0o002)  # with which its own folders were open to the group, and all was compiled at each start
    try:
        prepare(runtime, 0)
    finally:
        os.umask(before)
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    assert Path(cache_dir()) == own_cache / "fedhpc" / "compiled"
    assert (own_cache / "fedhpc" / "compiled").stat().st_mode & 0o777 == 0o700
    (own_cache / "fedhpc").chmod(0o777)  # somebody else could put code there
    for home in (str(own_cache), "/dev/null"):
        monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", home)
        prepare(runtime, 0)
        other = Path(cache_dir())
        assert other.stat().st_mode & 0o777 == 0o700 and other.owner() not in other.name
        assert not other.is_relative_to(own_cache)
    other.rmdir()


def test_compile_is_of_plain_training_alone(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch, "compile", lambda model: compiled.append(model) or model)
    model = build_model(config(), Task(("no", "yes"), (1, 32, 32)))
    assert prepare(Runtime(device="cpu", threads=1, compile=True), 0).forward(model) is model
    assert prepare(Runtime(device="cpu", threads=1), 0).forward(model) is model
    assert compiled == [model]


def test_interrupted_round_leaves_no_reader(tmp_path: Path) -> None:
    def stop(done: int, steps: int) -> None:
        raise KeyboardInterrupt

    with Shard.open(shard_file(tmp_path), "a", in_memory=False) as streamed:
        model = build_model(config(), Task(("no", "yes"), (1, 32, 32)))
        with pytest.raises(KeyboardInterrupt):
            train_plain(LocalRound(model, ImageSamples(streamed), config(), "a", 0, BENCH, stop))
    assert all(thread.name != "read ahead" for thread in threading.enumerate())


def test_private_round_reads_the_same_batches_ahead(tmp_path: Path) -> None:
    """What is drawn, and what is mirrored, follows from the stream alone, whoever reads it."""
    path, vectors = shard_file(tmp_path), []
    for in_memory in (True, False):
        with Shard.open(path, "a", in_memory=in_memory) as shard:
            model, samples = build_model(config(), Task(("no", "yes"), (1, 32, 32))), ImageSamples(shard)
            settings = config(random_flip=True)
            local = LocalRound(model, samples, settings, "a", 0, BENCH, lambda *_: None)
            drawn, noise = (KeyStream.of_seed(0, purpose) for purpose in ("sampling", "noise"))
            units, plan = Units.of(samples, "image", 1), PrivacyPlan(1.0, 0.3, 4)
            train_private(local, PrivateWork(units, plan, Entropy(drawn, noise), 24))
            vectors.append(to_vector(model))
    np.testing.assert_array_equal(*vectors)
