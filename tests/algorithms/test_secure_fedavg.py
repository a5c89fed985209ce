"""A secure round under the sequential driver: the mean of those who stayed, dropouts, refusals; the config's rules."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import yaml

from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.algorithms.fedavg import federate
from fedhpc.algorithms.round_types import RoundConfig, RoundResult
from fedhpc.algorithms.run_state import fresh_state
from fedhpc.algorithms.secure_fedavg import SecureMean
from fedhpc.compression.codec import FIXED
from fedhpc.compression.error_feedback import CompressionConfig
from fedhpc.config.loader import load_config
from fedhpc.config.privacy import Privacy
from fedhpc.errors import ConfigError, SiteError
from fedhpc.secagg.masks import SumTerms, most_dropouts
from fedhpc.secagg.protocol import round_bytes
from fedhpc.site.context import SiteContext
from fedhpc.site.hospital import Hospital
from fedhpc.site.training.regularizers import NOTHING, Regularizer
from fedhpc.site.training.secure_contribution import IntegerGrid
from fedhpc.transport.base import AloneTransport
from fedhpc.util.arrays import F32, I64
from tests.secagg.test_protocol import signing_sites

D, UNIT = 5, 2**-10
GRID = IntegerGrid(clip_units=2**10, l2=2.0**10, site_variance=0.0, width_bytes=3)
NAMES, WEIGHTS = ("a", "b", "c", "d", "e", "f"), (1, 2, 3, 4, 5, 6)


@dataclass
class Giver:
    """A hospital with a fixed integer vector, that may fail in a round before or in its training."""

    name: str
    index: int
    absent_in: Sequence[int] = ()
    fails_in: Sequence[int] = ()
    charged: list[int] = field(default_factory=list)

    def train(self, params: F32, round: int, regularizer: Regularizer = NOTHING) -> F32:
        raise AssertionError("a secure round never asks for a site's own update")

    def gradient_weight(self, round: int) -> float:
        raise AssertionError("a secure round has no update of a site")

    def can_afford(self, round: int) -> bool:
        return True

    def enter(self, round: int) -> None:
        if round in self.absent_in:
            raise SiteError(f"site {self.name}, round {round}: no ledger")
        self.charged.append(round)

    def contribute(self, params: F32, round: int, grid: IntegerGrid) -> I64:
        if round in self.fails_in:
            raise SiteError(f"site {self.name}, round {round}: no memory")
        return np.arange(D) * (self.index + 1) - 3 * round


def secure_terms(rounds: int, tolerated: int, told: list[str]) -> RoundConfig:
    privacy = Privacy(sample_rate=1, trust="sites", colluding_sites=1, tolerated_dropouts=tolerated)
    mean = SecureMean(
        terms=SumTerms(6, 6 - tolerated, D, GRID.width_bytes, colluding=1),
        grid=GRID,
        sites=tuple(zip(NAMES, WEIGHTS, strict=True)),
        privacy=privacy,
        step=lambda state, gradient: -gradient,
        tell=told.append,
        identities=dict(enumerate(signing_sites(6))),
    )
    return RoundConfig(rounds, CompressionConfig(1), CompressionConfig(1), NAMES, WEIGHTS, secure=mean)


def run(sites: list[Giver], rounds: int, tolerated: int) -> tuple[list[RoundResult], list[str]]:
    results: list[RoundResult] = []
    told: list[str] = []
    start = fresh_state(np.zeros(D, np.float32), [site.name for site in sites], ServerSgd())
    federate(sites, start, secure_terms(rounds, tolerated, told), AloneTransport(), lambda r: not results.append(r))
    return results, told


def expected(present: str, round: int) -> F32:
    """Minus the sum of the givers' vectors, in gradient units, over the sum of their weights."""
    indices = [NAMES.index(name) for name in present]
    total = sum(np.arange(D) * (i + 1) - 3 * round for i in indices)
    return (-total * UNIT / sum(WEIGHTS[i] for i in indices)).astype(np.float32)


