"""`tracking`: what TensorBoard and MLflow get is what rounds.jsonl has, each point once, also after a resume."""

import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml
from tensorboardX.proto.event_pb2 import Event

from fedhpc.config import tracking
from fedhpc.config.loader import checked
from fedhpc.run.rounds.tracking import _result, points, tell, tracking_problems
from tests.support.tiny_sweeps import tree_of

Run = Callable[..., tuple[int, str, str]]
Point = tuple[str, int]


def events(folder: Path) -> Iterator[tuple[Point, float]]:
    """The points of all event files: TFRecord frames of 8 bytes length, 4 bytes CRC, the event, 4 bytes CRC."""
    for path in sorted(folder.glob("events.out.tfevents.*")):
        content, at = path.read_bytes(), 0
        while at < len(content):
            (length,) = struct.unpack_from("<Q", content, at)
            event = Event.FromString(content[at + 12 : at + 12 + length])
            yield from (((value.tag, event.step), value.simple_value) for value in event.summary.value)
            at += 16 + length


def expected(run: Path) -> dict[Point, float]:
    records = [json.loads(line) for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    found = {(name, record["round"]): value for record in records for name, value in points(record)}
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    return found | {(name, summary["rounds"]): value for name, value in _result(summary).items()}


def config_in(folder: Path, tracker: str) -> Path:
    tree = {key: value for key, value in tree_of(folder).items() if key not in ("grid", "baselines")}
    tree |= {"privacy": "off", "tracking": [tracker], "mode": "local", "runtime": {"threads": 1}}
    path = folder / "tracked.yaml"
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def resumed(folder: Path, tracker: str, run_here: Run) -> Path:
    """A run that stopped after its first round and went on, with a round that was recorded and not saved in between."""
    config, run = config_in(folder, tracker), folder / "run"
    assert run_here(["train", config, "--run-dir", run, "--stop-after", "1"])[0] == 75
    record = json.loads((run / "rounds.jsonl").read_text(encoding="utf-8"))
    with (run / "rounds.jsonl").open("a", encoding="utf-8") as rounds:
        rounds.write(json.dumps({**record, "round": 2}) + "\n")
    status, _, err = run_here(["train", config, "--run-dir", run])
    assert status == 0, err
    return run


def test_tensorboard_has_each_point_once_after_resume(tmp_path: Path, run_here: Run) -> None:
    run = resumed(tmp_path, "tensorboard", run_here)
    found = list(events(run / "tensorboard"))
    assert len(found) == len(dict(found)), "a point twice"
    assert {point: pytest.approx(value, rel=1e-6) for point, value in expected(run).items()} == dict(found)


@pytest.mark.slow
def test_mlflow_has_each_point_once_after_resume(tmp_path: Path, run_here: Run) -> None:
    pytest.importorskip("mlflow", reason="needs pip install 'fedhpc[tracking]'")
    run = resumed(tmp_path, "mlflow", run_here)
    lines = [
        ("/".join(path.parts[path.parts.index("metrics") + 1 :]), line.split())
        for path in run.glob("mlruns/*/*/metrics/**/*")
        if path.is_file()
        for line in path.read_text(encoding="utf-8").splitlines()
    ]
    found = [((name, int(step)), float(value)) for name, (_, value, step) in lines]
    assert len(found) == len(dict(found)), "a point twice"
    assert dict(found) == expected(run)


def test_broken_tracker_does_not_end_the_run(caplog: pytest.LogCaptureFixture) -> None:
    class Full:
        def round(self, record: object) -> None:
            raise OSError("a private path")

        def finish(self, summary: object) -> None:
            raise AssertionError

    assert tell((Full(),), lambda sink: sink.round({})) == ()
    assert "Full" in caplog.text and "OSError" in caplog.text and "private" not in caplog.text


def test_missing_package_is_named_with_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, problems = checked(yaml.safe_load(config_in(tmp_path, "mlflow").read_text(encoding="utf-8")))
    assert config is not None and not problems
    monkeypatch.setitem(tracking.PACKAGES, "mlflow", "no_such_package_of_any_kind")
    (problem,) = tracking_problems(config)
    assert problem.startswith("tracking=mlflow: ") and "pip install 'fedhpc[tracking]'" in problem


TELLS_NOBODY = """
import sys, time
from pathlib import Path
from fedhpc.config.schema import RunConfig
asked = []
sys.addaudithook(lambda event, args: asked.append(args) if event in ("socket.getaddrinfo", "socket.connect") else None)
from fedhpc.run.rounds.tracking import MLflow
tree = {"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a"}, {"name": "b"}]}, "privacy": {"off": True}}
sink = MLflow(Path(sys.argv[1]), RunConfig.model_validate(tree), [])
sink.finish({"rounds": 1, "auc": 0.5})
import mlflow
from mlflow.telemetry.utils import is_telemetry_disabled
time.sleep(1)
print("disabled", is_telemetry_disabled(), asked)
"""


def test_mlflow_tells_its_vendor_of_no_run(tmp_path: Path) -> None:
    """Rank 0 may be a hospital's, and no egress log would show it."""
    pytest.importorskip("mlflow", reason="needs pip install 'fedhpc[tracking]'")
    # Where it takes itself to be tested it is silent anyway.
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", TELLS_NOBODY, str(tmp_path)],
        env=kept,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout == "disabled True []\n"
