"""The figures of the paper that this program follows, beside what was measured.

The paper's images are not public: its figures were measured on other patients, so that a difference is no error.
"""

from collections.abc import Sequence

from fedhpc.records.study import Claim
from fedhpc.report.parts import Column, Part, Table, Value
from fedhpc.report.rows import DATA, PART, Group, Row
from fedhpc.util.text import count_of, data_size, percent, shown

AUC = {"federated": 0.94, "centralised": 0.965, "local": 0.81}
EPSILON = 1.0
DENSE_MB, SENT_MB = 450, 48
LARGEST_GAP = 0.025
MARKS = {"met": "✓ ", "missed": "✗ ", "not measured": ""}
NAMES = {"federated": "Federated", "centralised": "Centralised (pooled data)", "local": "Local-only (each site alone)"}
OTHER_PATIENTS = (
    "The paper measured on other patients, which are not public: a difference says nothing of right or wrong."
)


def paper_part(rows: Sequence[Row], groups: Sequence[Group], claims: Sequence[Claim]) -> Part:
    """Every claim of the paper beside what a study has found, or else beside the runs at hand."""
    if claims:
        return _of_claims(claims)
    lines = [line for line in _measured(rows, groups) if line[2] is not None]
    columns = [
        Column("claim", "Claim"), Column("paper", "Paper"), Column("measured", "Here"), Column("of", "Measured on"),
    ]  # fmt: skip
    table = Table("claims", "Paper against measured", columns, lines, OTHER_PATIENTS)
    return Part("paper", "Paper against measured", tables=[table] if lines else [])


def _of_claims(claims: Sequence[Claim]) -> Part:
    columns = [
        Column("claim", "Claim"), Column("verdict", "Verdict"), Column("measured", "Measured"),
        Column("paper", "Paper"), Column("why", "How, and why"), Column("low", "95 % from", "number", hidden=True),
        Column("high", "to", "number", hidden=True), Column("command", "Command", hidden=True),
    ]  # fmt: skip
    rows: list[list[Value]] = [
        [c.name, f"{MARKS[c.verdict]}{c.verdict}", c.measured, c.paper, c.why, c.low, c.high, c.command] for c in claims
    ]
    counts = {verdict: sum(claim.verdict == verdict for claim in claims) for verdict in MARKS}
    lead = f"{count_of(len(claims), 'claim')}: {', '.join(f'{n} {verdict}' for verdict, n in counts.items() if n)}."
    again = Table(
        "commands",
        "The command behind each claim",
        [Column("claim", "Claim"), Column("command", "Command", "code")],
        [[claim.name, claim.command] for claim in claims if claim.command],
        folded=True,
    )
    tables = [Table("claims", "Every claim", columns, rows), *([again] if again.rows else [])]
    return Part("paper", "Paper against measured", lead, tables=tables)


def _measured(rows: Sequence[Row], groups: Sequence[Group]) -> list[list[Value]]:
    aucs = best(groups)
    found: list[list[Value]] = []
    for mode, paper in AUC.items():
        group = aucs.get(mode)
        of = "" if group is None else _of(group)
        found.append([f"AUC, {mode}", f"{paper:g}", None if group is None else f"{group.auc:.3f}", of])
    federated, centralised = aucs.get("federated"), aucs.get("centralised")
    if federated and centralised and federated.auc is not None and centralised.auc is not None:
        gap = (centralised.auc - federated.auc) / centralised.auc
        found.append(["Loss against pooled data", f"within {percent(LARGEST_GAP)}", percent(gap), _of(federated)])
    private = [row for row in rows if row.epsilon is not None and row.mode == "federated"]
    if private:
        spent = min(private, key=lambda row: (row.auc is None, abs((row.epsilon or 0) - EPSILON)))
        said = f"{spent.epsilon:.3f} at delta {spent.delta:g}"
        found.append(["Epsilon of the whole run", f"{EPSILON:g}", said, spent.name])
    sent = [row for row in rows if row.bytes_up and row.dense_bytes]
    if sent:
        row = min(sent, key=lambda one: (one.auc is None, abs((one.density or 0) - 0.1)))
        up, dense = row.bytes_up or 0.0, row.dense_bytes or 1.0
        said = f"{data_size(dense)} to {data_size(up)} ({percent(up / dense)})"
        asked = f"{DENSE_MB} to {SENT_MB} MB ({percent(SENT_MB / DENSE_MB)})"
        found.append(["Bytes up a round, dense to sent", asked, said, row.name])
    return found


def best(groups: Sequence[Group]) -> dict[str, Group]:
    """Return the setting that stands for each way to train.

    Of federated ones it is that which a study compares with the paper, else the nearest to the paper's epsilon and
    density; the baselines are those on its data and of its part of a study.
    """
    done = [group for group in groups if group.auc is not None and "case" not in group.point]
    main = min((group for group in done if not group.baseline), key=_distance, default=None)
    chosen = {} if main is None else {"federated": main}
    for mode in ("centralised", "local"):
        own = [group for group in done if group.baseline.startswith(mode) and (main is None or _alike(group, main))]
        chosen |= {mode: own[0]} if own else {}
    return chosen


def _alike(one: Group, other: Group) -> bool:
    return all(one.point.get(key) == other.point.get(key) for key in (PART, DATA))


def _distance(group: Group) -> tuple[bool, float, float]:
    epsilon, density = group.point.get("privacy.epsilon"), group.point.get("exchange.density")
    return not group.paper, abs((epsilon if epsilon is not None else 100.0) - EPSILON), abs((density or 0.1) - 0.1)


def _of(group: Group) -> str:
    told = ", ".join(f"{key.rpartition('.')[2]} {shown(value)}" for key, value in group.point.items())
    return f"{group.baseline or 'federated'}{f' ({told})' if told else ''}, {count_of(group.finished, 'run')}"
