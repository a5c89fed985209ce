"""The weighted mean without sites that are far out by tests whose null distribution is the public privacy noise.

Rules that compare distances leave out the smallest hospital under local noise by construction: its noise is the
largest. But the noise of each site is public. Of its update u = g + s N(0, I), d entries, s and a bound on |g| are
known before the round (`UpdateScale`). So each update is tested against what it itself may be:

1. Norm. |u| is above (bound on |g|) + s sqrt(chi-square quantile, d degrees) with a chance of at most NORM_ALPHA for an
   honest site. A longer update is shortened to that length, and named; it is not left out. The bound on |g| is that of
   clipping, or where that is less FACTOR times the median of the other sites' signals, each the root of
   |u|^2 - d s^2; the quantile leaves room beside the noise for a signal of several s.
2. Direction. Let m be the unit vector along the coordinate-wise median of the other sites' updates, which does not
   depend on the site's own noise. A round counts for a site where the others agree: where their mean cosine between
   two is above AGREEMENT. z = <u, m> / max(s, |u| / sqrt(d)) has a variance of at most 1 by the noise. Its sum over t
   such rounds, divided by sqrt(t), is below the quantile of ALPHA 6 / (pi t)^2 with a chance that adds up to ALPHA over
   all rounds, for a site that in these rounds does not pull against the others. From then on the site is left out.

So an honest site is left out in a run with a chance of at most ALPHA = 0.5 %. What the test rests on is that honest
hospitals pull together where the others agree. Near the optimum it does not hold: hospitals that differ pull apart
there, the more the less noise there is. So after the first round a round counts only where noise is at least a part
NOISE_PART of the squared length of the median other update. And the test needs LEAST_OTHERS other sites that are not
left out: of three that are left, two against one cannot be told from hospitals that differ. The median of the others,
and not their mean: a hostile site that is long would turn the mean round, and with it all other sites' tests.

A test on validation data, with and without a site, is not among these: a run releases the scores of one model a round,
and those of n more would cost each validation patient n times the epsilon.

Without a known scale (no privacy, Adam, sparse or coarse updates) s is taken as 0, and the bound on |u| is FACTOR
times the median norm. Where half of the sites or more are left out, nobody can tell which half is honest: the run is
stopped.
"""

import math
from dataclasses import replace
from typing import Literal

import numpy as np
from pydantic import Field

from fedhpc.aggregation.base import Aggregated, AggregationRule, Aggregator, Arrays, Flag, RuleRound
from fedhpc.aggregation.norm_bound import longest_norm
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError, SiteError
from fedhpc.util.arrays import F32, F64

ALPHA = 0.005
FACTOR = 1.5
AGREEMENT = 0.1
LEAST_OTHERS, NOISE_PART = 3, 0.5
TINY = 1e-300
ALIGNED, TESTED, OUT = "alignment", "rounds_tested", "left_out"


class ScreenedMean(AggregationRule):
    """The weighted mean of the updates that pass two tests against their public noise.

    Norm: too long for the site's noise and clipping bound: shortened to that. Direction: in rounds where the others
    agree, against them beyond what noise explains: left out for the rest of the run. Assumes fewer than half of the
    sites hostile, and four sites or more. Uses the declared weights. Stops the run where half of the sites or more
    would be left out.
    """

    rule: Literal["screened_mean"] = Field(
        default="screened_mean",
        description="the weighted mean; an update longer than its public noise allows is shortened, a site that pulls "
        "against the others is left out",
    )

    def initial(self, size: int, sites: int) -> Arrays:
        """See `AggregationRule`: of each site the sum of its alignments, over how many rounds, and 1 if it is out."""
        return {name: np.zeros(sites) for name in (ALIGNED, TESTED, OUT)}

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
            f"most {ALPHA:.1%}. Rank 0 holds all updates at once"
        )


