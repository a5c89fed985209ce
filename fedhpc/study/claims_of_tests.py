"""The claims that are of no part: bytes, slow, corrupted and legacy hospitals, residency, and the audit."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fedhpc.records.run_directory import RunDirectory
from fedhpc.records.study import Cell, Claim, Study, StudyDirectory
from fedhpc.report.egress import log_checks
from fedhpc.study.cells import CLEAN, MEAN
from fedhpc.study.figures import Figure, over_seeds, share_interval, summary_of
from fedhpc.study.paper import DENSE_MB, PACE, PARAMETERS, RANKED, SENT_MB, SLOW_AUC_TOLERANCE, STRESS_TOLERANCE
from fedhpc.study.rows import commands_of, figure_claim, missing, not_measured, verdict_of
from fedhpc.transport.egress_log import read_log
from fedhpc.util.text import count_of, percent

MB = 1e6
MOST_SHOWN = 3
GAINS = "gains by the federation"


def claims_of_tests(records: StudyDirectory, study: Study) -> Iterator[Claim]:
    """Yield the rows that do not belong to one part."""
    yield _bytes(records, study)
    yield from _slow(records, study)
    yield _corrupted(records, study)
    yield from _legacy(records, study)
    yield from _contributions(records, study)
    yield _residency(records, study)
    yield _audit(records, study)


def _bytes(records: StudyDirectory, study: Study) -> Claim:
    """Return the row of the payload: an update of the paper's size is really encoded, and its bytes are counted."""
    name, told = "bytes of an update", f"{DENSE_MB:g} MB dense, {SENT_MB:g} MB sent"
    cells = study.of("codec")
    if not cells:
        return not_measured(name, told, missing(study, "codec"))
    found = records.result(cells[0])
    times = PARAMETERS / found["size"]
    sent, dense = found["payload_bytes"] * times / MB, found["dense_bytes"] * times / MB
    scaled = "" if times == 1 else f", scaled {times:g} times from {found['size']:,} entries"
    why = (
        f"len() of an encoded update of {PARAMETERS:,} Gaussian numbers{scaled}; density {found['density']:g}, "
        f"{found['value_bits']} bits a value{_of_runs(records, study)}"
    )
    text = f"{dense:.0f} MB dense, {sent:.1f} MB sent"
    return Claim(name, told, text, sent, None, None, verdict_of(sent <= SENT_MB), why, commands_of(cells))


def _of_runs(records: StudyDirectory, study: Study) -> str:
    """Return what a round of the study's own runs sent, all hospitals together, by the bytes that were received."""
    told = []
    for cell in (one for one in study.of("federated") if one.paper and one.seed == min(_seeds(study, one.part))):
        s = summary_of(records, cell)
        told.append(f"{cell.part} {s['bytes_up_per_round']:,.0f} of {s['dense_bytes_per_round']:,} bytes")
    return f". A round of this study sent: {', '.join(told)}" if told else ""


class Tested(NamedTuple):
    """Which run of the stress tests: the rule that averages, the fault, the draw of the noise."""

    rule: str
    case: str
    seed: int


def _seeds(study: Study, part: str) -> list[int]:
    return [cell.seed for cell in study.of("federated", part) if cell.paper]


def _slow(records: StudyDirectory, study: Study) -> Iterator[Claim]:
    told = f"no stall (pace at least {PACE:g}, AUC within {SLOW_AUC_TOLERANCE:g})"
    if not study.of("schedule"):
        yield not_measured("slow hospital", told, missing(study, "schedule"))
    for cell in study.of("schedule"):
        privacy = "without privacy" if cell.epsilon is None else f"epsilon {cell.epsilon:g}"
        rows = {row["case"]: row for row in records.result(cell)["rows"]}
        policies = {name: rows[name] for name in ("plan", "deadline") if name in rows}
        best = max(policies, key=lambda name: (_keeps_up(policies[name]), policies[name]["pace"]))
        met, pace = _keeps_up(policies[best]), policies[best]["pace"]
        each = ", ".join(f"{name} {row['pace']:.2f} (AUC {row['less_even']:+.4f})" for name, row in policies.items())
        text = f"pace by schedule.policy: {each}; waited for {rows['wait']['pace']:.2f}"
        why = (
            f"{records.result(cell)['factor']:g} times slower; met where one policy keeps both; pace: share of the "
            "rounds a minute without a slow hospital, by CPU seconds of the sites' training, exchange left out; "
            "tolerances ours"
        )
        yield Claim(
            f"slow hospital, {privacy}", told, text, pace, None, None, verdict_of(met), why, commands_of([cell])
        )


