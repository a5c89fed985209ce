"""A run directory goes on with what belongs to it and refuses the rest; all is checked before a file is written."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Self

import h5py
import numpy as np
import pytest
import torch
import yaml

from fedhpc.errors import InputError
from fedhpc.models.saved import load_model, saved_origin
from fedhpc.models.vector import to_vector
from fedhpc.records.checkpoint import load_state
from fedhpc.records.run_directory import RunDirectory
from tests.conftest import Outcome, run_limited
from tests.mpi.test_federated import make_shard
from tests.support.broken_runs import on_entering

SITES = ("site1", "site2")
ROUNDS = 3
Here = Callable[..., Outcome]


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small hospitals."""
    folder = tmp_path_factory.mktemp("hospitals")
    for site in SITES:
        make_shard(folder, site, 40)
    tree = {
        "name": "tiny",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": name, "weight": 14} for name in SITES]},
        "privacy": "off",
        "training": {"rounds": ROUNDS, "local_epochs": 1, "batch_size": 16, "average_last": 0.5},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    return folder / "tiny.yaml"


@pytest.fixture(scope="module")
def train(config: Path, run_here: Here) -> Here:
    """`train(run_dir, *sets)`: the command in this process."""

    def run(run_dir: Path, *sets: str, more: tuple[str, ...] = ()) -> Outcome:
        overrides = [word for pair in sets for word in ("--set", pair)]
        return run_here(["train", config, "--run-dir", run_dir, *overrides, *more])

    return run


@pytest.fixture(scope="module")
def finished(config: Path, train: Here) -> Path:
    """A finished run; copy it before use."""
    done = train(config.parent / "finished")
    assert done.returncode == 0, done.stderr
    return config.parent / "finished"


@pytest.fixture(scope="module")
def other(config: Path, train: Here) -> Path:
    """A finished run of another seed."""
    done = train(config.parent / "other", "seed=1")
    assert done.returncode == 0, done.stderr
    return config.parent / "other"


def refused(done: Outcome, words: str) -> None:
    """One clear message, status 2, no traceback."""
    assert done.returncode == 2, done
    assert re.search(words, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1


def another_round(run: Path, other: Path) -> None:
    shutil.copy(run / "state" / "round-0002.npz", run / "state" / "round-0003.npz")


def another_site(run: Path, other: Path) -> None:
    shutil.copy(run / "sites" / "site1" / "residual-0003.npz", run / "sites" / "site2" / "residual-0003.npz")


def another_kind(run: Path, other: Path) -> None:
    shutil.copy(run / "state" / "round-0003.npz", run / "sites" / "site2" / "residual-0003.npz")


def another_run(run: Path, other: Path) -> None:
    shutil.copy(other / "state" / "round-0003.npz", run / "state" / "round-0003.npz")


def another_runs_site(run: Path, other: Path) -> None:
    shutil.copy(other / "sites" / "site2" / "residual-0003.npz", run / "sites" / "site2" / "residual-0003.npz")


def config_gone(run: Path, other: Path) -> None:
    (run / "config.yaml").unlink()


def config_broken(run: Path, other: Path) -> None:
    (run / "config.yaml").write_text("training: [1, {", encoding="utf-8")


def config_cut(run: Path, other: Path) -> None:
    (run / "config.yaml").write_text("name: x\n", encoding="utf-8")


def record_cut(run: Path, other: Path) -> None:
    lines = (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "rounds.jsonl").write_text("\n".join([lines[0], lines[1][:40], lines[2], ""]), encoding="utf-8")


def record_gone(run: Path, other: Path) -> None:
    lines = (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    (run / "rounds.jsonl").write_text("\n".join([lines[0], lines[2], ""]), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (another_round, r"state/round-0003\.npz: is the checkpoint of another round 2"),
        (another_site, r"site2/residual-0003\.npz: is the checkpoint of another site 'site1', shard"),
        (
            another_kind,
            r"site2/residual-0003\.npz: is the checkpoint of another kind 'round', site 'aggregator', shard",
        ),
        (another_run, r"state/round-0003\.npz: is the checkpoint of another config"),
        (another_runs_site, r"site2/residual-0003\.npz: is the checkpoint of another config, shard"),
        (config_gone, r"config\.yaml: is missing, and .* holds rounds of a run"),
        (config_broken, r"config\.yaml"),
        (config_cut, r"config\.yaml: \d+ problem"),
        (record_cut, r"rounds\.jsonl:2: is not the record of a round; it was cut or changed"),
        (record_gone, r"rounds\.jsonl:2: is round 3; round 2 belongs there"),
    ],
)
def test_what_does_not_belong_is_refused(
    finished: Path, other: Path, train: Here, tmp_path: Path, damage: Callable[[Path, Path], None], words: str
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    damage(tmp_path / "run", other)
    refused(train(tmp_path / "run"), words)
    assert not (tmp_path / "run" / "lock.json").exists()


def test_torn_last_record_costs_its_round(finished: Path, train: Here, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    path = tmp_path / "run" / "rounds.jsonl"
    path.write_bytes(path.read_bytes()[:-30])
    done = train(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("its last line is incomplete and is left out") == 1
    assert len(path.read_text(encoding="utf-8").splitlines()) == ROUNDS


def flip_labels(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["labels"][:] = 1 - file["labels"][:]


def test_exchanged_shard_is_refused(config: Path, train: Here, tmp_path: Path) -> None:
    for site in SITES:
        shutil.copy(config.parent / f"{site}.h5", tmp_path)
    shards = f"data.shards={tmp_path}/{{site}}.h5"
    assert train(tmp_path / "run", shards, more=("--stop-after", "1")).returncode == 75
    record = tmp_path / "run" / "sites" / "site2" / "shard.json"
    assert record.stat().st_mode & 0o777 == 0o600
    residuals = list(record.parent.glob("residual-*.npz"))
    assert residuals and {path.stat().st_mode & 0o777 for path in residuals} == {0o600}
    flip_labels(tmp_path / "site2.h5")
    refused(train(tmp_path / "run", shards), "shard of site 'site2': is not the one that this run was started with")
    with h5py.File(tmp_path / "site1.h5") as file:
        assert len(file["labels"]), "the other one is as it was"
    everywhere = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and "sites" not in path.parts]
    mark = json.loads(record.read_text(encoding="utf-8"))["mark"]
    assert not [path for path in everywhere if mark.encode() in path.read_bytes()]
    flip_labels(tmp_path / "site2.h5")
    assert train(tmp_path / "run", shards).returncode == 0


def middle_of(path: Path) -> int:
    """Where in the file the image in the middle begins."""
    with h5py.File(path, locking=False) as file:
        image = file["images"][len(file["images"]) // 2].tobytes()
    return path.read_bytes().find(image)


@pytest.mark.parametrize(("phase", "work"), [("train", "training"), ("evaluate", "evaluation")])
def test_shard_cut_while_it_is_streamed_stops_the_run(
    config: Path, train: Here, tmp_path: Path, phase: str, work: str
) -> None:
    for site in SITES:
        shutil.copy(config.parent / f"{site}.h5", tmp_path)
    sets = (f"data.shards={tmp_path}/{{site}}.h5", "data.in_memory=false")
    middle = middle_of(tmp_path / "site2.h5")
    with on_entering(phase, 2, lambda: os.truncate(tmp_path / "site2.h5", middle)):
        done = train(tmp_path / "run", *sets)
    assert done.returncode == 1
    assert f"{work} failed: shard of site 'site2': its images changed on disk" in done.stderr
    assert "site site2, " in done.stderr and "round 2: " in done.stderr and "Traceback" not in done.stderr
    log = (tmp_path / "run" / "sites" / "site2" / "log.txt").read_text(encoding="utf-8")
    assert "/images row" in log and "row" not in done.stderr
    shutil.copy(config.parent / "site2.h5", tmp_path)
    assert train(tmp_path / "run", *sets).returncode == 0


def test_config_is_written_after_all_checks(train: Here, tmp_path: Path) -> None:
    wrong = train(tmp_path / "run", "model.name=frozen", "model.backbone=nowhere.pt")
    refused(wrong, "model.backbone=nowhere.pt: no such file")
    assert not (tmp_path / "run" / "config.yaml").exists()
    assert train(tmp_path / "run", more=("--stop-after", "1")).returncode == 75
    refused(train(tmp_path / "run", "seed=5"), "holds a run of another config; different: seed")


def test_directory_without_a_round_takes_another_config(finished: Path, train: Here, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "run" / "rounds.jsonl").write_bytes(b"")
    (tmp_path / "run" / "summary.json").unlink()
    assert train(tmp_path / "run", "seed=5", more=("--stop-after", "1")).returncode == 75
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))["seed"] == 5


def test_second_run_is_refused_while_the_first_trains(
    config: Path, train: Here, finished: Path, tmp_path: Path
) -> None:
    """Two real processes: the second is started in the middle of the first one's second round."""
    second: list[Outcome] = []
    command = [sys.executable, "run.py", "train", config, "--run-dir", tmp_path / "run"]
    with on_entering("train", 2, lambda: second.append(run_limited(command, 120, {"OMP_NUM_THREADS": "1"}))):
        assert train(tmp_path / "run").returncode == 0
    refused(second[0], r"run: another run is at work there: .*, process \d+, since")
    states = [load_state(run / "state", "round", ROUNDS)["params"] for run in (tmp_path / "run", finished)]
    np.testing.assert_array_equal(*states)
    assert not (tmp_path / "run" / "lock.json").exists()


@pytest.mark.parametrize("phase", ["train", "checkpoint"])
def test_deleted_directory_stops_the_run(train: Here, tmp_path: Path, phase: str) -> None:
    with on_entering(phase, 2, lambda: shutil.rmtree(tmp_path / "run")):
        done = train(tmp_path / "run")
    assert done.returncode == 2
    assert str(tmp_path / "run") in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "run" / "summary.json").exists()


def test_stale_file_handle_stops_the_run_and_loses_nothing(
    train: Here, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a file whose server was restarted, from the second round's checkpoint on."""

    def stale(*_: object) -> None:
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    with on_entering("checkpoint", 2, lambda: monkeypatch.setattr(os, "fsync", stale)):
        done = train(tmp_path / "run")
    monkeypatch.undo()
    assert done.returncode == 2 and "Stale file handle. It was removed or moved" in done.stderr
    assert "Traceback" not in done.stderr
    assert train(tmp_path / "run").returncode == 0
    states = [load_state(run / "state", "round", ROUNDS)["params"] for run in (tmp_path / "run", finished)]
    np.testing.assert_array_equal(*states)


class TenYearsBack(datetime):
    """A clock that was set back."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> Self:
        return super().now(tz) - timedelta(days=3650)


def test_clock_that_was_set_back_changes_nothing(
    train: Here, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two starts: neither order, charges nor bits go by the time of day."""
    assert train(tmp_path / "run", more=("--stop-after", "1")).returncode == 75
    asked = [module for name, module in sys.modules.items() if name.startswith("fedhpc.")]
    asked = [module for module in asked if getattr(module, "datetime", None) is datetime]
    assert {"fedhpc.util.clock", "fedhpc.transport.egress_log"} <= {module.__name__ for module in asked}
    for module in asked:
        monkeypatch.setattr(module, "datetime", TenYearsBack)
    done = train(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    states = [load_state(run / "state", "round", ROUNDS)["params"] for run in (tmp_path / "run", finished)]
    np.testing.assert_array_equal(*states)
    times = [json.loads(line)["time"] for line in (tmp_path / "run" / "starts.jsonl").read_text("utf-8").splitlines()]
    assert times[1] < times[0], "the clock did go back"


def test_broken_neighbour_is_left_out(finished: Path, train: Here, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "run")
    (tmp_path / "neighbour").mkdir()
    (tmp_path / "neighbour" / "summary.json").write_text('{"mode": "local"', encoding="utf-8")
    done = train(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "WARNING: left out of the comparison" in done.stderr and "neighbour/summary.json" in done.stderr


def test_finished_run_is_given_more_rounds(finished: Path, train: Here, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished, run)
    refused(train(run, "training.rounds=2"), "training.rounds \\(3 there, 2 here\\)")
    done = train(run, "training.rounds=5", more=("--stop-after", "1"))
    assert done.returncode == 75, done.stderr
    assert "continuing a finished run of 3 rounds to 5" in done.stdout
    assert train(run, "training.rounds=5").returncode == 0
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert (summary["rounds"], summary["continued_after"]) == (5, [3])
    assert (run / "summary-0003.json").exists() and (run / "model-0003.pt").exists()


def test_run_of_another_rule_names_only_what_was_set(finished: Path, train: Here, tmp_path: Path) -> None:
    """Each rule has keys of its own, with defaults that nobody has written."""
    shutil.copytree(finished, tmp_path / "run")
    done = train(tmp_path / "run", "aggregation={rule: geometric_median, faulty_sites: 0}")
    refused(done, "different: aggregation.rule \\('mean' there, 'geometric_median' here\\)")
    assert re.findall(r"aggregation\.\w+", done.stderr) == ["aggregation.rule"]


def test_unfinished_run_keeps_its_rounds(train: Here, tmp_path: Path) -> None:
    assert train(tmp_path / "run", more=("--stop-after", "1")).returncode == 75
    refused(train(tmp_path / "run", "training.rounds=5"), "training.rounds .*Of a finished run")


def test_run_starts_from_a_finished_one(finished: Path, train: Here, tmp_path: Path) -> None:
    done = train(tmp_path / "run", "training.rounds=1", more=("--init-from", str(finished)))
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    sha256 = hashlib.sha256((finished / "model.pt").read_bytes()).hexdigest()
    source = {"path": str(finished / "model.pt"), "sha256": sha256, "run": "tiny"}
    assert summary["init_from"].items() >= {**source, "epsilon": None, "delta": None}.items()
    assert [one.run for one in saved_origin(tmp_path / "run" / "model.pt").runs] == ["tiny", "tiny"]
    start = load_model(finished / "model.pt").network
    after = load_model(tmp_path / "run" / "model.pt").network
    fresh = load_model(finished / "model.pt").network
    for module in fresh.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    steps = [np.linalg.norm(to_vector(after) - to_vector(one)) for one in (start, fresh)]
    assert steps[0] < 0.5 * steps[1], "one round from the other run's model, not from the seed's"


@pytest.mark.parametrize(
    ("sets", "words"),
    [
        (("model.name=resnet18",), "does not fit this run: model.name is 'densenet_small' there and 'resnet18' here"),
        (("privacy.off=false", "privacy.epsilon=8", "privacy.sample_rate=0.25"), "on these hospitals without privacy"),
    ],
)
def test_start_that_does_not_fit_is_refused(
    finished: Path, train: Here, tmp_path: Path, sets: tuple[str, ...], words: str
) -> None:
    refused(train(tmp_path / "run", *sets, more=("--init-from", str(finished))), words)
    refused(train(tmp_path / "run", more=("--init-from", str(tmp_path / "none"))), "none: no such model.pt")
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_backbone_of_the_same_patients_without_privacy_is_refused(finished: Path, train: Here, tmp_path: Path) -> None:
    sets = ("model.name=frozen", f"model.backbone={finished}/model.pt", "privacy.off=false", "privacy.epsilon=8")
    refused(train(tmp_path / "run", *sets, "privacy.sample_rate=0.25"), "model.backbone=.*hospitals without privacy")


def facts_changed(path: Path, key: str, value: object) -> None:
    saved = torch.load(path, weights_only=True)
    facts = json.loads(saved["facts"])
    if value is None:
        del facts[key]
    else:
        facts[key] = value
    torch.save({**saved, "facts": json.dumps(facts)}, path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("config", {"name": "x"}),
        ("config", None),
        ("classes", ["one"]),
        ("classes", 3),
        ("image_shape", [7, 32, 32]),
        ("f1_thresholds", ["a"]),
        ("f1_thresholds", None),
    ],
)
def test_model_with_wrong_facts_is_one_message(
    config: Path, finished: Path, run_here: Here, tmp_path: Path, key: str, value: object
) -> None:
    shutil.copy(finished / "model.pt", tmp_path)
    facts_changed(tmp_path / "model.pt", key, value)
    refused(
        run_here(["evaluate", tmp_path / "model.pt", "--shard", config.parent / "site1.h5"]), "model.pt: is not the"
    )


PRIVATE = ("privacy.off=false", "privacy.sample_rate=0.25", "privacy.noise_seed=1", "training.average_last=0")


def test_more_private_rounds_need_a_larger_epsilon(train: Here, tmp_path: Path) -> None:
    run = tmp_path / "run"
    done = train(run, *PRIVATE, "privacy.epsilon=8")
    assert done.returncode == 0, done.stderr
    before = (run / "config.yaml").read_text(encoding="utf-8")
    more = train(run, *PRIVATE, "privacy.epsilon=8", "training.rounds=4")
    refused(
        more, r"site1 has spent epsilon 7\.\d+ in 3 rounds; 1 more with noise_multiplier .* above privacy\.epsilon=8"
    )
    assert (run / "config.yaml").read_text(encoding="utf-8") == before
    allowed = re.search(r"--set (privacy\.epsilon=[\d.]+)", more.stderr)
    assert allowed is not None
    done = train(run, *PRIVATE, allowed[1], "training.rounds=4")
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    assert summary["rounds"] == 4 and 8 < summary["epsilon"] <= float(allowed[1].partition("=")[2])


def test_needed_epsilon_leaves_evaluation_out(train: Here, tmp_path: Path) -> None:
    """The last charge of a finished run is an evaluation's: of other patients, of another mechanism."""
    private = ("privacy.off=false", "privacy.sample_rate=0.25", "privacy.epsilon=30", "evaluation.epsilon=20")
    run = tmp_path / "run"
    done = train(run, *private, "training.rounds=1")
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stdout.splitlines() if len(line) > 80 and " " in line.strip()]
    charges = [json.loads(line) for line in (run / "sites" / "site1" / "ledger.jsonl").read_text().splitlines()[1:]]
    assert charges[-1]["population"] == "evaluation"
    more = train(run, *private, "training.rounds=2")
    refused(more, r"site1 has spent epsilon (2\d|30)\.?\d* in 1 rounds; 1 more .* above privacy\.epsilon=30")
    allowed = re.search(r"--set (privacy\.epsilon=[\d.]+)", more.stderr)
    assert allowed is not None and float(allowed[1].partition("=")[2]) > 30
    done = train(run, *private, "training.rounds=2", allowed[1])
    assert done.returncode == 0, done.stderr


def test_evaluate_names_split_threshold_and_specificity(config: Path, finished: Path, run_here: Here) -> None:
    done = run_here(["evaluate", finished, "--shard", config.parent / "site1.h5"])
    assert done.returncode == 0, done.stderr
    for words in (r"split test: \d+ images", r"F1 .* at log odds of ", r"sensitivity .* at specificity 0\.9"):
        assert re.search(words, done.stdout), done.stdout


def test_key_of_an_earlier_version_is_named(finished: Path, train: Here, tmp_path: Path) -> None:
    """A model cannot be edited, so that it is read as it is; a config can."""
    run = tmp_path / "old"
    shutil.copytree(finished, run)
    text = (run / "config.yaml").read_text(encoding="utf-8")
    old = text.replace("aggregator_rank: shared", "aggregator: colocated")
    assert old != text
    (run / "config.yaml").write_text(old, encoding="utf-8")
    done = train(run)
    assert done.returncode == 2
    assert "federation.aggregator='colocated': was renamed; write federation.aggregator_rank" in done.stderr
    assert "change these lines" in done.stderr
    (run / "config.yaml").write_text(text, encoding="utf-8")
    assert train(run).returncode == 0
    saved = torch.load(run / "model.pt", weights_only=True)
    saved["facts"] = saved["facts"].replace('"aggregator_rank": "shared"', '"aggregator": "colocated"')
    assert '"colocated"' in saved["facts"]
    torch.save(saved, run / "model.pt")
    assert load_model(run / "model.pt").config.federation.aggregator_rank == "shared"


@pytest.mark.parametrize("line", ["3", "[]", "{}", "{", "null", '{"after_round"'])
def test_changed_list_of_starts_is_refused_by_one_message(tmp_path: Path, line: str) -> None:
    directory = RunDirectory(tmp_path)
    directory.starts.write_text(line + "\n", encoding="utf-8")
    with pytest.raises(InputError, match="remove it"):
        directory.note_start({"after_round": 0})
