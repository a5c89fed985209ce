"""The rules of a config with `privacy.trust: sites`, under which the aggregator sees the sum of all sites alone."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedhpc.config.schema import RunConfig


def _largest_dropouts(sites: int, colluding: int) -> str:
    """The remedy, by 2 x (sites - dropouts) > sites + colluding: the condition of `fedhpc.secagg.masks.SumTerms`."""
    most = (sites - colluding - 1) // 2
    return f"set tolerated_dropouts to {most} or less" if most >= 0 else "lower colluding_sites or add sites"


def secure_sum_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of privacy.trust=sites.

    An option that needs to see one site's update by itself belongs here: the aggregator sees only the sum.
    """
    p, n = config.privacy, len(config.data.sites)
    colluding = p.colluding_sites or 0
    return [
        (
            config.mode != "federated",
            f"privacy.trust: sites needs mode=federated; mode={config.mode} has no sum of sites",
        ),
        (p.epsilon is None, "privacy.trust: sites shares the noise of privacy.epsilon, which is null; set it"),
        (
            p.colluding_sites is None,
            "privacy.colluding_sites: missing; trust=sites rests on a number of sites that may tell the aggregator all "
            "they know: say which (0 protects from the aggregator alone, 1 also from each single site)",
        ),
        (
            p.colluding_sites is not None and 2 * (n - p.tolerated_dropouts) <= n + colluding,
            f"privacy.tolerated_dropouts={p.tolerated_dropouts}, privacy.colluding_sites={colluding}: of {n} sites at "
            f"least {n - p.tolerated_dropouts} would have to stay, and twice that must be more than sites + "
            "colluding_sites, or an aggregator that sends two lists of survivors gets one site's vector: "
            + _largest_dropouts(n, colluding),
        ),
        (
            config.honest_sites < 2,
            f"privacy.colluding_sites={colluding}, privacy.tolerated_dropouts={p.tolerated_dropouts}: of {n} sites "
            f"that leaves {max(0, config.honest_sites)} to share the noise; with fewer than 2 each site must carry all "
            "of it, as with trust=aggregator: lower them, or use that",
        ),
        (
            config.federation.aggregator_rank == "shared" and p.colluding_sites == 0,
            "privacy.colluding_sites=0: the aggregator shares its rank with the first hospital and knows its share of "
            "the noise; set colluding_sites=1 or more, or federation.aggregator_rank=dedicated",
        ),
        *_one_sum_rules(config),
    ]


def _one_sum_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for what a round of privacy.trust=sites cannot be: it is one private step, seen as a sum.

    One step, since composition charges steps that depend on the data and on what was released before. A second local
    step depends on the site's own share of the noise, which nobody has released. Heikkila (2025, TMLR, arXiv
    2407.19286) charges several local steps as if their sums had been released one by one; tests/attacks/
    test_local_steps.py shows data for which the total then holds less noise than that.
    """
    p, t = config.privacy, config.training
    return [
        (
            config.exchange.density < 1,
            f"exchange.density={config.exchange.density}: each site would choose its own top-k entries, and the choice "
            "alone reveals its own vector, which trust=sites hides; a sum needs the same entries of all: set density=1",
        ),
        (
            t.local_epochs != 1 or p.sample_rate != 1,
            f"training.local_epochs={t.local_epochs}, privacy.sample_rate={p.sample_rate}: with trust=sites a round is "
            "one private step over all units: where a site steps on from its own noise share, its next gradients "
            "can cancel it, and the sum hides less than was charged; set both to 1 and raise training.rounds",
        ),
        (
            t.optimizer != "sgd",
            f"training.optimizer={t.optimizer}: its step is not linear in the gradient, so that the mean of the sites' "
            "steps would not be the step of their mean gradient; trust=sites needs sgd",
        ),
        (
            config.contribution.store_updates,
            "contribution.store_updates: with trust=sites rank 0 sees the sum of all sites, never the update of one, "
            "so that nothing it has tells who contributed: remove it, or use trust=aggregator",
        ),
        (
            config.aggregation.rule != "mean",
            f"aggregation.rule={config.aggregation.rule}: it looks at each site's update, which trust=sites hides; set "
            "aggregation.rule=mean",
        ),
        (
            config.algorithm.local_layers != "none",
            f"algorithm.local_layers={config.algorithm.local_layers}: with trust=sites a site makes no private step of "
            "its own, in which its own layers could be trained; set none",
        ),
        (
            config.algorithm.name != "fedavg",
            f"algorithm.name={config.algorithm.name}: with trust=sites a round is one step from the global model, "
            "where a proximal term is zero and corrections of the sites cancel in the sum; set algorithm.name=fedavg",
        ),
    ]
