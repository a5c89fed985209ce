"""`run.py bench secagg`: what a secure sum costs each site and the aggregator, where one site drops out.

The whole protocol of a round without a wire: all sites send keys and shares, all but the last their masked vector, and
the aggregator takes off the masks, those of the lost site too. The sum is compared with that of the vectors. Seconds
are those of the processor; of the sites, the one that took longest.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fedhpc.errors import InputError
from fedhpc.secagg.masks import SumTerms, most_dropouts
from fedhpc.secagg.messages import CONFIRMED, KEYS, MASKED, REVEALED, SHARES, signed
from fedhpc.secagg.protocol import MaskedSite, SumAggregator
from fedhpc.secagg.signatures import SigningSite, bare_key, signatories_of, uncertified
from fedhpc.util.arrays import I64
from fedhpc.util.memory import peak_bytes, reset_peak
from fedhpc.util.progress import at_work
from fedhpc.util.rng import generator
from fedhpc.util.text import fitted

MB = 1e6
T = TypeVar("T")


@dataclass(frozen=True)
class SumBenchmark:
    """What to measure: lengths of the vectors, sites, bytes of an integer, seconds of a round of training (or None)."""

    sizes: Sequence[int]
    sites: int
    width_bytes: int
    round_s: float | None = None


def measure(job: SumBenchmark) -> dict[str, Any]:
    """Return a row for each length.

    Raises:
        InputError: fewer than 3 sites: none of them may drop out.
    """
    if most_dropouts(job.sites, 0) < 1:
        raise InputError(f"--sites {job.sites}: none of so few may drop out; give 3 or more", code="command-line")
    return {"sites": job.sites, "width_bytes": job.width_bytes, "rows": [_row(job, size) for size in job.sizes]}


@dataclass
class _Seconds:
    """Processor seconds of each site, and of the aggregator."""

    sites: list[float]
    aggregator: float = 0.0
    _began_s: float = field(default_factory=time.process_time)

    def of_site(self, site: int, value: T) -> T:
        """Note that `value` has just been made by a site; the clock begins anew."""
        self.sites[site] += self._lap()
        return value

    def of_aggregator(self, value: T) -> T:
        """Note that `value` has just been made by the aggregator."""
        self.aggregator += self._lap()
        return value

    def skip(self) -> None:
        """Let the clock begin anew: what was done belongs to nobody."""
        self._lap()

    def _lap(self) -> float:
        now_s = time.process_time()
        spent_s, self._began_s = now_s - self._began_s, now_s
        return spent_s


def _row(job: SumBenchmark, size: int) -> dict[str, Any]:
    terms = SumTerms(job.sites, job.sites - 1, size, job.width_bytes)
    with at_work(f"a secure sum of {size:,} integers"):
        before_bytes, seconds = reset_peak(), _Seconds([0.0] * job.sites)
        right = _sum(terms, seconds)
    largest_s = max(seconds.sites[:-1])
    share = None if not job.round_s else (largest_s + seconds.aggregator) / job.round_s
    return {
        "size": size,
        "site_s": largest_s,
        "aggregator_s": seconds.aggregator,
        "up_bytes": size * job.width_bytes,
        "peak_bytes": peak_bytes() - before_bytes,
        "right": right,
        "share_of_round": share,
    }


def _sum(terms: SumTerms, seconds: _Seconds) -> bool:
    """Do the protocol without the last site's masked vector; return whether the sum is right."""
    sites = [MaskedSite(terms, one, 0) for one in _signing_sites(terms.sites)]
    aggregator, everybody = SumAggregator(terms, 0), list(enumerate(sites))
    stayed, plain = everybody[:-1], np.zeros(terms.size, np.int64)
    seconds.skip()
    keys = [seconds.of_site(i, one.advertise()) for i, one in everybody]
    roster = seconds.of_aggregator(aggregator.answer(KEYS, keys))
    sealed = [seconds.of_site(i, one.share(roster)) for i, one in everybody]
    shares = seconds.of_aggregator(aggregator.answer(SHARES, sealed))
    masked = []
    for i, one in stayed:
        vector = _vector(terms, i)
        plain += vector
        seconds.skip()
        masked.append(seconds.of_site(i, one.mask(shares, vector)))
    survivors = seconds.of_aggregator(aggregator.answer(MASKED, [*masked, b""]))
    del masked
    told = [seconds.of_site(i, one.confirm(survivors)) for i, one in stayed]
    confirmed = seconds.of_aggregator(aggregator.answer(CONFIRMED, [*told, b""]))
    revealed = [seconds.of_site(i, one.reveal(confirmed)) for i, one in stayed]
    aggregator.answer(REVEALED, [*revealed, b""])
    total = seconds.of_aggregator(aggregator.total())
    return bool(np.array_equal(total, signed(plain.view(np.uint64), terms.width_bytes)))


def _vector(terms: SumTerms, site: int) -> I64:
    """Integers of which all sites' sum fits the width."""
    bound = 2 ** (8 * terms.width_bytes - 1) // (2 * terms.sites)
    return generator(0, "bench secagg", site).integers(-bound, bound, terms.size)


def _signing_sites(count: int) -> list[SigningSite]:
    """Sites with keys that nobody vouches for; their arithmetic is that of certified ones."""
    made = [uncertified(f"site{index}") for index in range(count)]
    introductions = [identity.introduction for identity in made]
    signatories = signatories_of(b"bench secagg", introductions, [bare_key(one) for one in introductions])
    return [SigningSite(index, identity.key, signatories) for index, identity in enumerate(made)]


def text(found: Mapping[str, Any]) -> str:
    """For a person."""
    head = ("integers", "site CPU s", "aggregator CPU s", "up MB a site", "peak MB, all in one", "sum", "of a round")
    return fitted([head, *map(_line, found["rows"])])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    share = "-" if row["share_of_round"] is None else f"{row['share_of_round']:.2%}"
    seconds = (f"{row['site_s']:.2f}", f"{row['aggregator_s']:.2f}")
    sizes = (f"{row['up_bytes'] / MB:.0f}", f"{row['peak_bytes'] / MB:.0f}")
    return (f"{row['size']:,}", *seconds, *sizes, "right" if row["right"] else "WRONG", share)