def _keeps_up(row: Mapping[str, Any]) -> bool:
    """Return whether a policy keeps pace and AUC.

    >>> _keeps_up({"pace": 0.95, "less_even": -0.006})
    False
    """
    return bool(row["pace"] >= PACE and abs(row["less_even"]) <= SLOW_AUC_TOLERANCE)


def _corrupted(records: StudyDirectory, study: Study) -> Claim:
    """Return the row of the worst case under the best robust rule, each against the clean run of the mean."""
    name, told = "corrupted hospital", f"AUC kept (at most {STRESS_TOLERANCE:g} less)"
    aucs = {Tested(cell.rule, cell.case, cell.seed): summary_of(records, cell)["auc"] for cell in study.of("stress")}
    known = {key: auc for key, auc in aucs.items() if auc is not None}
    lost = [
        cell for cell in study.cells if cell.kind == "stress" and Tested(cell.rule, cell.case, cell.seed) not in known
    ]
    bases = {seed: auc for (rule, case, seed), auc in known.items() if (rule, case) == (MEAN, CLEAN)}
    # A case that a rule did not get through could be its worst: such a rule has no figure.
    robust = sorted({rule for rule, _, _ in known} - {MEAN} - {cell.rule for cell in lost})
    if not robust or {seed for _, _, seed in known} - set(bases):
        lacks = "the clean run of the mean, or a case of every robust rule, has no AUC"
        return not_measured(name, told, lacks if lost or known else missing(study, "stress"))
    worst = {rule: _worst(_losses(known, bases, rule)) for rule in (MEAN, *robust)}
    best = max(robust, key=lambda rule: worst[rule][1].mean)
    case, less = worst[best]
    why = (
        f"worst of {len(_losses(known, bases, best))} cases under {best}, {_draws(known, bases, best, case)}; under "
        f"the mean {worst[MEAN][1].mean:+.3f} ({worst[MEAN][0]}); tolerance ours, of the mean over draws"
        + (f"; without an AUC: {', '.join(cell.name for cell in lost)}" if lost else "")
    )
    ends = "" if less.low is None or less.high is None else f" ({less.low:+.3f} to {less.high:+.3f})"
    text = f"{less.mean:+.3f}{ends}, {case}, {count_of(len(bases), 'draw')} of the noise"
    mine = [cell for cell in study.of("stress") if (cell.case, cell.rule) == (case, best)]
    row = Claim(name, told, text, None, None, None, verdict_of(less.mean >= -STRESS_TOLERANCE), why, "")
    return figure_claim(row, less, mine)


def _tested(cell: Cell) -> Tested:
    return Tested(cell.rule, cell.case, cell.seed)


def _losses(aucs: Mapping[Tested, float], bases: Mapping[int, float], rule: str) -> dict[str, Figure]:
    """Return what each case costs under a rule: the mean over draws of the noise, each against its own clean run."""
    by_case: dict[str, list[float]] = {}
    for (one, case, seed), auc in aucs.items():
        if one == rule and case != CLEAN:
            by_case.setdefault(case, []).append(auc - bases[seed])
    return {case: over_seeds(losses) for case, losses in by_case.items()}


def _draws(aucs: Mapping[Tested, float], bases: Mapping[int, float], rule: str, case: str) -> str:
    """Return how many draws a figure is of, and the spread of the single ones."""
    each = [aucs[Tested(rule, case, seed)] - base for seed, base in bases.items() if Tested(rule, case, seed) in aucs]
    paired = "the same noise in all runs of a draw"
    if len(each) < 2:
        return f"one run a case, {paired}: its spread over draws is not known"
    return f"mean of {len(each)} draws from {min(each):+.3f} to {max(each):+.3f}, {paired}"


