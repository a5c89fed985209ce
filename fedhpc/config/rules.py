"""The rules of a config that concern more than one key."""

from typing import TYPE_CHECKING

from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.config.stress import SLOW, STRENGTH

if TYPE_CHECKING:
    from fedhpc.config.model import Model
    from fedhpc.config.schema import RunConfig


def _model_rules(model: "Model") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of the section on its own."""
    named = [f"model.{key}={value}" for key in ("name", "build", "monai") if (value := getattr(model, key)) is not None]
    return [
        (len(named) > 1, f"{', '.join(named)}: exclude each other; keep one and set the others to null"),
        (not named, "model.name=null: no network is named; set one of model.name, model.build and model.monai"),
        (
            bool(model.args) and model.name is not None,
            f"model.args: belong to model.build or model.monai, not to model.name={model.name}; remove them",
        ),
        (
            model.source_sha256 is not None and model.build is None,
            "model.source_sha256: belongs to model.build; remove it",
        ),
    ]


def _feature_mean_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of a mean of features that the sites release."""
    released = config.model.feature_mean == "sites"
    return [
        (
            released and config.model.features is None,
            "model.feature_mean=sites: is the mean of whitened features, and model.features is null; set it, or remove "
            "model.feature_mean",
        ),
        (
            released and config.mode != "federated",
            f"model.feature_mean=sites: is a sum over the sites, which mode={config.mode} has none of; set "
            "model.feature_mean=reference",
        ),
        (
            released and config.private and config.privacy.sample_rate != 1,
            f"privacy.sample_rate={config.privacy.sample_rate}: model.feature_mean=sites is composed exactly with "
            "steps over all units only; set privacy.sample_rate=1, or model.feature_mean=reference",
        ),
    ]


def _baseline_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each key of the rounds that a baseline, which has none, would ignore."""
    return [
        (
            config.training.average_last > 0 and config.mode != "federated",
            f"training.average_last: averages global models, which mode={config.mode} has none of; remove it",
        ),
        (
            config.mode != "federated" and (config.aggregation, config.server) != (Mean(), ServerSgd()),
            f"aggregation, server: mode={config.mode} has no aggregator that they could belong to; remove them",
        ),
    ]


def _algorithm_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of the section `algorithm`.

    FedProx needs none: its term is a function of the parameters alone, whatever optimiser, rule or privacy there is.
    The baselines exchange nothing and do not use the section, like `exchange`: one config is trained in all modes.
    """
    name, rule, server = config.algorithm.name, config.aggregation.rule, config.server
    counted, follows = name in ("scaffold", "fednova"), name in ("scaffold", "fednova", "feddyn")
    return [
        (
            name == "fednova" and config.private,
            "algorithm.name=fednova: divides each update by the site's number of steps; with privacy on that "
            "multiplies the noise of the sites with few steps. Set fedavg, fedprox, scaffold or feddyn",
        ),
        (
            counted and config.training.optimizer != "sgd",
            f"algorithm.name={name}: takes an update for a sum of gradients times the learning rate, which "
            f"training.optimizer={config.training.optimizer} does not make; set training.optimizer=sgd",
        ),
        (
            follows and rule != "mean",
            f"algorithm.name={name}, aggregation.rule={rule}: what the sites and the aggregator keep adds up to zero "
            "only where the global update is the weighted mean; set aggregation.rule=mean, or algorithm.name=fedprox",
        ),
        (
            name == "feddyn" and server != ServerSgd(),
            f"algorithm.name=feddyn, server.optimizer={server.optimizer}: FedDyn has a server step of its own; remove "
            "the section server",
        ),
        (
            name == "feddyn" and min(config.exchange.density, config.exchange.down) < 1,
            f"algorithm.name=feddyn, exchange.density={config.exchange.density:g}: its server step adds up all updates "
            "that have come; with entries that come rounds later it swings and can diverge. Set density=1",
        ),
        *_whole_federation_rules(config),
        *_local_layers_rules(config),
    ]


