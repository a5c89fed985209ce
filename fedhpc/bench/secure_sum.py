"""`run.py bench secagg`: what a secure sum costs each site and the aggregator, where one site drops out.

The whole protocol of a round without a wire: all sites send keys and shares, all but the last their masked vector, and
the aggregator takes off the masks, those of the lost site too. The sum is compared with that of the vectors. Seconds
are those of the processor and those of the clock; of the sites, those of the slowest one. Sites of a run mask at the
same time and the aggregator works after them, so what a round waits is the slowest site and the aggregator.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fedhpc.errors import InputError
from fedhpc.secagg.masks import SumTerms, most_dropouts
from fedhpc.secagg.messages import CONFIRMED, KEYS, MASKED, REVEALED, SHARES
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
    """What to measure.

    Attributes:
        sizes: lengths of the vectors.
        threads: of each site and of the aggregator, a row each.
        sites: how many.
        width_bytes: of an integer.
        repeats: of each row; the least seconds are reported.
        round_s: seconds of a round of training, or None.
    """

    sizes: Sequence[int]
    threads: Sequence[int]
    sites: int
    width_bytes: int
    repeats: int = 1
    round_s: float | None = None


def measure(job: SumBenchmark) -> dict[str, Any]:
    """Return a row for each length and number of threads.

    Raises:
        InputError: fewer than 3 sites: none of them may drop out.
    """
    if most_dropouts(job.sites, 0) < 1:
        raise InputError(f"--sites {job.sites}: none of so few may drop out; give 3 or more", code="command-line")
    rows = [_row(job, size, threads) for size in job.sizes for threads in job.threads]
    return {"sites": job.sites, "width_bytes": job.width_bytes, "rows": rows}


def _now() -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([time.process_time(), time.monotonic()])


@dataclass
class _Seconds:
    """Seconds of the processor and of the clock, float64[2]: of each site, and of the aggregator."""

    sites: list[Any]
    aggregator: Any = field(default_factory=lambda: np.zeros(2))
    _began_s: Any = field(default_factory=_now)

    def of_site(self, site: int, value: T) -> T:
        """Note that `value` has just been made by a site; the clocks begin anew."""
        self.sites[site] += self._lap()
        return value

    def of_aggregator(self, value: T) -> T:
        """Note that `value` has just been made by the aggregator."""
        self.aggregator += self._lap()
        return value

    def skip(self) -> None:
        """Let the clocks begin anew: what was done belongs to nobody."""
        self._lap()

    def _lap(self) -> Any:
        now_s = _now()
        spent_s, self._began_s = now_s - self._began_s, now_s
        return spent_s


def _row(job: SumBenchmark, size: int, threads: int) -> dict[str, Any]:
    terms = SumTerms(job.sites, job.sites - 1, size, job.width_bytes)
    spent, right = [], True
    with at_work(f"a secure sum of {size:,} integers"):
        before_bytes = reset_peak()
        for _ in range(job.repeats):
            seconds = _Seconds([np.zeros(2) for _ in range(job.sites)])
            right = _sum(terms, seconds, threads) and right
            spent.append([np.max(seconds.sites[:-1], axis=0), seconds.aggregator])
    (site_s, site_clock_s), (aggregator_s, aggregator_clock_s) = np.min(spent, axis=0).tolist()
    clock_s = site_clock_s + aggregator_clock_s
    return {
        "size": size,
        "threads": threads,
        "site_s": site_s,
        "site_clock_s": site_clock_s,
        "aggregator_s": aggregator_s,
        "aggregator_clock_s": aggregator_clock_s,
        "up_bytes": size * job.width_bytes,
        "peak_bytes": peak_bytes() - before_bytes,
        "right": right,
        "share_of_round": None if not job.round_s else clock_s / job.round_s,
    }


def _sum(terms: SumTerms, seconds: _Seconds, threads: int) -> bool:
    """Do the protocol without the last site's masked vector; return whether the sum is right."""
    sites = [MaskedSite(terms, one, 0, threads) for one in _signing_sites(terms.sites)]
    aggregator, everybody = SumAggregator(terms, 0, threads), list(enumerate(sites))
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
        del vector
    survivors = seconds.of_aggregator(aggregator.answer(MASKED, [*masked, b""]))
    told = [seconds.of_site(i, one.confirm(survivors)) for i, one in stayed]
    confirmed = seconds.of_aggregator(aggregator.answer(CONFIRMED, [*told, b""]))
    revealed = [seconds.of_site(i, one.reveal(confirmed)) for i, one in stayed]
    aggregator.answer(REVEALED, [*revealed, b""])
    total = seconds.of_aggregator(aggregator.total())
    return bool(np.array_equal(total, plain))


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
    head = (
        "integers",
        "threads",
        "site CPU s",
        "clock s",
        "aggregator CPU s",
        "clock s",
        "up MB a site",
        "peak MB, all in one",
        "sum",
        "of a round",
    )
    return fitted([head, *map(_line, found["rows"])])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    share = "-" if row["share_of_round"] is None else f"{row['share_of_round']:.2%}"
    seconds = [f"{row[f'{one}_s']:.3f}" for one in ("site", "site_clock", "aggregator", "aggregator_clock")]
    sizes = (f"{row['up_bytes'] / MB:.0f}", f"{row['peak_bytes'] / MB:.0f}")
    return (f"{row['size']:,}", f"{row['threads']}", *seconds, *sizes, "right" if row["right"] else "WRONG", share)
