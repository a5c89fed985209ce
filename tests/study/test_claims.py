"""The claims of studies whose figures were chosen by hand: each verdict, and the number in it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedhpc.records.run_directory import SUMMARY_KEYS
from fedhpc.records.study import Cell, Claim, Study, StudyDirectory
from fedhpc.study.claims import claims_of
from fedhpc.study.claims_table import claims_text, write_claims


def cell(name: str, kind: Any, seed: int = 0, **more: Any) -> Cell:
    base = Cell(name, kind, "head", None, None, seed, f"elements/{name}", commands=(f"run {name}",))
    return replace(base, **more)


def write(folder: Path, one: Cell, **summary: Any) -> None:
    place = folder / one.run
    place.mkdir(parents=True)
    (place / "outcome.json").write_text('{"state": "finished"}', encoding="utf-8")
    whole = {key: None for key in SUMMARY_KEYS} | {"rounds": 10, "stopped": "finished", "unit": "patient"} | summary
    whole |= {"delta": 1e-5, "bytes_up_per_round": 100.0, "dense_bytes_per_round": 864}
    (place / "summary.json").write_text(json.dumps(whole), encoding="utf-8")


def result(folder: Path, one: Cell, **found: Any) -> None:
    place = folder / one.run
    place.mkdir(parents=True)
    (place / "outcome.json").write_text('{"state": "finished"}', encoding="utf-8")
    (place / "result.json").write_text(json.dumps(found), encoding="utf-8")


def claims(folder: Path, *cells: Cell) -> dict[str, Claim]:
    records = StudyDirectory(folder)
    records.write(Study("by-hand", "full", cells))
    found = claims_of(records, records.read())
    write_claims(records, records.read(), found)
    assert records.read_claims() == found
    return {one.name: one for one in found}


def test_claims_of_a_part_by_hand(tmp_path: Path) -> None:
    ours = [cell(f"f{s}", "federated", s, epsilon=1.0, density=1.0, paper=True, rule="mean") for s in range(3)]
    pooled = [cell(f"c{s}", "centralised", s) for s in range(3)]
    alone = [cell(f"l{s}", "local", s) for s in range(3)]
    for s in range(3):
        write(tmp_path, ours[s], auc=0.95 + 0.01 * s, epsilon=0.999, sensitivity_early=0.80)
        write(tmp_path, pooled[s], auc=1.0, sensitivity_early=0.84)
        write(tmp_path, alone[s], auc=0.80)
    found = claims(tmp_path, *ours, *pooled, *alone)
    federated = found["AUC federated, head"]
    # Mean 0.96, standard deviation 0.01: Student's t with 2 degrees of freedom, 4.3027 x 0.01 / sqrt(3) = 0.02484.
    assert (federated.value, federated.low, federated.high) == pytest.approx((0.96, 0.93516, 0.98484), abs=1e-5)
    assert federated.verdict == "met" and federated.command == "run f0  (and 2 more like it, see study.json)"
    assert found["AUC local-only, head"].verdict == "met", "the gain is 0.16, the paper's 0.13"
    assert found["AUC centralised, head"].verdict == "met"
    gap = found["federated within 2.5 % of centralised, head"]
    assert (gap.value, gap.verdict) == (pytest.approx(4.0), "missed")
    early = found["early-stage sensitivity kept, head"]
    assert (early.value, early.verdict) == (pytest.approx(-0.04), "missed")
    assert found["epsilon within its rounds, head"].verdict == "met"
    assert found["data residency"].verdict == "not measured", "no egress log"


def test_claims_without_a_cell_are_not_measured(tmp_path: Path) -> None:
    found = claims(tmp_path, cell("f", "federated", epsilon=1.0, density=1.0, paper=True))
    assert len(found) == 11 and {one.verdict for one in found.values()} == {"not measured"}
    assert all(one.why and not one.measured and one.value is None for one in found.values())
    assert "0 met, 0 missed, 11 not measured" in claims_text(StudyDirectory(tmp_path).read(), tuple(found.values()))


def test_corrupted_row_is_the_mean_over_draws(tmp_path: Path) -> None:
    """Each draw is compared with its own clean run, and the row says how far the draws lie apart."""
    cells = [
        cell(f"s-{case}-{rule}-{seed}", "stress", case=case, rule=rule, seed=seed)
        for seed in (0, 1) for case in ("clean", "flip") for rule in ("mean", "mda")
    ]  # fmt: skip
    for one, auc in zip(cells, (0.98, 0.97, 0.60, 0.97, 0.96, 0.95, 0.60, 0.93), strict=True):
        write(tmp_path, one, auc=auc)
    row = claims(tmp_path, *cells)["corrupted hospital"]
    assert (row.value, row.verdict) == (pytest.approx(-0.02), "met") and "2 draws of the noise" in row.measured
    assert "mean of 2 draws from -0.030 to -0.010" in row.why and row.low == pytest.approx(-0.147, abs=1e-3)
    lone = claims(tmp_path, *cells[:2], *cells[6:])
    assert lone["corrupted hospital"].verdict == "not measured", "a draw without its clean run"


def stress_cells(folder: Path, aucs: dict[tuple[str, str], float | None]) -> list[Cell]:
    """A finished cell for each rule and case, with its AUC."""
    cells = [cell(f"s-{case}-{rule}", "stress", case=case, rule=rule) for rule, case in aucs]
    for one, auc in zip(cells, aucs.values(), strict=True):
        write(folder, one, auc=auc)
    return cells


@pytest.mark.parametrize("how", ["unfinished", "no AUC"])
def test_rule_without_its_worst_case_has_no_figure(how: str, tmp_path: Path) -> None:
    """It could be the case that costs most, and the claim would be met by what did not end."""
    aucs: dict[tuple[str, str], float | None] = {("mean", "clean"): 0.98, ("mean", "flip"): 0.6, ("mda", "clean"): 0.98}
    cells = stress_cells(tmp_path, aucs | ({("mda", "flip"): None} if how == "no AUC" else {}))
    lost = [cell("s-flip-mda", "stress", case="flip", rule="mda")] if how == "unfinished" else []
    assert claims(tmp_path, *cells, *lost)["corrupted hospital"].verdict == "not measured"


def logged_run(folder: Path, one: Cell) -> Path:
    """A finished run of one round and two sites, with egress logs that agree with its record."""
    write(folder, one, auc=0.9)
    run = folder / one.run
    sites = [{"name": name, "weight": 40} for name in ("a", "b")]
    tree = {"name": "x", "privacy": {"off": True}, "data": {"shards": "{site}.h5", "sites": sites}}
    (run / "config.yaml").write_text(json.dumps(tree), encoding="utf-8")
    per_site = {site["name"]: {"bytes_up": 7} for site in sites}
    record = {"round": 1, "per_site": per_site, "ledger_heads": {}, "seconds": {}}
    (run / "rounds.jsonl").write_text(json.dumps(record) + "\n", encoding="utf-8")
    for site in per_site:
        (run / "sites" / site).mkdir(parents=True)
        (run / "sites" / site / "egress.jsonl").write_text(json.dumps(ENTRY) + "\n", encoding="utf-8")
    return run


ENTRY: dict[str, Any] = {
    "time": "2026-01-01T00:00:00.000Z", "round": 1, "kind": "update", "bytes": 7, "sha256": "", "to": "aggregator",
    "via": "tls", "searched": 16,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "verdict"),
    [({}, "met"), ({"kind": "images"}, "missed"), ({"bytes": 8}, "missed"), ({"searched": None}, "missed"),
     ({"via": "clear"}, "missed"), (None, "missed")],
)  # fmt: skip
def test_residency_claim_fails_in_each_way(change: dict[str, Any] | None, verdict: str, tmp_path: Path) -> None:
    """Another kind, other bytes than rank 0 received, a payload that was not searched or in the clear, a lost log."""
    one = cell("f", "federated", density=1.0, paper=True)
    log = logged_run(tmp_path, one) / "sites" / "a" / "egress.jsonl"
    if change is None:
        log.unlink()
    else:
        log.write_text(json.dumps({**ENTRY, **change}) + "\n", encoding="utf-8")
    assert claims(tmp_path, one)["data residency"].verdict == verdict


@pytest.mark.parametrize(
    ("stopped", "epsilon", "noise_seed", "verdict"),
    [("finished", 1.0, None, "met"), ("budget", 1.0, None, "missed"), ("finished", 1.01, None, "missed"),
     ("finished", 0.5, 7, "missed")],
)  # fmt: skip
def test_epsilon_claim_fails_in_each_way(
    stopped: str, epsilon: float, noise_seed: int | None, verdict: str, tmp_path: Path
) -> None:
    one = cell("f", "federated", epsilon=1.0, density=1.0, paper=True)
    write(tmp_path, one, auc=0.9, epsilon=epsilon, stopped=stopped, insecure_noise_seed=noise_seed)
    assert claims(tmp_path, one)["epsilon within its rounds, head"].verdict == verdict


CASES_RIGHT = {"flip": 100, "copy": 94}


@pytest.mark.parametrize(("less", "verdict"), [(-0.02, "met"), (-0.03, "missed")])
def test_early_claim_is_of_new_patients(less: float, verdict: str, tmp_path: Path) -> None:
    """Of the cell that measured many; the figures of the few in the test split are not judged beside it."""
    ours, pooled = cell("f", "federated", epsilon=1.0, density=1.0, paper=True), cell("c", "centralised")
    write(tmp_path, ours, auc=0.95, epsilon=0.9, sensitivity_early=0.1)
    write(tmp_path, pooled, auc=0.95, sensitivity_early=0.9)
    new = cell("early", "early", epsilon=1.0, is_run=False)
    means = {"centralised": {"mean": 0.9, "half": 0.01}, "federated": {"mean": 0.9 + less, "half": 0.01}}
    row = {**means, "difference": {"mean": less, "half": 0.015}}
    rows = [{"figure": name, **row} for name in ("auc", "early", "early_own")]
    result(tmp_path, new, rows=rows, early=650, specificity=0.9, seeds=[0, 1, 2])
    found = claims(tmp_path, ours, pooled, new)["early-stage sensitivity kept, head"]
    assert (found.value, found.verdict) == (less, verdict)
    assert (found.low, found.high) == pytest.approx((less - 0.015, less + 0.015))
    waiting = replace(new, name="e2", run="elements/e2")
    assert claims(tmp_path, ours, pooled, waiting)["early-stage sensitivity kept, head"].verdict == "not measured"


def test_slow_claim_is_of_the_best_policy(tmp_path: Path) -> None:
    slow = cell("slow", "schedule", is_run=False)
    rows = [{"case": "wait", "pace": 0.2, "less_even": 0}, {"case": "plan", "pace": 0.95, "less_even": -0.006}]
    result(tmp_path, slow, factor=10.0, rows=[*rows, {"case": "deadline", "pace": 0.93, "less_even": -0.004}])
    found = claims(tmp_path, slow)["slow hospital, without privacy"]
    assert (found.value, found.verdict) == (0.93, "met"), "the plan is faster and costs too much AUC"


def test_claims_of_tests_by_hand(tmp_path: Path) -> None:
    stress = [cell(f"s-{case}-{rule}", "stress", case=case, rule=rule) for case in ("clean", "flip", "nil")
              for rule in ("mean", "screened_mean")]  # fmt: skip
    for one, auc in zip(stress, (0.98, 0.97, 0.60, 0.965, 0.97, 0.975), strict=True):
        write(tmp_path, one, auc=auc)
    slow, legacy = cell("slow", "schedule", is_run=False), cell("old", "legacy", case="site3", is_run=False)
    rows = [{"case": "even", "pace": 1, "less_even": 0}, {"case": "wait", "pace": 0.2, "less_even": 0}]
    result(tmp_path, slow, factor=10.0, rows=[*rows, {"case": "plan", "pace": 0.95, "less_even": -0.006}])
    means = {f"{way}_auc": {"mean": 0.9, "half": 0.1} for way in ("alone", "federated", "personal")}
    result(tmp_path, legacy, seeds=[0], rows=[
        {"site": "site1"},
        {"site": "site3", **means, "gain_over_alone_auc": {"mean": 0.02, "half": 0.01},
         "federated_over_alone_auc": {"mean": -0.01, "half": 0.01}},
    ])  # fmt: skip
    size = cell("codec", "codec", is_run=False)
    result(tmp_path, size, size=1_125_000, payload_bytes=490_000, dense_bytes=4_500_000, density=0.1, value_bits=4)
    audit = cell("audit", "audit", epsilon=1.0, is_run=False)
    result(tmp_path, audit, passed=False, verdict="Verdict: failed.", claim={"epsilon": 1.0},
           findings=[{"kind": "claim", "verdict": "holds"}, {"kind": "claim", "verdict": "broken"}])  # fmt: skip
    planted = cell("planted", "planted", is_run=False)
    counts = [{"case": case, "epsilon": 1.0, "of": 100, "right": {"shapley": n}, "apart": {"right": 20, "wrong": 1}}
              for case, n in CASES_RIGHT.items()]  # fmt: skip
    private = [{**one, "epsilon": 8.0, "right": {"shapley": 100}, "apart": None} for one in counts]
    result(tmp_path, planted, rows=[{**counts[0], "epsilon": None, "right": {"shapley": 0}}, *private, *counts])
    found = claims(tmp_path, *stress, slow, legacy, size, audit, planted)
    known = found["contributions, epsilon 1"]
    assert (known.value, known.verdict) == (0.94, "missed") and "94 of 100 (0.87 to 0.98): copy" in known.measured
    assert "the right order in 20 draws and another one in 1;" in known.why
    assert found["contributions, epsilon 8"].verdict == "met"
    corrupted = found["corrupted hospital"]
    assert (corrupted.value, corrupted.verdict) == (pytest.approx(-0.015), "met"), "against the clean run of the mean"
    assert "under the mean -0.380 (flip)" in corrupted.why
    assert found["slow hospital, without privacy"].verdict == "missed", "0.006 of AUC"
    old = found["legacy scanner, head"]
    assert (old.value, old.verdict) == (0.02, "met")
    assert "federated 0.900 (-0.010 ±0.010), personal 0.900 (+0.020 ±0.010)" in old.measured
    assert (found["bytes of an update"].value, found["bytes of an update"].verdict) == (pytest.approx(49.0), "missed")
    assert found["the guarantee under attack"].measured == "1 of 2 measured claims hold"
    assert found["the guarantee under attack"].verdict == "missed"
