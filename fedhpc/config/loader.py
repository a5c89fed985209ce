"""YAML -> `RunConfig`: inheritance, overrides, and all the errors of a config at once, each with file, line and key.

A config may inherit from one other by `extends: other.yaml` (relative to itself). Any key can be overridden by
`--set section.key=value`. What counts as YAML is said in `fedhpc.config.strict_yaml`.
"""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedhpc.config.model_source import located, pins_for
from fedhpc.config.problems import place_of, problems_message, problems_of
from fedhpc.config.schema import RECORDED, RunConfig
from fedhpc.config.strict_yaml import WORDS, Located, parse_yaml, places_of, read_yaml
from fedhpc.config.unused_keys import unused_keys
from fedhpc.errors import ConfigError


def load_config(path: Path, overrides: list[str] | None = None, *, recorded: bool = False) -> RunConfig:
    """Read, merge, override and validate.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings; the value is read as YAML.
        recorded: let pass what earlier versions have let pass, as in the record of a run.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    return config_of(path, read_merged(path, overrides or []), recorded=recorded)


def read_merged(path: Path, overrides: list[str]) -> dict[str, Any]:
    """Return what a file says, laid on what it extends, with overrides; not validated yet.

    Raises:
        ConfigError: a file that cannot be read, or an override that cannot be applied.
    """
    tree = read_tree(path)
    for override in overrides:
        apply_override(tree, override)
    return tree


def config_of(path: Path, tree: dict[str, Any], *, recorded: bool = False) -> RunConfig:
    """Return the config that the merged tree of a file describes; see `load_config`.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    if "grid" in tree:
        raise ConfigError(
            f"{path}: is a sweep of many runs, it has a grid; start it with `run.py sweep {path}`",
            code="config.is-sweep",
        )
    config, problems = checked(tree, recorded=recorded)
    if config is None or problems:
        raise ConfigError(problems_message(path, problems))
    return config


def checked(tree: dict[str, Any], *, recorded: bool = False) -> tuple[RunConfig | None, list[str]]:
    """Return the config that a merged tree describes, and all its problems; None where they leave no config."""
    named = with_privacy_named(tree)
    pins, lost = pins_for(named.get("model"))
    named = merged(named, {"model": pins}) if pins else named
    unnamed = [line + place_of(line, named) for line in [*_unnamed_privacy(named.get("privacy", {})), *lost]]
    try:
        config = RunConfig.model_validate(named, context=RECORDED if recorded else None)
    except ValidationError as error:
        return None, [*problems_of(error, tree=named), *unnamed]
    return config, [*unnamed, *(line + place_of(line, named) for line in unused_keys(config))]


def pinned(config: RunConfig) -> RunConfig:
    """Return a config that was not read from a file with the digest of its model's source.

    Raises:
        ConfigError: there is no such source, or it is not the one that the config names.
    """
    pins, lost = pins_for(config.model.model_dump())
    if lost:
        raise ConfigError("; ".join(lost))
    return config.model_copy(update={"model": config.model.model_copy(update=pins)}) if pins else config


def _unnamed_privacy(section: object) -> list[str]:
    """Return the problem of a config that asks neither for a guarantee nor, by name, for none."""
    if not isinstance(section, dict) or section.get("epsilon") is not None or section.get("off"):
        return []
    return [
        "privacy: neither an epsilon nor `off` is set. Set privacy.epsilon (such as 1.0) for a guarantee, or write "
        "`privacy: off` (--set privacy=off) to train without one: updates may then reveal patients"
    ]


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """Return what a YAML file says, laid on what it extends; not validated yet.

    Raises:
        ConfigError: a file that cannot be read or is no mapping, or `extends` in a circle.
    """
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(
            f"{path}: `extends` goes round in a circle: {chain}; remove one of them", code="config.extends"
        )
    tree = read_yaml(path)
    if not isinstance(tree, Located):
        held = "nothing" if tree is None else f"a {type(tree).__name__}"
        raise ConfigError(
            f"{path}: holds {held}, not a mapping of sections; see configs/smoke.yaml", code="config.not-yaml"
        )
    located(tree, path.parent)
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise ConfigError(
            f"{path}: extends={parent!r} must be the name of one other config file", code="config.extends"
        )
    return merged(read_tree(path.parent / parent, (*seen, path)), tree)


def with_privacy_named(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with `privacy: off` (or `false`) as the section that it stands for.

    It stays a single value until here, so that a section laid over it replaces it, and it replaces a section.

    >>> with_privacy_named({"privacy": "off"})
    {'privacy': {'off': True}}
    """
    return merged(tree, {"privacy": {"off": True}}) if is_off(tree.get("privacy")) else tree


def is_off(value: object) -> bool:
    """Return whether a config's `privacy` asks for no privacy by name."""
    return value is False or value == "off"


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: mappings merge key by key, all else is replaced.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    both = {key: merged(base[key], over[key]) for key in over if _are_maps(base.get(key), over[key])}
    below = {key: place for key, place in places_of(base).items() if key not in over}
    return Located({**base, **over, **both}, {**below, **places_of(over)})


def _are_maps(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the key that a `section.key=value` string names."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(
            f"--set {override}: must read section.key=value, for example --set training.rounds=5",
            code="config.override",
        )
    value = parse_yaml(text, f"--set {override}")
    if value is None and text.strip() not in WORDS:
        raise ConfigError(
            f"--set {override}: the value is empty (a shell variable that is not set?). Write --set {dotted}=null if "
            "no value is meant",
            code="config.override",
        )
    node = tree
    for key in keys[:-1]:
        if node.get(key) is None or (key == "privacy" and is_off(node[key])):
            node[key] = Located({}, {})
        node = node[key]
        if not isinstance(node, dict):
            raise ConfigError(
                f"--set {override}: {key} is a single value, it has no key {keys[-1]}", code="config.override"
            )
    node[keys[-1]] = _overridden(value)
    places_of(node)[keys[-1]] = "--set"


def _overridden(value: Any) -> Any:
    """Return the value of a `--set`: its line there is no place in a file."""
    if isinstance(value, dict):
        return Located({key: _overridden(below) for key, below in value.items()}, dict.fromkeys(value, "--set"))
    return [_overridden(below) for below in value] if isinstance(value, list) else value


def with_new_names(tree: dict[str, Any]) -> dict[str, Any]:
    """Return a resolved config of an earlier version under the names of this one: a model.pt cannot be edited.

    >>> with_new_names({"federation": {"aggregator": "colocated"}})
    {'federation': {'aggregator_rank': 'shared'}}
    """
    federation = dict(tree.get("federation", {}))
    if "aggregator" in federation:
        old = federation.pop("aggregator")
        federation["aggregator_rank"] = "shared" if old == "colocated" else old
    return {**tree, "federation": federation}
