"""One private round of a hospital, step by step: noise, denominator, key, ledger. By `Hospital` alone."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedhpc.aggregation.norm_bound import longest_norm, shortened
from fedhpc.config.schema import RunConfig
from fedhpc.errors import SiteError
from fedhpc.models.device import Device
from fedhpc.models.vector import layers_of, parameter_count, to_vector
from fedhpc.privacy.ledger import read_ledger
from fedhpc.privacy.noise import KeyStream
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.site.context import SiteContext
from fedhpc.site.hospital import Hospital
from fedhpc.site.per_example.clipped_sum import MARGIN, ClippedSum
from fedhpc.site.release import Question, Weights, with_noise
from fedhpc.site.training.local_sgd import one_step
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.site.training.secure_contribution import plan_grid
from fedhpc.site.training.update_scale import sum_scale, update_scales

LR, MOMENTUM, CLIP_NORM, PLAN = 1e-3, 0.9, 0.5, PrivacyPlan(2.0, 1.0, 3)
ONE_STEP = PrivacyPlan(2.0, 1.0, 1)
INPUTS, UNITS = 30, 6
NO_TARGET = 1e300
"""The rounds here are measured, not rationed."""


class Patients:
    """One image each (private in a real shard)."""

    def __init__(self, count: int) -> None:
        torch.manual_seed(0)
        self.images = torch.randn(count, INPUTS)
        self.labels, self.early = np.arange(count) % 2, np.zeros(count, np.bool_)
        self.patient = np.array([f"p{i}" for i in range(count)], "S8")

    def indices(self, split: str) -> np.ndarray:
        return np.arange(len(self.labels) if split == "train" else 0)

    def inputs(self, rows: np.ndarray) -> Tensor:
        return self.images[torch.from_numpy(rows)]


class Silent(nn.Module):
    """Answers 0 whatever it is shown: no gradient reaches its weights or biases, so all that moves them is noise."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(INPUTS, 20), nn.Tanh(), nn.Linear(20, 2))

    def forward(self, images: Tensor) -> Tensor:
        answers: Tensor = self.layers(images) * 0.0
        return answers


def config(scratch: Path, local_epochs: int = 3, **privacy: object) -> RunConfig:
    training = {"rounds": 100, "local_epochs": local_epochs, "lr": LR, "lr_schedule": "constant", "momentum": MOMENTUM}
    tree = {
        "name": "round",
        "data": {"shards": f"{scratch}/{{site}}.h5", "sites": [{"name": name, "weight": UNITS} for name in "abcd"]},
        "training": {**training, "weight_decay": 0},
        "exchange": {"density": 1},
        "privacy": {"epsilon": NO_TARGET, "sample_rate": 1.0, "clip_norm": CLIP_NORM, **privacy},
    }
    return RunConfig.model_validate(tree)


def hospital(
    scratch: Path, model: nn.Module, plan: PrivacyPlan = PLAN, on_step: Callable[[int, int], None] = lambda *_: None
) -> Hospital:
    return hospital_of(config(scratch), scratch, model, plan, on_step)


def hospital_of(
    settings: RunConfig, scratch: Path, model: nn.Module, plan: PrivacyPlan, on_step: Callable[[int, int], None]
) -> Hospital:
    place = SiteContext(settings, model, Device(torch.device("cpu"), bf16=False), plan, on_step)
    site = Hospital("a", 0, UNITS, Patients(UNITS), place)
    site.keep_ledger(scratch / "ledger.jsonl", "run")
    return site


def test_every_step_adds_the_planned_noise(tmp_path: Path) -> None:
    """To the weights and to the biases, from the first step to the last, and none of it twice through momentum.

    40 rounds of 880 biases' and 25,600 weights' values a step: 15 % is beyond 6 standard deviations.
    """
    model, seen = Silent(), []
    site = hospital(tmp_path, model, on_step=lambda *_: seen.append(to_vector(model)))
    start, rounds = to_vector(model), 40
    drawn = []
    for round in range(rounds):
        seen.clear()
        site.train(start, round)
        moves = np.diff(np.stack([start, *seen]).astype(np.float64), axis=0)
        drawn.append(moves - MOMENTUM * np.concatenate([np.zeros_like(moves[:1]), moves[:-1]]))
    noise = np.stack(drawn) * (UNITS / (LR * CLIP_NORM))
    bias = np.concatenate([np.full(size, name.endswith("bias")) for name, size in layers_of(model)])
    for step in range(PLAN.steps_per_round):
        for kind in (bias, ~bias):
            assert noise[:, step, kind].std() == pytest.approx(PLAN.noise_multiplier, rel=0.15), step
    first, last = noise[:, 0].ravel(), noise[:, -1].ravel()
    assert abs(np.corrcoef(first, last)[0, 1]) < 6 / first.size**0.5


