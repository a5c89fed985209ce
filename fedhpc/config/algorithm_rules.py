"""The rules of a config's section `algorithm`: with what each algorithm goes together."""

from typing import TYPE_CHECKING

from fedhpc.aggregation.server_sgd import ServerSgd

if TYPE_CHECKING:
    from fedhpc.config.schema import RunConfig


def algorithm_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for each rule of the section `algorithm`.

    FedProx needs none: its term is a function of the parameters alone, whatever optimiser, rule or privacy there is.
    The baselines exchange nothing and do not use the section, like `exchange`: one config is trained in all modes.
    """
    if config.privacy.trust == "sites" and config.algorithm.name != "fedavg":
        # `secure_sum_rules` refuses all others: what each of them lacks besides would only contradict it.
        return _local_layers_rules(config)
    name, rule, server = config.algorithm.name, config.aggregation.rule, config.server
    counted, follows = name in ("scaffold", "fednova"), name in ("scaffold", "fednova", "feddyn")
    densities = {"density": config.exchange.density, "density_down": config.exchange.density_down}
    sparse = {f"exchange.{key}": value for key, value in densities.items() if value is not None and value < 1}
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
            name == "feddyn" and bool(sparse),
            f"algorithm.name=feddyn, {', '.join(f'{key}={value:g}' for key, value in sparse.items())}: its server step "
            "adds up all updates that have come; with entries that come rounds later it swings and can diverge. Set "
            f"{', '.join(f'{key}=1' for key in sparse)}",
        ),
        *_whole_federation_rules(config),
        *_local_layers_rules(config),
    ]


def _whole_federation_rules(config: "RunConfig") -> list[tuple[bool, str]]:
    """(is broken, message) for what takes a round for FedAvg's: without a site, replayed, or not the same for all."""
    name, faults, sites = config.algorithm.name, config.faults, len(config.data.sites)
    follows = name in ("scaffold", "fednova", "feddyn")
    fewer = [f"faults.absent={', '.join(faults.absent)}"] if faults.absent else []
    if faults.min_sites is not None and faults.min_sites < sites:
        fewer.append(f"faults.min_sites={faults.min_sites}")
    return [
        (
            name in ("scaffold", "feddyn") and bool(fewer),
            f"algorithm.name={name}, {', '.join(fewer)}: what the sites keep adds up only over all of them, so that "
            f"rounds without one would shift the model for good; remove {'both' if len(fewer) > 1 else 'it'}, or set "
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
    on = config.algorithm.local_layers != "none"
    key = f"algorithm.local_layers={config.algorithm.local_layers}"
    return [
        (
            on and config.model.name == "frozen",
            f"{key}: the head of model.name=frozen has no such layer; remove it, or train a network",
        ),
        (
            config.algorithm.local_layers == "input" and not config.model.input_layer,
            f"{key}: there is no such layer; set model.input_layer=true",
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
