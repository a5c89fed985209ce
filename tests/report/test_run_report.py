"""The page that every finished run leaves: the numbers of its records and no others, and nothing that is private."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedhpc.cli.main import main
from fedhpc.config.schema import RunConfig
from fedhpc.records.curves import ModelCurves, exact_curves, false_positive_rates
from fedhpc.records.metrics import BINS, sensitivity_at
from fedhpc.records.run_directory import RunDirectory
from fedhpc.records.study import Cell, Claim, Study, StudyDirectory
from fedhpc.report.answer import SYNTHETIC
from fedhpc.report.build import Report
from fedhpc.report.costs import costs_part
from fedhpc.report.grid import Case, stress_part
from fedhpc.report.page import detail_of
from fedhpc.report.sites import contribution_part, events_part
from fedhpc.report.sources import of_runs, of_study, write_run_report
from fedhpc.report.view import site_work
from fedhpc.run.finished.examples import write_examples
from tests.conftest import Outcome
from tests.mpi.test_federated import make_shard
from tests.report.test_report import Page, row

OPENED: list[str] | None = None


def note_open(event: str, arguments: tuple[object, ...]) -> None:
    if OPENED is not None and event == "open":
        OPENED.append(str(arguments[0]))


@contextmanager
def opened_files() -> Iterator[list[str]]:
    """The paths that this process opens."""
    global OPENED
    OPENED = []
    try:
        yield OPENED
    finally:
        OPENED = None


@pytest.fixture(scope="module")
def stopped_and_finished(
    tmp_path_factory: pytest.TempPathFactory, run_here: Callable[..., Outcome]
) -> tuple[Path, bool, Outcome]:
    """A run of two hospitals that was stopped after a round and went on; whether the stop left a page."""
    folder = tmp_path_factory.mktemp("reported")
    for site in ("site1", "site2"):
        make_shard(folder, site, 60)
    tree = {
        "name": "tiny",
        "data": {"shards": f"{folder}/{{site}}.h5", "sites": [{"name": n, "weight": 20} for n in ("site1", "site2")]},
        "privacy": "off",
        "training": {"rounds": 3, "local_epochs": 1, "batch_size": 16},
        "evaluation": {"bootstrap": 100},
        "runtime": {"threads": 1, "device": "cpu"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(tree), encoding="utf-8")
    words = ["train", folder / "tiny.yaml", "--run-dir", folder / "run"]
    assert run_here([*words, "--stop-after", "1"]).returncode == 75
    early = (folder / "run" / "report.html").exists()
    done = run_here(words)
    for shard in folder.glob("*.h5"):
        shard.unlink()
    return folder / "run", early, done


@pytest.fixture
def run(stopped_and_finished: tuple[Path, bool, Outcome], tmp_path: Path) -> Path:
    """A copy of the finished run, whose shards are gone."""
    shutil.copytree(stopped_and_finished[0], tmp_path / "run")
    return tmp_path / "run"


def page_of(text: str) -> Page:
    page = Page()
    page.feed(text)
    assert (page.open, page.fetched, page.silent) == ([], [], [])
    return page


def test_finished_run_leaves_its_report(stopped_and_finished: tuple[Path, bool, Outcome]) -> None:
    run, early, done = stopped_and_finished
    assert (early, done.returncode) == (False, 0), done.stderr
    text = (run / "report.html").read_text(encoding="utf-8")
    assert len(text) < 300_000
    page_of(text)
    assert "Traceback" not in done.stderr and "was not written" not in done.stderr


def test_report_numbers_equal_summary(run: Path) -> None:
    found = json.loads((run / "report.json").read_text(encoding="utf-8"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    rounds = [json.loads(line) for line in (run / "rounds.jsonl").read_text(encoding="utf-8").splitlines()]
    row, parts = found["rows"][0], found["parts"]
    for key in ("auc", "auc_val", "epsilon", "f1", "sensitivity"):
        assert row[key] == summary[key]
    assert [row["auc_low"], row["auc_high"]] == summary["auc_ci95"]
    assert parts["answer"]["compared"][0]["auc"] == summary["auc"]
    for one in parts["operating"]["metrics"][1:]:
        assert one["auc"] == summary["per_site"][one["site"]]["auc"]
    assert [one["auc_val"] for one in parts["progress"]["auc_by_round"]] == [one["auc_val"] for one in rounds]
    assert [(one["up"], one["down"]) for one in parts["costs"]["bytes"]] == [
        (one["bytes_up"], one["bytes_down"]) for one in rounds
    ]
    roc = {one["rate"]: one["s"] for one in parts["curves"]["roc"] if one["site"] == "all sites"}
    assert roc[0.1] == pytest.approx(summary["sensitivity"])


def test_run_without_auc_says_why_and_another_is_shown_in_full(run: Path) -> None:
    other = shutil.copytree(run, run.with_name("other"))
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    why = "too few patients of a class"
    (run / "summary.json").write_text(json.dumps({**summary, "auc": None, "reasons": {"auc": why}}), encoding="utf-8")
    (other / "summary.json").write_text(json.dumps({**summary, "synthetic": True}), encoding="utf-8")
    alone = Report(of_runs([run])).parts[0]
    assert (alone.key, list(alone.figures), alone.tiles[0].label) == ("answer", [], "Epsilon")
    assert why in alone.lead and SYNTHETIC not in alone.lead
    both = Report(of_runs([run, other]))
    assert SYNTHETIC in both.parts[0].lead
    shown = detail_of(both.content.views)
    assert shown is not None and shown.path == other


def test_report_opens_public_records_only(run: Path) -> None:
    for name in ("personal.json", "personal.pt", "log.txt", "shard.json"):
        (run / "sites" / "site1" / name).write_text("PRIVATE", encoding="utf-8")
    (run / "aggregator-log.txt").write_text("PRIVATE", encoding="utf-8")
    sys.addaudithook(note_open)
    with opened_files() as opened:
        write_run_report(run)
    inside = {Path(path).relative_to(run) for path in opened if path.startswith(str(run))}
    assert {path.name for path in inside if path.parts[:1] == ("sites",) and (run / path).is_file()} <= {"egress.jsonl"}
    assert not [path for path in opened if path.endswith((".h5", ".pt", ".npz", ".npy", "-log.txt"))]
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "PRIVATE" not in text.replace("NOT PRIVATE", "") and "<img" not in text


@pytest.mark.parametrize("name", ["summary.html", "curves.html", "report.json", "table.csv", "model.pt"])
def test_report_replaces_no_record(name: str, run: Path, run_here: Callable[..., Outcome]) -> None:
    """Its .json and .csv beside the page would be the run's own; a report of before is replaced."""
    before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
    done = run_here(["report", run, "-o", run / name])
    assert (done.returncode, "Traceback" in done.stderr) == (2, False) and "Give" in done.stderr, done
    assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before
    assert run_here(["report", run]).returncode == 0


