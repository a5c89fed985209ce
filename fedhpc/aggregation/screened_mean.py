"""The weighted mean without sites that are far out by tests whose null distribution is the public privacy noise.

Rules that compare distances leave out the smallest hospital under local noise by construction: its noise is the
largest. But the noise of each site is public. Of its update u = g + s N(0, I), d entries, s and a bound on |g| are
known before the round (`UpdateScale`). So each update is tested against what it itself may be:

1. Norm. |u| is above (bound on |g|) + s sqrt(chi-square quantile, d degrees) with a chance of at most NORM_ALPHA for an
   honest site. A longer update is named and shortened, to the length that is usual for the site's noise: to send more
   than is allowed brings no gain. The bound on |g| is that of clipping, or where that is less FACTOR times the median
   of the other sites' signals, each the root of |u|^2 - d s^2. Updates that are rounded or sparse have no such bound,
   but all are compressed alike, and compression keeps proportions: the bound is FACTOR times the median of the others'
   lengths, each times s / s_k where this site's noise is larger.
2. Direction. The sums of what the sites have sent are compared (`fedhpc.aggregation.pull_test`, which says why sums,
   and derives the variance): in the first EARLY_ROUNDS rounds those since the run began, in all rounds those of late,
   with a factor of 1 - density / 2 a round, for sites that turn hostile later. S / V of a site is below the quantile of
   ALPHA 6 / (pi t)^2 in round t with a chance that adds up to ALPHA over all rounds, for each of the two sums, for a
   site that does not pull against the others. The worst site first; then the others are tested without it. From then on
   it is left out.
3. Net pull, in all rounds, where noise is known and updates are whole: T of `fedhpc.aggregation.pull_test` over its
   deviation, by the sums of late, that of the site tested as it was sent, before it was shortened. It is below the
   quantile of NET_ALPHA 6 / (pi t)^2 for a site that moves the model against what the others want. It needs no
   agreement, so it finds a site that turns hostile once the others' updates are mostly noise, 5 to 25 rounds later.
4. Strength, in the first FIRST_ROUNDS rounds, in which all pull (in the first alone where noise is not known): a site
   of which S + V is below the part STRONG of what the others pull with each other has its weight lowered in proportion,
   for the rest of the run as it is in the last of these rounds. What it sends is of little use, and its noise as large
   as any. Its weight is LEAST_WEIGHT at least, times the chance by S / V, at even odds, that it pulls nowhere (mean 0)
   and not against the others (mean -HOSTILE), 1 / (1 + exp(-HOSTILE (S / V + HOSTILE / 2))), or its weight of the round
   before where that is less: so what 2 misses by little hardly counts, whatever pulls nowhere afterwards.

So 2 and 3 leave out an honest site in a run for its noise with a chance of at most 2 ALPHA + NET_ALPHA = 0.94 %. What 2
rests on is that honest hospitals pull together where the others agree. From the same initial model they do. Near the
optimum they need not: hospitals that differ pull apart there, the more the less noise there is. So after the first
round a round counts for 2 only where noise is at least NOISE_PART of the squared length of the median other sum, and
the others' mean cosine must be above AGREEMENT. And 2 to 4 need LEAST_OTHERS other sites that are not left out: of
three that are left, two against one cannot be told from hospitals that differ.

A test on validation data, with and without a site, is not among these: a run releases the scores of one model a round,
and those of n more would cost each validation patient n times the epsilon.

What has been added to the model before a site is left out stays: the others pull it back in some three rounds, and to
subtract it as well moved no AUC by more than 0.001. Where half of the sites or more are left out, nobody can tell which
half is honest: the run is stopped.

What passes: a site that sends nothing of use but pulls nowhere (constant images, noise images, a copy of another site's
update). A site that knows the test and stays above its quantile: it may pull against the others by some three standard
deviations of its own noise in all. And for 5 to 25 rounds one that turns hostile after the first rounds, as long as
noise hides whether the others agree; longer where updates are sparse or noise is unknown.
Numbers: docs/results-robust.md.
"""

