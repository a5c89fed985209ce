"""The shard: what is written is what is read, in both modes, and no damaged file gets as far as training."""

import ctypes
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.shard_writer import write_shard
from fedhpc.errors import ShardError
from fedhpc.site.data import shard_scan
from fedhpc.site.data.shard import Shard, shard_problem
from fedhpc.util import memory

N = 12


def content(seed: int = 0, dtype: str = "uint8", n: int = N, shape: tuple[int, int, int] = (1, 8, 8)) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    return {
        "site": "site1",
        "classes": ("benign", "malignant"),
        "images": random.integers(0, 256, (n, *shape)).astype(dtype),
        "labels": random.integers(0, 2, n),
        "patient": [f"p{row}" for row in range(n)],
        "split": np.arange(n) % 3,
        "modality": [("MR", "CT", "OT")[row % 3] for row in range(n)],
        "stage": random.integers(0, 2, n),
        "pixel_range": (0.0, 255.0),
        "created_by": "test 1",
    }


@pytest.fixture
def good(tmp_path: Path) -> Path:
    write_shard(tmp_path / "site1.h5", **content())
    return tmp_path / "site1.h5"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 99),
    dtype=st.sampled_from(["uint8", "uint16", "float32"]),
    extent=st.tuples(st.integers(3, 20), st.integers(1, 3), st.integers(1, 9), st.integers(1, 9)),
    reading=st.tuples(st.lists(st.integers(0, 2), max_size=9), st.sampled_from([True, False, "auto"])),
)
def test_what_is_written_is_read(
    tmp_path: Path, seed: int, dtype: str, extent: tuple[int, int, int, int], reading: tuple[list[int], Any]
) -> None:
    (n, *shape), (rows, in_memory) = extent, reading
    given_content = content(seed, dtype, n, extent[1:])
    given_content["images"].reshape(n, -1)[:, 0] = np.arange(n)  # no two images are equal
    write_shard(tmp_path / "s.h5", **given_content)
    with Shard.open(tmp_path / "s.h5", "site1", in_memory=in_memory) as shard:
        assert shard.read(np.arange(n)).tobytes() == given_content["images"].tobytes()
        some = shard.read(np.array(rows, np.int64))
        assert some.dtype == np.dtype(dtype) and some.shape == (len(rows), *shape)
        assert np.array_equal(some, given_content["images"][rows])
        assert (shard.n, shard.image_shape, shard.pixel_range) == (n, extent[1:], (0.0, 255.0))
        assert (shard.site, shard.classes) == ("site1", ("benign", "malignant"))
        assert np.array_equal(shard.labels, given_content["labels"]) and shard.labels.dtype == np.int64
        assert [name.decode() for name in shard.patient] == given_content["patient"]
        assert [name.decode() for name in shard.modality] == given_content["modality"]
        assert np.array_equal(shard.stage, given_content["stage"]) and shard.has_stage


def test_both_modes_read_the_same_bytes_in_the_order_asked_for(good: Path) -> None:
    rows = np.random.default_rng(1).integers(0, N, 50)
    with Shard.open(good, "site1", in_memory=True) as loaded, Shard.open(good, None, in_memory=False) as streamed:
        assert loaded.in_memory and not streamed.in_memory
        assert loaded.read(rows).tobytes() == streamed.read(rows).tobytes()
        assert loaded.digest == streamed.digest


def test_a_batch_does_not_alias_the_shard(good: Path) -> None:
    with Shard.open(good, "site1", in_memory=True) as shard:
        shard.read([0])[:] = 0
        assert np.array_equal(shard.read([0])[0], content()["images"][0])


