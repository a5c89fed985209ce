"""The rules of a config that concern more than one key."""

from typing import TYPE_CHECKING

from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.config.algorithm_rules import algorithm_rules
from fedhpc.config.stress import SLOW, STRENGTH

if TYPE_CHECKING:
    from fedhpc.config.model import Model
    from fedhpc.config.schema import RunConfig

LEAST_DRAWN = 0.01
"""Units of the largest site that a private step must draw on average: below it nearly every step is noise alone."""
LEAST_EPSILON = 0.01
"""Of a run: below it the noise multiplier is in the thousands, for which the accountant takes minutes."""

RESERVED = {
    "aggregator": "rank 0",
    "ca": "the certificate authority's files",
    "crl": "the certificate authority's files",
    "pooled": "the learner of mode=centralised",
    "global": "the model of all sites",
}
"""What a site may not be called: its files and keys would be those of something else."""


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
            f"training.average_last: averages global models, which mode={config.mode} has none of; set it to 0",
        ),
        (
            config.mode != "federated" and (config.aggregation, config.server) != (Mean(), ServerSgd()),
            f"aggregation, server: mode={config.mode} has no aggregator that they could belong to; remove them",
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
        (
            stress.from_round > 1 and not stress.of_updates,
            f"stress.from_round={stress.from_round}: case {stress.case} is there from the first round on; remove it",
        ),
        (
            stress.from_round > config.training.rounds,
            f"stress.from_round={stress.from_round}: the run has {config.training.rounds} rounds; lower it",
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
    given = {"colluding_sites": p.colluding_sites, "tolerated_dropouts": p.tolerated_dropouts or None}
    shared = [f"privacy.{key}={value}" for key, value in given.items() if value is not None]
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
        (
            config.private and config.training.local_epochs < 1,
            f"training.local_epochs={config.training.local_epochs:g}: with privacy on each step draws a part of the "
            "units, and an epoch is 1 / privacy.sample_rate steps; set local_epochs to 1 or more, and raise "
            "privacy.sample_rate for fewer steps a round",
        ),
        (p.noise_seed is not None and not config.private, "privacy.noise_seed: set without privacy.epsilon; remove it"),
        (
            p.trust == "aggregator" and bool(shared),
            f"{', '.join(shared)}: only with privacy.trust=sites; with trust=aggregator each site carries its full "
            "noise and trusts no other: remove it",
        ),
    ]


def _frozen_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of a network on a frozen backbone."""
    frozen = config.model.name == "frozen"
    other = not frozen and any((config.model.name, config.model.build, config.model.monai))
    return [
        (
            frozen and config.model.backbone is None,
            "model.backbone: missing; model.name=frozen needs efficientnet_lite0, phantom or the model.pt of a run",
        ),
        (
            other and config.model.backbone is not None,
            f"model.backbone: only model.name=frozen has one, not {config.model.label}; remove one of the two",
        ),
        (
            config.model.features is not None and other,
            f"model.features: only model.name=frozen has features to whiten, not {config.model.label}; remove it",
        ),
        (
            (config.model.features is None) != (config.data.public_reference is None),
            "model.features, data.public_reference: each needs the other: the directions are fitted to public images; "
            "set both or none (`run.py prepare images --reference N` sets images aside)",
        ),
        (
            frozen and config.model.input_layer,
            "model.input_layer: has nothing to learn from with model.name=frozen, whose features are computed once, "
            "before training; remove it or train a network",
        ),
        (
            frozen and config.training.random_flip,
            "training.random_flip: the features of model.name=frozen are computed once; remove it or train a network",
        ),
    ]


def new_run_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """As `cross_field_rules`, of a config that a run is started with: what earlier versions have let pass can be read.

    A rule that is younger than finished runs belongs here: their reports and models are still wanted.
    """
    p, units = config.privacy, max((site.weight or 1 for site in config.data.sites), default=1)
    return [
        *(
            (name in config.site_names, f"data.sites: {name} is the name of {whose}; give the hospital another")
            for name, whose in RESERVED.items()
        ),
        (
            p.epsilon is not None and p.epsilon < LEAST_EPSILON,
            f"privacy.epsilon={p.epsilon or 0:g}: below {LEAST_EPSILON:g} the noise hides all that could be learned; "
            f"set {LEAST_EPSILON:g} or more (0.1 to 10 is usual), or write `privacy: off`",
        ),
        (
            config.private and p.sample_rate * units < LEAST_DRAWN,
            f"privacy.sample_rate={p.sample_rate:g}: a step draws {p.sample_rate * units:.2g} of the {units} units of "
            f"the largest site on average, and an epoch is {1 / p.sample_rate:.2g} steps; set it to {1 / units:.2g} or "
            "more (0.05 to 1 is usual)",
        ),
    ]


def cross_field_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule that concerns more than one key."""
    names = config.site_names
    twice = sorted({name for name in names if names.count(name) > 1})
    return [
        *_model_rules(config.model),
        (bool(twice), f"data.sites: {', '.join(twice)} named twice; give each hospital its own name"),
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
        *algorithm_rules(config),
        (
            config.federation.aggregator_rank == "dedicated" and config.mode != "federated",
            f"federation.aggregator_rank: dedicated needs mode=federated, not mode={config.mode}",
        ),
    ]