import math
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Aggregated, AggregationRule, Aggregator, Arrays, Flag, RuleRound
from fedhpc.aggregation.norm_bound import Lengths, inexact_lengths, lengths
from fedhpc.aggregation.pull_test import FACTOR, Sums, agreement, mean_product
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError, SiteError
from fedhpc.util.arrays import F32, F64

ALPHA, NET_ALPHA = 0.0045, 0.0004
AGREEMENT = 0.1
LEAST_OTHERS, NOISE_PART = 3, 0.5
DENSE = 0.9
EARLY_ROUNDS, FIRST_ROUNDS = 10, 3
STRONG, LEAST_WEIGHT, HOSTILE = 0.5, 0.25, 4.0
NO_WEIGHT = 1e-9
"""The lowest strength: weights need a mean whatever was sent, and the square of their ratio must be a number."""
TINY = 1e-300
EARLY, LATE, AS_SENT, VARIANCE = "early", "late", "as_sent", "_variances"
STRENGTHS, OUT = "strengths", "left_out"


class ScreenedMean(AggregationRule):
    """The weighted mean of the updates that pass tests against their public noise.

    Norm: too long for the site's noise and clipping bound: shortened. Direction: against the others beyond what noise
    explains, by the sums of what all have sent: left out for the rest of the run. Assumes fewer than half of the sites
    hostile, and four sites or more. Uses the declared weights. Keeps three more vectors a site. Stops the run where
    half of the sites or more would be left out.
    """

    keeps_rows: ClassVar[bool] = True
    rule: Literal["screened_mean"] = Field(
        default="screened_mean",
        description="the weighted mean; an update longer than its public noise allows is shortened, a site that pulls "
        "against the others is left out",
    )

    def initial(self, size: int, sites: int) -> Arrays:
        """See `AggregationRule`.

        Of each site the sums of its updates and the variances of their noise, its strength, and if it is out the S / V
        for which.
        """
        sums = {name: np.zeros((sites, size), np.float32) for name in (EARLY, LATE, AS_SENT)}
        variances = {name + VARIANCE: np.zeros(sites) for name in (EARLY, LATE)}
        return {**sums, **variances, STRENGTHS: np.ones(sites), OUT: np.zeros(sites)}

    def aggregator(self, round: RuleRound) -> "Screen":
        """See `AggregationRule`."""
        return Screen(round)

    def problem(self, sites: int, density: float) -> str:
        """See `AggregationRule`."""
        if sites > LEAST_OTHERS:
            return ""
        return (
            f"aggregation.rule=screened_mean: compares each site with {LEAST_OTHERS} others; {sites} are too few. "
            "Set rule=mean"
        )

    def notice(self, weights: tuple[int, ...]) -> str:
        """See `AggregationRule`."""
        most = (len(weights) - 1) // 2
        return (
            f"aggregation: screened_mean, by the declared weights; {most} of {len(weights)} sites may be left out, "
            f"more stop the run. Where the noise is public, an honest site is left out in a run with a chance of at "
            f"most {2 * ALPHA + NET_ALPHA:.1%}. Rank 0 holds all updates at once, and keeps their sums"
        )


class Pull(NamedTuple):
    """A test of direction: the pull of a site, in standard deviations of its noise, and how far above its bound."""

    deviations: float
    above: float


