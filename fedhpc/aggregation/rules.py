"""All aggregation rules and server optimisers, by the name that the config chooses them by.

To add one, write its class in a file of its own (see `mean`, `server_sgd`) and name the class here.
"""

import functools
import operator
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from fedhpc.aggregation.base import AggregationRule, ServerStep
from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.server_sgd import ServerSgd

RULES: tuple[type[AggregationRule], ...] = (Mean,)
SERVER_OPTIMIZERS: tuple[type[ServerStep], ...] = (ServerSgd,)


def one_of(kinds: tuple[type[Any], ...], key: str) -> Any:
    """Return the type of a section that is one of `kinds`, told apart by `key`; the first is the default."""
    if len(kinds) == 1:
        return kinds[0]
    default = kinds[0].model_fields[key].default
    named = BeforeValidator(lambda value: {key: default, **value} if isinstance(value, dict) else value)
    return Annotated[functools.reduce(operator.or_, kinds), Field(discriminator=key), named]


def mean_rule() -> AggregationRule:
    """Return the default rule."""
    return Mean()


def server_sgd() -> ServerStep:
    """Return the default server optimiser."""
    return ServerSgd()


if TYPE_CHECKING:
    Rule = AggregationRule
    ServerOptimizer = ServerStep
else:
    Rule = one_of(RULES, "rule")
    ServerOptimizer = one_of(SERVER_OPTIMIZERS, "optimizer")
