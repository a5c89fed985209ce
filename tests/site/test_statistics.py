"""Statistics before training: one patient moves them by no more than promised, and is charged once, and first."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.distributions import distributions_text, read_statistics
from data_prep.shard_writer import write_shard
from fedhpc.cli.main import main
from fedhpc.errors import InputError, PrivacyError
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Terms
from fedhpc.site.data.shard import Shard
from fedhpc.site.statistics import BINS, TABLES, UNIT, exact_tables, release


def make(path: Path, patients: int, seed: int = 0, without: int | None = None, **change: Any) -> Path:
    """A shard of patients with 1 to 5 images each, of any brightness, class and modality; one may be left out."""
    random = np.random.default_rng(seed)
    owner = np.repeat(np.arange(patients), random.integers(1, 6, patients))
    n = len(owner)
    bright = random.integers(0, 200, n)
    images = (random.integers(0, 56, (n, 1, 8, 8)) + bright[:, None, None, None]).astype(np.uint8)
    content: dict[str, Any] = {
        "labels": random.integers(0, 3, n), "modality": random.choice(["MR", "CT"], n), "images": images,
        "split": (owner % 10 == 8) + 2 * (owner % 10 == 9), "patient": np.array([f"{seed} {k}" for k in owner]),
    }  # fmt: skip
    content = {name: values[owner != without] for name, values in (content | change).items()}
    write_shard(path, site=path.stem, classes=("a", "b", "c"), pixel_range=(0.0, 255.0), created_by="t", **content)
    return path


def tables(path: Path) -> Any:
    with Shard.open(path, None, in_memory=False, need_train=False) as shard:
        return exact_tables(shard)


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_one_patient_moves_the_tables_by_no_more_than_promised(tmp_path: Path, kind: str) -> None:
    change: dict[str, Any] = {}
    if kind == "multilabel":
        random = np.random.default_rng(0)
        n = len(np.repeat(np.arange(20), random.integers(1, 6, 20)))
        change["labels"] = np.random.default_rng(1).integers(0, 2, (n, 3))
    whole = tables(make(tmp_path / "all.h5", 20, **change))
    for patient in range(20):
        less = tables(make(tmp_path / "less.h5", 20, without=patient, **change))
        moved = whole - less
        assert (moved >= 0).all() and 0 < moved.sum() <= TABLES * UNIT
        if kind == "multiclass":
            assert moved.sum() > TABLES * UNIT * 0.99, "a patient counts fully, however few images there are"


def test_release_is_charged_first_and_once(tmp_path: Path) -> None:
    path, folder = make(tmp_path / "north.h5", 30), tmp_path / "ledger"
    SiteLedger.create(folder, Terms("patient", 1e-5, cap=0.8, initialised=True))
    with Shard.open(path, None, in_memory=False, need_train=False) as shard:
        found = release(shard, path, 0.5, str(folder))
        spent = SiteLedger(folder).groups()
        assert len(spent) == 1 and 0.5 <= spent[0].epsilon < 0.6, "as the account's Renyi filter counts"
        noise = np.abs(np.array(found.intensities) - exact_tables(shard)[:BINS] / UNIT)
        assert 2 < noise.mean() < 14, "of scale 6; 32 entries are outside with a chance below 1e-6"
        with pytest.raises(PrivacyError, match="released before"):
            release(shard, path, 0.5, str(folder))
    other = make(tmp_path / "again.h5", 30, labels=np.zeros(len(found_labels(path)), np.int64))
    with (
        Shard.open(other, None, in_memory=False, need_train=False) as shard,
        pytest.raises(PrivacyError, match="would pass its cap"),
    ):
        release(shard, other, 0.5, str(folder))
    assert len(SiteLedger(folder).entries("charge")) == 1


def test_renamed_shard_has_no_other_budget(tmp_path: Path) -> None:
    """Under a new site name its patients would be charged to a new account, without the hospital's cap."""
    ledgers = f"{tmp_path}/ledgers/{{site}}"
    SiteLedger.create(tmp_path / "ledgers" / "north", Terms("patient", 1e-5, cap=0.8, initialised=True))
    for site, refused in (("north", None), ("south", "some of its patients were charged")):
        path = make(tmp_path / f"{site}.h5", 30)
        with Shard.open(path, None, in_memory=False, need_train=False) as shard:
            if refused is None:
                release(shard, path, 0.5, ledgers)
            else:
                with pytest.raises(PrivacyError, match=refused):
                    release(shard, path, 0.5, ledgers)


def test_release_is_not_lost_with_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No folder: nothing is charged. A file that cannot be written after the charge: the release is printed."""
    path, ledger = make(tmp_path / "north.h5", 30), tmp_path / "ledger"
    command = ["prepare", "statistics", str(path), "--ledger", str(ledger)]
    assert main([*command, "-o", str(tmp_path / "none" / "north.json")]) == 2
    assert "its folder does not exist" in capsys.readouterr().err and not ledger.exists()
    assert main([*command, "-o", str(tmp_path / f"{'x' * 248}.json")]) == 2
    (tmp_path / "printed.json").write_text(capsys.readouterr().out)
    assert read_statistics(tmp_path / "printed.json").site == "north"


def found_labels(path: Path) -> Any:
    with Shard.open(path, None, in_memory=False, need_train=False) as shard:
        return shard.labels


def test_odd_scanner_is_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    files = []
    for number, site in enumerate(("north", "south", "east")):
        path = make(tmp_path / f"{site}.h5", 400, seed=number)
        if site == "east":
            with Shard.open(path, None, in_memory=True, need_train=False) as shard:
                bright = shard.read(np.arange(shard.n)) // 2 + 120
            path = make(tmp_path / f"{site}.h5", 400, seed=number, images=bright)
        out = tmp_path / f"{site}.json"
        assert (
            main(
                ["prepare", "statistics", str(path), "-o", str(out), "--ledger", str(tmp_path / site), "--epsilon", "2"]
            )
            == 0
        )
        files.append(out)
    told = [read_statistics(path) for path in files]
    assert sum(told[0].classes.values()) == pytest.approx(400, abs=40)
    capsys.readouterr()
    assert main(["prepare", "distributions", *map(str, files)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines == distributions_text(told).splitlines()
    distances = [float(line.split()[-2]) for line in lines[1:4]]
    assert distances[2] > 0.3 and distances[2] > 2 * max(distances[:2])
    assert main(["prepare", "statistics", str(tmp_path / "north.h5"), "-o", str(files[0])]) == 2
    (tmp_path / "wrong.json").write_text("{}")
    with pytest.raises(InputError, match="is no file of"):
        read_statistics(tmp_path / "wrong.json")
