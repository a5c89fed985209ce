"""Odd sources and targets: nothing is dropped silently, nothing is left half, nobody's shards are mixed."""

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data_prep import decoding
from data_prep.check import check
from data_prep.image_job import ImageImport
from data_prep.images import import_images
from data_prep.spool import Spool
from data_prep.starter import write_starter
from data_prep.target import Staging
from fedhpc.config.loader import load_config
from fedhpc.errors import ShardError
from fedhpc.site.data.shard import Shard
from fedhpc.util.progress import progress
from fedhpc.util.rng import generator
from tests.conftest import Outcome

PER_CLASS = 12


def grey(seed: int, side: int = 12) -> Image.Image:
    return Image.fromarray(generator(seed, "odd").integers(0, 256, (side, side), dtype=np.uint8))


def fill(folder: Path, count: int, seed: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        grey(seed + number).save(folder / f"P{seed + number:04}.png")


@pytest.fixture
def job(tmp_path: Path) -> ImageImport:
    """Two classes of 12 images, each a patient of its own."""
    fill(tmp_path / "in" / "a", PER_CLASS)
    fill(tmp_path / "in" / "b", PER_CLASS, 100)
    return ImageImport(tmp_path / "in", tmp_path / "out", sites=2, size=8, patient_regex=r"(P\d+)")


Say = pytest.CaptureFixture[str]


def images_in(paths: list[Path]) -> int:
    total = 0
    for path in paths:
        with Shard.open(path, None, need_train=False) as shard:
            total += shard.n
    return total


def left_of(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


# What is taken, and what is not.


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "@eaDir", ".Trash-1000", "__MACOSX", "$RECYCLE.BIN"])
def test_hidden_folder_is_listed_not_taken(job: ImageImport, name: str, capsys: Say) -> None:
    for place in (job.source, job.source / "a"):
        fill(place / name, 5, 500)
    for name_of_file in (".DS_Store", "._P0001.png", "Thumbs.db"):
        (job.source / "b" / name_of_file).write_bytes(b"\0")
    assert images_in(import_images(job)) == 2 * PER_CLASS
    said = capsys.readouterr().out
    assert "found 37 files" in said and "taken 24 images: a 12, b 12" in said
    assert "13 hidden or of the system: " in said and "and 2 more" in said


def test_links_are_listed_and_followed_on_request(job: ImageImport, capsys: Say) -> None:
    fill(job.source.parent / "elsewhere", 4, 700)
    (job.source / "a" / "more").symlink_to(job.source.parent / "elsewhere")
    (job.source / "a" / "circle").symlink_to(job.source)
    for number in range(5):
        (job.source / "b" / f"P9{number}.png").symlink_to("/nowhere/annex")
    assert images_in(import_images(job)) == 2 * PER_CLASS
    said = capsys.readouterr().out
    assert "5 a link to nothing" in said and "in a linked folder (--follow-links takes it): a/circle/" in said
    again = replace(job, follow_links=True, out=job.out / "again")
    assert images_in(import_images(again)) == 2 * PER_CLASS + 4
    assert "a link to a folder that it lies in: a/circle" in capsys.readouterr().out


def test_every_kind_of_file_is_accounted_for(job: ImageImport, capsys: Say) -> None:
    folder = job.source / "a"
    for number, (suffix, form) in enumerate({"webp": "WEBP", "jfif": "JPEG", "gif": "GIF", "JP2": "JPEG2000"}.items()):
        grey(300 + number).save(folder / f"P3{number}.{suffix}", form)
    kinds = {
        "x.dcm": (b"\0" * 128 + b"DICM", "2 DICOM, which is not read yet: a/IM0001, a/x.dcm"),
        "IM0001": (b"\0" * 128 + b"DICM", "not read yet"),
        "x.nii.gz": (b"\x1f\x8b", "1 a volume or an array"),
        "x.zip": (b"PK", "1 an archive (unpack it first)"),
        "P1.scan": (b"\x89PNG\r\n\x1a\n", "1 an image by its content, not by its name"),
        "notes.txt": (b"hello", "1 no image by its name: a/notes.txt"),
    }
    for name, (content, _) in kinds.items():
        (folder / name).write_bytes(content)
    os.mkfifo(folder / "P5.png")
    shutil.copy(folder / "P0000.png", job.source / "P0000.png")
    assert images_in(import_images(job)) == 2 * PER_CLASS + 4
    said = capsys.readouterr().out
    assert "found 36 files" in said and "left out 8 files" in said
    for _, words in kinds.values():
        assert words in said
    assert "1 not a regular file: a/P5.png" in said and "1 in no class folder: P0000.png" in said


