"""The report: means over seeds as laws, charts whose every mark is inside, and a page that needs nothing else."""

import csv
import json
import re
import statistics
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.cli.main import main
from fedhpc.config.schema import RunConfig
from fedhpc.records.run_directory import RunDirectory
from fedhpc.records.study import Cell
from fedhpc.records.summary import GIVEN_AWAY
from fedhpc.report.build import Report, report, write
from fedhpc.report.grid import chart_of, pareto_front
from fedhpc.report.line_chart import AUC_AXIS, BOTTOM, LEFT, RIGHT, TOP, Axis, Level, Line, LineChart, Point, draw
from fedhpc.report.page import Content
from fedhpc.report.rows import Row, groups_of
from fedhpc.report.sources import of_runs
from fedhpc.report.study_results import CellResult, result_parts
from fedhpc.report.svg import HEIGHT, WIDTH

EMPTY = {"baseline": "", "state": "finished", "message": "", "mode": "federated", "epsilon_target": None,
         "epsilon": None, "delta": None, "density": 0.1, "seed": 0}  # fmt: skip
aucs = st.one_of(st.none(), st.floats(0, 1))


def row(name: str, point: dict[str, Any], auc: float | None, **more: Any) -> Row:
    return Row(**{**EMPTY, "name": name, "point": point, "seed": point.get("seed", 0), "auc": auc, **more})


def on(name: str, keys: tuple[str, ...], rows: list[Row]) -> Report:
    """A report on rows alone."""
    return Report(Content(name, keys, tuple(rows), tuple(groups_of(rows)), "2026-11-24T10:00:00"))


@given(st.dictionaries(st.tuples(st.sampled_from((1.0, 2.0, None)), st.integers(0, 3)), aucs, min_size=1))
def test_a_group_is_all_seeds_of_one_setting(cells: dict[tuple[float | None, int], float | None]) -> None:
    rows = [
        row(f"{at}", {"privacy.epsilon": e, "seed": s}, auc, state="failed" if auc is None else "finished")
        for at, ((e, s), auc) in enumerate(cells.items())
    ]
    groups = groups_of(rows)
    assert sum(group.runs for group in groups) == len(rows)
    assert len({group.point["privacy.epsilon"] for group in groups}) == len(groups)
    for group in groups:
        mine = [auc for (e, _), auc in cells.items() if e == group.point["privacy.epsilon"]]
        there = [auc for auc in mine if auc is not None]
        assert (group.runs, group.finished, list(group.aucs)) == (len(mine), len(there), there)
        assert group.auc == (statistics.fmean(there) if there else None)
        if group.auc is not None and group.auc_lowest is not None and group.auc_highest is not None:
            assert group.auc_lowest - 1e-12 <= group.auc <= group.auc_highest + 1e-12


def test_a_report_says_against_whom_secure_aggregation_protects() -> None:
    trusted = {"protects_from_aggregator": "honest-but-curious", "epsilon_if_unmasked": 1.83}
    rows = [row("a", {"seed": 0}, 0.9, **trusted), row("b", {"seed": 1}, 0.9)]
    made = words_of(on("x", ("seed",), rows).html())
    assert "Secure aggregation of a: it protects only from an aggregator that keeps to the protocol." in made
    assert "epsilon 1.83 is left at most" in made


def test_report_says_what_no_epsilon_protects() -> None:
    """A run with a noise seed has no epsilon, and exact metrics give validation and test patients away."""
    asked = {"epsilon_target": 1.0, "delta": 1e-5}
    rows = [
        row("seeded", {"seed": 0}, 0.9, insecure=True, evaluation_epsilon=1.0, **asked),
        row("exact", {"seed": 1}, 0.9, epsilon=1.0, **asked),
        row("off", {"seed": 2}, 0.9, absent="site3 (4 rounds)"),
    ]
    found = on("x", ("seed",), rows)
    texts = [words_of(found.html()), " ".join(found.text(Path("x.html")).split())]
    for text in texts:
        assert "INSECURE: privacy.noise_seed was set in seeded: the noise can be removed" in text
        assert f"NOT PRIVATE in exact: {GIVEN_AWAY}" in text
        assert "INCOMPLETE: off has rounds without site3 (4 rounds)." in text
    secure = on("x", ("seed",), rows[2:]).html()
    assert "INSECURE" not in secure and "NOT PRIVATE" not in secure


points = st.builds(lambda x, ys: Point(x, ys[0], min(ys), max(ys)), st.floats(1e-3, 1e6),
                   st.lists(st.floats(0, 1), min_size=1, max_size=3))  # fmt: skip