def test_public_scale_is_that_of_the_update(tmp_path: Path) -> None:
    """Noise of three steps with momentum, of 20 rounds and 682 values; and a signal near its bound, without noise."""
    exact, start = config(tmp_path).replace({"exchange.value_bits": 32}), to_vector(Silent())
    (tmp_path / "noise").mkdir()
    site = hospital(tmp_path / "noise", Silent())
    drawn = np.stack([site.train(start, round) for round in range(20)])
    scale = update_scales(exact, [PLAN] * 4, (UNITS,) * 4, 0)[0]
    assert drawn.std() == pytest.approx(scale.noise, rel=0.05)
    model, quiet = nn.Linear(INPUTS, 2), PrivacyPlan(1e-6, 1.0, 3)
    (tmp_path / "signal").mkdir()
    length = float(np.linalg.norm(hospital(tmp_path / "signal", model, quiet).train(to_vector(model), 0)))
    longest = update_scales(exact, [quiet] * 4, (UNITS,) * 4, 0)[0].longest
    assert 0.1 * longest < length <= longest


@pytest.mark.parametrize("changes", [{"training.optimizer": "adam"}, {"training.weight_decay": 0.1}])
def test_scale_is_unknown_where_it_cannot_be_told(tmp_path: Path, changes: dict[str, object]) -> None:
    """Adam, weight decay; and without privacy."""
    assert update_scales(config(tmp_path).replace(changes), [PLAN] * 4, (UNITS,) * 4, 0) is None
    assert update_scales(config(tmp_path), [], (UNITS,) * 4, 0) is None


@pytest.mark.parametrize("changes", [{"exchange.density": 0.5}, {"exchange.value_bits": 4}])
def test_scale_is_of_training_where_updates_are_rounded(tmp_path: Path, changes: dict[str, object]) -> None:
    exact = config(tmp_path).replace({"exchange.value_bits": 32})
    inexact = update_scales(exact.replace(changes), [PLAN] * 4, (UNITS,) * 4, 0)
    assert inexact == tuple(replace(one, exact=False) for one in update_scales(exact, [PLAN] * 4, (UNITS,) * 4, 0))


