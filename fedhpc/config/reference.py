"""The keys of a config by their pydantic schema: type, default, allowed values and description, as Markdown."""

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedhpc.util.section import Section
from fedhpc.util.text import WIDTH

Schema = Mapping[str, Any]
REQUIRED = "required"
NULL = {"type": "null"}
TYPES = {"integer": "whole number", "number": "number", "string": "text", "boolean": "`true` or `false`"}
TYPES |= {"array": "list", "object": "mapping"}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: with its sections, such as `training.rounds`; `[]` stands for each item of a list.
        values: type and allowed values, in words.
        default: as YAML, or `required`.
        text: what it does.
        sections: what it holds, one for each variant that it may be; none for a plain value.
    """

    name: str
    values: str
    default: str
    text: str
    sections: "tuple[Keys, ...]" = ()


@dataclass(frozen=True)
class Keys:
    """A section: its title, its docstring, and its keys in their order."""

    title: str
    text: str
    keys: tuple[Key, ...]

    def all(self) -> Iterator[Key]:
        """Yield every key, those of inner sections after the key that holds them."""
        for key in self.keys:
            yield key
            for section in key.sections:
                yield from section.all()


def keys_of(root: type[Section]) -> Keys:
    """Return what a section holds, with all that is below it."""
    schema = root.model_json_schema()
    return _keys(schema, schema.get("$defs", {}), "")


def _keys(schema: Schema, defs: Schema, name: str, variant: str = "") -> Keys:
    prefix = f"{name}." if name else ""
    required = schema.get("required", ())
    keys = tuple(
        _key(prefix + name, one, defs, required=name in required) for name, one in schema["properties"].items()
    )
    title = name.removesuffix("[]") or "Top level"
    return Keys(title + variant, str(schema.get("description", "")), keys)


def _key(name: str, schema: Schema, defs: Schema, *, required: bool) -> Key:
    variants = _variants(schema, defs)
    inner = [one for one in variants if "properties" in one]
    items = [item for one in variants for item in _items(one, defs) if "properties" in item]
    sections = [_keys(one, defs, name, _variant(one) if len(inner) > 1 else "") for one in inner]
    sections += [_keys(one, defs, f"{name}[]", _variant(one) if len(items) > 1 else "") for one in items]
    default = REQUIRED if required else json.dumps(schema.get("default", {})).strip('"')
    if inner and default not in (REQUIRED, "null"):
        # A default that is made by a factory is not in the schema.
        default = "the defaults of its keys"
    named = [one for one in variants if "enum" in one or "const" in one]
    names = [f"`{value}`" for one in named for value in one.get("enum", [one.get("const")])]
    kinds = dict.fromkeys(_phrase(one, defs) for one in variants if one != NULL and one not in named)
    values = _or([*kinds, *names, *(["`null`"] if NULL in variants else [])])
    return Key(name, values, default, str(schema.get("description", "")), tuple(sections))


def _variant(schema: Schema) -> str:
    """Return which variant of a section it is, by the keys that can have one value only."""
    fixed = [f"{name}: {one['const']}" for name, one in schema["properties"].items() if "const" in one]
    return f" ({', '.join(fixed)})" if fixed else ""


def _or(texts: Sequence[str]) -> str:
    """Return the last of several texts after an "or", the others before commas."""
    *others, last = texts
    comma = "," if any("," in text for text in others) else ""
    return f"{', '.join(others)}{comma} or {last}" if others else last


def _resolved(schema: Schema, defs: Schema) -> Schema:
    reference = str(schema.get("$ref", ""))
    return dict(defs[reference.rpartition("/")[2]]) if reference else schema


def _items(schema: Schema, defs: Schema) -> list[Schema]:
    """Return what the items of a list may be; nothing of what is no list."""
    return _variants(schema["items"], defs) if "items" in schema else []


def _variants(schema: Schema, defs: Schema) -> list[Schema]:
    """Return the alternatives that a value may be; one where there is no choice."""
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return [inner for one in schema[union] for inner in _variants(one, defs)]
    return [_resolved(schema, defs)]


def _phrase(schema: Schema, defs: Schema) -> str:
    """Type and allowed values of one alternative."""
    kind = "section" if "properties" in schema else TYPES.get(str(schema.get("type")), "any value")
    if kind == "list":
        kind = f"list of {'sections' if any('properties' in one for one in _items(schema, defs)) else 'values'}"
    return ", ".join([kind, *_limits(schema)])


def _limits(schema: Schema) -> list[str]:
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return [f"{low:,} to {high:,}"]
    bounds = (
        ("minimum", "at least"),
        ("exclusiveMinimum", "above"),
        ("maximum", "at most"),
        ("exclusiveMaximum", "below"),
    )
    limits = [f"{word} {schema[key]:,}" for key, word in bounds if key in schema]
    if "pattern" in schema:
        limits.append(f"matching `{schema['pattern']}`")
    if any(schema.get(key) for key in ("minLength", "minItems", "minProperties")):
        limits.append("not empty")
    return limits


def markdown(root: Keys, under: str = "") -> str:
    """Return the reference as Markdown of 80 columns, a chapter for each section.

    Args:
        root: what `keys_of` returns.
        under: only this key or section; empty: all.
    """
    sections = [root, *(section for key in root.all() for section in key.sections)]
    return "\n\n".join(filter(None, (_chapter(section, under) for section in sections)))


def _chapter(section: Keys, under: str) -> str:
    shown = [key for key in section.keys if _is_under(key.name, under) and not (key.sections and under == key.name)]
    if not shown:
        return ""
    return "\n\n".join([f"## {section.title}", reflowed(section.text), "\n".join(map(_entry, shown))])


def _is_under(name: str, under: str) -> bool:
    plain = name.replace("[]", "")
    return not under or plain == under or plain.startswith(f"{under}.")


def _entry(key: Key) -> str:
    default = REQUIRED if key.default == REQUIRED else f"default: {_code(key.default)}"
    facts = f"{key.values}; {default}"
    wrap = textwrap.TextWrapper(WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
    return wrap.fill(f"- **`{key.name}`** ({facts}): {key.text}.")


def _code(default: str) -> str:
    return default if " " in default and default[0] not in "[{" else f"`{default}`"


def reflowed(text: str) -> str:
    """Return the paragraphs and list items of a docstring, each wrapped to 80 columns."""
    blocks = []
    for paragraph in text.split("\n\n"):
        items = re.split(r"\n(?=- )", paragraph)
        wrapped = [
            textwrap.fill(
                " ".join(item.split()),
                WIDTH,
                subsequent_indent="  " if item.startswith("- ") else "",
                break_long_words=False,
                break_on_hyphens=False,
            )
            for item in items
        ]
        blocks.append("\n".join(wrapped))
    return "\n\n".join(blocks)


def facts_of(roots: Sequence[Keys], under: str) -> list[dict[str, str]]:
    """Return every key as its name, values, default and text."""
    return [
        {"key": key.name, "values": key.values, "default": key.default, "text": key.text}
        for root in roots
        for key in root.all()
        if _is_under(key.name, under)
    ]