@given(
    st.lists(st.lists(points, min_size=1, max_size=90), min_size=1, max_size=4),
    st.dictionaries(st.sampled_from(("centralised", "local")), st.floats(0, 1)),
    st.booleans(),
)
def test_chart_marks_lie_inside_axes(lines: list[list[Point]], levels: dict[str, float], logarithmic: bool) -> None:
    drawn = [Line(f"line <{k}>", sorted(one, key=lambda p: p.x), k) for k, one in enumerate(lines)]
    chart = LineChart(Axis("bytes", may_be_log=logarithmic), AUC_AXIS, drawn,
                      [Level(name, value, k) for k, (name, value) in enumerate(levels.items())])  # fmt: skip
    tree = ElementTree.fromstring(draw(chart))
    assert (tree.get("role"), bool(tree.get("aria-label"))) == ("img", True)
    for one in tree.iter():
        if one.get("data-tip") and one.get("cx"):
            assert LEFT - 0.1 <= float(one.get("cx", 0)) <= WIDTH - RIGHT + 0.1
            assert TOP - 0.1 <= float(one.get("cy", 0)) <= HEIGHT - BOTTOM + 0.1
    # Every line shows its last point, and no number of points makes a page large.
    told = [one.get("data-tip") for one in tree.iter() if one.get("data-tip")]
    assert all(any(str(tip).startswith(f"{one.label}:") for tip in told) for one in drawn)
    assert len(told) <= 80 * len(lines)


def test_pareto_front_is_what_nothing_beats() -> None:
    auc = {(1.0, 0.1): 0.90, (1.0, 1.0): 0.90, (8.0, 0.1): 0.89, (8.0, 1.0): 0.95, (None, 0.1): 0.95}
    rows = [row(f"{e}{d}", {"privacy.epsilon": e, "exchange.density": d}, a, bytes_up=d) for (e, d), a in auc.items()]
    front = pareto_front(groups_of(rows))
    assert [tuple(group.point.values()) for group in front] == [(1.0, 0.1), (8.0, 1.0), (None, 0.1)]


def test_the_axis_is_epsilon_and_lines_are_densities() -> None:
    points = [(e, d) for e in (1.0, 8.0, None) for d in (0.1, 1.0)]
    rows = [row(f"{e}{d}", {"privacy.epsilon": e, "exchange.density": d}, 0.5 + d / 10) for e, d in points]
    rows.append(row("c", {}, 0.97, baseline="centralised"))
    chart = chart_of(("exchange.density", "privacy.epsilon"), groups_of(rows))
    assert chart is not None
    assert chart.x.title == "epsilon"
    assert {line.label: [chart.x.shown(point.x) for point in line.points] for line in chart.lines} == {
        "density 0.1": ["1", "8", "no privacy"],
        "density 1": ["1", "8", "no privacy"],
    }
    assert {level.label: level.value for level in chart.levels} == {"centralised": 0.97}


def test_without_epsilon_the_first_key_of_numbers_is_the_axis_and_words_are_lines() -> None:
    points = [{"training.optimizer": o, "training.lr": lr} for o in ("sgd", "adam") for lr in (0.1, 0.01)]
    chart = chart_of(("training.optimizer", "training.lr"), groups_of([row("", point, 0.8) for point in points]))
    assert chart is not None
    assert chart.x.title == "lr"
    assert {line.label for line in chart.lines} == {"optimizer sgd", "optimizer adam"}
    assert chart_of(("training.optimizer",), groups_of([row("", {"training.optimizer": "sgd"}, 0.8)])) is None
    assert chart_of(("training.lr",), groups_of([row("", points[0], None, state="failed")])) is None