def test_list_of_all_files_only_on_request(job: ImageImport) -> None:
    (job.source / "a" / "notes.txt").write_text("x")
    import_images(job)
    assert "files.csv" not in left_of(job.out)
    import_images(replace(job, list_files=True))
    lines = (job.out / "files.csv").read_text().splitlines()
    assert len(lines) == 1 + 25 and "a/P0000.png,taken,a,1" in lines
    assert "a/notes.txt,left out,no image by its name,1" in lines


def test_output_inside_the_source_is_no_class(job: ImageImport) -> None:
    inside = replace(job, out=job.source / "shards")
    for _ in range(2):
        assert images_in(import_images(inside)) == 2 * PER_CLASS


def test_unreadable_files_are_counted(job: ImageImport, capsys: Say) -> None:
    for number in range(500):
        (job.source / "a" / f"P5{number:03}.png").write_text("version https://git-lfs.github.com/spec/v1\n")
        (job.source / "b" / f"P6{number:03}.png").write_text("")
    with pytest.raises(ShardError, match="500 a pointer of git-lfs") as caught:
        import_images(job)
    assert "500 unreadable" in str(caught.value) and len(str(caught.value).splitlines()) < 6
    assert images_in(import_images(replace(job, skip_unreadable=True))) == 2 * PER_CLASS
    assert "left out 1,000 files" in capsys.readouterr().out


def test_constant_images_are_counted(job: ImageImport, capsys: Say) -> None:
    for number in range(3):
        Image.new("L", (9, 9), number).save(job.source / "a" / f"P7{number}.png")
    assert images_in(import_images(job)) == 2 * PER_CLASS
    assert "3 of one grey value throughout: a/P70.png" in capsys.readouterr().out


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_pixels_are_refused_or_repaired(job: ImageImport, value: float, capsys: Say) -> None:
    pixels = generator(3).normal(100, 20, (12, 12)).astype(np.float32)
    expected = pixels.copy()
    pixels[0, 0] = value
    expected[0, 0] = expected[1:].max() if value == np.inf else pixels[1:].min()
    Image.fromarray(pixels).save(job.source / "a" / "P800.tiff")
    with pytest.raises(ShardError, match=r"NaN or infinite pixels: a/P800.tiff \(1 of 144 pixels\)\n.*--repair-nan"):
        import_images(job)
    assert images_in(import_images(replace(job, repair_nan=True))) == 2 * PER_CLASS + 1
    assert "with NaN or infinite pixels repaired: a/P800.tiff" in capsys.readouterr().out
    fixed = decoding.Decoder(8, repair_nan=True).decode(job.source / "a" / "P800.tiff").pixels
    assert fixed is not None and abs(fixed.astype(int) - decoding.harmonise(expected, 8)).max() <= 40 and fixed.any()


def test_image_without_a_finite_pixel_cannot_be_repaired(job: ImageImport) -> None:
    Image.fromarray(np.full((9, 9), np.nan, np.float32)).save(job.source / "a" / "P800.tiff")
    with pytest.raises(ShardError, match=r"NaN or infinite pixels: a/P800\.tiff"):
        import_images(replace(job, repair_nan=True))


def test_float_images_near_the_end_of_the_range(tmp_path: Path) -> None:
    ramp = np.linspace(-3e38, 3e38, 256, dtype=np.float32).reshape(16, 16)
    assert len(np.unique(decoding.harmonise(ramp, 16))) > 200


