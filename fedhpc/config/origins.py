"""Where each value of a resolved config comes from: a file and line, `extends`, `--set`, or the default."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedhpc.config.loader import is_off
from fedhpc.config.strict_yaml import places_of, read_yaml

DEFAULT, OVERRIDDEN = "default", "--set"
Keys = tuple[str | int, ...]
"""The way to a value: names of keys and places in lists."""


def origins(path: Path, tree: dict[str, Any], resolved: dict[str, Any]) -> dict[Keys, str]:
    """Return the origin of every plain value of `resolved`.

    Args:
        path: the config file.
        tree: what the file says, laid on what it extends, with overrides (`read_merged`).
        resolved: the whole config, defaults included.
    """
    own = read_yaml(path)
    found = {}
    for keys in leaves(resolved):
        place = _place(tree, keys)
        inherited = place not in (DEFAULT, OVERRIDDEN) and _place(own, keys) == DEFAULT
        found[keys] = f"{place} (extends)" if inherited else place
    return found


def leaves(tree: Any, keys: Keys = ()) -> Iterator[Keys]:
    """Yield the way to every value that holds no others; an empty mapping or list is one."""
    inner = list(tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ())
    if keys and not inner:
        yield keys
    for key, value in inner:
        yield from leaves(value, (*keys, key))


def _place(tree: Any, keys: Keys) -> str:
    """Where a value was written: "FILE, line N" or "--set"; `default` where it was not."""
    place = DEFAULT
    for depth, key in enumerate(keys):
        if isinstance(tree, list) and isinstance(key, int):
            tree = tree[key]
        elif isinstance(tree, dict) and key in tree:
            place = places_of(tree).get(str(key), place)
            tree = tree[key]
        elif keys[:depth] == ("privacy",) and is_off(tree) and key == "off":
            return place
        else:
            return DEFAULT
    return place
