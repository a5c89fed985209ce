"""A malicious aggregator of secure sums that tells one site something else than the others: its noise, or a question.

Each attack is first carried out with the defence taken out, where it must give away more than the site is charged for.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from fedhpc.config.schema import RunConfig
from fedhpc.errors import PayloadError
from fedhpc.privacy.evaluation_plan import plan_evaluation
from fedhpc.privacy.laplace import laplace_integers
from fedhpc.privacy.ledger import Ledger, LedgerOwner
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.plan import PrivacyPlan, check_plans, plan_privacy
from fedhpc.privacy.skellam import calibrate
from fedhpc.run.evaluation.questions import _about, ask
from fedhpc.run.start.sum_identities import check_identities, told_noise
from fedhpc.secagg.masks import SumTerms
from fedhpc.secagg.messages import HEADER, KEYS, broadcast_of
from fedhpc.secagg.protocol import MaskedSite
from fedhpc.secagg.signatures import SigningSite, uncertified
from fedhpc.site.answers import Answers
from fedhpc.site.context import SiteContext
from fedhpc.site.evaluation import Evaluator
from fedhpc.site.failures import Failures
from fedhpc.site.release import Question
from fedhpc.site.training.secure_contribution import IntegerGrid, plan_grid
from fedhpc.transport.base import AloneTransport
from tests.secagg.test_protocol import signing_sites

ROUNDS, SITES, SIZE, NUMBER = 10, 10, 500, 7


def config_of(sites: int = SITES) -> RunConfig:
    names = [{"name": f"site{index}", "weight": 100} for index in range(sites)]
    return RunConfig.model_validate(
        {
            "name": "x",
            "data": {"shards": "{site}.h5", "sites": names},
            "training": {"rounds": ROUNDS, "local_epochs": 1},
            "exchange": {"density": 1, "tls": False},
            "privacy": {"epsilon": 1.0, "sample_rate": 1.0, "trust": "sites", "colluding_sites": 1},
            "evaluation": {"epsilon": 1.0, "every": 1},
        }
    )


CONFIG = config_of()
TERMS = SumTerms(SITES, SITES, SIZE, 8, colluding=1)


def share_all(identities: Sequence[SigningSite]) -> None:
    """The round keys of all sites, and each site's answer to them, after which it masks its vector."""
    sites = [MaskedSite(TERMS, identity, NUMBER) for identity in identities]
    roster = broadcast_of(KEYS, NUMBER, {i: site.advertise()[HEADER.size :] for i, site in enumerate(sites)})
    for site in sites:
        site.share(roster)


def told(plans: Sequence[PrivacyPlan]) -> list[tuple[PrivacyPlan, IntegerGrid]]:
    """What each site makes of the plan that it was told; none of them finds anything wrong with it by itself."""
    found = []
    for plan in plans:
        check_plans(CONFIG, dict.fromkeys(CONFIG.site_names, plan))
        grid = plan_grid(plan.noise_multiplier, SIZE, (100,) * SITES, CONFIG.honest_sites, ROUNDS)
        grid.check_noise(plan.noise_multiplier, CONFIG.honest_sites)
        found.append((plan, grid))
    return found


def identities_of(noise: Sequence[bytes]) -> list[SigningSite]:
    """The sites of one session, each of which was told this of the noise."""
    own = {index: uncertified(name) for index, name in enumerate(CONFIG.site_names)}
    relayed = [one.introduction.pack() for one in own.values()]
    return [check_identities(CONFIG, {i: own[i]}, relayed, 1, noise[i])[i] for i in own]


def test_site_that_is_told_of_more_noise_than_the_others_takes_no_part() -> None:
    """The first site is charged for a tenth of the run; the others spend all of theirs on one round with less noise."""
    planned = plan_privacy(CONFIG)
    little = replace(planned, noise_multiplier=calibrate(1.0, CONFIG.privacy.delta, 1))
    plans = told([planned, *[little] * (SITES - 1)])
    assert len({grid.clip_units for _, grid in plans}) == 1, "the sums are of integers of one size"
    honest = [grid for _, grid in plans][: CONFIG.honest_sites]
    added = sum(grid.site_variance for grid in honest) ** 0.5 / honest[0].l2
    charged, spent = (
        replace(planned, noise_multiplier=noise).bounds(1, CONFIG.privacy.delta).epsilon
        for noise in (planned.noise_multiplier, added)
    )
    assert spent > 2 * charged, (spent, charged)
    share_all(identities_of([b""] * SITES))
    with pytest.raises(PayloadError, match="the signature of its message keys does not fit"):
        share_all(identities_of([told_noise(*one) for one in plans]))
    share_all(identities_of([told_noise(*one) for one in told([planned] * SITES)]))


