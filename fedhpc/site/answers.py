"""A site's private answers to what rank 0 asks for its metrics: each is charged before it is made, and kept.

An answer is drawn once. Whoever asks the same of the same model again, in this start of the run or in a later one, gets
the same answer, which tells nothing new and costs nothing; another question, or another model, is another release and
is charged again, as long as the budget lasts. Answers that others came after are kept too: with privacy.trust=sites,
sums for which one site draws anew and the others do not would show how much of the noise is that site's. The answer is
on the disk before it is sent, in `sites/<site>/evaluation-<stage>-<split>.npz` (private where privacy.trust=sites: it
carries a share of the noise only). How many answers a charge has paid for is in the site ledger, and in the file of the
validation split for a run without one: one that is lost is charged when it is made again, and so is one that an older
or a second copy of the run directory does not have.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from fedhpc.errors import InputError
from fedhpc.privacy.evaluation_plan import EvaluationPlan
from fedhpc.privacy.ledger import Ledger
from fedhpc.site.release import Question
from fedhpc.util.arrays import I64, Array
from fedhpc.util.files import PRIVATE, read_bytes, write_bytes

ROUNDING = 1 + 1e-9
"""Of the sum of the stages' epsilons."""


@dataclass(frozen=True)
class Kept:
    """The answers to a stage and split: the digest of what was asked last, how many there were, int64[...].

    `tested`, of the validation split: how many answers on the test split there were. `earlier`: what was asked before
    that, and its answer.
    """

    asked: str
    uses: int
    released: I64
    tested: int = 0
    earlier: tuple[tuple[str, I64], ...] = ()

    def answer_to(self, asked: str) -> I64 | None:
        """Return the answer to a question; None where there is none yet."""
        return dict((*self.earlier, (self.asked, self.released))).get(asked)


class Answers:
    """All private answers of one site in one run."""

    def __init__(self, folder: Path, ledger: Ledger, plan: EvaluationPlan) -> None:
        self._folder, self._ledger, self._plan = folder, ledger, plan

    def spent(self) -> float:
        """Epsilon of this run's validation and test patients, by the ledger."""
        return self._ledger.epsilon(0.5, population="evaluation")

    def affords(self, question: Question, asked: str) -> bool:
        """Return whether an answer stays within evaluation.epsilon and the hospital's own cap."""
        planned = self._plan.charge(question.stage)
        return not self._due(question, asked) or self._ledger.affords(planned, self._plan.epsilon * ROUNDING)

    def keeps(self, question: Question, asked: str) -> bool:
        """Return whether the answer is there already: then none is made."""
        kept = self._kept(question)
        return kept is not None and kept.answer_to(asked) is not None

    def answer(self, question: Question, asked: str, noised: Callable[[float], I64]) -> I64:
        """Return the kept answer, or charge the stage, make one by `noised(epsilon)` and keep it.

        Raises:
            PrivacyError: where the ledger refuses the charge.
            FileError: where the answer cannot be kept; then it is not given out.
        """
        kept = self._kept(question)
        known = None if kept is None else kept.answer_to(asked)
        if known is not None:
            return known
        due, charge = self._due(question, asked), self._plan.charge(question.stage)
        self._ledger.begin_answer(charge, self._plan.epsilon * ROUNDING, question.split, due=due)
        released = noised(self._plan.stage_epsilon(question.stage))
        uses, before = 1 + self._uses(question), self._validation(question)
        if question.split == "test" and before is not None:
            self._keep(replace(question, split="val"), replace(before, tested=uses))
        tested, earlier = (kept.tested, (*kept.earlier, (kept.asked, kept.released))) if kept else (0, ())
        self._keep(question, Kept(asked, uses, released, tested, earlier))
        return released

    def _due(self, question: Question, asked: str) -> bool:
        """Whether a charge must be made: one covers a release of the validation split and the next of the test."""
        if self.keeps(question, asked):
            return False
        if question.split == "val":
            return True
        before = self._validation(question)
        known = self._uses(question) >= (before.uses if before else 0)
        return known or not self._ledger.has_paid_answer(question.stage, question.split)

    def _uses(self, question: Question) -> int:
        """Return how many answers there were, whether the last is still there or not."""
        kept, before = self._kept(question), self._validation(question)
        known = kept.uses if kept else 0
        return max(known, before.tested) if question.split == "test" and before else known

    def _validation(self, question: Question) -> Kept | None:
        return self._kept_at(self._path(question.stage, "val"))

    def _path(self, stage: int, split: str) -> Path:
        return self._folder / f"evaluation-{stage:04d}-{split}.npz"

    def _kept(self, question: Question) -> Kept | None:
        return self._kept_at(self._path(question.stage, question.split))

    def _kept_at(self, path: Path) -> Kept | None:
        if not path.exists():
            return None
        try:
            with np.load(io.BytesIO(read_bytes(path)), allow_pickle=False) as file:
                tested = int(file["tested"]) if "tested" in file else 0
                asked = file["earlier"].tolist() if "earlier" in file else []
                earlier = tuple((str(one), file[f"released_{k}"]) for k, one in enumerate(asked))
                return Kept(str(file["asked"]), int(file["uses"]), file["released"], tested, earlier)
        except (ValueError, KeyError, OSError, EOFError) as error:
            raise InputError(
                f"{path}: is damaged ({type(error).__name__}). Restore it, or remove it: the release is then charged "
                "and made again.",
                code="file.damaged",
            ) from None

    def _keep(self, question: Question, kept: Kept) -> None:
        buffer = io.BytesIO()
        uses, tested = np.array(kept.uses), np.array(kept.tested)
        names = np.array([asked for asked, _ in kept.earlier], np.str_)
        earlier = {f"released_{k}": released for k, (_, released) in enumerate(kept.earlier)}
        last = {"asked": np.array(kept.asked), "uses": uses, "released": kept.released, "tested": tested}
        arrays: dict[str, Array] = {**last, **earlier, "earlier": names}
        np.savez(buffer, **arrays)  # type: ignore[arg-type]
        write_bytes(self._path(question.stage, question.split), buffer.getbuffer(), mode=PRIVATE)