def test_missing_records_leave_parts_out(run: Path) -> None:
    for name in ("curves.json", "environment.json", "starts.jsonl"):
        (run / name).unlink()
    for log in run.glob("sites/*/egress.jsonl"):
        log.unlink()
    found = Report(of_runs([run]))
    keys = [part.key for part in found.parts]
    assert "curves" not in keys and {"answer", "progress", "sites", "runs"} <= set(keys)
    page_of(found.html())
    for name in ("summary.json", "rounds.jsonl"):
        (run / name).unlink()
    page_of(Report(of_runs([run])).html())


def test_slow_site_is_marked(run: Path) -> None:
    """Own work ends when a site says that it has trained; what follows is waiting for the others."""

    def log(work_s: int, via: str) -> str:
        entries = []
        for number in (1, 2):
            start = datetime(2026, 1, 1, 0, number)
            for after_s, kind in ((0, "control"), (work_s, "control"), (20, "update"), (21, "metrics")):
                time = f"{(start + timedelta(seconds=after_s)).isoformat(timespec='milliseconds')}Z"
                facts = {"time": time, "round": number, "kind": kind, "via": via}
                entries.append(facts | {"bytes": 1, "sha256": "", "to": "aggregator", "searched": None})
        return "".join(f"{json.dumps(entry)}\n" for entry in entries)

    directory, view = RunDirectory(run), detail_of(of_runs([run]).views)
    assert view is not None and view.work_s == {}
    directory.egress("site1").write_text(log(2, "process"), encoding="utf-8")
    directory.egress("site2").write_text(log(19, "tls"), encoding="utf-8")
    work = site_work(directory, view.config)
    assert work == {"site1": [2.0, 2.0], "site2": [19.0, 19.0]}
    part = costs_part([view], replace(view, work_s=work))
    rows = part.figures[-1].table.records()
    assert [(one["site"], one["wait"], one["mark"]) for one in rows] == [("site1", 17.0, ""), ("site2", 0.0, "slow")]


