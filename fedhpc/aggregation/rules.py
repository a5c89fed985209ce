"""All aggregation rules and server optimisers, by the name that the config chooses them by.

To add one, write its class in a file of its own (see `mean`, `server_sgd`) and name the class here.
"""

import functools
import operator
from typing import Annotated, Any

from pydantic import Discriminator, Tag

from fedhpc.aggregation.base import AggregationRule, ServerStep
from fedhpc.aggregation.centred_clipping import CentredClipping
from fedhpc.aggregation.coordinate_median import CoordinateMedian
from fedhpc.aggregation.geometric_median import GeometricMedian
from fedhpc.aggregation.krum import Krum, MultiKrum
from fedhpc.aggregation.mean import Mean
from fedhpc.aggregation.minimum_diameter import MinimumDiameter
from fedhpc.aggregation.screened_mean import ScreenedMean
from fedhpc.aggregation.server_adaptive import FedAdagrad, FedAdam, FedYogi
from fedhpc.aggregation.server_momentum import FedAvgM
from fedhpc.aggregation.server_sgd import ServerSgd
from fedhpc.aggregation.trimmed_mean import TrimmedMean

RULES: tuple[type[AggregationRule], ...] = (
    Mean,
    CoordinateMedian,
    TrimmedMean,
    GeometricMedian,
    Krum,
    MultiKrum,
    MinimumDiameter,
    CentredClipping,
    ScreenedMean,
)
SERVER_OPTIMIZERS: tuple[type[ServerStep], ...] = (
    ServerSgd,
    FedAvgM,
    FedAdagrad,
    FedAdam,
    FedYogi,
)
UNKNOWN_CHOICE = "_unknown"
"""The end of the type of pydantic's error where the key that chooses among several sections names none of them."""


def one_of(kinds: tuple[type[Any], ...], key: str) -> Any:
    """Return the type of a section that is one of `kinds`, told apart by `key`; the first is the default."""
    names = [kind.model_fields[key].default for kind in kinds]

    def name_of(value: Any) -> Any:
        return value.get(key, names[0]) if isinstance(value, dict) else getattr(value, key, None)

    allowed = f"is none of those that fedhpc has; allowed: {', '.join(names)}"
    tagged = [Annotated[kind, Tag(name)] for kind, name in zip(kinds, names, strict=True)]
    told = Discriminator(name_of, custom_error_type=f"{key}{UNKNOWN_CHOICE}", custom_error_message=allowed)
    return Annotated[functools.reduce(operator.or_, tagged), told] if len(kinds) > 1 else kinds[0]