def test_auto_streams_what_does_not_fit(good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need = N * 64
    for available, in_memory in ((4 * need + 1, True), (4 * need, False)):
        monkeypatch.setattr(memory, "available_bytes", lambda free=available: free)
        with Shard.open(good, "site1") as shard:
            assert shard.in_memory is in_memory


def test_available_memory_is_a_plausible_number() -> None:
    assert 2**20 < memory.available_bytes() < 2**50


@pytest.mark.parametrize("in_memory", [True, False])
def test_digest_does_not_depend_on_the_block_size(good: Path, monkeypatch: pytest.MonkeyPatch, in_memory: bool) -> None:
    with Shard.open(good, "site1") as shard:
        digest = shard.digest
    monkeypatch.setattr(shard_scan, "BLOCK_BYTES", 100)
    with Shard.open(good, "site1", in_memory=in_memory) as shard:
        assert shard.digest == digest
        assert np.array_equal(shard.read(np.arange(N)), content()["images"])


@pytest.mark.parametrize("name", ["images", "labels", "stage", "modality"])
def test_digest_follows_the_content(good: Path, tmp_path: Path, name: str) -> None:
    other = content()
    other[name] = np.array(other[name])[::-1].copy() if name != "labels" else 1 - other[name]
    write_shard(tmp_path / "other.h5", **other)
    with Shard.open(good, None) as first, Shard.open(tmp_path / "other.h5", None) as second:
        assert first.digest != second.digest


def test_indices_divide_the_rows(good: Path) -> None:
    with Shard.open(good, "site1") as shard:
        parts = [shard.indices(split) for split in ("train", "val", "test")]
        assert [part.tolist() for part in parts] == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
        assert all(part.dtype == np.int64 for part in parts)
        with pytest.raises(ValueError, match=r"split='holdout'; allowed: train, val, test"):
            shard.indices("holdout")


def test_without_stage_it_is_zero(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.h5", **{**content(), "stage": None})
    with Shard.open(tmp_path / "s.h5", None) as shard:
        assert not shard.has_stage and shard.stage.tolist() == [0] * N and shard.stage.dtype == np.uint8


@pytest.mark.parametrize("in_memory", [True, False])
def test_rows_outside_and_reading_after_close(good: Path, in_memory: bool) -> None:
    shard = Shard.open(good, "site1", in_memory=in_memory)
    for row in (-1, N):
        with pytest.raises(IndexError, match=r"site 'site1'; allowed: 0 to 11"):
            shard.read([row])
    shard.close()
    shard.close()
    with pytest.raises(ValueError, match="closed"):
        shard.read([0])


def test_a_shard_without_training_split_serves_evaluation_only(tmp_path: Path) -> None:
    write_shard(tmp_path / "s.h5", **{**content(), "split": np.full(N, 2)})
    with Shard.open(tmp_path / "s.h5", None, need_train=False) as shard:
        assert len(shard.indices("test")) == N
    with pytest.raises(ShardError, match="empty train split"):
        Shard.open(tmp_path / "s.h5", None)


# Each damage is done to a real file, and the error must say these words.


def put(name: str, values: Any = None, **storage: Any) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file[name]
        file.create_dataset(name, data=values, **storage)

    return damage


def poke(name: str, row: Any, value: Any) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        file[name][row] = value

    return damage


def attribute(name: str, value: Any) -> Callable[[h5py.File], None]:
    return lambda file: file.attrs.__setitem__(name, value)


def drop(name: str) -> Callable[[h5py.File], None]:
    return lambda file: file.__delitem__(name)


def images(array: Any, **options: Any) -> Callable[[h5py.File], None]:
    def damage(file: h5py.File) -> None:
        del file["images"]
        options.setdefault("chunks", (1, *array.shape[1:]))
        file.create_dataset("images", data=array, **options)

    return damage


def group(file: h5py.File) -> None:
    del file["stage"]
    file.create_group("stage")


def hole(file: h5py.File) -> None:
    del file["images"]
    file.create_dataset("images", (N, 1, 8, 8), "u1", chunks=(1, 1, 8, 8))[0] = 1


def external(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = h5py.ExternalLink("elsewhere.h5", "/labels")


def outside_file(file: h5py.File) -> None:
    del file["labels"]
    file.create_dataset("labels", (N,), "<i8", external=[("names.raw", 0, N * 8)])


def commented(name: str) -> Callable[[h5py.File], None]:
    """What `h5ls -v` shows of an object beside its attributes."""
    return lambda file: h5py.h5o.set_comment(file[name].id, b"Jane Doe, 1970-01-01")


def named_type(file: h5py.File) -> None:
    """A type with an attribute of its own, whose link is gone: the dataset alone leads to it."""
    labels = file["labels"][:]
    file["type"] = labels.dtype
    file["type"].attrs["patient_name"] = "Jane Doe"
    put("labels", labels, dtype=file["type"])(file)
    del file["type"]


def twin(file: h5py.File) -> None:
    file["images"][5] = file["images"][0]


def nan_image(value: float) -> Any:
    array = content()["images"].astype("<f4")
    array[4, 0, 2, 2] = value
    return array


DAMAGES: dict[str, tuple[Callable[[h5py.File], None], str]] = {
    "version": (attribute("format_version", 2), "attribute format_version=np.int64\\(2\\); allowed: 1"),
    "version text": (attribute("format_version", "1"), "attribute format_version='1'; allowed: 1"),
    "no version": (lambda f: f.attrs.__delitem__("format_version"), "attribute 'format_version' is missing"),
    "other site": (attribute("site", "site2"), "wrong site: the file belongs to 'site2'; allowed here: 'site1'"),
    "path as site": (attribute("site", "../x"), "attribute site='../x'; allowed: a printable name"),
    "unknown attribute": (attribute("patient_name", "Doe"), "attribute 'patient_name' is unknown; allowed: .*classes"),
    "no classes": (attribute("classes", np.array([], "S1")), "attribute classes=.*two different, non-empty"),
    "twin classes": (attribute("classes", np.array(["a", "a"], "S1")), "attribute classes=.*two different"),
    "nameless class": (attribute("classes", np.array(["a", ""], "S1")), "attribute classes=.*non-empty"),
    "classes as one text": (attribute("classes", "ab"), "attribute classes='ab'; allowed: at least two"),
    "range reversed": (attribute("pixel_range", [1.0, 0.0]), "attribute pixel_range=.*the smaller one first"),
    "range of three": (attribute("pixel_range", [0.0, 1.0, 2.0]), "attribute pixel_range=.*two finite numbers"),
    "created_by number": (attribute("created_by", 3), "attribute created_by=.*one text"),
    "missing labels": (drop("labels"), "/labels is missing"),
    "missing images": (drop("images"), "/images is missing"),
    "unknown dataset": (lambda f: f.__setitem__("birthdate", [1]), "/birthdate is unknown; allowed: images, labels"),
    "note on dataset": (lambda f: f["labels"].attrs.__setitem__("note", "x"), "/labels is not a plain dataset"),
    "group": (group, "/stage is not a plain dataset"),
    "external link": (external, "/labels is not a plain dataset; allowed: one stored in this very file"),
    "comment on the file": (commented("/"), "a comment on the file; allowed: none"),
    "comment on a dataset": (commented("labels"), "/labels is not a plain dataset"),
    "named type": (named_type, "/labels is not a plain dataset"),
    "fill value": (
        put("patient", content()["patient"], fillvalue=b"Jane Doe 1970"),
        "/patient is not a plain dataset",
    ),
    "external storage": (outside_file, "/labels is not a plain dataset"),
    "labels dtype": (put("labels", np.zeros(N, "<i4")), "/labels has dtype int32; allowed: int64"),
    "patient dtype": (put("patient", np.full(N, b"p", "S20")), r"/patient has dtype \|S20; allowed: \|S16"),
    "labels 2-d": (
        put("labels", np.zeros((N, 1), "<i8")),
        r"/labels has \[0\] in row 0.*allowed: \[n, 2\], a column for",
    ),
    "labels 3-d": (
        put("labels", np.zeros((N, 2, 1), "<i8")),
        r"/labels has shape \(12, 2, 1\); allowed: \[n\] or \[n, K\]",
    ),
    "labels 2-d dtype": (put("labels", np.zeros((N, 2), "<f4")), "/labels has dtype float32; allowed: uint8 or int64"),
    "labels short": (put("labels", np.zeros(3, "<i8")), "/labels has length 3; allowed: 12, as many as /images"),
    "labels compressed": (
        put("labels", np.zeros(N, "<i8"), compression="gzip"),
        r"/labels is compressed or filtered \(deflate\); allowed: stored as it is",
    ),
    # A file of 0.1 MB with one chunk of 80 MB of zeros, for 12 labels.
    "labels inflate": (
        put("labels", np.zeros(N, "<i8"), compression="gzip", chunks=(10**7,), maxshape=(None,)),
        "/labels is compressed",
    ),
    "labels oversize": (
        put("labels", np.zeros(N, "<i8"), chunks=(2**20,), maxshape=(None,)),
        "/labels has chunks of 8,388,608 bytes for 96; allowed: 1,048,576 at most",
    ),
    "labels unwritten": (
        put("labels", shape=(N,), dtype="<i8"),
        "/labels claims 96 bytes and has 0 on disk; allowed: all written",
    ),
    "scalar": (put("split", np.uint8(1)), r"/split has shape \(\); allowed: \[n\]"),
    "images dtype": (
        images(content()["images"].astype("f8")),
        "/images has dtype float64; allowed: uint8, uint16, float32",
    ),
    "images 3-d": (images(content()["images"][:, 0]), r"/images has shape \(12, 8, 8\); allowed: \[n, C, H, W\]"),
    "chunks": (images(content()["images"], chunks=(4, 1, 8, 8)), r"/images has chunks \(4, 1, 8, 8\); allowed: one"),
    "compressed": (images(content()["images"], compression="gzip"), "allowed: one uncompressed chunk an image"),
    "hole": (hole, "/images holds 1 images of 12; allowed: all written"),
    "label too large": (poke("labels", 7, 2), "/labels has 2 in row 7; allowed: 0 to 1, for 2 classes"),
    "label negative": (poke("labels", slice(0, 5), -1), "/labels has -1 in row 0, 1, 2 and 2 more; allowed: 0 to 1"),
    "split": (poke("split", 3, 3), r"/split has 3 in row 3; allowed: 0 \(train\)"),
    "stage": (poke("stage", 2, 9), "/stage has 9 in row 2; allowed: 0, or 1 for early"),
    "modality": (poke("modality", 1, b"XX"), "/modality has b'XX' in row 1; allowed: MR, CT, OT"),
    "patient empty": (poke("patient", 1, b""), "/patient has b'' in row 1; allowed: a pseudonym"),
    "no training": (poke("split", slice(None), 1), "empty train split"),
    "NaN": (images(nan_image(np.nan)), "/images has NaN or Inf in row 4; allowed: finite"),
    "Inf": (images(nan_image(-np.inf)), "/images has NaN or Inf in row 4; allowed: finite"),
    "too bright": (images(nan_image(256)), "/images has pixels outside pixel_range in row 4; allowed: 0 to 255"),
    "too dark": (images(nan_image(-0.5)), "/images has pixels outside pixel_range in row 4"),
    "patient in two splits": (
        poke("patient", slice(0, 2), b"p0"),
        r"/patient: patient in two splits, 1 found \(row 0 p0 train and row 1 p0 val\)",
    ),
    "image in two splits": (
        twin,
        r"/images: duplicate image in two splits, 1 found \(row 0 p0 train and row 5 p5 test\)",
    ),
}


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_refused_and_named(good: Path, name: str, in_memory: bool) -> None:
    damage, words = DAMAGES[name]
    with h5py.File(good, "r+") as file:
        damage(file)
    with pytest.raises(ShardError) as caught:
        Shard.open(good, "site1", in_memory=in_memory)
    message = caught.value.private
    assert re.search(words, message), message
    assert str(good) in message and "'site1'" in message and "Remedy:" in message and "damaged" not in message


def test_all_problems_are_listed_at_once(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file["labels"][0], file["split"][1], file["modality"][2], file["stage"][3] = 9, 9, b"XX", 9
    with pytest.raises(ShardError) as caught:
        Shard.open(good, "site1")
    assert [f"/{name} has" in caught.value.private for name in ("labels", "split", "modality", "stage")] == [True] * 4


def test_a_refused_shard_is_closed_again(good: Path) -> None:
    with h5py.File(good, "r+") as file:
        file["labels"][0] = 9
    with pytest.raises(ShardError):
        Shard.open(good, "site1")
    with h5py.File(good, "r+", locking=True) as file:  # would fail were it still open for reading
        file["labels"][0] = 0
    Shard.open(good, "site1").close()


def test_missing_file_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"no such file(.|\n)*`python run.py prepare"):
        Shard.open(tmp_path / "none.h5", "site1")


@contextmanager
def as_another_account() -> Iterator[None]:
    """Look at files as one whom modes stop: root of this thread is nobody meanwhile."""
    kernel = ctypes.CDLL(None)
    kernel.setfsuid(65534 if os.geteuid() == 0 else os.geteuid())
    try:
        yield
    finally:
        kernel.setfsuid(os.geteuid())


def test_shard_of_another_account_is_not_called_damaged(good: Path) -> None:
    with TemporaryDirectory() as name:
        folder = Path(name)
        shard = folder / "site1.h5"
        shard.write_bytes(good.read_bytes())
        for closed, told in ((shard, "cannot be read by this account"), (folder, "cannot be looked at")):
            folder.chmod(0o755)
            closed.chmod(0)
            with as_another_account():
                assert told in shard_problem(shard)
                with pytest.raises(ShardError, match=rf"{told} \(Permission denied\)"):
                    Shard.open(shard, "site1")
        folder.chmod(0o700)


@pytest.mark.parametrize("keep", [0, 7, 600, -1])
def test_truncated_file(good: Path, keep: int) -> None:
    good.write_bytes(good.read_bytes()[:keep])
    with pytest.raises(ShardError, match="not a whole HDF5 file"):
        Shard.open(good, "site1")


def truncated(path: Path) -> None:
    """Cut in place, as a full disk or a failing copy leaves it: HDF5 reads zeros from an open file then."""
    os.truncate(path, path.read_bytes().find(content()["images"][N // 2].tobytes()))


def one_pixel(path: Path) -> None:
    """Another image in the same place, of the same size."""
    whole = bytearray(path.read_bytes())
    whole[whole.find(content()["images"][N - 1].tobytes())] ^= 1
    path.write_bytes(whole)


@pytest.mark.parametrize("damage", [truncated, one_pixel])
def test_changed_shard_is_not_streamed(good: Path, damage: Callable[[Path], None]) -> None:
    with Shard.open(good, "site1", in_memory=False) as shard:
        shard.read(np.arange(N))
        damage(good)
        with pytest.raises(ShardError, match="site 'site1': its images changed on disk") as caught:
            shard.read(np.arange(N))
        assert np.array_equal(shard.read([0])[0], content()["images"][0]), "what is as it was is still read"
    assert "row" not in str(caught.value) and str(good) not in str(caught.value)


def test_flipped_bytes_give_a_shard_error_or_a_readable_shard(good: Path) -> None:
    whole = good.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, min(len(whole), 4000), 150):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        good.write_bytes(damaged)
        try:
            Shard.open(good, "site1").close()
        except ShardError as error:
            assert str(good) in error.private


# The writer.


def test_same_content_same_bytes(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", **content())
    time.sleep(1.1)  # HDF5 keeps times in seconds
    blocks: Iterator[Any] = (content()["images"][row : row + 5] for row in range(0, N, 5))
    write_shard(tmp_path / "deep" / "er" / "b.h5", **{**content(), "images": blocks})
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.rglob("*.h5")}
    assert len(digests) == 1


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("before", [None, b"what was there"])
def test_a_failure_in_the_middle_leaves_no_trace(
    tmp_path: Path, error: type[BaseException], before: bytes | None
) -> None:
    def blocks() -> Iterator[Any]:
        yield content()["images"][:5]
        raise error

    path = tmp_path / "s.h5"
    if before is not None:
        path.write_bytes(before)
    with pytest.raises(error):
        write_shard(path, **{**content(), "images": blocks()})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == ({"s.h5": before} if before else {})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": [0, 1]}, "columns of different lengths"),
        ({"labels": np.zeros((N, 2, 1), int)}, r"labels has shape \(12, 2, 1\); allowed: \[n\] or \[n, K\]"),
        ({"labels": np.full((N, 2), 256)}, "labels of dtype int64 does not fit; allowed: values that uint8"),
        ({"labels": np.full(N, 0.5)}, "labels of dtype float64 does not fit; allowed: values that int64"),
        ({"split": np.full(N, 256)}, "split of dtype int64 does not fit; allowed: values that uint8"),
        ({"patient": ["a pseudonym too long"] * N}, r"patient of dtype .* does not fit; allowed: values that \|S16"),
        ({"patient": np.arange(N)}, "patient of dtype int64 does not fit"),
        ({"modality": ["MRI"] * N}, r"modality of dtype .* does not fit; allowed: values that \|S2"),
        ({"images": content()["images"][:5]}, "5 images for 12 labels"),
        ({"images": []}, "0 images for 12 labels"),
        ({"images": content(n=13)["images"]}, "12 images in all"),
        ({"images": content()["images"].astype("f8")}, "images of dtype float64"),
        ({"images": content()["images"][:, 0]}, r"shape \(12, 8, 8\); allowed: \[k, C, H, W\]"),
        (
            {"images": [np.zeros((6, 1, 8, 8), "u1"), np.zeros((6, 1, 8, 9), "u1")]},
            r"block of \(6, 1, 8, 9\) uint8 after 6",
        ),
    ],
)
def test_writer_refuses_what_hdf5_would_bend(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ShardError, match=words):
        write_shard(tmp_path / "s.h5", **{**content(), **change})
    assert list(tmp_path.iterdir()) == []


def test_user_block_is_refused(tmp_path: Path, good: Path) -> None:
    with h5py.File(tmp_path / "u.h5", "w", userblock_size=512) as target, h5py.File(good) as source:
        for name in source:
            source.copy(name, target)
        for name, value in source.attrs.items():
            target.attrs[name] = value
    with pytest.raises(ShardError) as caught:
        Shard.open(tmp_path / "u.h5", "site1")
    assert "a user block of 512 bytes; allowed: none" in caught.value.private
