"""A site's private answers: charged before they are made, once, and again only where something new is released."""

from pathlib import Path

import numpy as np
import pytest

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.privacy.evaluation_plan import EvaluationPlan, plan_evaluation
from fedhpc.privacy.ledger import Ledger, LedgerOwner
from fedhpc.site.answers import Answers
from fedhpc.site.release import QUESTION, Question

VAL = Question(stage=4, split="val", groups=3, edges=((0.0,),))
TEST = Question(stage=4, split="test", groups=2, edges=((0.5,),))


def config(**changed: object) -> RunConfig:
    plain = {"name": "x", "data": {"shards": "{site}.h5", "sites": [{"name": "a", "weight": 9}]}}
    evaluation = {"epsilon": 1.0, **changed}
    training = {"rounds": 3}
    return RunConfig.model_validate(
        {**plain, "training": training, "privacy": {"epsilon": 2.0}, "evaluation": evaluation}
    )


def plan(**changed: object) -> EvaluationPlan:
    found = plan_evaluation(config(**changed))
    assert found is not None
    return found


class Site:
    """Answers of one site, whose noise counts up, so that each draw is another."""

    def __init__(self, folder: Path, planned: EvaluationPlan) -> None:
        self.ledger = Ledger(folder / "ledger.jsonl", LedgerOwner("a", "run"))
        self.answers, self.draws = Answers(folder, self.ledger, planned), 0

    def ask(self, question: Question, model: str) -> int:
        def noised(epsilon: float) -> np.ndarray:
            assert self.answers.spent() >= epsilon, "charged before the noise is drawn"
            self.draws += 1
            return np.array([self.draws])

        return int(self.answers.answer(question, model, noised)[0])


def test_one_charge_covers_validation_and_test(tmp_path: Path) -> None:
    site = Site(tmp_path, plan())
    assert [site.ask(VAL, "m"), site.ask(TEST, "m")] == [1, 2]
    assert site.answers.spent() == pytest.approx(1.0)
    assert {charge.population for charge in site.ledger.charges} == {"evaluation"}
    assert site.ledger.epsilon(1e-5) == 0, "training patients pay nothing for it"


def test_a_replay_gets_the_same_answer_and_pays_nothing(tmp_path: Path) -> None:
    first = Site(tmp_path, plan())
    answers = [first.ask(VAL, "m"), first.ask(TEST, "m")]
    again = Site(tmp_path, plan())
    assert [again.ask(VAL, "m"), again.ask(TEST, "m")] == answers
    assert (again.draws, len(again.ledger.charges)) == (0, 1)


def test_another_model_is_charged_again_or_refused(tmp_path: Path) -> None:
    site = Site(tmp_path, plan())
    site.ask(VAL, "m")
    assert site.answers.affords(VAL, "m")
    assert site.answers.affords(TEST, "m")
    assert not site.answers.affords(VAL, "other"), "the budget holds one release"
    site.ask(TEST, "m")
    assert not site.answers.affords(TEST, "other"), "a second look at the test patients is a second release"


def test_a_lost_answer_is_charged_again(tmp_path: Path) -> None:
    site = Site(tmp_path, plan())
    site.ask(VAL, "m")
    (tmp_path / "evaluation-0004-val.npz").unlink()
    assert not site.answers.affords(VAL, "m")


@pytest.mark.parametrize("lost", [("test",), ("val",), ("val", "test")])
def test_no_split_is_released_twice_for_one_charge(tmp_path: Path, lost: tuple[str, ...]) -> None:
    """Whoever can remove an answer would get as many draws of the noise as wanted, and their mean without noise."""
    site = Site(tmp_path, plan())
    site.ask(VAL, "m")
    site.ask(TEST, "m")
    for split in lost:
        (tmp_path / f"evaluation-0004-{split}.npz").unlink()
        assert not site.answers.affords(VAL if split == "val" else TEST, "m")
    with pytest.raises(PrivacyError):
        site.ask(VAL if "val" in lost else TEST, "m")
    assert site.draws == 2


def test_a_curve_shares_half_of_the_budget(tmp_path: Path) -> None:
    planned = plan(every=1)
    assert planned.curve == (1, 2)
    stages = [planned.stage_epsilon(stage) for stage in (1, 2, planned.final_stage(0))]
    assert stages == [0.25, 0.25, 0.5]
    site = Site(tmp_path, planned)
    for stage in (1, 2, 4):
        site.ask(Question(stage=stage, split="val", groups=3, edges=((0.0,),)), "m")
    assert site.answers.spent() == pytest.approx(1.0)


def test_exact_evaluation_has_no_plan() -> None:
    assert plan_evaluation(config(epsilon=None)) is None


@pytest.mark.parametrize(
    "forged",
    [
        b'{"stage": 1, "split": "train", "groups": 2, "edges": [[0.0]]}',
        b'{"stage": 1, "split": "test", "groups": 2, "edges": [[1.0, 0.0]]}',
        b'{"stage": 1, "split": "test", "groups": 9, "edges": [[0.0]]}',
        b'{"stage": 1, "split": "test", "groups": 2, "edges": [[]]}',
        b'{"stage": 1, "split": "test", "groups": 2, "edges": [[0.0], [0.0, 1.0]]}',
        b'{"stage": 1, "split": "test", "groups": 2, "edges": [[NaN]]}',
    ],
)
def test_a_site_refuses_a_question_that_is_none(forged: bytes) -> None:
    with pytest.raises(ValueError, match="validation error"):
        QUESTION.validate_json(forged)