def test_the_mean_is_the_sum_over_the_sum_of_the_weights() -> None:
    sites = [Giver(name, i) for i, name in enumerate(NAMES)]
    results, told = run(sites, 2, tolerated=0)
    np.testing.assert_allclose(results[0].state.params, expected("abcdef", 0), rtol=1e-6)
    np.testing.assert_allclose(results[1].state.params, expected("abcdef", 0) + expected("abcdef", 1), rtol=1e-6)
    assert (results[0].dropped, told) == ((), [])
    assert not any(kept["residual"].any() for kept in results[0].state.sites.values())


def test_sites_that_drop_out_are_left_out_of_sum_and_weights_and_named_and_stay_charged() -> None:
    """Round 0: all. Round 1: one is absent from the start. Round 2: one fails in training. Round 3: one of each."""
    sites = [Giver(name, index) for index, name in enumerate(NAMES)]
    sites[1].absent_in, sites[2].fails_in = (1, 3), (2, 3)
    results, told = run(sites, 4, tolerated=2)
    assert [result.dropped for result in results] == [(), ("b",), ("c",), ("b", "c")]
    params = np.zeros(D, np.float32)
    for round, present in enumerate(("abcdef", "acdef", "abdef", "adef")):
        params = params + expected(present, round)
        np.testing.assert_allclose(results[round].state.params, params, rtol=1e-5)
    assert told == [
        "site b, round 1: no ledger",
        "site c, round 2: no memory",
        "site b, round 3: no ledger",
        "site c, round 3: no memory",
    ]
    assert (sites[1].charged, sites[2].charged) == ([0, 2], [0, 1, 2, 3])


def test_more_dropouts_than_tolerated_end_the_run_with_the_sites_named() -> None:
    sites = [Giver(name, index) for index, name in enumerate(NAMES)]
    sites[1].absent_in, sites[2].fails_in = (1,), (1,)
    with pytest.raises(
        SiteError, match=r"round 2: b, c dropped out, 2 of 6 sites; privacy\.tolerated_dropouts=1\..*ref"
    ):
        run(sites, 3, tolerated=1)


@pytest.mark.parametrize(("bad", "cause"), [({"absent_in": (0,)}, "no ledger"), ({"fails_in": (0,)}, "no memory")])
def test_without_tolerated_dropouts_a_failure_ends_the_run_with_its_cause(bad: dict[str, object], cause: str) -> None:
    sites = [Giver(name, index, **(bad if name == "b" else {})) for index, name in enumerate(NAMES)]  # type: ignore[arg-type]
    with pytest.raises(SiteError, match=f"site b, round 0: {cause}"):
        run(sites, 1, tolerated=0)


def test_traffic_is_what_was_sent() -> None:
    sites = [Giver(name, i, fails_in=(1,) if name == "c" else ()) for i, name in enumerate(NAMES)]
    results, _ = run(sites, 2, tolerated=1)
    up, down = round_bytes(SumTerms(6, 5, D, GRID.width_bytes))
    first, second = (result.traffic for result in results)
    assert first is not None
    assert second is not None
    assert first.up_bytes == (up,) * 6
    for traffic, before_the_mean in ((first, down), (second, down - 2 - 66)):
        assert FIXED.size < traffic.down_bytes - before_the_mean < FIXED.size + 4 * D + 60
    assert second.up_bytes[2] < up - D * GRID.width_bytes


def test_a_hospital_that_cannot_write_its_ledger_does_not_enter(tmp_path: Path) -> None:
    from fedhpc.privacy.plan import PrivacyPlan

    class NoSamples:
        patient = np.empty(0, "S1")

        def indices(self, split: str) -> np.ndarray:
            return np.empty(0, np.int64)

    config = load_config(write(tmp_path / "c.yaml", GOOD), [f"data.shards={tmp_path}/{{site}}.h5"])
    place = SiteContext(config, None, None, PrivacyPlan(100.0, 1.0, 1, "skellam"), lambda *_: None)  # type: ignore[arg-type]
    hospital = Hospital("a", 0, 3, NoSamples(), place)  # type: ignore[arg-type]
    hospital.keep_ledger(tmp_path / "ledger.jsonl", "run")
    hospital.enter(0)
    assert '"mechanism": "skellam"' in (tmp_path / "ledger.jsonl").read_text()
    (tmp_path / "ledger.jsonl").unlink()
    (tmp_path / "ledger.jsonl").mkdir()
    with pytest.raises(SiteError, match=r"round 2: the ledger cannot be charged: .*cannot be locked or written"):
        hospital.enter(1)


