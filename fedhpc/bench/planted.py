"""Hospitals whose contribution is known beforehand, and how often the values rank them so.

A replica in numpy of the shipped recipe (configs/fedavg.yaml): a linear head without offsets on features of length 1,
full-batch DP-SGD at each site with noise of its own, the weighted mean, the mean of the last half of the rounds. Its
values are those of `fedhpc.aggregation.contribution`, on the updates that it sends; the models are judged on labelled
images that no site has. Only the noise is drawn anew; patients stay the same. So the covariance of the values over the
draws is that of the noise, which `run.py contribution` estimates by redrawing it: with it, two sites are told apart
where the 95 % interval of the difference of their values is on one side of 0.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fedhpc.aggregation.contribution import (
    SURE,
    History,
    coalition_models,
    cosine_utility,
    cosine_values,
    leave_one_out,
    same_updates,
    shapley,
)
from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.privacy.accountant import calibrate_gaussian
from fedhpc.records.weighted_auc import weighted_aucs
from fedhpc.util.arrays import F32, F64, I64
from fedhpc.util.rng import generator
from fedhpc.util.text import fitted, wrapped

CLASSES, FEATURES, SEPARATION, SCANNERS = 4, 24, 1.0, 3
SPREAD = 2.0
ROUNDS, STEPS, LR, CLIP, DELTA, LAST = 10, 3, 32.0, 0.3, 1e-5, 0.5
PATIENTS, JUDGING = 400, 2000
ONE = 3
"""The class that one site alone has, and the site with something planted: the last of four."""
METHODS = ("shapley", "leave_one_out", "cgsv", "cosine_shapley")
NAMES = ("LOO", "CGSV", "cos. Shapley")
FEWEST = 2
"""Draws of which a deviation is known."""


@dataclass(frozen=True)
class Shard:
    """Labelled features: f64[n, FEATURES] of length 1, int64[n]."""

    features: F64
    labels: I64


Sent = Callable[[F32, np.random.Generator], F32]
"""What replaces the round's updates f32[n, d]."""


@dataclass(frozen=True)
class Case:
    """One planted case.

    Attributes:
        name: of the case.
        expected: what is right, in words.
        shards: of the sites, from a seed.
        judging: labelled patients whom no site has.
        order: what is right, as pairs of sites of which the first must have more than the second.
        equal: pairs of sites that must have the same value, to rounding.
        sent: what the sites send of their updates; None: what they trained.
        by_class: whether the values of class ONE are compared; else those of the mean over classes.
    """

    name: str
    expected: str
    shards: Callable[[], list[Shard]]
    order: tuple[tuple[int, int], ...] = ()
    equal: tuple[tuple[int, int], ...] = ()
    sent: Sent | None = None
    by_class: bool = False
    judging: Callable[[], Shard] = lambda: draw("judging", JUDGING)

    def compared(self, values: F64) -> F64:
        """Return the value f64[n] of each site that is compared, of f64[n] or by class f64[n, CLASSES]."""
        return np.asarray(values[:, ONE] if self.by_class else values)

    def right(self, values: F64) -> bool:
        """Return whether the values of all sites, as `compared` takes them, rank them as planted."""
        found = self.compared(values)
        alike = all(np.isclose(found[i], found[j], rtol=1e-4, atol=1e-6) for i, j in self.equal)
        return alike and all(found[i] > found[j] for i, j in self.order)


def draw(purpose: str, patients: int, classes: Sequence[int] = range(CLASSES), scanner: int | None = None) -> Shard:
    """Return patients of some classes, Gaussian around orthogonal means of a length of SEPARATION, scaled to length 1.

    With a `scanner` the classes show in an eighth of the features that no other scanner shows them in.
    """
    turned = np.linalg.qr(generator(0, "planted means").standard_normal((FEATURES, FEATURES)))[0]
    means = turned[CLASSES * (scanner or 0) :][:CLASSES] * SEPARATION
    rng = generator(0, "planted", purpose)
    labels = rng.choice(np.array(classes, np.int64), patients)
    features = means[labels] + rng.standard_normal((patients, FEATURES)) * SPREAD / np.sqrt(FEATURES)
    return Shard(features / np.linalg.norm(features, axis=1, keepdims=True), labels)


def alike(patients: Sequence[int] = (PATIENTS,) * 4) -> list[Shard]:
    """Return sites whose patients are of all classes."""
    return [draw(f"site {i}", number) for i, number in enumerate(patients)]


