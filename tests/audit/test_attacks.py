"""The attacks work where nothing protects, and what the product does stops them."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from fedhpc.audit.contact_rows import Guess, Row
from fedhpc.audit.findings import WITH_DP, Finding
from fedhpc.audit.inversion import Effort, convolutional_row, linear_row, small
from fedhpc.audit.membership import WholeRun, history_of, ledger_finding, real_training, released_model, whole_run
from fedhpc.audit.negative_controls import (
    NO_CLIP,
    NO_NOISE,
    ONE_SEED,
    Game,
    Trials,
    mutilated,
    one_step,
    reference,
    sampling,
    two_sites,
)
from fedhpc.audit.reconstruction import affordable_iterations, input_of_linear, linear_on_pixels
from fedhpc.audit.releases import CLIP_ONLY, NO_PRIVACY, SETTINGS, one_step_releases
from fedhpc.audit.target import Subject
from fedhpc.site.data.harmonise import harmonise

pytestmark = pytest.mark.usefixtures("same_entropy")


def by_setting(findings: Iterator[Finding]) -> dict[str, Finding]:
    return {finding.setting: finding for finding in findings}


def test_division_recovers_the_image_exactly_without_privacy_and_with_the_clip(subject: Subject) -> None:
    torch.manual_seed(0)
    victim = subject.samples.indices("train")[:1]
    image = harmonise(subject.shard.read(victim))
    model = linear_on_pixels(image.shape[1:], 2)
    found = one_step_releases(subject, model, image, int(subject.samples.labels[victim[0]]))
    for setting in (NO_PRIVACY, CLIP_ONLY):
        np.testing.assert_allclose(input_of_linear(found[setting], 2), image.flatten().numpy(), atol=1e-4)
    noisy = input_of_linear(found[WITH_DP], 2)
    assert abs(np.corrcoef(noisy, image.flatten().numpy())[0, 1]) < 0.3


@pytest.mark.parametrize("row", [linear_row, convolutional_row])
def test_inversion_works_but_for_the_noise(subject: Subject, row: object) -> None:
    made = row(subject, subject.samples.indices("train")[1:2], Effort(50, 5.0, 0))
    values = {setting: made.guesses[setting].value for setting in SETTINGS}
    assert min(values[NO_PRIVACY], values[CLIP_ONLY]) > 0.9
    assert values[WITH_DP] < 0.3
    assert [finding.verdict for finding in made.findings()] == ["caught", "caught", "holds"]


@pytest.mark.parametrize(("works", "with_dp"), [((0.1, 0.2), "-"), ((0.1, 0.6), "holds"), ((0.6, 0.1), "holds")])
def test_an_attack_that_never_works_is_not_judged(works: tuple[float, float], with_dp: str) -> None:
    """Nor is an open update of the real setting: it is shown."""
    tile = np.zeros((1, 4, 4), np.float32)
    guesses = {s: Guess(tile, value, (), {}) for s, value in zip(SETTINGS, (*works, 0.1), strict=True)}
    row = Row("real", "note", "SSIM", False, tile, "original", guesses)
    assert [finding.verdict for finding in row.findings()] == ["-", "-", with_dp]


def test_no_side_is_longer_than_a_search_can_afford() -> None:
    assert small(torch.rand(2, 1, 224, 112)).shape == (2, 1, 64, 32)
    kept = torch.rand(2, 1, 32, 40)
    assert small(kept) is kept


def test_a_short_budget_buys_few_iterations() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    labels = torch.tensor([0])
    assert affordable_iterations(model, labels, (1, 8, 8), 30, 1000.0) == 30
    assert affordable_iterations(model, labels, (1, 8, 8), 10_000, 0.0) == 20


def test_every_mutilation_of_a_step_is_caught_and_the_step_itself_holds(subject: Subject) -> None:
    found = by_setting(one_step(subject, Trials(40, 500, 0)))
    assert list(found) == [WITH_DP, NO_NOISE, NO_CLIP]
    assert [f.verdict for f in found.values()] == ["holds", "caught", "caught"]
    sound = found[WITH_DP].details
    assert sound["noise"] == pytest.approx(sound["noise_planned"], rel=0.05)
    assert sound["contribution"] == pytest.approx(1.0, abs=0.4)
    assert found[NO_CLIP].details["contribution"] == pytest.approx(10.0, abs=0.4)


def test_a_head_is_clipped_and_noised_as_a_network_is(subject: Subject) -> None:
    sound, claim = reference(subject)
    verdicts = {}
    for setting, mechanism in {WITH_DP: sound, **mutilated(sound)}.items():
        game = Game("head", setting, claim, sound.plan.noise_multiplier, replace(mechanism, head=True).one_round)
        verdicts[setting] = game.finding(Trials(20, 500, 0)).verdict
    assert verdicts == {WITH_DP: "holds", NO_NOISE: "caught", NO_CLIP: "caught"}


def test_too_few_trials_are_no_audit(subject: Subject) -> None:
    """That noise is missing cannot be proven by three canaries, and the audit says so."""
    assert by_setting(one_step(subject, Trials(1, 3, 0)))[NO_NOISE].verdict == "NOT CAUGHT"


def test_one_seed_at_two_sites_is_caught(subject: Subject) -> None:
    found = by_setting(two_sites(subject, Trials(10, 500, 0)))
    assert {setting: f.verdict for setting, f in found.items()} == {WITH_DP: "holds", ONE_SEED: "caught"}
    assert found[WITH_DP].details["noise"] == pytest.approx(found[WITH_DP].details["noise_planned"], rel=0.05)
    assert found[ONE_SEED].details["noise"] == pytest.approx(0, abs=0.01)


def test_one_round_of_the_runs_own_sampling_holds(subject: Subject) -> None:
    assert {f.setting: f.verdict for f in sampling(subject, Trials(2, 1000, 0))} == {WITH_DP: "holds"}


def test_whole_run_claims_what_the_ledger_says(subject: Subject) -> None:
    rounds: list[None] = []
    found = whole_run(subject, WholeRun(2, 1000, 3, 0), lambda: rounds.append(None))
    assert len(rounds) == 6
    assert [f.verdict for f in found] == ["holds"] * 4
    assert found[0].limit == pytest.approx(1.0, abs=0.01)
    assert found[-1].details["steps"] == history_of(subject.plan, 3)[0][2] == 3 * subject.plan.steps_per_round
    too_little = ledger_finding(subject, found[0].limit / 2, found[-1].details["steps"])
    assert too_little.verdict == "VIOLATED"


def test_canaries_in_the_real_training_are_hidden_by_the_noise_alone(subject: Subject) -> None:
    found = by_setting(real_training(subject, 300, 0))
    assert {setting: f.verdict for setting, f in found.items()} == {WITH_DP: "holds", NO_NOISE: "caught"}


def test_an_initial_model_knows_nobody_and_a_released_one_is_judged(subject: Subject) -> None:
    assert released_model(subject) == []
    found = released_model(replace(subject, rounds_done=3))
    assert [f.quantity for f in found] == ["AUC", "TPR at FPR 1%"]
    assert all(f.passed for f in found)