def _whole_federation_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for what takes a round for FedAvg's: without a site, replayed, or not the same for all."""
    name, faults, sites = config.algorithm.name, config.faults, len(config.data.sites)
    follows = name in ("scaffold", "fednova", "feddyn")
    fewer = bool(faults.absent) or (faults.min_sites is not None and faults.min_sites < sites)
    return [
        (
            name in ("scaffold", "feddyn") and fewer,
            f"algorithm.name={name}, faults.min_sites={faults.min_sites}, faults.absent: what the sites keep adds up "
            "only over all of them, so that rounds without one would shift the model for good; remove both, or set "
            "algorithm.name=fedprox",
        ),
        (
            follows and config.contribution.store_updates,
            f"algorithm.name={name}, contribution.store_updates: contributions are of means of updates, which is not "
            "all that this algorithm makes of them; set store_updates=false, or algorithm.name=fedprox",
        ),
    ]


def _local_layers_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of parameters that stay at their sites."""
    key, on = "algorithm.local_layers=norm", config.algorithm.local_layers != "none"
    return [
        (
            on and config.model.name == "frozen",
            f"{key}: the head of model.name=frozen has no normalisation layer; remove it, or train a network",
        ),
        (
            on and config.training.average_last > 0,
            f"{key}: the mean of the last global models does not fit one round's own layers; set average_last=0",
        ),
        (
            on and config.personalisation.method != "none",
            f"{key}: a personal model starts from the global one, without own layers; set personalisation.method=none",
        ),
    ]


def _aggregation_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for what the aggregation rule assumes of the sites and of their updates."""
    rule, trust = config.aggregation, config.privacy.trust
    problem = rule.problem(len(config.data.sites), config.exchange.density)
    bounded = isinstance(rule, Mean) and rule.bounded
    return [
        (bool(problem), problem),
        (
            bounded and (trust != "sites" or config.training.weight_decay > 0),
            f"aggregation.bounded: bounds the sum of all sites, which is all that privacy.trust=sites shows, without "
            f"weight decay; privacy.trust={trust}, training.weight_decay={config.training.weight_decay}. Remove it, or "
            "set aggregation.rule=screened_mean with trust=aggregator",
        ),
    ]


def _stress_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for a stress test that would not test what it says."""
    stress, names, p = config.stress, config.site_names, config.privacy
    if stress is None:
        return []
    unknown = sorted(set(stress.sites) - set(names))
    honest = len(names) - len(set(stress.sites))
    return [
        (bool(unknown), f"stress.sites: {', '.join(unknown)} is none of {', '.join(names)}; name sites of data.sites"),
        (len(set(stress.sites)) < len(stress.sites), "stress.sites: a site is named twice; name each once"),
        (
            stress.case == SLOW and stress.amount < 1,
            f"stress.strength={stress.strength}: makes a site faster, which sleeping cannot; set 1 or more",
        ),
        (
            stress.strength is not None and stress.case not in STRENGTH,
            f"stress.strength={stress.strength}: case {stress.case} has none; remove it",
        ),
        (
            stress.case in ("label_flip", "label_noise") and stress.amount > 1,
            f"stress.strength={stress.strength}: is the share of the images, at most 1 with case {stress.case}",
        ),
        (honest < 2, f"stress.sites: {len(stress.sites)} of {len(names)} sites; leave two or more as they are"),
        (
            stress.of_data and len(stress.sites) > 1,
            f"stress.case={stress.case}: corrupts the images of one site, {len(stress.sites)} are named; name one",
        ),
        (config.mode != "federated", f"stress: needs mode=federated, not mode={config.mode}; remove it"),
        (
            stress.of_updates and p.trust == "sites",
            f"stress.case={stress.case}: replaces a site's update, which privacy.trust=sites hides; take a case that "
            "corrupts images or labels, or trust=aggregator",
        ),
    ]


def _reward_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of rewards."""
    on, key = config.rewards.altruism is not None, f"rewards.altruism={config.rewards.altruism}"
    return [
        (on and config.mode != "federated", f"{key}: mode={config.mode} has no global step to give; remove it"),
        (
            on and config.privacy.trust == "sites",
            f"{key}: with privacy.trust=sites rank 0 never has the update of one site, so that nothing tells who "
            "contributed; remove it, or use trust=aggregator",
        ),
        (
            on and config.federation.aggregator_rank == "shared",
            f"{key}: rank 0 has the whole global model, and it is a hospital's too; set "
            "federation.aggregator_rank=dedicated",
        ),
        (
            on and not config.exchange.tls,
            f"{key}: without exchange.tls every hospital can read what another is given; set exchange.tls=true",
        ),
        (
            on and config.training.average_last > 0,
            f"{key}, training.average_last={config.training.average_last}: the mean of global models is none that a "
            "hospital has received; set average_last=0",
        ),
        (
            on and (config.algorithm.name != "fedavg" or config.algorithm.local_layers != "none"),
            f"{key}, algorithm.name={config.algorithm.name}: needs sites that train from the same parameters; set "
            "algorithm.name=fedavg, with local_layers=none",
        ),
    ]