def test_huge_image_and_phone_photograph(job: ImageImport, monkeypatch: pytest.MonkeyPatch, capsys: Say) -> None:
    pictures = [grey(900, 40), grey(901, 40)]
    pictures[0].save(job.source / "a" / "P900.jpg", format="MPO", save_all=True, append_images=pictures[1:])
    grey(902, 60).save(job.source / "b" / "P902.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # Pillow refuses twice as many
    assert images_in(import_images(job)) == 2 * PER_CLASS + 2
    assert "1 a phone's multi-picture JPEG, the first picture taken: a/P900.jpg" in capsys.readouterr().out
    assert Image.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(decoding, "LARGE_PIXELS", 2000)
    monkeypatch.setattr(decoding, "available_bytes", lambda: 3000)
    assert images_in(import_images(replace(job, out=job.out / "small"))) == 2 * PER_CLASS + 1
    assert "too large for this machine's memory (shrink it first): b/P902.png (60 x 60 pixels)" in (
        capsys.readouterr().out
    )


def test_decoding_by_threads_is_the_same(job: ImageImport, monkeypatch: pytest.MonkeyPatch) -> None:
    contents = []
    for cores in ({0}, set(range(5))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, cores=cores: cores)
        paths = import_images(replace(job, out=job.out / str(len(cores))))
        contents.append([path.read_bytes() for path in paths])
    assert contents[0] == contents[1]


def test_progress_says_what_is_left(monkeypatch: pytest.MonkeyPatch, capsys: Say) -> None:
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr("time.monotonic", lambda: next(clock))
    assert list(progress(range(40), 40, "images")) == list(range(40))
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["images: 3 of 40, about 74 s left", "images: 13 of 40, about 54 s left"] and len(lines) == 4
    assert list(progress(range(2), 2, "images")) == [0, 1]
    assert capsys.readouterr().err == ""


# Splits that the source gives.


@pytest.fixture
def split_job(tmp_path: Path) -> ImageImport:
    for number, (split, count) in enumerate({"Training": 24, "Testing": 8}.items()):
        for label, name in enumerate("ab"):
            fill(tmp_path / "in" / split / name, count, 1000 * number + 100 * label)
    return ImageImport(tmp_path / "in", tmp_path / "out", sites=2, size=8, patient_regex=r"(P\d+)")


def test_split_folders_are_a_question(split_job: ImageImport) -> None:
    with pytest.raises(ShardError, match=r"Testing, Training: are these splits or classes(.|\n)*--split-folders"):
        import_images(split_job)


@pytest.mark.parametrize("skew", [None, 0.3])
def test_split_folders_stay_what_they_are(split_job: ImageImport, skew: float | None) -> None:
    twin = split_job.source / "Training" / "a" / "P5000.png"
    shutil.copy(split_job.source / "Testing" / "a" / "P1000.png", twin)
    paths = import_images(replace(split_job, split_folders=True, skew=skew, reference=4))
    counts = np.zeros(3, int)
    for path in paths[:2]:
        with Shard.open(path, path.stem) as shard:
            assert shard.classes == ("a", "b")
            counts += np.bincount(shard.split, minlength=3)
            assert all(len(set(shard.labels[shard.split == split])) == 2 for split in (0, 2))
    assert counts.tolist() == [48 - 4, 0, 16]


def test_validation_is_taken_from_training_on_request(split_job: ImageImport) -> None:
    counts = np.zeros(3, int)
    for path in import_images(replace(split_job, split_folders=True, val_share=0.25)):
        with Shard.open(path, path.stem) as shard:
            counts += np.bincount(shard.split, minlength=3)
    assert counts.tolist() == [36, 12, 16]


def test_patient_in_two_split_folders_is_refused(split_job: ImageImport) -> None:
    grey(5).save(split_job.source / "Testing" / "b" / "P0003.png")
    with pytest.raises(ShardError, match="1 patients lie in two split folders: p0003; allowed: each in one"):
        import_images(replace(split_job, split_folders=True))


def test_split_folders_with_others_beside_them(split_job: ImageImport) -> None:
    fill(split_job.source / "extra" / "a", 3, 9000)
    with pytest.raises(ShardError, match="extra is not named after a split"):
        import_images(replace(split_job, split_folders=True))


def test_one_split_folder_beside_the_classes_is_a_question(job: ImageImport) -> None:
    fill(job.source / "train" / "a", PER_CLASS, 200)
    with pytest.raises(ShardError, match="train: are these splits or classes"):
        import_images(job)


def test_class_without_a_test_image_is_named(split_job: ImageImport) -> None:
    shutil.rmtree(split_job.source / "Testing" / "b")
    with pytest.raises(ShardError, match=r"test split: patients per class \[8, 0\] are too few for 2 sites"):
        import_images(replace(split_job, split_folders=True))


def test_class_names_that_differ_only_in_case(job: ImageImport) -> None:
    fill(job.source / "B ", PER_CLASS, 200)
    with pytest.raises(ShardError, match="classes 'B ', 'b' differ only in case or spaces"):
        import_images(job)


def test_images_without_class_folders_are_counted(job: ImageImport) -> None:
    with pytest.raises(ShardError, match=r"0 class folders .* 12 images lie in no class folder"):
        import_images(replace(job, source=job.source / "a"))


def test_class_may_be_called_test(job: ImageImport) -> None:
    (job.source / "a").rename(job.source / "test")
    assert images_in(import_images(job)) == 2 * PER_CLASS


def test_wrapped_folder_is_pointed_to(job: ImageImport) -> None:
    with pytest.raises(ShardError, match=r"1 class folders in .*; allowed: at least two.*in holds a, b: give that"):
        import_images(replace(job, source=job.source.parent))


# Names.


def test_names_that_are_not_utf8(job: ImageImport, capsys: Say) -> None:
    folder = os.fsencode(job.source)
    os.rename(folder + b"/a/P0000.png", folder + b"/a/M\xfcller.png")
    os.rename(folder + b"/b", folder + b"/t\xfcmor")
    (job.source / "a" / "evil\n\x1b[2Jname.txt").write_text("x")
    table = job.source.parent / "p.csv"
    files = [path for path in job.source.rglob("*.png") if not path.stem.startswith("P0001")]
    lines = [b"File;Patient", *(os.fsencode(path.name) + b";" + os.fsencode(path.stem) for path in files)]
    table.write_bytes(b"\n".join([*lines, b"a\\P0001.png;x"]))
    paths = import_images(replace(job, patient_regex=None, patient_csv=table))
    assert images_in(paths) == 2 * PER_CLASS
    said = capsys.readouterr().out
    assert r"a 12, t\xfcmor 12" in said and r"a/evil\x0a\x1b[2Jname.txt" in said and "\x1b" not in said
    with Shard.open(paths[0], None) as shard:
        assert shard.classes == ("a", r"t\xfcmor")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1", "utf-16"])
def test_patient_table_of_any_origin(job: ImageImport, encoding: str) -> None:
    (job.source / "a" / "P0000.png").rename(job.source / "a" / "Mu\u0308ller.png")  # as macOS writes it
    files = sorted(path.relative_to(job.source).as_posix() for path in job.source.rglob("*.png"))
    table = job.source.parent / "p.csv"
    text = "file,patient\n" + "\n".join(f"{name},{row}" for row, name in enumerate(files))
    table.write_text(text.replace("u\u0308", "\u00fc"), encoding=encoding)
    assert images_in(import_images(replace(job, patient_regex=None, patient_csv=table))) == 2 * PER_CLASS


# The output folder.


@pytest.mark.parametrize("change", ["sites", "seed", "fold", "source", "size", "content"])
def test_shards_of_another_import_are_refused_or_replaced(job: ImageImport, change: str) -> None:
    import_images(replace(job, sites=3))
    for name in ("site1.ledger.jsonl", "site3.ledger.jsonl", "other.h5", "site1.features-0011.npy", "mine.txt"):
        (job.out / name).write_text("kept" if "features" not in name else "stale")
    other = replace(job, sites=3)
    if change == "source":
        fill(job.source / "a", 3, 300)
    elif change == "content":
        grey(77).save(job.source / "a" / "P0003.png")
    else:
        value: Any = {"sites": 2, "seed": 1, "fold": (1, 3), "size": 16}[change]
        other = replace(other, **{change: value})
    before = {path.name: path.read_bytes() for path in job.out.iterdir()}
    with pytest.raises(ShardError, match=r"holds 3 shards of another import \(site1.h5, site2.h5, site3.h5\)"):
        import_images(other)
    assert {path.name: path.read_bytes() for path in job.out.iterdir()} == before
    import_images(replace(other, replace=True))
    kept = ["mine.txt", "other.h5", "site1.h5", "site1.ledger.jsonl", "site2.h5", "site3.ledger.jsonl"]
    assert left_of(job.out) == sorted(kept + ["site3.h5"] * (change != "sites"))
    assert (job.out / "site3.ledger.jsonl").read_text() == "kept"


def test_foreign_shard_is_never_replaced(job: ImageImport) -> None:
    job.out.mkdir()
    (job.out / "site2.h5").write_bytes(b"somebody's")
    with pytest.raises(ShardError, match=r"site2\.h5 was not written by prepare images, which never replaces it"):
        import_images(replace(job, replace=True))
    assert (job.out / "site2.h5").read_bytes() == b"somebody's"


def test_one_file_does_not_mind_its_neighbours(job: ImageImport) -> None:
    first, second = (replace(job, sites=1, seed=seed, out=job.out / f"h{seed}.h5") for seed in (1, 2))
    import_images(first)
    import_images(second)
    with pytest.raises(ShardError, match=r"holds 1 shards of another import \(h1.h5\)"):
        import_images(replace(second, out=first.out))
    assert left_of(job.out) == ["h1.h5", "h2.h5"]


@pytest.mark.parametrize("place", [(Spool, "append"), (Staging, "publish"), (Spool, "blocks")])
def test_failed_import_leaves_nothing(
    job: ImageImport, place: tuple[type, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("pulled out")

    monkeypatch.setattr(*place, fail)
    with pytest.raises(RuntimeError, match="pulled out"):
        import_images(job)
    assert not job.out.exists()


def test_temporary_folder_of_a_dead_import_is_removed(job: ImageImport) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    dead, elsewhere = (f".import-{host}-{process.pid}.tmp" for host in (os.uname().nodename, "elsewhere"))
    (job.out / dead / "deep").mkdir(parents=True)
    import_images(job)
    assert left_of(job.out) == ["site1.h5", "site2.h5"]
    (job.out / elsewhere).mkdir()
    with pytest.raises(ShardError, match=rf"another import, process {process.pid} on elsewhere, is at work"):
        import_images(job)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_an_import_cleanly(
    job: ImageImport, number: int, status: int, monkeypatch: pytest.MonkeyPatch, run_here: Callable[..., Outcome]
) -> None:
    monkeypatch.setattr(Spool, "append", lambda *_: os.kill(os.getpid(), number))
    args = ["prepare", "images", job.source, "-o", job.out, "--sites", "2", "--size", "8"]
    done = run_here(args)
    assert done.returncode == status and "nothing was written" in done.stderr
    assert not job.out.exists()


@pytest.fixture(params=["limit", "tmpfs"])
def no_room(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder in which no file of 128 KiB has room."""
    folder = tmp_path / "full"
    folder.mkdir()
    if request.param == "tmpfs":
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("mounting needs root")
        yield folder
        subprocess.run(["umount", folder], check=True)
    else:
        before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (128 * 1024, before[1]))
        yield folder
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def no_room_is_a_limit(folder: Path) -> bool:
    return not os.path.ismount(folder)


@pytest.mark.parametrize("reserved", [True, False])
def test_full_disk_is_one_message(
    job: ImageImport, no_room: Path, reserved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the check at the beginning and the reservation, as under a quota, the disk is full in mid-import: on the
    # small disk while HDF5 writes.
    monkeypatch.setattr("data_prep.target._check_room", lambda *_: None)
    size = 128 if reserved or no_room_is_a_limit(no_room) else 64
    if not reserved:
        monkeypatch.setattr(Spool, "reserve", lambda *_: None)
    with pytest.raises(ShardError, match=r"(No space left on device|File too large); \d.* MB are needed"):
        import_images(replace(job, out=no_room / "out", size=size))
    assert left_of(no_room) == []


def test_disk_that_is_too_small_is_refused_at_once(job: ImageImport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result((4096, 4096, 9, 9, 9, 0, 0, 0, 0, 255)))
    with pytest.raises(ShardError, match=r"out=.*out: 36.9 kB free, 1.1 MB are needed there"):
        import_images(job)
    assert not job.out.exists()


def test_phantoms_on_full_disk_are_one_message(tmp_path: Path, run_here: Callable[..., Outcome]) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (32 * 1024, before[1]))
    try:
        done = run_here(["prepare", "phantom", "-o", tmp_path / "out", "--images", "100", "--size", "32"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert done.returncode == 2 and "File too large; 102.4 kB are needed there" in done.stderr
    assert left_of(tmp_path / "out") == []


def test_target_that_cannot_be_written_to(job: ImageImport) -> None:
    job.out.write_text("a file")
    with pytest.raises(ShardError, match=r"out=.*/deep: cannot be written to \(.*Not a directory\)"):
        import_images(replace(job, out=job.out / "deep"))
    with pytest.raises(ShardError, match=r"out=.*: cannot be written to \(.*File exists\)"):
        import_images(job)


def test_read_only_target(job: ImageImport, tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir(mode=0o555)
    if os.geteuid() == 0:  # whom modes do not stop
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip("root needs a mount to be stopped")
    try:
        with pytest.raises(ShardError, match=r"cannot be written to \(.*(Read-only|Permission).*Choose a folder"):
            import_images(replace(job, out=folder / "out"))
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", folder], check=True)


# What comes next.


def test_contact_sheet_of_a_reference_names_no_class(job: ImageImport, tmp_path: Path) -> None:
    *sites, reference = import_images(replace(job, reference=5))
    colours = []
    for path in (sites[0], reference):
        check([path], tmp_path / "sheet.png")
        with Image.open(tmp_path / "sheet.png") as sheet:
            colours.append({colour for _, colour in sheet.getcolors(2**24) or []})
    assert (86, 180, 233) in colours[0] and not {(86, 180, 233), (230, 159, 0)} & colours[1]
    with Shard.open(reference, None, need_train=False) as shard:
        assert shard.classes == ("unlabelled", "not used")


def test_starter_config_trains(tmp_path: Path, run_here: Callable[..., Outcome]) -> None:
    for label, name in enumerate("ab"):
        fill(tmp_path / "in" / name, 30, 100 * label)
    out, run = tmp_path / "out", tmp_path / "run"
    args = ["prepare", "images", tmp_path / "in", "-o", out, "--sites", "2", "--size", "32", "--modality", "mr"]
    done = run_here([*args, "--reference", "8"])
    assert done.returncode == 0 and f"python run.py train {out}/train.yaml" in done.stdout
    for path in sorted(out.glob("*.h5")):
        with Shard.open(path, None, need_train=False) as shard:
            assert set(shard.modality) == {b"MR"}
    text = (out / "train.yaml").read_text()
    assert "unit: image" in text and "hopeless" in text and "features: 2" in text
    assert "privacy and accuracy: hopeless" in " ".join(done.stdout.split())
    # The public backbone takes 10 s to load.
    changes = ["--set", "training.rounds=1", "--set", "model.backbone=phantom"]
    trained = run_here(["train", out / "train.yaml", *changes, "--run-dir", run])
    assert trained.returncode == 0, trained.stderr
    assert (run / "summary.json").exists()


def test_starter_config_without_a_reference(job: ImageImport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.starter.judged", lambda *_: None)  # it takes seconds
    monkeypatch.setattr("data_prep.starter.PHANTOMS", 20)
    import_images(job)
    told = write_starter(job)
    assert f"run.py privacy {job.out}/train.yaml" in told
    assert told.splitlines()[:2] == [f"{job.out}/phantoms.h5", f"{job.out}/train.yaml"]  # every file that was written
    config = load_config(job.out / "train.yaml", [])
    assert (
        config.private and config.data.public_reference == f"{job.out}/phantoms.h5" and config.privacy.unit == "patient"
    )
    with Shard.open(config.data.shard_path("site1"), "site1") as shard:
        assert abs((config.data.sites[0].weight or 0) - len(shard.indices("train"))) <= 1


def test_folder_that_no_config_can_name(job: ImageImport) -> None:
    named = replace(job, out=job.out / "$HOME")
    import_images(named)
    assert "no train.yaml: no config can name" in write_starter(named) and "train.yaml" not in left_of(named.out)


def test_edited_starter_config_is_kept(
    job: ImageImport, run_here: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_prep.starter.judged", lambda *_: None)  # it takes seconds
    monkeypatch.setattr("data_prep.starter.PHANTOMS", 20)
    args = ["prepare", "images", job.source, "-o", job.out, "--sites", "2", "--size", "8"]
    run_here(args)
    first = (job.out / "train.yaml").read_text()
    run_here([*args, "--seed", "1", "--replace", "--patient-regex", r"(P\d+)"])
    second = (job.out / "train.yaml").read_text()
    assert first != second and "unit: patient" in second
    (job.out / "train.yaml").write_text(second + "seed: 5\n")
    assert "was edited and is kept" in run_here([*args, "--replace"]).stdout
    assert (job.out / "train.yaml").read_text() == second + "seed: 5\n"
