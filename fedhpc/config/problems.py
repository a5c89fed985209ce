"""All that is wrong with a config, a line each: the key with its value, the file and line, what is allowed."""

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import BaseModel, ValidationError

from fedhpc.aggregation.rules import UNKNOWN_CHOICE
from fedhpc.config.reference import keys_of
from fedhpc.config.schema import RunConfig
from fedhpc.config.strict_yaml import places_of
from fedhpc.util.section import Section
from fedhpc.util.text import as_written

RENAMED = {
    "federation.aggregator": "write federation.aggregator_rank: shared (in the place of colocated) or dedicated instead"
}
"""Keys of earlier versions, and what to write in their place."""
MOST_PROBLEMS = 50
"""How many problems of one config are listed at once."""


def only_renamed(error: ValidationError) -> bool:
    """Return whether all that is wrong with a config is that keys of it have another name now."""
    return all(
        item["type"] == "extra_forbidden" and ".".join(map(str, item["loc"])) in RENAMED for item in error.errors()
    )


def problems_of(error: ValidationError, root: type[Section] = RunConfig, tree: object = None) -> list[str]:
    """Return all that is wrong with a tree that should have been a `root`, a line each, with its place in a file."""
    by_key: dict[str, list[str]] = {}
    for item in error.errors():
        if item["type"] == "too_short" and len(item["input"]) >= item["ctx"]["min_length"]:
            continue  # only because its items are wrong, each of which has a line of its own
        key, text = _problem(dict(item), root)
        by_key.setdefault(key, []).append(text)
    lines = [f"{key}: {_one_text(key, texts, root)}" if key else texts[0] for key, texts in by_key.items()]
    return [line + place_of(line, tree) for line in "\n".join(lines).splitlines()]


def _one_text(key: str, texts: Sequence[str], root: type[Section]) -> str:
    """Return what is wrong with a key's value: where it may be of several kinds and is none, what is allowed."""
    if len(texts) == 1:
        return texts[0]
    name, _, value = key.partition("=")
    name = re.sub(r"\.\d+", "[]", name)
    allowed = next((one for one in keys_of(root).all() if one.name == name and not one.sections), None)
    if allowed is None:
        return " or ".join(texts)
    names = re.findall(r"`([^`]*)`", allowed.values)
    return f"is not allowed; allowed: {allowed.values}{_nearest(value, names)}"


def place_of(problem: str, tree: object) -> str:
    """Where the key that a problem begins with was written: ` (FILE, line N)`; nothing where that is not known."""
    place = ""
    dotted = re.match(r"[\w.]*", problem)
    for key in dotted[0].split(".") if dotted else []:
        if isinstance(tree, list) and key.isdecimal() and int(key) < len(tree):
            tree = tree[int(key)]
        elif isinstance(tree, dict) and key in tree:
            place = places_of(tree).get(key, place)
            tree = tree[key]
        else:
            break
    return f" ({place})" if place else ""


def problems_message(path: Path, problems: Sequence[str]) -> str:
    """Return the message about a config with problems."""
    more = len(problems) - MOST_PROBLEMS
    lines = [*problems[:MOST_PROBLEMS], *([f"and {more} more"] if more > 0 else [])]
    return "\n".join([f"{path}: {len(problems)} problem(s) in the config", *(f"  {line}" for line in lines)])


def _problem(item: dict[str, Any], root: type[Section]) -> tuple[str, str]:
    """(key with its value, what is wrong and what is allowed) of one pydantic error; the key is empty for a rule."""
    keys, section = _user_keys(item["loc"], root)
    dotted = ".".join(keys)
    if item["type"] == "extra_forbidden" and dotted in RENAMED:
        return f"{dotted}={as_written(item['input'])}", f"was renamed; {RENAMED[dotted]}"
    if item["type"] == "extra_forbidden":
        return dotted, f"unknown key; {_suggestion(keys[-1], section)}"
    if item["type"] == "missing":
        return dotted, "missing; it must be set"
    if item["type"] == "value_error" and not keys:
        return "", str(item["ctx"]["error"])
    chooser = item["type"].removesuffix(UNKNOWN_CHOICE)
    if chooser != item["type"]:
        return _choice_problem(dotted, chooser, item)
    return f"{dotted}={as_written(item['input'])}", _plain_words(item)


def _choice_problem(dotted: str, chooser: str, item: dict[str, Any]) -> tuple[str, str]:
    """The problem of a section of which `chooser` says which it is, where it says none of those that there are."""
    given, allowed = item["input"], str(item["msg"])
    if isinstance(given, dict):
        value, names = as_written(given.get(chooser)), allowed.partition("allowed: ")[2].split(", ")
        return f"{dotted}.{chooser}={value}", f"{allowed}{_nearest(value, names)}"
    names = allowed.partition("allowed: ")[2].split(", ")
    name = next(iter(difflib.get_close_matches(str(given), names, n=1)), names[0])
    return f"{dotted}={as_written(given)}", f"is {_kind(given)}; it must be a mapping, such as {{{chooser}: {name}}}"


