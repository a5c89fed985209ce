"""How far a site pulls with the others, by the sums of what each has sent, and what its public noise explains of it.

Let site j train g_r in round r, add noise n_r ~ N(0, s_r^2 I) (public), and send c_r of g_r + n_r + e_(r-1), where e_r
is the residual that error feedback keeps: c_r = g_r + n_r + e_(r-1) - e_r. The sum over the rounds telescopes:

    C_j = sum_r c_r = sum_r g_r + sum_r n_r - e_t

So of rounding and of entries that were not sent only the last residual e_t is in C_j, however many rounds there were,
while each single c_r may be mostly residual of rounds before. An entry of C_j is the sum g + n as it was when the entry
was last sent, but for a rounding error of at most one step of the payload's grid: its noise has the variance N_j =
sum_r s_r^2 at most, to the rounding. For updates that are sent whole and exactly e is 0.

Let M be the mean of the other sites' sums by weight, M = sum_k v_k C_k. The alignment of j is S = <C_j, M>. Its own
noise adds a standard deviation of sqrt(N_j) |M| to S, the others' adds |G_j| sqrt(sum_k v_k^2 N_k), with G_j the signal
of j; |G_j|^2 is |C_j|^2 - d N_j, but no more than FACTOR times the median of the others' counts: a site that sends more
must not be allowed more. V is the root of the sum of both squares. For a site that does not pull against the others, S
/ V is a standard normal number or above it, in expectation.

Near the optimum hospitals that differ pull apart for good, and S says no more. But there they do not move the model:
sum_k w_k G_k = 0, so that S is -a |G_M|^2 in expectation, with G_M the signal of M, and a the weight of the others over
that of j. The net pull of j is T = S + a (|M|^2 - d sum_k v_k^2 N_k): how far the model moves along M, over the weight
of j and by what all have sent. It is 0 near the optimum and above it on the way there. It is below it where j moves the
model against what the others want more than they move it back, as one that flips its sign does: it pulls the longer the
farther the model is from where it should be. The noise of C_j adds the same to T as to S, that of M sum_k v_k^2 N_k
|G_j + 2 a G_M|^2 and, by its own square, 2 a^2 d (sum_k v_k^2 N_k)^2. Where the pulls are opposed |G_j|^2 + 4 a^2
|G_M|^2 is more than |G_j + 2 a G_M|^2, and is taken for it. The sums of sparse updates hold less noise than N, since
some of it waits to be sent: T does not hold for them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedhpc.util.arrays import F64

FACTOR = 1.5
"""How much stronger than the median of the others an honest signal may be."""
TINY = 1e-300


@dataclass(frozen=True)
class Sums:
    """What the sites have sent over some rounds (all of it private already, or without privacy).

    Attributes:
        sent: the sum of each site's updates, float64[n, d].
        variances: that of the noise in each entry of a sum, float64[n]; zeros where noise is not known.
        weights: of each site, float64[n].
    """

    sent: F64
    variances: F64
    weights: F64

    def shares(self, sites: Sequence[int]) -> F64:
        """Return the weights of these sites, of sum 1, float64[len(sites)]."""
        chosen = self.weights[list(sites)]
        out: F64 = chosen / chosen.sum()
        return out

    def mean(self, sites: Sequence[int]) -> F64:
        """Return M of these sites, float64[d]."""
        out: F64 = self.shares(sites) @ self.sent[list(sites)]
        return out

    def signal(self, site: int) -> float:
        """Return the length of a sum without its noise; 0 where it is no longer than noise."""
        return math.sqrt(max(_square(self.sent[site]) - self._noise(site), 0.0))

    def noise_part(self, sites: Sequence[int]) -> float:
        """Return the share of noise in the squared length of the median one of these sums; above 1 where it is
        shorter than its noise is expected to be."""
        return float(np.median([self._noise(k) / max(_square(self.sent[k]), TINY) for k in sites]))

    def alignment(self, site: int, others: Sequence[int]) -> float:
        """Return S of a site, in squared lengths of an update."""
        return float(self.sent[site] @ self.mean(others))

    def deviation(self, site: int, others: Sequence[int]) -> float:
        """V of a site; where noise is not known, that of a sum of its length in any direction, |C_j| |M| / sqrt(d)."""
        mean = _square(self.mean(others))
        if not self.variances.any():
            return math.sqrt(_square(self.sent[site]) * mean / self.sent.shape[1])
        most = FACTOR * float(np.median([self.signal(k) for k in others]))
        of_others = float(np.square(self.shares(others)) @ self.variances[list(others)])
        signal = min(self.signal(site), most)
        return math.sqrt(float(self.variances[site]) * mean + signal * signal * of_others)

    def net_pull(self, site: int, others: Sequence[int], own: F64) -> float:
        """T of a site over its deviation; the weights must be those that the model moves by.

        Args:
            site: that is tested.
            others: those that it is compared with.
            own: the sum of what it has sent, float64[d], where its part of `sent` was shortened.
        """
        mean = self.mean(others)
        ratio = float(self.weights[list(others)].sum() / self.weights[site])
        of_others = float(np.square(self.shares(others)) @ self.variances[list(others)])
        of_noise = mean.size * of_others
        signal = _square(mean) - of_noise
        by_others = 4 * ratio**2 * max(signal, 0.0) * of_others + 2 * ratio**2 * of_noise * of_others
        deviation = math.hypot(self.deviation(site, others), math.sqrt(by_others))
        return (float(own @ mean) + ratio * signal) / max(deviation, TINY)

    def _noise(self, site: int) -> float:
        return float(self.sent.shape[1] * self.variances[site])


def mean_product(products: F64, weights: F64) -> float:
    """Return the mean over pairs of two of products float64[n, n], each by the product of its weights float64[n].

    >>> mean_product(np.array([[9.0, 1.0], [1.0, 9.0]]), np.array([1.0, 3.0]))
    1.0
    """
    pairs = np.triu_indices(len(weights), 1)
    by = np.outer(weights, weights)[pairs]
    return float(products[pairs] @ by / by.sum())


def agreement(updates: F64) -> float:
    """Return the mean cosine between two of at least two updates float64[n, d]; 0 for fewer.

    >>> round(agreement(np.array([[1.0, 0.0], [1.0, 1.0]])), 3)
    0.707
    """
    if len(updates) < 2:
        return 0.0
    units = updates / np.maximum(np.linalg.norm(updates, axis=1, keepdims=True), TINY)
    return mean_product(units @ units.T, np.ones(len(units)))


def _square(vector: F64) -> float:
    return float(vector @ vector)
