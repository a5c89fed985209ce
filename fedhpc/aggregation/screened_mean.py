"""The weighted mean without sites that are far out by tests whose null distribution is the public privacy noise.

Rules that compare distances leave out the smallest hospital under local noise by construction: its noise is the
largest. But the noise of each site is public. Of its update u = g + s N(0, I), d entries, s and a bound on |g| are
known before the round (`UpdateScale`). So each update is tested against what it itself may be:

1. Norm. |u| is above (bound on |g|) + s sqrt(chi-square quantile, d degrees) with a chance of at most NORM_ALPHA for an
   honest site. A longer update is shortened to that length, and named; it is not left out.
2. Direction. Let m be the unit vector along the coordinate-wise median of the other sites' updates. It does not depend
   on the site's own noise, so z = <u, m> / s has variance 1 exactly. The sum of z over t rounds, divided by sqrt(t), is
   normal with variance 1, and its mean is not negative for a site that over these rounds does not pull against the
   others. A site is left out while it is below the quantile of ALPHA 6 / (pi t)^2, which adds up to ALPHA over all
   rounds: an honest site is left out in a run with a chance of at most ALPHA = 0.5 %.

The sum over rounds, and not one round, since honest hospitals that differ pull apart near the optimum, after they have
pulled together. The median of the others, and not their mean: a hostile site that is long would turn the mean round,
and with it all other sites' tests. A test on validation data, with and without a site, is not among these: a run
releases the scores of one model a round, and those of n more would cost each validation patient n times the epsilon.

Without a known scale (no privacy, Adam, sparse or coarse updates) the two tests are: |u| above NORM_FACTOR times the
median norm, and a sum of cosines over t rounds below -1 - 4 sqrt(t / d).

Where half of the sites or more are left out, nobody can tell which half is honest: the run is stopped.
"""

import math
from typing import Literal

import numpy as np
from pydantic import Field
from scipy.special import chdtri, ndtri

from fedhpc.aggregation.base import Aggregated, AggregationRule, Aggregator, Arrays, Flag, RuleRound
from fedhpc.compression.update import SparseVector
from fedhpc.errors import PayloadError, SiteError
from fedhpc.util.arrays import F32, F64

ALPHA, NORM_ALPHA = 0.005, 1e-4
NORM_FACTOR = 3.0
ALIGNED, TESTED = "alignment", "rounds_tested"


class ScreenedMean(AggregationRule):
    """The weighted mean of the updates that pass two tests against their public noise.

    Norm: too long for the site's noise and clipping bound: shortened to that. Direction: over the rounds so far against
    the median of the others, beyond what noise explains: left out. Assumes fewer than half of the sites hostile, and
    three sites or more. Uses the declared weights. Stops the run where half of the sites or more would be left out.
    """

    rule: Literal["screened_mean"] = Field(
        default="screened_mean",
        description="the weighted mean; an update longer than its public noise allows is shortened, a site that pulls "
        "against the others is left out",
    )

    def initial(self, size: int, sites: int) -> Arrays:
        """See `AggregationRule`: of each site the sum of its alignments, and over how many rounds."""
        return {ALIGNED: np.zeros(sites), TESTED: np.zeros(sites)}

    def aggregator(self, round: RuleRound) -> "Screen":
        """See `AggregationRule`."""
        return Screen(round)

    def problem(self, sites: int, density: float) -> str:
        """See `AggregationRule`."""
        if sites >= 3:
            return ""
        return f"aggregation.rule=screened_mean: compares each site with the others; {sites} are too few. Set rule=mean"

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

    def _shortened(self, site: int) -> F64:
        """The update of a site, no longer than an honest one can be."""
        update = self._updates[site]
        length, longest = float(np.linalg.norm(update)), self._longest(site)
        if length <= longest:
            return update
        detail = f"norm {length:.3g}, at most {longest:.3g} from noise and clipping"
        self._flags.append(Flag(self._round.sites[site], "norm", detail, excluded=False))
        return update * (longest / length)

    def _longest(self, site: int) -> float:
        if self._round.scales is None:
            return NORM_FACTOR * float(np.median([np.linalg.norm(update) for update in self._updates.values()]))
        scale = self._round.scales[site]
        return scale.longest + scale.noise * math.sqrt(float(chdtri(self._round.size, NORM_ALPHA)))

    def _pulls_against(self, site: int, updates: dict[int, F64], kept: dict[str, F64]) -> bool:
        """Test the direction of a site over all rounds so far; add this round's part to what is kept."""
        others = np.median([updates[other] for other in updates if other != site], axis=0)
        along = float(updates[site] @ others) / max(float(np.linalg.norm(others)), 1e-300)
        scales = self._round.scales
        scale = max(float(np.linalg.norm(updates[site])), 1e-300) if scales is None else scales[site].noise
        kept[ALIGNED][site] += along / scale
        kept[TESTED][site] += 1
        total, rounds = float(kept[ALIGNED][site]), float(kept[TESTED][site])
        least = least_cosines(rounds, self._round.size) if scales is None else least_alignment(rounds)
        if total >= least:
            return False
        detail = f"alignment with the others {total:.3g} over {rounds:.0f} rounds, at least {least:.3g} allowed"
        self._flags.append(Flag(self._round.sites[site], "direction", detail))
        return True

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
    return float(ndtri(ALPHA * 6 / (math.pi * rounds) ** 2)) * math.sqrt(rounds)


def least_cosines(rounds: float, size: int) -> float:
    """Return the least sum of cosines over so many rounds that is allowed where the noise is not known."""
    return -1 - 4 * math.sqrt(rounds / size)