def _worst(less: Mapping[str, Figure]) -> tuple[str, Figure]:
    """Return the case that costs most, and what it costs.

    >>> _worst({"scaled": over_seeds([-0.1]), "sign_flip": over_seeds([-0.2])})[0], _worst({})[1].mean
    ('sign_flip', 0.0)
    """
    case = min(less, key=lambda one: less[one].mean, default=CLEAN)
    return case, less.get(case, over_seeds([0.0]))


def _legacy(records: StudyDirectory, study: Study) -> Iterator[Claim]:
    """Yield a row a cell of the legacy scanner: what its hospital has of the federation over training alone."""
    cells = [cell for cell in study.cells if cell.kind == "legacy"]
    if not cells:
        yield not_measured("legacy scanner", GAINS, missing(study, "legacy"))
    for cell in cells:
        name = "legacy scanner" if cell.part == cell.kind else f"legacy scanner, {cell.part}"
        if cell.status == "finished":
            yield _gain_of(records, cell, name)
        else:
            yield not_measured(name, GAINS, f"the cell {cell.name} has not finished", [cell])


def _gain_of(records: StudyDirectory, cell: Cell, name: str) -> Claim:
    """Return the row of a hospital's gains over a model of its own patients alone, by the larger one."""
    result = records.result(cell)
    row: dict[str, Any] = next(row for row in result["rows"] if row["site"] == cell.case)
    keys = {"federated": "federated_over_alone_auc", "personal": "gain_over_alone_auc"}
    gains = {way: row[key] for way, key in keys.items() if row.get(key) is not None}
    best = max(gains, key=lambda way: gains[way]["mean"])
    gain, half = gains[best]["mean"], gains[best]["half"]
    told = ", ".join(
        f"{way} {row[f'{way}_auc']['mean']:.3f} ({one['mean']:+.3f} ±{one['half']:.3f})" for way, one in gains.items()
    )
    why = (
        f"{cell.case} on new patients; in brackets the gain over a model of its own patients alone, paired, with its "
        f"95 % interval over patients and {count_of(len(result['seeds']), 'cohort')}; met where the whole interval of "
        f"the larger gain is above 0 ({best})"
    )
    claim = Claim(
        name, GAINS, f"AUC alone {row['alone_auc']['mean']:.3f}, {told}", None, None, None,
        verdict_of(gain - half > 0), why, "",
    )  # fmt: skip
    return figure_claim(claim, Figure(gain, gain - half, gain + half, "patients and runs"), [cell])


def _contributions(records: StudyDirectory, study: Study) -> Iterator[Claim]:
    """Yield a row an epsilon of hospitals whose contribution is known beforehand, by the case right least often."""
    if not any(cell.kind in ("planted", "contribution") for cell in study.cells):
        return
    told = f"named by hospital (ranked right in at least {percent(RANKED, 0)} of runs)"
    cells = study.of("planted")
    if not cells:
        yield not_measured("contributions", told, missing(study, "planted"))
        return
    rows = records.result(cells[0])["rows"]
    for epsilon in dict.fromkeys(row["epsilon"] for row in rows if row["epsilon"] is not None):
        mine = [row for row in rows if row["epsilon"] == epsilon]
        yield _ranked(mine, f"contributions, epsilon {epsilon:g}", told, cells, _shapley_of(records, study, epsilon))


