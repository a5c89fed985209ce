"""What a second or an older copy of a run directory gets for a charge that was made once: no further draw of the noise.

Also what other members of a secure sum get for an answer that is kept.
"""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PrivacyError
from fedhpc.models.device import Device
from fedhpc.models.vector import to_vector
from fedhpc.privacy.accountant import Charge
from fedhpc.privacy.ledger import Ledger, LedgerOwner, SiteAccount
from fedhpc.privacy.site_ledger import SiteLedger
from fedhpc.privacy.site_terms import Terms
from fedhpc.site.answers import Answers
from fedhpc.site.context import SiteContext
from fedhpc.site.evaluation import Evaluator
from fedhpc.site.failures import Failures
from fedhpc.site.release import Question, Weights
from fedhpc.util.arrays import I64
from tests.site.test_answers import TEST, VAL, plan
from tests.site.test_private_round import INPUTS, UNITS, Measured
from tests.support.accounts import ANYBODY

ROUND = Charge(0, 8.0, 1.0, 1)


class Copy:
    """A run directory whose site asks its account in `folder`; copies of it share the account."""

    def __init__(self, path: Path, account: Path) -> None:
        self.path, self._account = path, account
        path.mkdir(exist_ok=True)
        ledger = SiteLedger.open_or_create(account, Terms("patient"))
        mine = SiteAccount.of(ledger, "a", ANYBODY)
        self.ledger = Ledger(path / "ledger.jsonl", LedgerOwner("a", "run"), [mine])
        self.answers = Answers(path, self.ledger, plan())

    def ask(self, question: Question, draw: int) -> int:
        return int(self.answers.answer(question, "m", lambda _: np.array([draw]))[0])

    def copied(self, name: str) -> "Copy":
        shutil.copytree(self.path, self.path.with_name(name))
        return Copy(self.path.with_name(name), self._account)


def spent(copy: Copy) -> int:
    return len(SiteLedger(copy._account).entries("charge"))


def test_copy_between_validation_and_test_gets_no_second_draw(tmp_path: Path) -> None:
    """As many copies as an operator likes would each give another draw of the noise on the same test patients."""
    first = Copy(tmp_path / "first", tmp_path / "account")
    first.ask(VAL, 1)
    second = first.copied("second")
    assert first.ask(TEST, 2) == 2
    assert not second.answers.affords(TEST, "m")
    with pytest.raises(PrivacyError, match="would pass the run's epsilon"):
        second.ask(TEST, 3)
    assert spent(first) == 1


def test_backup_from_before_the_test_answer_gets_no_second_draw(tmp_path: Path) -> None:
    first = Copy(tmp_path / "run", tmp_path / "account")
    first.ask(VAL, 1)
    first.copied("backup")
    first.ask(TEST, 2)
    shutil.rmtree(first.path)
    shutil.copytree(tmp_path / "backup", first.path)
    restored = Copy(first.path, tmp_path / "account")
    assert restored.ask(VAL, 3) == 1, "the same answer to the same question"
    with pytest.raises(PrivacyError):
        restored.ask(TEST, 4)


def test_copy_from_before_the_evaluation_is_charged_by_itself(tmp_path: Path) -> None:
    first = Copy(tmp_path / "first", tmp_path / "account")
    second = first.copied("second")
    for number, copy in enumerate((first, second)):
        copy.ask(VAL, number)
        copy.ask(TEST, number)
    assert spent(first) == 2


def test_answers_at_once_share_one_charge(tmp_path: Path) -> None:
    """Two copies that both saw that an answer is paid for: what they write decides, under the lock."""
    first = Copy(tmp_path / "first", tmp_path / "account")
    first.ask(VAL, 1)
    second = first.copied("second")
    charge = plan().charge(TEST.stage)
    for copy in (first, second):
        assert copy.ledger.has_paid_answer(TEST.stage, "test")
    first.ledger.begin_answer(charge, 1.0, "test", due=False)
    with pytest.raises(PrivacyError, match="would pass the run's epsilon"):
        second.ledger.begin_answer(charge, 1.0, "test", due=False)


def test_forged_count_in_a_kept_answer_pays_for_nothing(tmp_path: Path) -> None:
    """The files of a run directory are not authenticated; the site ledger is."""
    run = Copy(tmp_path / "run", tmp_path / "account")
    run.ask(VAL, 1)
    run.ask(TEST, 2)
    kept = tmp_path / "run" / "evaluation-0004-val.npz"
    with np.load(kept, allow_pickle=False) as file:
        forged = dict(file)
    np.savez(kept, **{**forged, "uses": np.array(1000), "tested": np.array(0)})
    (tmp_path / "run" / "evaluation-0004-test.npz").unlink()
    with pytest.raises(PrivacyError):
        run.ask(TEST, 3)


def test_copy_that_trains_on_is_charged_and_one_that_is_behind_is_refused(tmp_path: Path) -> None:
    """Both branches of a run release updates of the same patients."""
    first = Copy(tmp_path / "first", tmp_path / "account")
    first.ledger.charge(ROUND, 2.0)
    second, behind = first.copied("second"), first.copied("behind")
    for copy in (first, second):
        copy.ledger.charge(replace(ROUND, round=1), 2.0)
    assert spent(first) == 3
    with pytest.raises(PrivacyError, match="it was cut or swapped"):
        Copy(behind.path, tmp_path / "account")
    assert spent(first) == 3


def evaluator(folder: Path, config: RunConfig, answers: Answers) -> Evaluator:
    place = SiteContext(config, nn.Linear(INPUTS, 2), Device(torch.device("cpu"), bf16=False), None, lambda *_: None)
    made = Evaluator("a", Measured(UNITS), place, Failures("a"))
    made.keep_answers(answers)
    return made


@pytest.mark.parametrize("trust", ["sites", "aggregator"])
def test_kept_answer_is_not_summed_again_without_a_site(tmp_path: Path, trust: str) -> None:
    """sum(a, b, c, d, e) - sum(a, b, c, d) is the answer of e, with a share of the noise: a run that is started again
    without e asks the others the same. Where each answer has all of its noise it may be given again.
    """
    names = [{"name": name, "weight": UNITS} for name in "abcde"]
    privacy = {"epsilon": 2.0, "sample_rate": 1.0, "trust": trust, "delta": 1e-5}
    shared = {"colluding_sites": 1} if trust == "sites" else {}
    tree = {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": names},
        "training": {"rounds": 3, "local_epochs": 1},
        "exchange": {"density": 1.0},
        "privacy": {**privacy, **shared},
        "faults": {"min_sites": 3},
    }
    config, run = RunConfig.model_validate(tree), Copy(tmp_path / "run", tmp_path / "account")
    question = Question(stage=4, split="val", groups=2, edges=((-1.0, 0.0, 1.0),))

    def asked(one: RunConfig) -> I64:
        place = evaluator(tmp_path, one, run.answers)
        return place.answer(to_vector(nn.Linear(INPUTS, 2)) * 0, question, Weights(tasks=1, counted=2))

    whole = asked(config)
    np.testing.assert_array_equal(asked(config), whole)
    if trust == "aggregator":
        np.testing.assert_array_equal(asked(config.without(["e"])), whole)
    else:
        with pytest.raises(PrivacyError, match="would pass the run's epsilon"):
            asked(config.without(["e"]))