def test_events_are_a_timeline(run: Path) -> None:
    content = of_runs([run])
    view = detail_of(content.views)
    assert view is not None
    plain = replace(view, starts=view.starts[:1])
    assert events_part(plain).is_empty
    flag = {"site": "site2", "reason": "<norm>", "detail": "9 & more", "excluded": True}
    changes: list[dict[str, Any]] = [{"absent": ["site1"]}, {"absent": ["site1"]}, {"flags": [flag]}]
    records = [{**old, **new} for old, new in zip(view.records, changes, strict=True)]
    part = events_part(replace(view, records=records))
    rows = part.figures[0].table.records()
    assert [(row["where"], row["first"], row["last"]) for row in rows[:2]] == [("site1", 1, 2), ("site2", 3, 3)]
    assert rows[1]["detail"] == "<norm>: 9 & more"
    assert rows[2]["what"] == "restart"
    assert "site1, absent, round 1 to 2" in part.figures[0].alt
    late = events_part(replace(plain, records=[{**view.records[0], "late": ["site2"]}, *view.records[1:]]))
    assert [(row["where"], row["what"]) for row in late.figures[0].table.records()] == [("site2", "late")]


def test_contribution_is_shown_with_intervals(run: Path) -> None:
    values = {site: {"value": v, "ci95": [v - 0.1, v + 0.1]} for site, v in (("site1", 0.3), ("site2", -0.05))}
    kept = {"values": {"shapley": values}, "utility": "AUC", "not_apart": [["site1", "site2"]]}
    RunDirectory(run).contribution.write_text(json.dumps(kept), encoding="utf-8")
    content = of_runs([run])
    part = contribution_part(content.views[0])
    assert [row["value"] for row in part.figures[0].table.records()] == [0.3, -0.05]
    assert "+0.300 (+0.200 to +0.400)" in Report(content).html()


@pytest.mark.parametrize(
    ("name", "content"),
    [("rounds.jsonl", '{"round": 1, "per_site": {}, "ledger_heads": {}, "seconds": {}}\n'),
     ("rounds.jsonl", '{"round": 1, "per_site": 3, "ledger_heads": 3, "seconds": 3}\n'),
     ("curves.json", '{"curves": 3}'), ("curves.json", '{"curves": {"site1": 3}}'),
     ("contribution.json", '{"values": 3}'),
     ("examples.json", '{"source": 3, "images": 3}'), ("examples.json", '{"source": "", "images": [{}]}')],
)  # fmt: skip
def test_record_of_another_shape_is_one_message(
    name: str, content: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / name).write_text(content, encoding="utf-8")
    assert main(["report", str(run)]) == 2
    assert name in capsys.readouterr().err
    assert main(["watch", str(run), "--once"]) == (2 if name == "rounds.jsonl" else 0)


def test_damaged_record_is_one_message(run: Path, run_here: Callable[..., Outcome]) -> None:
    RunDirectory(run).contribution.write_text("[]", encoding="utf-8")
    done = run_here(["report", run])
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "contribution.json: is not a JSON object" in done.stderr