def _ranked(rows: Sequence[Mapping[str, Any]], name: str, told: str, cells: Sequence[Cell], more: str) -> Claim:
    worst = min(rows, key=lambda row: row["right"]["shapley"] / row["of"])
    right, of = worst["right"]["shapley"], worst["of"]
    low, high = share_interval(right, of)
    which = worst["case"] if right < of else f"each of {len(rows)} cases"
    text = f"{right} of {of} ({low:.2f} to {high:.2f}): {which}"
    apart = worst.get("apart")
    sure = (
        f". Its 95 % intervals tell the right order in {apart['right']} draws and another one in {apart['wrong']}; in "
        "the others sites cannot be told apart"
        if apart
        else ""
    )
    why = (
        f"ranks by Shapley values of {len(rows)} planted cases under noise drawn anew, the worst case; tolerance ours, "
        f"of the share{sure}{more}"
    )
    row = Claim(name, told, text, None, None, None, verdict_of(right / of >= RANKED), why, "")
    return figure_claim(row, Figure(right / of, low, high, "draws of the noise"), cells)


def _shapley_of(records: StudyDirectory, study: Study, epsilon: float) -> str:
    """Return the Shapley values of the study's own hospitals at an epsilon, with their intervals."""
    cell = next((cell for cell in study.of("contribution") if cell.epsilon == epsilon), None)
    if cell is None:
        return ""
    values = records.result(cell)["values"].get("shapley", {})
    told = [f"{site} {one['value']:.3f} ({one['ci95'][0]:.3f} to {one['ci95'][1]:.3f})" for site, one in values.items()]
    return f". The study's own hospitals: {', '.join(told)}" if told else ""


def _residency(records: StudyDirectory, study: Study) -> Claim:
    """Return the row of the egress logs: what left a hospital in any run may leave, was searched, and was counted."""
    name, told = "data residency", "100 % of images stay"
    cells = [cell for cell in study.cells if cell.is_run and cell.status == "finished"]
    logs = [path for cell in cells for path in sorted((records.path / cell.run).glob("sites/*/egress.jsonl"))]
    if not logs:
        return not_measured(name, told, "no run has finished")
    entries = [entry for path in logs for entry in read_log(path)]
    against = [f"{cell.name}: {text}" for cell in cells for text in _against(records.path / cell.run)]
    searched = sum(entry.searched is not None for entry in entries)
    text = f"{len(entries):,} payloads left, {searched:,} searched for pixels; {len(against)} findings against it"
    why = (
        f"by {len(logs)} egress logs of {len(cells)} runs: every payload of a kind that may leave, no update or metric "
        "unsearched or in the clear, and the bytes those that rank 0 received; a hit of the search ends a run without "
        "privacy, and is in the hospital's own log with it" + "".join(f". {one}" for one in against[:MOST_SHOWN])
    )
    command = f"python run.py egress {records.path / cells[0].run}  (and {len(cells) - 1} more runs)"
    return Claim(name, told, text, None, None, None, verdict_of(bool(entries) and not against), why, command)


def _against(run: Path) -> Iterator[str]:
    """Yield what the egress logs of a run have against the claim."""
    directory = RunDirectory(run)
    config = directory.read_config()
    if config is None:
        yield "no config.yaml, so that its sites are not known"
        return
    lost = [site for site in config.site_names if not directory.egress(site).exists()]
    if lost:
        yield f"no egress log of {', '.join(lost)}"
        return
    logs = {site: read_log(directory.egress(site)) for site in config.site_names}
    yield from (check.text for check in log_checks(config, logs, directory.read_rounds()) if check.holds is False)


def _audit(records: StudyDirectory, study: Study) -> Claim:
    """Return the row of the audit; one that did not pass has failed as a cell, and left what it found."""
    name, told = "the guarantee under attack", "epsilon holds"
    cells: Sequence[Cell] = [cell for cell in study.cells if cell.kind == "audit"]
    if not cells or not (records.path / cells[0].run / "result.json").exists():
        return not_measured(name, told, missing(study, "audit"), cells)
    found = records.result(cells[0])
    claims = [one for one in found["findings"] if one["kind"] == "claim"]
    held = sum(one["verdict"] == "holds" for one in claims)
    text = f"{held} of {len(claims)} measured claims hold"
    why = f"quick audit at epsilon {found['claim']['epsilon']:g}: {found['verdict']}"
    return Claim(name, told, text, None, None, None, verdict_of(bool(found["passed"])), why, commands_of(cells))