GOOD: dict[str, object] = {
    "name": "x",
    "data": {"shards": "x/{site}.h5", "sites": [{"name": name, "weight": 3} for name in NAMES[:4]]},
    "training": {"local_epochs": 1},
    "exchange": {"density": 1},
    "privacy": {"epsilon": 1, "sample_rate": 1, "trust": "sites", "colluding_sites": 1},
}


def write(path: Path, tree: object) -> Path:
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["privacy.colluding_sites=null"], "privacy.colluding_sites: missing"),
        (["privacy.epsilon=null"], "privacy.trust: sites shares the noise of privacy.epsilon, which is null"),
        (["mode=local"], "privacy.trust: sites needs mode=federated; mode=local has no sum"),
        (["mode=centralised"], "mode=centralised has no sum"),
        (["exchange.density=0.1"], "exchange.density=0.1: each site would choose its own top-k"),
        (
            ["training.local_epochs=3"],
            "training.local_epochs=3, privacy.sample_rate=1.0: with trust=sites a round is one",
        ),
        (["privacy.sample_rate=0.9"], "privacy.sample_rate=0.9: with trust=sites a round is one"),
        (["training.optimizer=adam"], "training.optimizer=adam: its step is not linear"),
        (["privacy.colluding_sites=3"], "of 4 sites that leaves 1 to share the noise"),
        (["privacy.tolerated_dropouts=2"], "of 4 sites that leaves 1 to share the noise"),
        (
            ["privacy.tolerated_dropouts=2"],
            "privacy.tolerated_dropouts=2, privacy.colluding_sites=1: of 4 sites at least 2 would have to stay, and "
            "twice that must be more than sites + colluding_sites, or an aggregator that sends two lists of survivors "
            "gets one site's vector: set tolerated_dropouts to 1 or less",
        ),
        (["privacy.colluding_sites=5"], "lower colluding_sites or add sites"),
        (["privacy.colluding_sites=9"], "of 4 sites that leaves 0 to share the noise"),
        (["privacy.colluding_sites=0"], "privacy.colluding_sites=0: the aggregator shares its rank"),
        (["privacy.trust=aggregator"], "privacy.colluding_sites=1: only with privacy.trust=sites"),
        (
            ["privacy.trust=aggregator", "privacy.colluding_sites=null", "privacy.tolerated_dropouts=1"],
            "privacy.tolerated_dropouts=1: only with privacy.trust=sites",
        ),
    ],
)
def test_combinations_that_would_break_it_are_refused_with_the_reason(
    tmp_path: Path, overrides: list[str], told: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path / "c.yaml", GOOD), overrides)
    assert told in str(error.value)


def test_config_and_protocol_accept_the_same_dropouts(tmp_path: Path) -> None:
    """For every number of sites, colluding sites and dropouts: the config's rule is the condition of the protocol."""
    for n in (2, 3, 5):
        sites = [{"name": f"s{index}", "weight": 3} for index in range(n)]
        path = write(tmp_path / "c.yaml", {**GOOD, "data": {"shards": "x/{site}.h5", "sites": sites}})
        for colluding, dropouts in itertools.product(range(1, n), range(n - 1)):
            sets = [f"privacy.colluding_sites={colluding}", f"privacy.tolerated_dropouts={dropouts}"]
            allowed = dropouts <= most_dropouts(n, colluding)
            assert refused(lambda: SumTerms(n, n - dropouts, 1, 1, colluding), ValueError) != allowed  # noqa: B023
            too_few_shares = n - colluding - dropouts < 2
            assert refused(lambda: load_config(path, sets), ConfigError) == (not allowed or too_few_shares)  # noqa: B023


def refused(work: Callable[[], object], error: type[Exception]) -> bool:
    try:
        work()
    except error:
        return True
    return False


def test_what_is_allowed(tmp_path: Path) -> None:
    path = write(tmp_path / "c.yaml", GOOD)
    assert load_config(path).honest_sites == 3
    assert load_config(path, ["privacy.tolerated_dropouts=1"]).honest_sites == 2
    nobody = ["privacy.colluding_sites=0", "federation.aggregator_rank=dedicated"]
    assert load_config(path, nobody).honest_sites == 4
