"""The paper's claims, each beside what the finished cells of a study measured: met, missed, or not measured and why.

The figures on the left are the paper's. Tolerances that the paper does not give are named in the row.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from fedhpc.records.study import Cell, Claim, Study, StudyDirectory
from fedhpc.study.claims_of_tests import claims_of_tests
from fedhpc.study.figures import Figure, at_point, figure_of, over_seeds, paired, summary_of
from fedhpc.study.paper import AUC_CENTRALISED, AUC_FEDERATED, AUC_LOCAL, EARLY_TOLERANCE, EPSILON, GAP
from fedhpc.study.rows import commands_of, figure_claim, not_measured, verdict_of
from fedhpc.util.text import count_of, percent

TIGHT = 1e-6
"""An accountant's epsilon is calibrated to its target from below, to so much."""


@dataclass(frozen=True)
class PartCells:
    """The finished cells of one part that stand beside the paper's claims.

    Attributes:
        part: its name.
        point: epsilon and density as text.
        federated: at that point, a cell a seed.
        centralised, local: the baselines.
    """

    part: str
    point: str
    federated: tuple[Cell, ...]
    centralised: tuple[Cell, ...]
    local: tuple[Cell, ...]


def claims_of(records: StudyDirectory, study: Study) -> tuple[Claim, ...]:
    """Return every claim, those of the parts first.

    Raises:
        InputError: a file of a finished cell cannot be read.
    """
    parts = [_cells_of(study, part) for part in dict.fromkeys(cell.part for cell in study.cells if cell.paper)]
    found = [claim for part in parts for claim in _of_part(records, study, part)]
    return (*found, *claims_of_tests(records, study))


def _cells_of(study: Study, part: str) -> PartCells:
    first = next(cell for cell in study.cells if cell.paper and cell.part == part)
    density = 1.0 if first.density is None else first.density
    privacy = "without privacy" if first.epsilon is None else f"epsilon {first.epsilon:g}"
    mine = at_point(study.of("federated", part), first.epsilon, density)
    return PartCells(
        part, f"{privacy}, density {density:g}", mine, study.of("centralised", part), study.of("local", part)
    )


def _of_part(records: StudyDirectory, study: Study, part: PartCells) -> Iterator[Claim]:
    yield _auc(records, part, "federated", AUC_FEDERATED)
    yield _auc(records, part, "local-only", AUC_LOCAL)
    yield _auc(records, part, "centralised", AUC_CENTRALISED)
    yield _gap(records, part)
    yield _early(records, study, part)
    if any(cell.epsilon is not None for cell in part.federated):
        yield _epsilon(records, part)


def _auc(records: StudyDirectory, part: PartCells, way: str, paper: float) -> Claim:
    """Return the row of an AUC; the local-only one is met where hospitals alone are as far behind as in the paper."""
    cells = {"federated": part.federated, "local-only": part.local, "centralised": part.centralised}[way]
    name, told = f"AUC {way}, {part.part}", f"{paper:g}"
    found = figure_of(records, cells, "auc")
    if found is None:
        return not_measured(name, told, f"no {way} cell of {part.part} has finished with an AUC")
    why = f"{part.point}; {found.over}" if way == "federated" else found.over
    met = found.mean >= paper
    if way == "local-only":
        pairs = paired(records, part.federated, part.local, "auc")
        if not pairs:
            return not_measured(name, told, "no federated cell of the same seed to compare with")
        gain = over_seeds([ours - alone for ours, alone in pairs])
        met = gain.mean >= AUC_FEDERATED - AUC_LOCAL
        why += (
            f". A baseline: met where federation gains as much as in the paper ({AUC_FEDERATED - AUC_LOCAL:.2f}); here "
            f"{gain.text()}"
        )
    row = Claim(name, told, found.text(), None, None, None, verdict_of(met), why, "")
    return figure_claim(row, found, cells)


