"""What others may have put beside a run is read in bounds: no pipe is waited for, no size fills the memory."""

import io
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.saved import save_model, saved_config
from fedhpc.records.beside import newest_beside
from fedhpc.records.checkpoint import load_state, save_state
from fedhpc.records.run_directory import SUMMARY_KEYS, RunDirectory
from fedhpc.records.summary import data_digest
from fedhpc.report.sources import _beside
from fedhpc.run.start.recorded_heads import recorded_heads
from fedhpc.util import regular_file
from fedhpc.util.files import read_bytes, read_json, read_lines, read_text
from fedhpc.util.regular_file import LARGEST_TEXT, each_line
from fedhpc.watch.run_view import _tail

CONFIG = RunConfig.model_validate({"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}]}})
READERS: dict[str, Callable[[Path], object]] = {
    "bytes": read_bytes,
    "text": lambda path: read_text(path, ""),
    "json": lambda path: read_json(path, ""),
    "lines": lambda path: read_lines(path, ""),
    "each-line": lambda path: list(each_line(path)),
}


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def large(path: Path) -> None:
    """A file with a hole: it takes no room on the disk."""
    path.touch()
    os.truncate(path, LARGEST_TEXT + 2)


PLANTED = [pipe, device, large]


@pytest.mark.parametrize("plant", PLANTED)
@pytest.mark.parametrize("read", READERS)
def test_readers_refuse_what_is_no_file_of_such_a_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plant: Callable[[Path], None], read: str
) -> None:
    monkeypatch.setattr("fedhpc.util.files.LARGEST_LINES", LARGEST_TEXT)
    plant(tmp_path / "a")
    if plant is large and read == "bytes":
        assert len(read_bytes(tmp_path / "a")) == LARGEST_TEXT + 2, "a model may be as large as it is"
        return
    with pytest.raises(InputError, match=str(tmp_path / "a")) as raised:
        READERS[read](tmp_path / "a")
    assert raised.value.code == "file.unfit"


def test_watch_waits_for_no_pipe_in_the_place_of_a_log(tmp_path: Path) -> None:
    pipe(tmp_path / "egress.jsonl")
    assert _tail(tmp_path / "egress.jsonl") == []


def test_each_line_ends_a_file_of_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regular_file, "LARGEST_LINES", 100)
    (tmp_path / "a").write_bytes(b"0123456789\n" * 9)
    assert len(list(each_line(tmp_path / "a"))) == 9
    (tmp_path / "a").write_bytes(b"0123456789\n" * 10)
    with pytest.raises(InputError, match="larger than"):
        list(each_line(tmp_path / "a"))


def recorded_run(folder: Path, head: str = "id:seal") -> Path:
    folder.mkdir()
    (folder / "config.yaml").write_text("data: {shards: 'x/{site}.h5'}\n", encoding="utf-8")
    (folder / "rounds.jsonl").write_text(json.dumps({"account_heads": {"a": head, "b": head}}) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", ["config.yaml", "rounds.jsonl"])
@pytest.mark.parametrize("plant", PLANTED)
def test_heads_recorded_beside_a_run_are_read_past_what_was_planted(
    tmp_path: Path, plant: Callable[[Path], None], name: str
) -> None:
    recorded_run(tmp_path / "honest")
    recorded_run(tmp_path / "long", "i" * 10**6)
    (recorded_run(tmp_path / "planted") / name).unlink()
    plant(tmp_path / "planted" / name)
    assert [(one.run, one.site) for one in recorded_heads(tmp_path / "new", ["a"])] == [("honest", "a")]


@pytest.mark.parametrize("plant", PLANTED)
def test_run_beside_is_compared_with_past_what_was_planted(tmp_path: Path, plant: Callable[[Path], None]) -> None:
    summary: dict[str, Any] = {**dict.fromkeys(SUMMARY_KEYS), "mode": "local", "data": data_digest(CONFIG)}
    for name in ("honest", "planted"):
        (tmp_path / name).mkdir()
    RunDirectory(tmp_path / "honest").write_json(tmp_path / "honest" / "summary.json", summary)
    plant(tmp_path / "planted" / "summary.json")
    assert newest_beside(tmp_path / "run", CONFIG, lambda folder, _: folder.name) == ["honest"]


@pytest.mark.parametrize("mode", [["local"], {}, None])
def test_report_leaves_out_a_run_beside_with_a_summary_of_rubbish(tmp_path: Path, mode: object) -> None:
    """It ended with a traceback."""
    run, planted = RunDirectory(tmp_path / "run"), RunDirectory(tmp_path / "planted")
    summary: dict[str, Any] = {**dict.fromkeys(SUMMARY_KEYS), "mode": mode, "data": data_digest(CONFIG)}
    for folder in (run.path, planted.path):
        folder.mkdir()
    run.write_config(CONFIG)
    planted.write_json(planted.summary, summary)
    assert _beside(run.path) == []


def packed_again(path: Path) -> None:
    """The same archive, compressed: zeros take a thousandth."""
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        parts = [(part.filename, archive.read(part)) for part in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in parts:
            archive.writestr(name, content)


def test_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    model = nn.Linear(1000, 1)
    torch.nn.init.zeros_(model.weight)
    facts = {"config": CONFIG.model_dump(mode="json"), "classes": ["a", "b"], "image_shape": [1, 8, 8]}
    save_model(tmp_path / "model.pt", model, {**facts, "f1_thresholds": [0]})
    save_state(tmp_path, "round", 1, {"params": np.zeros(1000, np.float32)})
    assert saved_config(tmp_path / "model.pt") == CONFIG
    assert load_state(tmp_path, "round", 1)["params"].size == 1000
    packed_again(tmp_path / "model.pt")
    packed_again(tmp_path / "round-0001.npz")
    with pytest.raises(InputError, match="unpacks to more than itself") as raised:
        saved_config(tmp_path / "model.pt")
    assert raised.value.code == "model.saved"
    with pytest.raises(InputError) as damaged:
        load_state(tmp_path, "round", 1)
    assert damaged.value.code == "resume.damaged-checkpoint"