def test_study_report_has_claims_and_results(run: Path, tmp_path: Path) -> None:
    """Cells that are runs are rows; cells that ran a command have a part; hostile words of a claim stay words."""
    study = StudyDirectory(tmp_path)
    (tmp_path / "codec").mkdir()
    cells = (
        Cell("head-off-s0", "federated", "head", None, 0.1, 0, "run", paper=True),
        Cell("codec", "codec", "head", None, 0.1, 0, "codec", is_run=False),
        Cell("head-off-s1", "federated", "head", None, 0.1, 1, "missing"),
    )
    study.write(Study("s", "quick", cells))
    for folder in ("run", "codec"):
        (tmp_path / folder / "outcome.json").write_text('{"state": "finished"}', encoding="utf-8")
    found = {"size": 112_500_000, "density": 0.1, "value_bits": 4, "dense_bytes": 450_000_000, "payload_bytes": 9}
    (tmp_path / "codec" / "result.json").write_text(json.dumps(found), encoding="utf-8")
    claim = Claim("AUC", "0.94", "0.93", 0.93, 0.9, 0.95, "missed", "<script>alert(1)</script>", "python run.py x")
    study.write_claims((claim,))
    content = of_study(tmp_path)
    made = Report(content)
    assert [row.name for row in content.rows] == ["head-off-s0"]
    parts = made.facts()["parts"]
    assert parts["codec"]["codec"][0] == {"what": "Dense float32", "bytes": 450_000_000}
    assert parts["paper"]["claims"][0]["verdict"] == "✗ missed"
    text = made.html()
    page_of(text)
    assert "450.0 MB" in text and "<script>alert" not in text


def test_stress_matrix_compares_with_the_clean_run() -> None:
    point = {"privacy.epsilon": None}
    rows = [row("clean", point, 0.9), row("flip", point, 0.7), row("flip-robust", point, 0.88), row("odd", point, None)]
    cases = {
        "clean": Case("", "mean"), "flip": Case("label_flip", "mean"), "flip-robust": Case("label_flip", "mda"),
        "odd": Case("nan", "mean"),
    }  # fmt: skip
    figure = stress_part(rows, cases).figures[0]
    for words in ("label_flip under mean: -0.200", "label_flip under mda: -0.020", "nan under mda: -"):
        assert words in figure.alt
    assert stress_part(rows[:1], cases).is_empty


def test_examples_come_from_no_hospital(tmp_path: Path) -> None:
    """A phantom cohort gives new synthetic patients; a reference that is a hospital's shard, or a copy of one, none."""
    make_shard(tmp_path, "site1", 20)
    tree: dict[str, Any] = {
        "name": "x",
        "privacy": {"off": True},
        "model": {"name": "frozen", "backbone": "phantom", "features": 4},
        "data": {"shards": f"{tmp_path}/{{site}}.h5", "sites": [{"name": "site1"}]},
    }
    directory = RunDirectory(tmp_path)
    shutil.copy(tmp_path / "site1.h5", tmp_path / "public.h5")
    for name in ("site1.h5", "public.h5"):
        tree["data"]["public_reference"] = f"{tmp_path}/{name}"
        write_examples(RunConfig.model_validate(tree), directory)
        assert not directory.examples.exists()
    tree["model"] = {}
    tree["data"] |= {"phantom": {"images": 100, "image_size": 32}, "public_reference": None}
    write_examples(RunConfig.model_validate(tree), directory)
    images = json.loads(directory.examples.read_text(encoding="utf-8"))["images"]
    assert [one["caption"] for one in images] == ["benign, MR as at site1", "malignant, MR as at site1"]
    assert all(one["png"].startswith("iVBORw0KGgo") for one in images)


def test_exact_curves_meet_the_operating_point() -> None:
    rng = np.random.default_rng(0)
    histogram = rng.integers(0, 3, (2, 3, BINS))
    curves = exact_curves(histogram, 0.93)
    rates = false_positive_rates(0.93)
    assert curves.sensitivities is not None
    at = dict(zip(rates.tolist(), curves.sensitivities, strict=True))
    assert at[0.07] == sensitivity_at(histogram, 0.93)
    assert (at[1.0], list(at.values())) == (1.0, sorted(at.values()))
    assert sum(one.images for one in curves.calibration) == histogram.sum()
    few = np.zeros((1, 3, BINS), np.int64)
    few[0, 0, :500], few[0, 1, :9] = 1, 1
    assert exact_curves(few, 0.9) == ModelCurves()