def _gap(records: StudyDirectory, part: PartCells) -> Claim:
    name, told = f"federated within 2.5 % of centralised, {part.part}", f"at most {percent(GAP)} of the AUC less"
    pairs = paired(records, part.federated, part.centralised, "auc")
    if not pairs:
        return not_measured(name, told, "it needs a federated and a centralised cell of one seed")
    gap = over_seeds([100 * (1 - ours / pooled) for ours, pooled in pairs])
    text = f"{gap.text(2)} % less"
    why = f"{part.point}; {gap.over}, paired by seed"
    row = Claim(name, told, text, None, None, None, verdict_of(gap.mean <= 100 * GAP), why, "")
    return figure_claim(row, gap, part.federated)


def _early(records: StudyDirectory, study: Study, part: PartCells) -> Claim:
    """Return the row of the early stages: on new patients where a cell has measured them, else on the test split."""
    name = f"early-stage sensitivity kept, {part.part}"
    told = f"as centralised (at most {EARLY_TOLERANCE:g} less)"
    if cells := study.of("early", part.part):
        return _early_on_new(records, cells[0], name, told)
    if any(cell.kind == "early" and cell.part == part.part for cell in study.cells):
        return not_measured(name, told, "the cell early has not finished")
    pairs = paired(records, part.federated, part.centralised, "sensitivity_early")
    if not pairs:
        return not_measured(name, told, "no early-stage patients, or no cell of one seed on both sides")
    less = over_seeds([ours - pooled for ours, pooled in pairs])
    ours = over_seeds([mine for mine, _ in pairs])
    text = f"{ours.text()}, {less.mean:+.3f} against centralised"
    why = (
        f"at 90 % specificity, {part.point}; tolerance ours; {less.over}, of the difference, without the part of the "
        "patients: the test split has few of an early stage"
    )
    row = Claim(name, told, text, None, None, None, verdict_of(less.mean >= -EARLY_TOLERANCE), why, "")
    return figure_claim(row, less, part.federated)


def _early_on_new(records: StudyDirectory, cell: Cell, name: str, told: str) -> Claim:
    found = records.result(cell)
    rows = {row["figure"]: row for row in found["rows"]}
    whole, own = rows["early"], rows["early_own"]["difference"]
    less, half = whole["difference"]["mean"], whole["difference"]["half"]
    privacy = "without privacy" if cell.epsilon is None else f"epsilon {cell.epsilon:g}"
    text = (
        f"{whole['federated']['mean']:.3f}, centralised {whole['centralised']['mean']:.3f}: {less:+.3f} "
        f"({less - half:+.3f} to {less + half:+.3f})"
    )
    why = (
        f"{found['early']:,} early-stage patients whom no run has seen, at {percent(found['specificity'], 0)} "
        f"specificity over all sites, {privacy}; paired by patient and seed, interval over patients and "
        f"{count_of(len(found['seeds']), 'seed')}; at each site's own operating point {own['mean']:+.3f} "
        f"±{own['half']:.3f}; tolerance ours, of the mean"
    )
    row = Claim(name, told, text, None, None, None, verdict_of(less >= -EARLY_TOLERANCE), why, "")
    return figure_claim(row, Figure(less, less - half, less + half, "patients and seeds"), [cell])


def _epsilon(records: StudyDirectory, part: PartCells) -> Claim:
    """Return the row of the budget: the largest epsilon of any site's ledger, and whether all rounds fitted into it."""
    name, told = f"epsilon within its rounds, {part.part}", f"epsilon {EPSILON:g} after all rounds"
    found = [summary_of(records, cell) for cell in part.federated]
    spent = max(float(summary["epsilon"]) for summary in found)
    rounds = sorted({summary["rounds"] for summary in found})
    whole = all(summary["stopped"] == "finished" for summary in found)
    void = any(summary.get("insecure_noise_seed") is not None for summary in found)
    met = whole and not void and spent <= EPSILON + TIGHT
    text = f"epsilon {spent:.3f} after {' or '.join(map(str, rounds))} rounds"
    why = (
        f"the largest of all sites' ledgers, delta {found[0]['delta']:g}, for every {found[0]['unit']}; "
        f"{'all rounds were done' if whole else 'the budget ended a run early'}"
    )
    return Claim(name, told, text, spent, None, None, verdict_of(met), why, commands_of(part.federated))
