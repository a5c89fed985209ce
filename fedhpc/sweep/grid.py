"""A grid as pure values: from lists of values to points, and from points to config trees."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from fedhpc.config.loader import merged

Tree = dict[str, Any]
Point = dict[str, Any]
"""A value for each dotted key."""


def flattened(tree: Mapping[str, Any], prefix: str = "") -> Point:
    """Nested mappings as one, with dotted keys; dotted keys may be mixed in.

    >>> flattened({"privacy": {"epsilon": [1, 2]}, "exchange.density": [0.1]})
    {'privacy.epsilon': [1, 2], 'exchange.density': [0.1]}
    """
    flat: Point = {}
    for key, value in tree.items():
        flat |= flattened(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def nested(point: Mapping[str, Any]) -> Tree:
    """The inverse of `flattened`.

    >>> nested({"privacy.epsilon": 1, "privacy.delta": 1e-5, "seed": 3})
    {'privacy': {'epsilon': 1, 'delta': 1e-05}, 'seed': 3}
    """
    tree: Tree = {}
    for dotted, value in point.items():
        for key in reversed(dotted.split(".")):
            value = {key: value}
        tree = merged(tree, value)
    return tree


def grid_problems(grid: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with a flat grid, a line each."""
    problems = []
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            problems.append(f"grid.{key}={values!r}: must be a list of one or more values")
        elif any(value in values[:at] for at, value in enumerate(values)):
            problems.append(f"grid.{key}={values!r}: a value is there twice; the runs would be the same")
        problems += [
            f"grid.{key}: {other} sets the same section; name single keys only"
            for other in grid
            if other.startswith(f"{key}.")
        ]
    return problems


def points(grid: Mapping[str, Sequence[Any]]) -> list[Point]:
    """Every combination of values, the last key varying fastest.

    >>> points({"privacy.epsilon": [1, 2], "seed": [0, 1]})[:3]
    [{'privacy.epsilon': 1, 'seed': 0}, {'privacy.epsilon': 1, 'seed': 1}, {'privacy.epsilon': 2, 'seed': 0}]
    """
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