class Screen(Aggregator):
    """The updates of one round, all held, dense."""

    def __init__(self, round: RuleRound) -> None:
        self._round = round
        self._updates: dict[int, F64] = {}
        self._weights = np.zeros(len(round.sites))
        self._densities: list[float] = []
        self._flags: list[Flag] = []

    def add(self, site: int, update: SparseVector, weight: int) -> None:
        """See `Aggregator`; an update that is too long is shortened once all have come."""
        self._updates[site], self._weights[site] = update.dense().astype(np.float64), weight
        self._densities.append(len(update.values) / update.size)

    def refused(self, site: int, error: PayloadError) -> None:
        """See `Aggregator`: the site is left out."""
        self._flags.append(Flag(self._round.sites[site], "payload", str(error)))

    def result(self) -> F32:
        """See `Aggregator`."""
        return self.aggregated().update

    def aggregated(self) -> Aggregated:
        """See `Aggregator`.

        Raises:
            SiteError: half of the sites or more would be left out.
        """
        updates = {site: self._shortened(site) for site in self._updates}
        kept = {name: array.astype(np.float64) for name, array in self._round.kept.items()}
        tested = self._sums(updates, kept)
        staying = [site for site in updates if not kept[OUT][site]]
        self._leave_out(tested, staying, kept)
        if self._is_first():
            kept[STRENGTHS] = self._strengths(tested[0], staying, kept[STRENGTHS])
        self._name(updates, kept)
        self._check_majority()
        weights = np.array([self._weights[site] * kept[STRENGTHS][site] for site in staying])
        mean = weights @ np.array([updates[site] for site in staying]) / weights.sum()
        as_float32 = {name: kept[name].astype(np.float32) for name in (EARLY, LATE, AS_SENT)}
        return Aggregated(mean.astype(np.float32), {**kept, **as_float32}, tuple(self._flags))

    def _sums(self, updates: dict[int, F64], kept: dict[str, F64]) -> list[Sums]:
        """Add this round to both sums; return those that are tested in it."""
        memory = 1 - float(np.median(self._densities)) / 2 if self._densities else 1.0
        kept[AS_SENT] *= memory
        for site, update in self._updates.items():
            kept[AS_SENT][site] += update
        for name, factor in ((EARLY, 1.0), (LATE, memory)):
            kept[name] *= factor
            kept[name + VARIANCE] *= factor**2
            for site, update in updates.items():
                kept[name][site] += update
                kept[name + VARIANCE][site] += self._noise(site) ** 2
        names = (EARLY, LATE) if self._round.round < EARLY_ROUNDS else (LATE,)
        return [Sums(kept[name], kept[name + VARIANCE], self._weights) for name in names]

    def _is_first(self) -> bool:
        """Return whether strengths are measured in this round."""
        return self._round.round < (1 if self._round.scales is None else FIRST_ROUNDS)

    def _noise(self, site: int) -> float:
        return 0.0 if self._round.scales is None else self._round.scales[site].noise

    def _shortened(self, site: int) -> F64:
        """Return the update of a site, no longer than an honest one can be."""
        update = self._updates[site]
        length, allowed = float(np.linalg.norm(update)), self._allowed(site)
        if length <= allowed.longest:
            return update
        detail = f"norm {length:.3g}, at most {allowed.longest:.3g} by noise and signal"
        self._flags.append(Flag(self._round.sites[site], "norm", detail, excluded=False))
        return update * (allowed.usual / length)

    def _allowed(self, site: int) -> Lengths:
        scales = self._round.scales
        if scales is None:
            return inexact_lengths([float(np.linalg.norm(update)) for update in self._updates.values()], FACTOR)
        others = {k: u for k, u in self._updates.items() if k != site}
        if not scales[site].exact:
            own = scales[site].noise
            by_noise = [float(np.linalg.norm(u)) * max(1.0, own / scales[k].noise) for k, u in others.items()]
            return inexact_lengths(by_noise, FACTOR)
        d = self._round.size
        squares = [float(u @ u) - d * self._noise(k) ** 2 for k, u in others.items()]
        signal = float(np.median(np.sqrt(np.maximum(squares, 0))))
        return lengths(replace(scales[site], longest=min(scales[site].longest, FACTOR * signal)), signal, d)

    def _leave_out(self, tested: list[Sums], staying: list[int], kept: dict[str, F64]) -> None:
        """Take the worst site out of those that stay, as long as it pulls against the others."""
        while len(staying) > LEAST_OTHERS:
            found = {site: self._pulls(tested, site, staying, kept) for site in staying}
            worst = min(staying, key=lambda site: found[site].above)
            if found[worst].above >= 0:
                return
            kept[OUT][worst] = found[worst].deviations
            staying.remove(worst)

    def _pulls(self, tested: list[Sums], site: int, staying: list[int], kept: dict[str, F64]) -> Pull:
        """Return the test of a site by which it pulls against the others that stay most."""
        others = [other for other in staying if other != site]
        round = self._round.round + 1
        least = least_alignment(round)
        pulls = [Pull(aligned, aligned - least) for aligned in (self._aligned(sums, site, others) for sums in tested)]
        if self._round.scales is not None and np.median(self._densities) > DENSE and kept[STRENGTHS][site] > 0:
            moving = replace(tested[-1], weights=self._weights * kept[STRENGTHS])
            net = moving.net_pull(site, others, kept[AS_SENT][site])
            pulls.append(Pull(net, net - least_alignment(round, NET_ALPHA)))
        return min(pulls, key=lambda pull: pull.above)

    def _aligned(self, sums: Sums, site: int, others: list[int]) -> float:
        """S / V of a site beside the others; above all bounds where its directions are not tested."""
        is_first = self._round.round == 0
        if agreement(sums.sent[others]) <= AGREEMENT or not (is_first or sums.noise_part(others) >= NOISE_PART):
            return math.inf
        return sums.alignment(site, others) / max(sums.deviation(site, others), TINY)

    def _strengths(self, sums: Sums, staying: list[int], before: F64) -> F64:
        """Return what each site's weight is multiplied by, float64[n], above 0.

        As before where a site's update did not come, or where the others do not agree.
        """
        out = before.copy()
        for site in staying:
            others = [other for other in staying if other != site]
            if len(others) >= LEAST_OTHERS and agreement(sums.sent[others]) > AGREEMENT:
                out[site] = self._strength(sums, site, others, before[site])
        return out

    def _strength(self, sums: Sums, site: int, others: list[int], before: float) -> float:
        from scipy.special import expit

        common = mean_product(sums.sent[others] @ sums.sent[others].T, sums.weights[others])
        along, deviation = sums.alignment(site, others), max(sums.deviation(site, others), TINY)
        lowered = float(np.clip((along + deviation) / max(STRONG * common, TINY), 0.0, 1.0))
        nowhere = float(expit(HOSTILE * (along / deviation + HOSTILE / 2)))
        return max(lowered, min(before, LEAST_WEIGHT * nowhere), NO_WEIGHT)

    def _name(self, updates: dict[int, F64], kept: dict[str, F64]) -> None:
        """Flag those that are out, and those whose weight is lowered."""
        for site in updates:
            name, strength = self._round.sites[site], float(kept[STRENGTHS][site])
            if kept[OUT][site]:
                detail = f"pulled against the others by {-kept[OUT][site]:.3g} standard deviations of its noise"
                self._flags.append(Flag(name, "direction", detail))
            elif strength < 1:
                detail = f"pulls with the others so weakly in the first rounds that its weight is times {strength:.2g}"
                self._flags.append(Flag(name, "strength", detail, excluded=False))

    def _check_majority(self) -> None:
        out = [flag for flag in self._flags if flag.excluded]
        if 2 * len(out) < len(self._round.sites):
            return
        reasons = "; ".join(f"{flag.site} ({flag.reason}: {flag.detail})" for flag in out)
        raise SiteError(
            f"round {self._round.round + 1}: {len(out)} of {len(self._round.sites)} sites are far out: {reasons}. "
            "Nobody can tell which half is honest; the round was refused and the model is that of the round before. "
            "Look into these sites' data and software before you go on",
            code="aggregation.no-majority",
        )


def least_alignment(round: int, alpha: float = ALPHA) -> float:
    """Return the least pull in a round, counted from 1, that noise explains; `alpha`: the chance over all rounds.

    >>> round(least_alignment(1), 2), round(least_alignment(10), 2), round(least_alignment(100), 2)
    (-2.78, -4.03, -5.01)
    """
    # The config imports this module, and its errors are reported before anything that takes long to import.
    from scipy.special import ndtri

    return float(ndtri(alpha * 6 / (math.pi * round) ** 2))
