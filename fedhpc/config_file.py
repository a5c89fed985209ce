"""YAML -> `RunConfig`: inheritance, overrides, and all the errors of a config at once.

A config may inherit from one other by `extends: other.yaml` (relative to itself). Any key can be overridden by
`--set section.key=value`.
"""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fedhpc.config import RunConfig, Section
from fedhpc.errors import ConfigError


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read, merge, override and validate.

    Args:
        path: the YAML file.
        overrides: `section.key=value` strings; the value is read as YAML.

    Raises:
        ConfigError: with every problem found, one a line.
    """
    tree = read_tree(path)
    for override in overrides or []:
        apply_override(tree, override)
    if "grid" in tree:
        raise ConfigError(f"{path}: is a sweep of many runs, it has a grid; start it with `run.py sweep {path}`")
    try:
        return RunConfig.model_validate(with_privacy_named(tree))
    except ValidationError as error:
        raise ConfigError(told_of(path, problems_of(error))) from None


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a YAML file says, laid on what it extends; not validated yet."""
    path = path.resolve()
    if path in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise ConfigError(f"{path}: `extends` goes round in a circle: {chain}; remove one of them")
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {_near_files(path)}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}, not a mapping of sections; see configs/smoke.yaml")
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    if not isinstance(parent, str):
        raise ConfigError(f"{path}: extends={parent!r} must be the name of one other config file")
    return merged(read_tree(path.parent / parent, (*seen, path)), tree)


def with_privacy_named(tree: dict[str, Any]) -> dict[str, Any]:
    """Return the tree with `privacy: off` (or `false`) as the section that it stands for.

    It stays a single value until here, so that a section laid over it replaces it, and it replaces a section.

    >>> with_privacy_named({"privacy": "off"})
    {'privacy': {'off': True}}
    """
    return {**tree, "privacy": {"off": True}} if is_off(tree.get("privacy")) else tree


def is_off(value: object) -> bool:
    """Whether a config's `privacy` asks for no privacy by name."""
    return value is False or value == "off"


def _near_files(path: Path) -> str:
    there = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    return f"in {path.parent} there are: {', '.join(there) or 'no configs'}"


def merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`: mappings merge key by key, all else is replaced.

    >>> merged({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}})
    {'a': {'b': 1, 'c': 3}}
    """
    both = {key: merged(base[key], over[key]) for key in over if _are_maps(base.get(key), over[key])}
    return {**base, **over, **both}


def _are_maps(*values: object) -> bool:
    return all(isinstance(value, dict) for value in values)


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Set the key that a `section.key=value` string names."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {override}: must read section.key=value, for example --set training.rounds=5")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML: {error}") from None
    node = tree
    for key in keys[:-1]:
        if node.get(key) is None or (key == "privacy" and is_off(node[key])):
            node[key] = {}
        node = node[key]
        if not isinstance(node, dict):
            raise ConfigError(f"--set {override}: {key} is a single value, it has no key {keys[-1]}")
    node[keys[-1]] = value


def problems_of(error: ValidationError, root: type[Section] = RunConfig) -> list[str]:
    """All that is wrong with a tree that should have been a `root`, a line each."""
    by_key: dict[str, list[str]] = {}
    for item in error.errors():
        key, text = _problem(dict(item), root)
        by_key.setdefault(key, []).append(text)
    lines = [f"{key}: {' or '.join(texts)}" if key else texts[0] for key, texts in by_key.items()]
    return "\n".join(lines).splitlines()


def told_of(path: Path, problems: Sequence[str]) -> str:
    """The message about a config with problems."""
    return "\n".join([f"{path}: {len(problems)} problem(s) in the config", *(f"  {line}" for line in problems)])


def _problem(item: dict[str, Any], root: type[Section]) -> tuple[str, str]:
    """(key with its value, what is wrong and what is allowed) of one pydantic error; the key is empty for a rule."""
    keys, section = _user_keys(item["loc"], root)
    dotted = ".".join(keys)
    if item["type"] == "extra_forbidden":
        return dotted, f"unknown key; {_suggestion(keys[-1], section)}"
    if item["type"] == "missing":
        return dotted, "missing; it must be set"
    if item["type"] == "value_error" and not keys:
        return "", str(item["ctx"]["error"])
    return f"{dotted}={item['input']!r}", item["msg"][0].lower() + item["msg"][1:]


def _user_keys(location: tuple[str | int, ...], root: type[Section]) -> tuple[list[str], type[Section]]:
    """The part of a pydantic location that a user wrote (not the tried member of a union), and the section it is in."""
    section = root
    keys: list[str] = []
    for part in location:
        keys.append(str(part))
        inner = section if isinstance(part, int) else _section_type(section, part)
        if inner is None:
            break
        section = inner
    return keys, section


def _section_type(section: type[Section], key: str) -> type[Section] | None:
    """The `Section` class behind `key` in `section`; None where `key` is unknown or holds a plain value."""
    field = section.model_fields.get(key)
    nested = [field.annotation] if field else []
    while nested:
        kind = nested.pop()
        if isinstance(kind, type) and issubclass(kind, Section):
            return kind
        nested += list(getattr(kind, "__args__", ()))
    return None


def _suggestion(key: str, section: type[BaseModel]) -> str:
    near = difflib.get_close_matches(key, section.model_fields, n=1)
    return f"did you mean {near[0]}?" if near else f"allowed: {', '.join(section.model_fields)}"
