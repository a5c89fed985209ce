"""In what the configs of several runs differ, beside epsilon, density, seed and data, which a report shows anyway."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.config.schema import RunConfig
from fedhpc.util.text import shown

# A result does not depend on these, or a report shows them elsewhere.
NOT_COMPARED = ("name", "seed", "mode", "data", "contribution", "faults", "runtime", "tracking")
NOT_COMPARED_KEYS = (
    "exchange.density", "exchange.pki", "exchange.search", "exchange.tls",
    "privacy.epsilon", "privacy.lifetime_epsilon", "privacy.off", "privacy.site_ledger",
)  # fmt: skip
# Keys that name a section's kind say it without their own name: `algorithm scaffold`.
KINDS = ("name", "rule", "method", "optimizer", "policy")
# A baseline exchanges nothing, and uses none of these.
OF_A_FEDERATION = (
    "aggregation",
    "algorithm",
    "exchange",
    "federation",
    "personalisation",
    "rewards",
    "schedule",
    "server",
)
MOST_KEYS = 3


def settings_of(configs: Sequence[RunConfig]) -> list[str]:
    """For each config, what sets it apart from the others of its mode, with or without privacy; empty for nothing.

    Up to three keys are named; where more differ, the name of the first run of the same setting stands for all.
    """
    compared = [_compared(config) for config in configs]
    kinds = [(config.mode, config.private) for config in configs]
    differing = {
        kind: _differing([own for own, its in zip(compared, kinds, strict=True) if its == kind]) for kind in set(kinds)
    }
    first: dict[tuple[object, ...], str] = {}
    found = []
    for own, kind, config in zip(compared, kinds, configs, strict=True):
        keys = differing[kind]
        values = tuple((key, shown(own[key])) for key in keys if key in own)
        name = first.setdefault((kind, values), config.name)
        found.append(", ".join(f"{_title(key)} {value}" for key, value in values) if len(keys) <= MOST_KEYS else name)
    return found


def _differing(flat: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the keys that have two values, or that some lack though the kind of their section is the same."""
    every = dict.fromkeys(key for one in flat for key in one)
    unlike = [key for key in every if len({repr(one[key]) for one in flat if key in one}) > 1]
    kinds = {key.rpartition(".")[0] for key in unlike if key.rpartition(".")[2] in KINDS}
    lacked = {key for key in every if any(key not in one for one in flat) and key.rpartition(".")[0] not in kinds}
    return [key for key in every if key in unlike or key in lacked]


def _compared(config: RunConfig) -> dict[str, Any]:
    """Return the config by dotted key, without what is not compared and without what is not set (null)."""
    sections = set(NOT_COMPARED) | (set() if config.mode == "federated" else set(OF_A_FEDERATION))
    tree = {key: value for key, value in config.model_dump(mode="json").items() if key not in sections}
    tree["stress"] = None if config.stress is None else config.stress.label
    if not config.private:
        # A run without privacy uses none of them.
        tree["privacy"] = {}
        tree["evaluation"].pop("epsilon")
    return {key: value for key, value in _flat(tree).items() if key not in NOT_COMPARED_KEYS}


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        elif value is not None:
            flat[f"{prefix}{key}"] = value
    return flat


def _title(key: str) -> str:
    section, _, last = key.rpartition(".")
    return (section if last in KINDS and section else key).replace(".", " ").replace("_", " ")
