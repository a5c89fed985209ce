"""What a study leaves on disk: its plan with the state of each cell, and its claims beside what was measured.

<study>/
    study.json               the plan: title, cells; written once, before the first cell starts
    claims.json, .csv, .md   paper against measured, a row a claim; written when all cells have ended
    elements/<cell>/         an ordinary run directory, or the folder of a benchmark; see `Cell.run`
        outcome.json         how its last attempt stands; the state of the cell is read from here
        result.json          what a command printed with --json, where the cell ran one
    sweep.yaml, jobs.json    of the sweep that the study is (`fedhpc.sweep.directory`)
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from fedhpc.errors import InputError
from fedhpc.util.files import read_json, write_json

Kind = Literal[
    "federated", "centralised", "local", "stress", "legacy", "early", "schedule", "contribution", "planted", "audit",
    "codec",
]  # fmt: skip
Status = Literal["pending", "running", "finished", "failed", "stopped"]
Verdict = Literal["met", "missed", "not measured"]
Size = Literal["full", "medium", "quick"]
PLAN, CLAIMS, OUTCOME, RESULT = "study.json", "claims.json", "outcome.json", "result.json"
RESTORE = "Restore it from a backup, or start the study in a new folder"
AGAIN = "Remove it: `run.py study` writes it anew"
_STRICT = ConfigDict(extra="forbid")


@checked(frozen=True, config=_STRICT)
class Cell:
    """One cell of a study: a run, or a command that makes several.

    Attributes:
        name: unique in the study; also the name of its folder.
        kind: what it is for.
        part: which model and cohort it is of, as configs/study.yaml names them, for example "head".
        epsilon: the target; None without privacy.
        density: share of the update that is sent; None where nothing is.
        seed: of the run.
        run: its folder, relative to the study's. An ordinary run directory where `is_run`.
        is_run: whether `run` is an ordinary run directory (summary.json, rounds.jsonl); else it has `result.json` only.
        case: which stress case; empty for other kinds.
        rule: the aggregation rule; empty for kinds that aggregate nothing.
        paper: whether it is of the point whose results stand beside the paper's claims.
        commands: the command lines that repeat it, from the checkout.
        status: `running` also of one that was killed before it could say so.
    """

    name: str
    kind: Kind
    part: str
    epsilon: float | None
    density: float | None
    seed: int
    run: str
    is_run: bool = True
    case: str = ""
    rule: str = ""
    paper: bool = False
    commands: tuple[str, ...] = ()
    status: Status = "pending"


@checked(frozen=True, config=_STRICT)
class Study:
    """study.json: what was planned; its size is `quick` or `medium` where cohorts are smaller than the paper's."""

    name: str
    size: Size
    cells: tuple[Cell, ...]

    def of(self, kind: Kind, part: str | None = None) -> tuple[Cell, ...]:
        """Return the finished cells of a kind, of one part or of all."""
        return tuple(
            cell for cell in self.cells if cell.kind == kind and part in (None, cell.part) and cell.status == "finished"
        )


@checked(frozen=True, config=_STRICT)
class Claim:
    """One claim of the paper beside what the study measured.

    Attributes:
        name: what is claimed.
        paper: what the paper says, as text.
        measured: the figure with its unit, as text; empty where it was not measured.
        value: the figure; None where there is no single one, or it was not measured.
        low, high: its 95 % interval, over seeds where there are several, else over patients.
        verdict: `met`, `missed` or `not measured`.
        why: what must be known of it: how it was measured, why it was missed or not measured.
        command: the command line that repeats the measurement.
    """

    name: str
    paper: str
    measured: str
    value: float | None
    low: float | None
    high: float | None
    verdict: Verdict
    why: str
    command: str


@dataclass(frozen=True)
class StudyDirectory:
    """Owns the names of a study's files."""

    path: Path

    @property
    def plan(self) -> Path:
        """The plan."""
        return self.path / PLAN

    @property
    def claims(self) -> Path:
        """The claims as JSON; .csv and .md lie beside it."""
        return self.path / CLAIMS

    def exists(self) -> bool:
        """Return whether there is a study here."""
        return self.plan.exists()

    def write(self, study: Study) -> None:
        """Write the plan; the status of each cell is not part of it."""
        plain = replace(study, cells=tuple(replace(cell, status="pending") for cell in study.cells))
        write_json(self.plan, STUDY.dump_python(plain, mode="json"))

    def read(self) -> Study:
        """Return the plan, with the state that each cell has now.

        Raises:
            InputError: there is none, or it cannot be read.
        """
        if not self.exists():
            raise InputError(f"{self.path}: is no study: it has no {PLAN}", code="study.not-a-study")
        try:
            study = STUDY.validate_python(_with_size(read_json(self.plan, RESTORE)))
        except ValidationError:
            raise InputError(
                f"{self.plan}: is not the plan of a study; it was cut or changed. {RESTORE}.", code="file.damaged"
            ) from None
        return replace(study, cells=tuple(replace(cell, status=self._status(cell)) for cell in study.cells))

    def _status(self, cell: Cell) -> Status:
        outcome = self.path / cell.run / OUTCOME
        if not outcome.exists():
            return "pending"
        state = read_json(outcome, "Remove it: the cell then counts as not begun").get("state")
        return state if state in ("running", "finished", "failed", "stopped") else "pending"

    def result(self, cell: Cell) -> dict[str, Any]:
        """Return what the command of a cell printed with --json."""
        return read_json(self.path / cell.run / RESULT, "Remove the folder, and start the study again")

    def write_claims(self, claims: tuple[Claim, ...]) -> None:
        """Write the claims as JSON."""
        write_json(self.claims, {"claims": CLAIM_LIST.dump_python(claims, mode="json")})

    def read_claims(self) -> tuple[Claim, ...]:
        """Return the claims; none where the study has not ended.

        Raises:
            InputError: they cannot be read.
        """
        if not self.claims.exists():
            return ()
        try:
            return CLAIM_LIST.validate_python(read_json(self.claims, AGAIN).get("claims"))
        except ValidationError:
            raise InputError(f"{self.claims}: does not list claims. {AGAIN}.", code="file.damaged") from None


def _with_size(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a plan with its size; plans of version 0.2 said whether they were quick.

    >>> _with_size({"name": "a", "quick": True})
    {'name': 'a', 'size': 'quick'}
    """
    rest = {key: value for key, value in tree.items() if key != "quick"}
    return rest if "quick" not in tree else {**rest, "size": "quick" if tree["quick"] else "full"}


STUDY, CLAIM_LIST = TypeAdapter(Study), TypeAdapter(tuple[Claim, ...])