def _kind(value: object) -> str:
    """Return what a value of a config is.

    >>> [_kind(value) for value in (None, True, 3, "on", [], {})]
    ['null', 'a truth value', 'a number', 'a single value', 'a list', 'a mapping']
    """
    if value is None:
        return "null"
    kinds = {bool: "a truth value", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return next((name for kind, name in kinds.items() if isinstance(value, kind)), "a single value")


def _plain_words(item: dict[str, Any]) -> str:
    """Return what is wrong with a value, without pydantic's own names."""
    kind = _kind(item["input"])
    if item["type"] == "value_error":
        return str(item["ctx"]["error"])
    if item["type"] in ("model_type", "dict_type"):
        site = item["loc"][:2] == ("data", "sites") and isinstance(item["input"], str)
        example = f", such as {{name: {reprlib.repr(item['input'])[1:-1]}, weight: 100}}" if site else ""
        return f"is {kind}; it must be a mapping of keys{example}"
    if item["type"] == "tuple_type":
        return f"is {kind}; it must be a list"
    if item["type"] == "string_type":
        return f"is {kind}; it must be text" + (", in quotes" if kind in ("a number", "a truth value") else "")
    if item["type"] == "literal_error":
        expected = str(item["ctx"]["expected"])
        names = re.findall(r"'([^']*)'", expected)
        return f"must be {expected}{_nearest(as_written(item['input']), names)}"
    if item["type"] == "int_parsing_size":
        return "is too large"
    if item["type"] == "int_from_float":
        return "is no whole number; write one"
    if item["type"] in ("int_type", "float_type", "bool_type", "bool_parsing"):
        wanted = {"int": "a whole number", "float": "a number", "bool": "true or false"}[item["type"].partition("_")[0]]
        return f"is {kind}; it must be {wanted}"
    if item["type"] == "too_short":
        return f"is empty; it must have at least {item['ctx']['min_length']} item"
    return str(item["msg"]).replace("Input should", "must").replace("String should", "must").replace("Unable", "unable")


def _user_keys(location: tuple[str | int, ...], root: type[Section]) -> tuple[list[str], type[Section]]:
    """The part of a pydantic location that a user wrote (not the tried member of a union), and the section it is in."""
    section = root
    choices: list[type[Section]] = []
    keys: list[str] = []
    for at, part in enumerate(location):
        chosen = next((one for one in choices if _is_name_of(one, part)), None)
        if chosen is not None:
            section, choices = chosen, []
            continue
        keys.append(str(part))
        if isinstance(part, int):
            continue
        choices = _section_types(section, part)
        if not choices:
            keys += map(str, location[at + 1 : at + 2] if _holds_values(section, part) else ())
            break
        section = choices[0]
    return keys, section


def _holds_values(section: type[Section], key: str) -> bool:
    """Return whether `key` in `section` holds plain values under numbers or names of the user's own."""
    field = section.model_fields.get(key)
    nested = [field.annotation] if field else []
    while nested:
        kind = nested.pop()
        if get_origin(kind) in (tuple, list, Mapping):
            return True
        nested += list(getattr(kind, "__args__", ()))
    return False


def _is_name_of(section: type[Section], part: str | int) -> bool:
    """Return whether a section is chosen by this name, as `fedadam` chooses one of `server`."""
    fields = section.model_fields.values()
    return any(get_origin(field.annotation) is Literal and field.default == part for field in fields)


def _section_types(section: type[Section], key: str) -> list[type[Section]]:
    """Return the `Section` classes behind `key` in `section`; none where `key` is unknown or holds a plain value."""
    field = section.model_fields.get(key)
    nested, found = [field.annotation] if field else [], []
    while nested:
        kind = nested.pop()
        if isinstance(kind, type) and issubclass(kind, Section):
            found.append(kind)
        nested += list(getattr(kind, "__args__", ()))
    return found


def _nearest(value: str, names: Sequence[str]) -> str:
    """Return the name that a misspelled value, as it is written in a message, may stand for; empty where none is near.

    >>> _nearest("'label_flop'", ["label_flip", "label_noise"]), _nearest("3", ["on", "off"])
    ('. Did you mean label_flip?', '')
    """
    near = difflib.get_close_matches(value.strip("'"), names, n=1)
    return f". Did you mean {near[0]}?" if near else ""


def _suggestion(key: str, section: type[BaseModel]) -> str:
    near = difflib.get_close_matches(key, section.model_fields, n=1)
    return f"did you mean {near[0]}?" if near else f"allowed: {', '.join(section.model_fields)}"