def _privacy_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of the section `privacy` that holds for both kinds of trust."""
    p, units = config.privacy, max(site.weight or 1 for site in config.data.sites)
    undeclared = [site.name for site in config.data.sites if site.weight is None]
    return [
        (
            config.private and bool(undeclared),
            f"data.sites: no weight for {', '.join(undeclared)}; with privacy.epsilon set the true sample count is "
            "private: declare a public weight (number of training units) for every site",
        ),
        (
            p.off and config.private,
            f"privacy.off=true, privacy.epsilon={p.epsilon}: say two things; write `privacy: off` or an epsilon",
        ),
        (
            config.private and p.delta * 10 * units > 1,
            f"privacy.delta={p.delta:g}: above 1 / (10 x {units} declared units), so that more than a tenth of a unit "
            f"may be exposed in expectation; allowed: at most {1 / (10 * units):.2g}",
        ),
        (p.noise_seed is not None and not config.private, "privacy.noise_seed: set without privacy.epsilon; remove it"),
        (
            p.trust == "aggregator" and (p.colluding_sites is not None or p.tolerated_dropouts > 0),
            "privacy.colluding_sites, privacy.tolerated_dropouts: belong to privacy.trust=sites; with trust=aggregator "
            "each site carries its full noise and trusts no other: remove them",
        ),
    ]


def _frozen_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of a network on a frozen backbone."""
    frozen = config.model.name == "frozen"
    return [
        (
            frozen and config.model.backbone is None,
            "model.backbone: missing; model.name=frozen needs efficientnet_lite0, phantom or the model.pt of a run",
        ),
        (
            not frozen and config.model.backbone is not None,
            f"model.backbone: only model.name=frozen has one, not {config.model.label}; remove one of the two",
        ),
        (
            config.model.features is not None and not frozen,
            f"model.features: only model.name=frozen has features to whiten, not {config.model.label}; remove it",
        ),
        (
            (config.model.features is None) != (config.data.public_reference is None),
            "model.features, data.public_reference: each needs the other: the directions are fitted to public images; "
            "set both or none (`run.py prepare images --reference N` sets images aside)",
        ),
        (
            frozen and config.training.random_flip,
            "training.random_flip: the features of model.name=frozen are computed once; remove it or train a network",
        ),
    ]


def cross_field_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule that concerns more than one key."""
    names = config.site_names
    twice = sorted({name for name in names if names.count(name) > 1})
    return [
        *_model_rules(config.model),
        (bool(twice), f"data.sites: {', '.join(twice)} named twice; give each hospital its own name"),
        ("aggregator" in names, "data.sites: aggregator is the name of rank 0; give the hospital another"),
        *_privacy_rules(config),
        *_frozen_rules(config),
        *_feature_mean_rules(config),
        *_baseline_rules(config),
        *_aggregation_rules(config),
        *_stress_rules(config),
        *_reward_rules(config),
        (
            config.contribution.store_updates and config.mode != "federated",
            f"contribution.store_updates: mode={config.mode} sends no updates; remove it",
        ),
        (
            config.personalisation.method != "none" and config.mode != "federated",
            f"personalisation.method={config.personalisation.method}: needs the final model of mode=federated, not "
            f"mode={config.mode}; set it to none",
        ),
        *_algorithm_rules(config),
        (
            config.federation.aggregator_rank == "dedicated" and config.mode != "federated",
            f"federation.aggregator_rank: dedicated needs mode=federated, not mode={config.mode}",
        ),
    ]


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