class Page(HTMLParser):
    """The tags that are open, the words, and whatever would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.words: list[str] = []
        self.silent: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "path", "circle", "rect", "img"):
            self.open.append(tag)
        self.fetched += [
            str(value) for key, value in attrs if key in ("src", "href") and not str(value).startswith(("#", "data:"))
        ]
        found = dict(attrs)
        self.silent += [tag] if tag == "svg" and not (found.get("aria-label") or found.get("aria-hidden")) else []
        self.silent += [tag] if tag == "img" and not found.get("alt") else []

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "circle", "rect"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def words_of(text: str) -> str:
    """What a page says, without its styles, scripts and numbers."""
    page = Page()
    page.feed(re.sub(r"<(script|style)[^>]*>.*?</\1>", "", text, flags=re.S))
    assert page.open == []
    return " ".join(" ".join(page.words).split())


@pytest.fixture
def hostile() -> Report:
    """Names and messages as nobody should choose them."""
    rows = [
        row("<b>&", {"privacy.epsilon": 1.0, "seed": 0}, 0.81, epsilon=0.99, delta=1e-5, bytes_up=1e6, git="abc"),
        row('"x"', {"privacy.epsilon": 1.0, "seed": 1}, None, state="failed", message="<script>\nline 2, with comma"),
        row("c", {"seed": 0}, 0.97, baseline="centralised", mode="centralised", density=None),
    ]
    return on("a <&> b", ("privacy.epsilon", "seed"), rows)


def test_page_is_well_formed_fetches_nothing_and_says_all(hostile: Report, tmp_path: Path) -> None:
    write(hostile, tmp_path / "out.html")
    text = (tmp_path / "out.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert (page.open, page.fetched, page.silent) == ([], [], [])
    assert "http" not in text.replace("http-equiv", "") and "@import" not in text and "url(" not in text
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:" in text
    assert len(text) < 300_000
    words = words_of(text)
    for expected in ("<b>&", "<script>", "0.810", "0.970", "1 of 2", "1.0 MB", "failed", "2026-11-24 10:00 UTC", "abc"):
        assert expected in words


def test_json_and_csv_say_the_same(hostile: Report, tmp_path: Path) -> None:
    write(hostile, tmp_path / "out.html")
    facts = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    with (tmp_path / "out.csv").open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert facts == json.loads(json.dumps(hostile.facts()))
    assert len(table) == len(facts["rows"]) == 3
    for line, fact in zip(table, facts["rows"], strict=True):
        for key in ("name", "message", "auc", "epsilon", "seed", "bytes_up"):
            assert line[key] == ("" if fact[key] is None else str(fact[key]))


def write_run(path: Path, auc: float, **changes: Any) -> RunConfig:
    """A finished run's directory, as far as a report reads it."""
    tree = {"name": path.name, "data": {"shards": "x/{site}.h5", "sites": [{"name": "a", "weight": 3}]}, **changes}
    config, directory = RunConfig.model_validate(tree), RunDirectory(path)
    directory.write_config(config)
    summary = {"mode": config.mode, "auc": auc, "auc_ci95": [auc - 0.1, auc + 0.1], "seconds": {"total": 3.0}}
    summary |= dict.fromkeys(("epsilon", "auc_val", "f1", "sensitivity_early", "git"))
    summary |= dict.fromkeys(("bytes_up_per_round", "bytes_down_per_round", "dense_bytes_per_round"), 5.0)
    directory.write_json(directory.summary, {**summary, "stopped": "finished"})
    return config