class Screen(Aggregator):
    """The updates of one round, all held, dense."""

    def __init__(self, round: RuleRound) -> None:
        self._round = round
        self._updates: dict[int, F64] = {}
        self._weights: dict[int, int] = {}
        self._flags: list[Flag] = []

    def add(self, site: int, update: SparseVector, weight: int) -> None:
        """See `Aggregator`; an update that is too long is shortened once all have come."""
        self._updates[site], self._weights[site] = update.dense().astype(np.float64), weight

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
        kept = {name: array.astype(np.float64) for name, array in self._round.kept.items()}
        updates = {site: self._shortened(site) for site in self._updates}
        against = [site for site in updates if self._pulls_against(site, updates, kept)]
        self._check_majority()
        staying = [site for site in updates if site not in against]
        weights = np.array([self._weights[site] for site in staying], np.float64)
        mean = weights @ np.array([updates[site] for site in staying]) / weights.sum()
        return Aggregated(mean.astype(np.float32), kept, tuple(self._flags))

    def _noise(self, site: int) -> float:
        return 0.0 if self._round.scales is None else self._round.scales[site].noise

    def _shortened(self, site: int) -> F64:
        """The update of a site, no longer than an honest one can be."""
        update = self._updates[site]
        length, longest = float(np.linalg.norm(update)), self._longest(site)
        if length <= longest:
            return update
        detail = f"norm {length:.3g}, at most {longest:.3g} by noise and signal"
        self._flags.append(Flag(self._round.sites[site], "norm", detail, excluded=False))
        return update * (longest / length)

    def _longest(self, site: int) -> float:
        if self._round.scales is None:
            return FACTOR * float(np.median([np.linalg.norm(update) for update in self._updates.values()]))
        d, scale = self._round.size, self._round.scales[site]
        squares = [float(u @ u) - d * self._noise(k) ** 2 for k, u in self._updates.items() if k != site]
        others = float(np.median(np.sqrt(np.maximum(squares, 0))))
        return longest_norm(replace(scale, longest=min(scale.longest, FACTOR * others)), d)

    def _pulls_against(self, site: int, updates: dict[int, F64], kept: dict[str, F64]) -> bool:
        """Test the direction of a site over the rounds that count so far; add this round's part to what is kept."""
        left = [other for other in updates if other != site and not self._round.kept[OUT][other]]
        others = np.array([updates[other] for other in left])
        if not kept[OUT][site] and self._counts(left) and agreement(others) > AGREEMENT:
            kept[ALIGNED][site] += self._alignment(site, updates[site], np.median(others, axis=0))
            kept[TESTED][site] += 1
        total, rounds = float(kept[ALIGNED][site]), float(kept[TESTED][site])
        least = least_alignment(max(1.0, rounds))
        if total < least:
            kept[OUT][site] = 1
        if not kept[OUT][site]:
            return False
        detail = f"alignment with the others {total:.3g} over {rounds:.0f} rounds, {least:.3g} allowed"
        self._flags.append(Flag(self._round.sites[site], "direction", detail))
        return True

    def _counts(self, others: list[int]) -> bool:
        """Whether directions are tested against these sites: there are enough, and it is early or noise is large."""
        if len(others) < LEAST_OTHERS:
            return False
        squares = [float(self._updates[site] @ self._updates[site]) for site in others]
        noises = [self._round.size * self._noise(site) ** 2 for site in others]
        parts = [noise / max(square, TINY) for noise, square in zip(noises, squares, strict=True)]
        return self._round.round == 0 or float(np.median(parts)) >= NOISE_PART

    def _alignment(self, site: int, update: F64, others: F64) -> float:
        """z of one round."""
        scale = max(self._noise(site), float(np.linalg.norm(update)) / math.sqrt(update.size))
        return float(update @ others) / max(float(np.linalg.norm(others)) * scale, TINY)

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


def least_alignment(rounds: float) -> float:
    """Return the least sum of z over so many rounds that noise explains, of variance `rounds`.

    >>> round(least_alignment(1), 2), round(least_alignment(100), 1)
    (-2.74, -49.9)
    """
    # The config imports this module, and its errors are reported before anything that takes long to import.
    from scipy.special import ndtri

    return float(ndtri(ALPHA * 6 / (math.pi * rounds) ** 2)) * math.sqrt(rounds)


def agreement(updates: F64) -> float:
    """Return the mean cosine between two of at least two updates float64[n, d]; 0 for fewer.

    >>> round(agreement(np.array([[1.0, 0.0], [1.0, 1.0]])), 3)
    0.707
    """
    units = updates / np.maximum(np.linalg.norm(updates, axis=1, keepdims=True), TINY)
    pairs = np.triu_indices(len(units), 1)
    return float((units @ units.T)[pairs].mean()) if len(units) > 1 else 0.0