def half_flipped() -> list[Shard]:
    """Return sites alike, half of the last one's labels changed to another class."""
    shards, rng = alike(), generator(0, "planted flips")
    last = shards[-1]
    wrong = (last.labels + rng.integers(1, CLASSES, PATIENTS)) % CLASSES
    return [*shards[:-1], Shard(last.features, np.where(np.arange(PATIENTS) % 2, wrong, last.labels))]


def duplicated() -> list[Shard]:
    """Return three sites with a scanner of their own each, the last of them twice."""
    shards = [draw(f"scanner {i}", PATIENTS, scanner=i) for i in range(SCANNERS)]
    return [*shards, shards[-1]]


def every_scanner() -> Shard:
    """Return patients of all scanners."""
    parts = [draw(f"judging {i}", JUDGING // SCANNERS, scanner=i) for i in range(SCANNERS)]
    return Shard(np.concatenate([one.features for one in parts]), np.concatenate([one.labels for one in parts]))


def lone_class() -> list[Shard]:
    """Return sites of which only the last has class ONE."""
    others = [draw(f"without {i}", PATIENTS, range(ONE)) for i in range(3)]
    return [*others, draw("with", PATIENTS)]


def zeros(updates: F32, rng: np.random.Generator) -> F32:
    """The last site sends nothing."""
    return np.concatenate([updates[:-1], np.zeros_like(updates[-1:])])


def noise(updates: F32, rng: np.random.Generator) -> F32:
    """The last site sends Gaussian noise as long as an honest update."""
    drawn = rng.standard_normal((updates.shape[1],))
    drawn *= np.linalg.norm(updates[0]) / np.linalg.norm(drawn)
    return np.concatenate([updates[:-1], drawn.astype(np.float32)[None]])


def copied(updates: F32, rng: np.random.Generator) -> F32:
    """The last site sends what the first has sent."""
    return np.concatenate([updates[:-1], updates[:1]])


LAST_OF_ALL = ((0, 3), (1, 3), (2, 3))
FIRST_OF_ALL = tuple((behind, ahead) for ahead, behind in LAST_OF_ALL)
BOTH_BEHIND = ((0, 2), (0, 3), (1, 2), (1, 3))

CASES = (
    Case("half of the labels flipped", "last", half_flipped, LAST_OF_ALL),
    Case("duplicated shard", "both behind the others", duplicated, BOTH_BEHIND, judging=every_scanner),
    Case("free rider: zero", "last", alike, LAST_OF_ALL, sent=zeros),
    Case("free rider: noise", "last", alike, LAST_OF_ALL, sent=noise),
    Case("free rider: copy", "as the copied one", alike, equal=((0, 3),), sent=copied),
    Case("twice as large", "first", lambda: alike((PATIENTS,) * 3 + (2 * PATIENTS,)), FIRST_OF_ALL),
    Case("a class of its own", "first in that class", lone_class, FIRST_OF_ALL, by_class=True),
)


@dataclass(frozen=True)
class Recipe:
    """The noise multiplier of every step; 0 for none."""

    noise_multiplier: float

    @classmethod
    def of(cls, epsilon: float | None) -> "Recipe":
        """Calibrated for a whole run; None for no privacy."""
        return cls(0.0 if epsilon is None else calibrate_gaussian(epsilon, DELTA, 1.0, ROUNDS * STEPS))


def train(shard: Shard, head: F32, recipe: Recipe, rng: np.random.Generator) -> F32:
    """Return the update f32[d] of one site: full-batch steps, clipped by patient, noise in each."""
    weights, patients = head.reshape(CLASSES, FEATURES).astype(np.float64), len(shard.labels)
    truth = np.eye(CLASSES)[shard.labels]
    for _ in range(STEPS):
        logits = shard.features @ weights.T
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        residual = odds / odds.sum(axis=1, keepdims=True) - truth
        residual *= np.minimum(1.0, CLIP / np.linalg.norm(residual, axis=1, keepdims=True))
        total = residual.T @ shard.features + recipe.noise_multiplier * CLIP * rng.standard_normal(weights.shape)
        weights = weights - LR * total / patients
    return np.asarray(weights.ravel() - head, np.float32)


def run(case: Case, shards: Sequence[Shard], recipe: Recipe, rng: np.random.Generator) -> History:
    """Return what the aggregator of one run has received."""
    rule, weights = Mean(), tuple(len(shard.labels) for shard in shards)
    head, sent = np.zeros(CLASSES * FEATURES, np.float32), []
    for _ in range(ROUNDS):
        updates = np.stack([train(shard, head, recipe, rng) for shard in shards])
        sent.append(case.sent(updates, rng) if case.sent else updates)
        head = head + np.average(sent[-1], axis=0, weights=weights).astype(np.float32)
    present = np.ones((ROUNDS, len(shards)), bool)
    start = np.zeros(CLASSES * FEATURES, np.float32)
    return History(start, np.stack(sent), present, weights, rule, ServerSgd(), LAST)


def utilities(history: History, judging: Shard) -> F64:
    """Return the AUC of each class of all coalitions' models, f64[2^n, CLASSES]."""
    once = np.ones((1, len(judging.labels)))
    found = []
    for params in coalition_models(history):
        logits = judging.features @ params.reshape(CLASSES, FEATURES).T.astype(np.float64)
        odds = logits - _of_others(logits)
        found.append([weighted_aucs(odds[:, k], judging.labels == k, once)[0] for k in range(CLASSES)])
    return np.array(found)


def _of_others(logits: F64) -> F64:
    """Return the logarithm of the sum of exp(logits) over all other classes, f64[n, CLASSES]."""
    top = logits.max(axis=1, keepdims=True)
    return np.asarray(np.log(np.exp(logits - top) @ (1 - np.eye(CLASSES))) + top)


def values_of(history: History, judging: Shard, by_class: bool) -> dict[str, F64]:
    """Return the values of each of METHODS, f64[n], or f64[n, CLASSES]; nothing where a method has none by class."""
    found = utilities(history, judging)
    games = {"shapley": shapley(found), "leave_one_out": leave_one_out(found)}
    if not by_class:
        games = {name: values.mean(axis=1) for name, values in games.items()}
        return {**games, "cgsv": cosine_values(history), "cosine_shapley": shapley(cosine_utility(history))}
    parts = [slice(k * FEATURES, (k + 1) * FEATURES) for k in range(CLASSES)]
    return {**games, "cgsv": np.stack([cosine_values(history, part) for part in parts], axis=1)}


def study(draws: int, epsilons: Sequence[float | None]) -> dict[str, Any]:
    """Return how many of so many noise draws rank each case as planted, by method and epsilon."""
    rows = []
    for epsilon in epsilons:
        recipe = Recipe.of(epsilon)
        for case in CASES:
            counts = _count(case, recipe, draws if epsilon is not None else 1)
            rows.append({"case": case.name, "expected": case.expected, "epsilon": epsilon, **counts})
    return {"draws": draws, "patients": PATIENTS, "rows": rows}


def _count(case: Case, recipe: Recipe, draws: int) -> dict[str, Any]:
    judging = case.judging()
    shards, right, found, seen = case.shards(), dict.fromkeys(METHODS, 0), [], 0
    for number in range(draws):
        history = run(case, shards, recipe, generator(number, "planted noise", case.name))
        values = values_of(history, judging, case.by_class)
        for name, one in values.items():
            right[name] += case.right(one)
        found.append(case.compared(values["shapley"]))
        seen += any(len(shards) - 1 in group for group in same_updates(history))
    right = {name: count for name, count in right.items() if name in values}
    mean = np.mean(found, axis=0).tolist()
    return {"right": right, "of": draws, "apart": _apart(case, np.array(found)), "copies_seen": seen, "shapley": mean}


def _apart(case: Case, values: F64) -> dict[str, int] | None:
    """Return in how many draws f64[draws, n] the intervals tell all pairs of sites apart, and any of them wrongly.

    None where there is no order to tell, or one draw, of which no interval is known.
    """
    if not case.order or len(values) < FEWEST:
        return None
    right, wrong = np.ones(len(values), bool), np.zeros(len(values), bool)
    for ahead, behind in case.order:
        more = values[:, ahead] - values[:, behind]
        half = SURE * more.std(ddof=1)
        right &= more > half
        wrong |= more < -half
    return {"right": int(right.sum()), "wrong": int(wrong.sum())}


def text(result: Mapping[str, Any]) -> str:
    """Return the study for a person."""
    head = ("planted", "right", "epsilon", "Shapley", "apart", "wrongly", *NAMES, "copies seen")
    note = (
        "apart: the 95 % intervals of the Shapley values over the noise tell the planted order; wrongly: another one. "
        "In all other draws sites cannot be told apart."
    )
    return f"{fitted([head, *(_line(row) for row in result['rows'])])}\n{wrapped(note)}"


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    counts = [f"{row['right'][name]}/{row['of']}" if name in row["right"] else "-" for name in METHODS]
    apart = [f"{row['apart'][key]}/{row['of']}" if row["apart"] else "-" for key in ("right", "wrong")]
    epsilon = "none" if row["epsilon"] is None else f"{row['epsilon']:g}"
    seen = f"{row['copies_seen']}/{row['of']}"
    return (row["case"], row["expected"], epsilon, counts[0], *apart, *counts[1:], seen)
