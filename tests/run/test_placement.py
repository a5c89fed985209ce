"""Which rank plays which hospital: a partition in site order, and no larger load than by number."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedhpc.config.schema import RunConfig
from fedhpc.run.start.placement import deal_sites
from fedhpc.run.start.secure_channel import sites_by_rank

WEIGHTS = st.lists(st.integers(1, 1000), min_size=1, max_size=40)


@pytest.mark.parametrize("sites", [1, 4, 64])
@pytest.mark.parametrize("ranks", [1, 3, 4])
@pytest.mark.parametrize("dedicated", [False, True])
def test_sites_without_weights_are_consecutive(sites: int, ranks: int, dedicated: bool) -> None:
    blocks = deal_sites([None] * sites, ranks, dedicated)
    assert len(blocks) == ranks
    assert [index for block in blocks for index in block] == list(range(sites))
    used = [len(block) for block in blocks[int(dedicated and ranks > 1) :]]
    assert max(used) - min(used) <= 1


@given(WEIGHTS, st.integers(1, 8), st.booleans())
def test_largest_load_is_at_most_that_by_number(weights: list[int], ranks: int, dedicated: bool) -> None:
    dealt = deal_sites(weights, ranks, dedicated)
    by_number = deal_sites([None] * len(weights), ranks, dedicated)
    assert sorted(site for block in dealt for site in block) == list(range(len(weights)))
    assert all(list(block) == sorted(block) for block in dealt)
    largest = [max(sum(weights[site] for site in block) for block in blocks) for blocks in (dealt, by_number)]
    assert largest[0] <= largest[1]


@given(WEIGHTS, st.booleans())
def test_one_rank_a_site_keeps_their_order(weights: list[int], dedicated: bool) -> None:
    alone = deal_sites(weights, len(weights) + dedicated, dedicated)
    shared = not (dedicated and len(weights) + dedicated > 1)
    assert alone == ([] if shared else [()]) + [(site,) for site in range(len(weights))]


@pytest.mark.parametrize(("trust", "with_aggregator"), [("aggregator", 5), ("sites", 3)])
def test_secure_sum_gives_the_aggregator_no_more_sites_by_weight(trust: str, with_aggregator: int) -> None:
    """Dealt by weight the sixth site would be alone, and the aggregator's process would hold the vectors of five."""
    tree = {
        "name": "x",
        "data": {"shards": "{site}.h5", "sites": [{"name": n, "weight": 500 if n == "f" else 10} for n in "abcdef"]},
        "training": {"local_epochs": 1},
        "privacy": {"epsilon": 8, "sample_rate": 1, "delta": 1e-6, "trust": trust}
        | ({"colluding_sites": 3} if trust == "sites" else {}),
        "exchange": {"density": 1},
    }
    assert len(sites_by_rank(RunConfig.model_validate(tree), 2)[0]) == with_aggregator