def test_a_report_on_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "one", 0.8, privacy={"epsilon": 1.0})
    write_run(tmp_path / "two", 0.9, privacy={"epsilon": 4.0})
    write_run(tmp_path / "all", 0.95, mode="centralised")
    (tmp_path / "all" / "summary.json").unlink()
    paths = [str(tmp_path / name) for name in ("one", "two", "all")]
    assert main(["report", *paths]) == 2
    assert "-o report.html" in capsys.readouterr().err
    assert main(["report", *paths, "-o", str(tmp_path / "r.html"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(r["epsilon_target"], r["auc"], r["state"]) for r in facts["rows"]] == [
        (1.0, 0.8, "finished"), (4.0, 0.9, "finished"), (None, None, "unfinished"),
    ]  # fmt: skip
    assert [r["baseline"] for r in facts["rows"]] == ["", "", "centralised"]
    assert main(["report", paths[0]]) == 0
    assert (tmp_path / "one" / "report.html").exists()


def test_runs_on_different_data_are_set_apart(tmp_path: Path) -> None:
    """One line and one level line each: their figures do not compare."""
    sites = [{"name": "a", "weight": 3}]
    for name, shards, mode in (
        ("a", "x", "federated"),
        ("b", "y", "federated"),
        ("c", "x", "local"),
        ("d", "y", "local"),
    ):
        data = {"shards": f"{shards}/{{site}}.h5", "sites": sites}
        write_run(tmp_path / name, 0.8, data=data, mode=mode, privacy={"off": True})
    found = report([of_runs([tmp_path / name for name in "abcd"])])
    groups = found.content.groups
    assert [group.runs for group in groups] == [1, 1, 1, 1]
    assert [group.point["data"] for group in groups] == ["x/{site}.h5", "y/{site}.h5"] * 2
    chart = chart_of(found.content.keys, groups)
    assert chart is not None and len(chart.lines) == 2 and len(chart.levels) == 2
    write(found, tmp_path / "out.html")
    assert "y/{site}.h5" in found.text(tmp_path / "out.html")


def test_runs_on_the_same_data_are_one_line(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_run(tmp_path / str(seed), 0.8, seed=seed, privacy={"off": True})
    found = of_runs([tmp_path / "0", tmp_path / "1"])
    assert [group.runs for group in found.groups] == [2]
    assert "data" not in found.keys


@pytest.mark.parametrize(
    ("one", "other", "settings"),
    [
        ({"algorithm": {"name": "fedprox"}}, {"algorithm": {"name": "scaffold"}}, ["fedprox", "scaffold"]),
        ({"algorithm": {"name": "fedprox", "mu": 1}}, {"algorithm": {"name": "fedprox"}}, ["mu 1", "mu 0.01"]),
        ({"server": {"optimizer": "fedadam"}}, {}, ["server fedadam", "server sgd"]),
        ({"training": {"lr": 0.5}}, {"training": {"lr": 0.25}}, ["lr 0.5", "lr 0.25"]),
        ({"aggregation": {"rule": "coordinate_median"}}, {}, ["coordinate_median", "mean"]),
        ({"stress": {"case": "label_flip", "sites": ["b"]}}, {}, ["stress label_flip", ""]),
        ({"model": {"name": "resnet18"}}, {}, ["model resnet18", "model densenet_small"]),
        ({"mode": "local", "training": {"lr": 0.5}}, {"mode": "local"}, ["lr 0.5", "lr"]),
        ({"training": {"lr": 0.5, "rounds": 2, "batch_size": 8, "momentum": 0.5}}, {}, ["0", "1"]),
    ],
)
def test_unlike_settings_are_never_averaged(tmp_path: Path, one: Any, other: Any, settings: list[str]) -> None:
    """Two runs that differ in more than the seed are two settings, each with a text of its own."""
    sites = [{"name": name, "weight": 3} for name in "abc"]
    for name, changes in zip("01", (one, other), strict=True):
        data = {"shards": "x/{site}.h5", "sites": sites}
        write_run(
            tmp_path / name, 0.8, **{"privacy": {"off": True}, "exchange": {"density": 1.0}, "data": data} | changes
        )
    found = of_runs([tmp_path / "0", tmp_path / "1"])
    assert [group.runs for group in found.groups] == [1, 1]
    told = [str(group.point.get("setting", "")) for group in found.groups]
    assert all(part in text for part, text in zip(settings, told, strict=True)) and told[0] != told[1]
    write(report([found]), tmp_path / "out.html")
    assert "setting" in report([found]).text(tmp_path / "out.html")
    if told[0] and one.get("mode") != "local":
        assert f"Federated training ({told[0]}) reaches" in words_of(
            (tmp_path / "out.html").read_text(encoding="utf-8")
        )


def test_what_changes_no_result_sets_nothing_apart(tmp_path: Path) -> None:
    changes = [{"runtime": {"threads": 1}}, {"contribution": {"store_updates": True}, "tracking": ["tensorboard"]}]
    for seed, change in enumerate(changes):
        write_run(tmp_path / str(seed), 0.8, seed=seed, privacy={"off": True}, **change)
    found = of_runs([tmp_path / "0", tmp_path / "1"])
    assert [group.runs for group in found.groups] == [2] and "setting" not in found.keys


def test_where_only_seeds_differ_there_is_one_setting(tmp_path: Path) -> None:
    rows = [row("a", {"seed": 0}, 0.8), row("b", {"seed": 1}, 0.9), row("c", {"seed": 0}, 0.95, baseline="local")]
    found = on("seeds", ("seed",), rows)
    write(found, tmp_path / "out.html")
    lines = found.text(tmp_path / "out.html").splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["-", "2/2", "0.850"], ["local", "1/1", "0.950"]]


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    assert main(["report", str(tmp_path)]) == 2


def test_an_unknown_state_is_never_in_a_mean() -> None:
    finished, killed = row("a", {"seed": 0}, 0.9), row("b", {"seed": 1}, 0.1, state="lost")
    (group,) = groups_of([finished, killed])
    assert (group.auc, group.finished, group.runs) == (0.9, 1, 2)
    assert groups_of([replace(finished, state="running")])[0].auc is None


def test_report_names_the_directory_it_is_on(tmp_path: Path) -> None:
    write_run(tmp_path / "lonely", 0.5)
    assert of_runs([tmp_path / "lonely"]).name == "lonely"


def test_result_parts_of_one_kind_are_told_apart() -> None:
    """Two cells of a kind have anchors, titles and names of tables of their own, as a screen reader needs them."""
    found = {"rows": [{"site": "site3", f"{way}_auc": {"mean": 0.9, "half": 0.01}} for way in ("alone", "federated")]}
    parts = [("legacy", "head"), ("legacy-network", "network"), ("legacy-other", "network")]
    cells = [Cell(name, "legacy", part, None, None, 0, "") for name, part in parts]
    made = result_parts([CellResult(cell, found) for cell in cells])
    assert len({part.key for part in made}) == len({part.title for part in made}) == 3
    assert [part.title for part in made][:2] == ["Legacy scanner, head", "Legacy scanner, network"]
