"""Keys that belong to a part of a config that is off: a value other than the default would change nothing there."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fedhpc.config.schema import RunConfig


@dataclass(frozen=True)
class Dependent:
    """A key with what it needs to have an effect.

    Attributes:
        key: such as "rewards.memory".
        needs: the key and value that it needs, for the message.
        is_used: whether a config has it.
    """

    key: str
    needs: str
    is_used: Callable[["RunConfig"], bool]


def _method(name: str) -> Callable[["RunConfig"], bool]:
    return lambda config: config.personalisation.method == name


DEPENDENT = (
    Dependent("model.whitening", "model.features", lambda config: config.model.features is not None),
    Dependent("model.feature_norm", "model.name=frozen", lambda config: config.model.name == "frozen"),
    Dependent(
        "privacy.feature_mean_noise",
        "model.feature_mean=sites",
        lambda config: config.model.feature_mean == "sites",
    ),
    Dependent(
        "privacy.max_images_per_patient", "privacy.unit=patient", lambda config: config.privacy.unit == "patient"
    ),
    Dependent("rewards.memory", "rewards.altruism", lambda config: config.rewards.altruism is not None),
    Dependent("personalisation.strengths", "personalisation.method=head", _method("head")),
    Dependent("personalisation.features", "personalisation.method=head", _method("head")),
    Dependent("personalisation.epochs", "personalisation.method=fine_tune", _method("fine_tune")),
    Dependent("personalisation.lr", "personalisation.method=fine_tune", _method("fine_tune")),
    Dependent("personalisation.layers", "personalisation.method=fine_tune", _method("fine_tune")),
)
"""Only keys of a part that is off as a whole: where a number decides (as exchange.density=1 does of
exchange.selection), one config must be able to go through all values of a sweep."""


def unused_keys(config: "RunConfig") -> list[str]:
    """Return a message for each key that is not at its default and has no effect.

    For configs that a person has written: the resolved config of an earlier run holds the defaults of its version.
    """
    return [
        f"{one.key}={_plain(_value(config, one.key))}: has no effect without {one.needs}. Set {one.needs}, or remove "
        f"{one.key}"
        for one in DEPENDENT
        if _value(config, one.key) != _default(config, one.key) and not one.is_used(config)
    ]


def _value(config: "RunConfig", key: str) -> Any:
    return reduce(getattr, key.split("."), config)


def _default(config: "RunConfig", key: str) -> Any:
    section, name = key.split(".")
    return type(getattr(config, section)).model_fields[name].default


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
