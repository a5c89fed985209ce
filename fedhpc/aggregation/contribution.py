"""Who contributed how much: the Shapley value of coalitions of stored updates, leave-one-out, and CGSV.

A coalition S of sites has the model that the run's own rule, weights and server optimiser make of the updates of S
alone, from the run's initial parameters (Song, Tong and Wei 2019, "Profit allocation for federated learning", the
one-round index: no site trains again). All 2^n coalitions are formed, so that a value is exact:

    shapley(i) = sum over S without i of  |S|! (n - |S| - 1)! / n!  (v(S + i) - v(S))            (Shapley 1953)

v is a utility of a model. Cosine utilities need no data: v(S) = cos(u_S, u_N) of the weighted mean updates of S and of
all sites N in a round; CGSV approximates its Shapley value by cos(u_i, u_N) (Xu et al. 2021, "Gradient driven rewards
to guarantee fairness in collaborative machine learning"). Everything here is post-processing of updates that
have been sent: with differential privacy it costs no epsilon, as long as `v` looks at no private data.

Coalitions are numbered: bit i of a number says whether site i is in.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fedhpc.aggregation.base import AggregationRule, Arrays, RuleRound, ServerStep
from fedhpc.aggregation.iterate_average import IterateAverage
from fedhpc.compression.update import SparseVector
from fedhpc.util.arrays import F32, F64

MOST_SITES = 10
SURE = 1.96
"""Standard deviations on either side of a 95 % interval."""


@dataclass(frozen=True)
class History:
    """What a run's aggregator has received (public, or released).

    Attributes:
        start: the initial parameters, f32[d].
        updates: f32[T, n, d], what arrived of each site in each round; zeros where nothing did.
        present: bool[T, n], whether a site's update is in the round's mean.
        weights: the public weight of each site.
        rule, server: of the run.
        average_last: the share of the last rounds whose mean is the result.
    """

    start: F32
    updates: F32
    present: NDArray[np.bool_]
    weights: tuple[int, ...]
    rule: AggregationRule
    server: ServerStep
    average_last: float = 0.0

    @property
    def sites(self) -> int:
        """n."""
        return len(self.weights)

    def with_noise(self, deviations: F64, rng: np.random.Generator) -> "History":
        """Return the history with more noise in each entry that was sent.

        Args:
            deviations: f64[T, n], of the noise that a site added in a round (public).
            rng: of a simulation; nothing is released with it.
        """
        drawn = rng.standard_normal(self.updates.shape, np.float32)
        noisy = self.updates + drawn * (self.updates != 0) * deviations[:, :, None].astype(np.float32)
        return History(self.start, noisy, self.present, self.weights, self.rule, self.server, self.average_last)


def members(coalition: int, sites: int) -> tuple[int, ...]:
    """Return the sites of a coalition, ascending.

    >>> members(0b101, 3)
    (0, 2)
    """
    return tuple(i for i in range(sites) if coalition >> i & 1)


def rebuilt(history: History, coalition: int) -> F32:
    """Return the model f32[d] of a coalition; a round in which none of it is present changes nothing.

    The coalition of all is the run's model, bit for bit, where the aggregator sends its whole step as float32.
    """
    params, size = history.start, history.start.size
    rounds = len(history.updates)
    server, rule = history.server.initial(size), history.rule.initial(size, history.sites)
    average = IterateAverage.over_last(history.average_last, rounds)
    for t in range(rounds):
        taking_part = [i for i in members(coalition, history.sites) if history.present[t, i]]
        if taking_part:
            mean, rule = _round_update(history, t, taking_part, rule)
            step, server = history.server.step(mean, server, t)
            params = params + step
        average = average.after(t + 1, params)
    return average.released(params)


def _round_update(history: History, t: int, taking_part: Sequence[int], kept: Arrays) -> tuple[F32, Arrays]:
    names = tuple(map(str, range(history.sites)))
    aggregator = history.rule.aggregator(RuleRound(history.start.size, t, names, kept))
    for i in taking_part:
        aggregator.add(i, _sparse(history.updates[t, i]), history.weights[i])
    found = aggregator.aggregated()
    return found.update, found.kept


def _sparse(update: F32) -> SparseVector:
    indices = np.flatnonzero(update)
    return SparseVector(update.size, indices, update[indices])


def coalition_models(history: History) -> F32:
    """Return the models of all coalitions, f32[2^n, d]; that of none has the initial parameters.

    Raises:
        ValueError: more than MOST_SITES sites.
    """
    if history.sites > MOST_SITES:
        raise ValueError(f"{history.sites} sites have {2**history.sites} coalitions; allowed: {MOST_SITES} sites")
    return np.stack([rebuilt(history, coalition) for coalition in range(2**history.sites)])


def shapley(utility: F64) -> F64:
    """Return the exact Shapley value of each site, f64[n, ...], of the utilities f64[2^n, ...] of all coalitions.

    The values of a utility sum to v(all) - v(none).

    >>> shapley(np.array([0.0, 1.0, 2.0, 5.0])).tolist()
    [2.0, 3.0]
    """
    sites = int(utility.shape[0]).bit_length() - 1
    coalitions = np.arange(2**sites)
    size = np.array([int(c).bit_count() for c in coalitions])
    share = np.array([math.factorial(s) * math.factorial(max(sites - s - 1, 0)) / math.factorial(sites) for s in size])
    values = []
    for i in range(sites):
        without = coalitions[coalitions >> i & 1 == 0]
        gain = utility[without | 1 << i] - utility[without]
        values.append(np.tensordot(share[without], gain, axes=1))
    return np.stack(values)


def leave_one_out(utility: F64) -> F64:
    """Return v(all) - v(all but i) of each site, f64[n, ...], of the utilities f64[2^n, ...].

    >>> leave_one_out(np.array([0.0, 1.0, 2.0, 5.0])).tolist()
    [3.0, 4.0]
    """
    sites = int(utility.shape[0]).bit_length() - 1
    everybody = 2**sites - 1
    return np.stack([utility[everybody] - utility[everybody ^ 1 << i] for i in range(sites)])


def cosine_values(history: History, part: slice = slice(None)) -> F64:
    """Return CGSV's value of each site, f64[n]: the mean over the rounds of cos(u_i, u_N) (Xu et al. 2021).

    Args:
        history: of the run; its rule is not used: u_N is the weighted mean.
        part: which entries of an update to look at, as those of one class in a linear head.
    """
    updates = history.updates[:, :, part].astype(np.float64)
    weights = np.array(history.weights) * history.present
    mean = np.einsum("tn,tnd->td", weights, updates)
    lengths = np.linalg.norm(updates, axis=2) * np.linalg.norm(mean, axis=1)[:, None]
    cosines: F64 = np.einsum("tnd,td->tn", updates, mean) / np.where(lengths > 0, lengths, np.inf)
    return np.asarray(cosines.mean(axis=0))


def cosine_utility(history: History) -> F64:
    """Return v(S) = cos(u_S, u_N), the mean over the rounds, of all coalitions, f64[2^n] (Xu et al. 2021)."""
    updates = history.updates.astype(np.float64)
    weights = np.array(history.weights) * history.present
    inside = (np.arange(2**history.sites)[:, None] >> np.arange(history.sites) & 1).astype(np.float64)
    sums = np.einsum("cn,tn,tnd->tcd", inside, weights, updates)
    everybody = sums[:, -1]
    lengths = np.linalg.norm(sums, axis=2) * np.linalg.norm(everybody, axis=1)[:, None]
    cosines: F64 = np.einsum("tcd,td->tc", sums, everybody) / np.where(lengths > 0, lengths, np.inf)
    return np.asarray(cosines.mean(axis=0))


def same_updates(history: History) -> list[frozenset[int]]:
    """Return the groups of sites that sent the same update, bit for bit, in any round; zeros are not counted.

    Two honest sites with the same patients have other noise. Equal bits are a copy.
    """
    groups: list[frozenset[int]] = []
    for t in range(len(history.updates)):
        by_bytes: dict[bytes, list[int]] = {}
        for i in range(history.sites):
            if history.present[t, i] and history.updates[t, i].any():
                by_bytes.setdefault(history.updates[t, i].tobytes(), []).append(i)
        groups += [frozenset(group) for group in by_bytes.values() if len(group) > 1]
    return list(dict.fromkeys(groups))


@dataclass(frozen=True)
class Uncertain:
    """Values of all sites with what is not known of them.

    Attributes:
        values: f64[n].
        covariance: f64[n, n], over patients and over the noise together.
        patients, noise: f64[n], the standard deviations over either alone.
    """

    values: F64
    covariance: F64
    patients: F64
    noise: F64

    def interval(self, site: int) -> tuple[float, float]:
        """Return the 95 % interval of a site's value."""
        half = SURE * math.sqrt(self.covariance[site, site])
        return float(self.values[site] - half), float(self.values[site] + half)

    def apart(self, one: int, other: int) -> bool:
        """Return whether the 95 % interval of the difference of two sites' values is on one side of 0."""
        c = self.covariance
        variance = c[one, one] + c[other, other] - 2 * c[one, other]
        return bool(abs(self.values[one] - self.values[other]) > SURE * math.sqrt(max(variance, 0.0)))

    def ranks(self) -> list[tuple[int, int]]:
        """Of each site: the best and the worst rank that it may have, from 1; equal where every other is apart."""
        sites = range(len(self.values))
        better = [[bool(self.values[j] > self.values[i]) for j in sites] for i in sites]
        sure = [[j != i and self.apart(i, j) for j in sites] for i in sites]
        first = [1 + sum(better[i][j] and sure[i][j] for j in sites) for i in sites]
        last = [len(self.values) - sum(not better[i][j] and sure[i][j] for j in sites) for i in sites]
        return list(zip(first, last, strict=True))


def uncertain(values: F64, over_patients: F64, over_noise: F64) -> Uncertain:
    """Put together the values f64[n] and two sets of draws f64[draws, n]; either may have no draws.

    Patients and noise are independent, so that their covariances add.
    """
    parts = [
        np.cov(draws, rowvar=False, ddof=1) if len(draws) > 1 else np.zeros((len(values), len(values)))
        for draws in (over_patients, over_noise)
    ]
    patients, noise = (np.sqrt(np.diag(np.atleast_2d(part))) for part in parts)
    return Uncertain(values, np.atleast_2d(parts[0] + parts[1]), patients, noise)