def test_the_denominator_is_the_declared_count(tmp_path: Path) -> None:
    """With half as many patients in the shard and the same declaration, the sum is halved and not divided by less."""
    torch.manual_seed(0)
    model, quiet = nn.Linear(INPUTS, 2), PrivacyPlan(1e-6, 1.0, 1)
    start, moved = to_vector(model), []
    for count in (UNITS, 2 * UNITS):
        place = SiteContext(config(tmp_path), model, Device(torch.device("cpu"), bf16=False), quiet, lambda *_: None)
        patients = Patients(UNITS)
        patients.images = patients.images.repeat(count // UNITS, 1)
        patients.labels = np.tile(patients.labels, count // UNITS)
        patients.patient = np.array([f"p{i}" for i in range(count)], "S8")
        site = Hospital("a", 0, UNITS, patients, place)
        site.keep_ledger(tmp_path / f"{count}.jsonl", f"run{count}")
        moved.append(site.train(start, 0))
    np.testing.assert_allclose(moved[1], 2 * moved[0], rtol=1e-3, atol=1e-7)


@contextmanager
def operating_system_gives(key: bytes) -> Iterator[None]:
    """A known answer to `os.urandom`, as far as it is asked for."""
    real = os.urandom
    os.urandom = lambda n: (key * (n // len(key) + 1))[:n]  # type: ignore[assignment]
    try:
        yield
    finally:
        os.urandom = real  # type: ignore[assignment]


def test_noise_depends_on_all_bits_of_its_key(tmp_path: Path) -> None:
    """Seeds that differ only above bit 32, or in any one of 256 bits, give different noise; equal ones the same."""
    model = nn.Linear(INPUTS, 2)
    site, start = hospital(tmp_path, model, PrivacyPlan(2.0, 1.0, 1)), to_vector(model)
    key = int.from_bytes(bytes(range(32)), "little")

    def drawn(value: int) -> bytes:
        with operating_system_gives(value.to_bytes(32, "little")):
            return site.train(start, 0).tobytes()

    assert drawn(key) == drawn(key)
    assert len({drawn(key), *(drawn(key ^ 1 << bit) for bit in range(256))}) == 257


def test_all_steps_are_charged_before_the_first(tmp_path: Path) -> None:
    """A site whose power fails in its first step has paid for the whole round, beside the shard too."""

    def power_cut(done: int, total: int) -> None:
        raise RuntimeError("power cut")

    model = nn.Linear(INPUTS, 2)
    site = hospital(tmp_path, model, on_step=power_cut)
    with pytest.raises(SiteError):
        site.train(to_vector(model), 0)
    (charge,) = read_ledger(tmp_path / "ledger.jsonl")[1]
    assert (charge.steps, charge.sample_rate, charge.noise_multiplier) == (3, 1.0, 2.0)


def test_regularizer_is_added_after_clipping_and_noise(tmp_path: Path) -> None:
    """A correction a thousand times the clip norm moves the parameters by all of itself, and nothing else changes."""
    torch.manual_seed(0)
    model = nn.Linear(INPUTS, 2)
    start, moved, charges = to_vector(model), [], []
    linear = np.random.default_rng(0).standard_normal(start.size).astype(np.float32) * np.float32(1000 * CLIP_NORM)
    for number, regularizer in enumerate((NOTHING, Regularizer(linear, proximal=7.0))):
        settings = config(tmp_path, noise_seed=1)
        place = SiteContext(settings, model, Device(torch.device("cpu"), bf16=False), ONE_STEP, lambda *_: None)
        site = Hospital("a", 0, UNITS, Patients(UNITS), place)
        site.keep_ledger(tmp_path / f"{number}.jsonl", f"run{number}")
        moved.append(site.train(start, 0, regularizer))
        (charge,) = read_ledger(tmp_path / f"{number}.jsonl")[1]
        charges.append((charge.steps, charge.sample_rate, charge.noise_multiplier))
    np.testing.assert_allclose(moved[1] - moved[0], -LR * linear, atol=1e-6)
    assert charges[0] == charges[1]


def test_a_share_of_a_secure_sum_has_the_planned_variance(tmp_path: Path) -> None:
    """2,480 values of noise alone: 10 % is beyond 6 standard deviations of their root mean square."""
    settings = config(tmp_path, local_epochs=1, trust="sites", colluding_sites=1)
    plan, model = PrivacyPlan(12.8, 1.0, 1, "skellam"), nn.Linear(INPUTS, 2)
    grid = plan_grid(plan.noise_multiplier, parameter_count(model), (UNITS,) * 4, 3, 10)
    device = Device(torch.device("cpu"), bf16=False)
    place = SiteContext(settings, model, device, plan, lambda *_: None)
    site = Hospital("a", 0, UNITS, Patients(0), place)
    site.keep_ledger(tmp_path / "ledger.jsonl", "run")
    shares = [site.contribute(to_vector(model), round, grid) for round in range(40)]
    assert np.std(shares) == pytest.approx(grid.site_variance**0.5, rel=0.1)
    # 620 values of sums over four sites: 17 % is beyond 6 standard deviations.
    sums = [grid.mean_gradient(np.sum(shares[k : k + 4], axis=0), 4 * UNITS, settings.privacy) for k in range(0, 40, 4)]
    start = to_vector(model)
    steps = [one_step(model, settings.training, 0, start, gradient) for gradient in sums]
    scale = sum_scale(settings, plan, (UNITS,) * 4, 0)
    assert np.std(steps) == pytest.approx(scale.noise, rel=0.17)
    longest = longest_norm(scale, start.size)
    assert all(shortened(step, longest) is step for step in steps)
    assert np.linalg.norm(shortened(steps[0] * 100, longest)) == pytest.approx(longest, rel=1e-5)


@pytest.mark.parametrize("bias", [True, False])
def test_huge_parameters_do_not_widen_the_sensitivity(bias: bool) -> None:
    """An aggregator that sends what it likes: images on the boundary of huge weights, where rounding decides.

    The new unit is the first, so that all others are at another place of the batch. In float32 a head without offsets
    moved by 2.6 clip norms here.
    """
    torch.manual_seed(1)
    for size, scale in ((27, 1e7), (27, 1e15), (256, 1e15)):
        for others in (3, 11, 15, 33):
            model = nn.Sequential(nn.Identity(), nn.Linear(size, 2, bias=bias))
            with torch.no_grad():
                model[1].weight.normal_().mul_(scale)
                if bias:
                    model[1].bias.zero_()
            normal = nn.functional.normalize((model[1].weight[0] - model[1].weight[1]).detach(), dim=0)
            images = torch.randn(1 + others, size)
            images = nn.functional.normalize(images - (images @ normal)[:, None] * normal, dim=1)
            labels = torch.arange(1 + others) % 2
            clipped, sums = ClippedSum(model, CLIP_NORM), []
            for first in (0, 1):
                clipped.add(images[first:], labels[first:], torch.arange(1 + others - first))
                sums.append(clipped.total.clone())
                clipped.clear()
            clipped.close()
            assert torch.linalg.vector_norm(sums[0] - sums[1]) <= CLIP_NORM * (1 + MARGIN)


def test_evaluation_adds_the_planned_noise() -> None:
    """Laplace noise of scale l1 / epsilon: 20 % is beyond 7 standard deviations of the deviation of 4,000 values."""
    weights = Weights(tasks=1, counted=2)
    drawn = with_noise(np.zeros(4000, np.int64), 0.5, weights, 1, KeyStream.fresh())
    assert drawn.std() == pytest.approx(2**0.5 * weights.l1 / 0.5, rel=0.2)


class Measured(Patients):
    """All in every split, as if: only that they are asked about counts here."""

    def indices(self, split: str) -> np.ndarray:
        return np.arange(len(self.labels))


def test_an_evaluation_is_charged(tmp_path: Path) -> None:
    """To the population of validation and test patients, and not again for an answer that was given before."""
    settings = RunConfig.model_validate({**config(tmp_path).model_dump(mode="json"), "evaluation": {"epsilon": 1.0}})
    model = nn.Linear(INPUTS, 2)
    place = SiteContext(settings, model, Device(torch.device("cpu"), bf16=False), PLAN, lambda *_: None)
    site = Hospital("a", 0, UNITS, Measured(UNITS), place)
    site.keep_ledger(tmp_path / "ledger.jsonl", "run")
    question = Question(stage=101, split="val", groups=2, edges=((-1.0, 0.0, 1.0),))
    for _ in range(2):
        site.evaluator.answer(to_vector(model), question, Weights(tasks=1, counted=4))
        (charge,) = read_ledger(tmp_path / "ledger.jsonl")[1]
        assert (charge.population, charge.mechanism, charge.steps) == ("evaluation", "laplace", 1)


def test_share_of_less_noise_than_is_charged_fails_at_its_site(tmp_path: Path) -> None:
    """A SiteError, by which this rank alone ends or drops out: an InputError is taken to be at every rank."""
    settings = config(tmp_path, local_epochs=1, trust="sites", colluding_sites=1)
    model, device = nn.Linear(INPUTS, 2), Device(torch.device("cpu"), bf16=False)
    place = SiteContext(settings, model, device, PrivacyPlan(12.8, 1.0, 1, "skellam"), lambda *_: None)
    site = Hospital("a", 0, UNITS, Patients(0), place)
    site.keep_ledger(tmp_path / "ledger.jsonl", "run")
    grid = plan_grid(12.0, parameter_count(model), (UNITS,) * 4, 3, 10)
    with pytest.raises(SiteError, match=r"site a, round 1: .*which this site is charged for") as raised:
        site.contribute(to_vector(model), 0, grid)
    assert raised.value.code == "privacy.plan"


def test_ledger_or_answer_that_cannot_be_read_fails_at_its_site(tmp_path: Path) -> None:
    """As the shares above: in a round no other rank sees what is damaged at this one, and would wait for its vote."""
    site = hospital(tmp_path, model := Silent())
    params = to_vector(model)
    question = Question(stage=101, split="val", groups=3, edges=((0.0,),))
    assert site.can_afford(0) and site.evaluator.may_answer(params, question)
    (tmp_path / "evaluation-0101-val.npz").write_bytes(b"no answer")
    with pytest.raises(SiteError, match=r"site a, evaluation failed: .*is damaged") as raised:
        site.evaluator.may_answer(params, question)
    assert raised.value.code == "file.damaged"
    (tmp_path / "ledger.jsonl").write_text("no line\n", encoding="utf-8")
    with pytest.raises(SiteError, match="site a, round 1: the ledger cannot be read: ") as raised:
        site.can_afford(0)
    assert raised.value.code.startswith("privacy.")


@pytest.mark.parametrize("bad", [1.1e4, -1e7, np.inf, np.nan])
def test_extreme_global_parameters_are_refused(tmp_path: Path, bad: float) -> None:
    """What an aggregator may send to make rounding errors larger than the noise's margin; nothing is charged."""
    model = Silent()
    site = hospital(tmp_path, model)
    params = to_vector(model)
    params[3] = bad
    grid = plan_grid(PLAN.noise_multiplier, parameter_count(model), [UNITS] * 4, 3, 100)
    for release in (lambda: site.train(params, 0), lambda: site.contribute(params, 0, grid)):
        with pytest.raises(SiteError, match="global model"):
            release()
    assert not read_ledger(tmp_path / "ledger.jsonl")[1]


def test_step_from_extreme_local_parameters_is_not_made(tmp_path: Path) -> None:
    """A large rate makes them in the first step of a round, behind the check of the global ones."""
    done: list[int] = []
    settings = config(tmp_path).replace({"training.lr": 1e6})
    site = hospital_of(settings, tmp_path, Silent(), PLAN, lambda step, _: done.append(step))
    with pytest.raises(SiteError, match="round 1, before step 2: a parameter is larger"):
        site.train(to_vector(Silent()), 0)
    assert done == [1] and read_ledger(tmp_path / "ledger.jsonl")[1][0].steps == PLAN.steps_per_round