class Site:
    """The answers of a site whose counts are zero, so that what it sends is its share of the noise."""

    def __init__(self, folder: Path, number: int, scale: float) -> None:
        planned = plan_evaluation(CONFIG)
        assert planned is not None
        folder.mkdir()
        ledger = Ledger(folder / "ledger.jsonl", LedgerOwner(f"site{number}", "run"))
        self.answers, self.charged = Answers(folder, ledger, planned), ledger
        self._stream, self._scale = KeyStream.of_seed(number), scale

    def ask(self, question: Question) -> np.ndarray:
        size = int(np.prod(question.shape))
        return self.answers.answer(
            question,
            question.digest(np.zeros(1, np.float32)),
            lambda _: laplace_integers(self._scale, CONFIG.honest_sites, size, self._stream).reshape(question.shape),
        )


FIRST = Question(stage=1, split="val", groups=3, edges=((0.0,),))
OTHER = Question(stage=1, split="val", groups=3, edges=((1e6,),))


def test_sums_of_kept_and_new_answers_differ_by_one_site_alone(tmp_path: Path) -> None:
    """The attack: all others' answers cancel, with their noise; the site has paid 1/18 for each of its two."""
    sites = [Site(tmp_path / str(number), number, 1000.0) for number in range(SITES)]
    first = np.sum([site.ask(FIRST) for site in sites], axis=0)
    own = sites[0].ask(FIRST)
    second = np.sum([site.ask(OTHER if site is sites[0] else FIRST) for site in sites], axis=0)
    np.testing.assert_array_equal(first - second, own - sites[0].ask(OTHER))
    assert [len(site.charged.charges) for site in sites] == [2, *[1] * (SITES - 1)]


def test_shares_of_one_site_hide_less_than_two_answers_cost() -> None:
    """Why that matters: by its own two shares one patient in one bin shows by more than 20 times epsilon."""
    planned = plan_evaluation(CONFIG)
    assert planned is not None
    weight, epsilon, draws = 1680, planned.stage_epsilon(1), 200_000
    drawn = laplace_integers(weight / epsilon, CONFIG.honest_sites, 2 * draws, KeyStream.of_seed(1))
    noise, window = drawn[:draws] - drawn[draws:], weight // 20
    inside, shifted = (float((np.abs(noise - at) <= window).mean()) for at in (0, weight))
    assert inside > 0.1
    assert np.log(inside / shifted) > 20 * 2 * epsilon


def test_site_that_is_asked_something_else_takes_no_part() -> None:
    evaluators = [
        Evaluator(name, cast(Any, None), cast(SiteContext, SimpleNamespace(config=CONFIG)), Failures(name))
        for name in CONFIG.site_names
    ]
    sites = [SimpleNamespace(index=i, name=f"site{i}", evaluator=one) for i, one in enumerate(evaluators)]
    session: Any = SimpleNamespace(identities=dict(enumerate(signing_sites(SITES))))
    models = {site.name: np.zeros(3, np.float32) for site in sites}

    def about(first: Question, model: np.ndarray = models["site0"]) -> list[SigningSite]:
        mine = _about(session, cast(Any, sites[:1]), {"site0": model}.__getitem__, first)
        others = _about(session, cast(Any, sites[1:]), models.__getitem__, FIRST)
        return [mine[0], *(others[i] for i in range(1, SITES))]

    share_all(about(FIRST))
    for asked in (about(OTHER), about(FIRST, np.ones(3, np.float32))):
        with pytest.raises(PayloadError, match="the signature of its message keys does not fit"):
            share_all(asked)


def test_sum_over_a_site_that_was_given_another_model_is_refused() -> None:
    """From the question to the sum, as a run asks it."""

    def site(index: int, name: str) -> SimpleNamespace:
        asked = Evaluator(
            name, cast(Any, None), cast(SiteContext, SimpleNamespace(config=CONFIG)), Failures(name)
        ).asked
        zeros = np.zeros(FIRST.shape, np.int64)
        answers = SimpleNamespace(asked=asked, may_answer=lambda *_: True, answer=lambda *_: zeros)
        return SimpleNamespace(index=index, name=name, evaluator=answers)

    sites = [site(index, name) for index, name in enumerate(CONFIG.site_names)]
    identities = dict(enumerate(signing_sites(SITES)))
    session: Any = SimpleNamespace(config=CONFIG, transport=AloneTransport(), sites=sites, identities=identities)
    one, other = np.zeros(3, np.float32), np.ones(3, np.float32)
    answer = ask(session, lambda _: one, FIRST, 0)
    assert answer is not None and not answer.total.any()
    with pytest.raises(PayloadError, match="the signature of its message keys does not fit"):
        ask(session, lambda name: other if name == "site0" else one, FIRST, 0)


def test_question_that_comes_back_gets_the_answer_that_it_got(tmp_path: Path) -> None:
    """A new one would show, beside the sum before, how much of the noise was this site's."""
    site = Site(tmp_path / "site", 0, 1000.0)
    first, other = site.ask(FIRST), site.ask(OTHER)
    again = Site(tmp_path / "again", 1, 1000.0)
    again.answers = Answers(tmp_path / "site", site.charged, site.answers._plan)
    for asked in (site, again):
        np.testing.assert_array_equal(asked.ask(FIRST), first)
        np.testing.assert_array_equal(asked.ask(OTHER), other)
        assert all(asked.answers.keeps(one, one.digest(np.zeros(1, np.float32))) for one in (FIRST, OTHER))
    assert len(site.charged.charges) == 2
