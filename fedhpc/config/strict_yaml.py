"""Read YAML of which every value means what it looks like: the part of YAML 1.2 that a config needs, and nothing else.

YAML 1.1, which most readers follow, takes `on` for a truth value, `010` for eight, `1:30` for ninety, keeps the last of
two equal keys and makes an empty value null. Here a plain word is text, a number is decimal, and what two readers could
take for different things is refused with its line: equal keys, empty values, other bases, infinities, merge keys and
tags. Size, depth and aliases are bounded before anything is built.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from fedhpc.errors import ConfigError

MOST_BYTES, MOST_VALUES, MOST_DEPTH = 1_000_000, 20_000, 24
TAG = "tag:yaml.org,2002:"
ODD = "!odd"
"""The tag of a plain scalar that readers of YAML 1.1 and 1.2 take for different values."""

WORDS = {"null": None, "Null": None, "NULL": None, "~": None} | {
    word: word.lower() == "true" for word in ("true", "True", "TRUE", "false", "False", "FALSE")
}
INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*)\Z")
DECIMAL = re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?\Z")
ODD_SCALARS = (
    (re.compile(r"[-+]?0[0-9][0-9_]*\Z"), "has a leading zero, which some readers take for base 8"),
    (re.compile(r"[-+]?0[xob][0-9a-fA-F_]+\Z"), "is not decimal"),
    (re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?\Z"), "is a number of base 60 to some readers"),
    (re.compile(r"[-+]?[0-9][0-9_]*_[0-9_]*(?:\.[0-9_]*)?\Z"), "has underscores, which some readers leave out"),
    (re.compile(r"[-+]?\.(?:inf|Inf|INF|nan|NaN|NAN)\Z"), "is not a finite number"),
)


class Located(dict[str, Any]):
    """A mapping of a config that remembers where each of its keys was written: `{key: "FILE, line N"}`."""

    def __init__(self, values: dict[str, Any], places: dict[str, str]) -> None:
        super().__init__(values)
        self.places = places


def places_of(tree: dict[str, Any]) -> dict[str, str]:
    """Return where each key of a mapping was written; empty for a mapping that was not read from YAML."""
    return tree.places if isinstance(tree, Located) else {}


def read_yaml(path: Path) -> Any:
    """Return what a YAML file holds.

    Raises:
        ConfigError: not readable, not YAML, or a value that could be taken for another; with file and line.
    """
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); {_near_files(path)}", code="config.unreadable"
        ) from None
    if len(content) > MOST_BYTES:
        raise ConfigError(
            f"{path}: is larger than {MOST_BYTES} bytes, so it is no config. Name a config file",
            code="config.unreadable",
        )
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{path}, line {line}: is not UTF-8 text. Save the file as UTF-8", code="config.not-yaml"
        ) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> Any:
    """Return what a YAML text holds: mappings as `Located`, sequences as lists; nothing (None) for an empty text.

    >>> parse_yaml("{a: on, b: 1e-3, c: [null, true]}", "example")
    {'a': 'on', 'b': 0.001, 'c': [None, True]}

    Args:
        source: what errors name before the line.
    """
    try:
        node = _Loader(text).get_single_node()
    except _RefusedError as error:
        raise ConfigError(f"{source}, line {error.line}: {error}", code="config.not-yaml") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f"{source}, line {mark.line + 1}" if mark else source
        problem = " ".join(filter(None, (error.context, error.problem)))
        raise ConfigError(f"{place}: is not valid YAML: {problem}", code="config.not-yaml") from None
    except yaml.YAMLError as error:
        problem = " ".join(str(error).split())
        raise ConfigError(f"{source}: is not valid YAML: {problem[:200]}", code="config.not-yaml") from None
    try:
        return None if node is None else _Builder(source).value(node)
    except _RefusedError as error:
        raise ConfigError(f"{source}, line {error.line}: {error}", code="config.not-yaml") from None


def dump_yaml(tree: object) -> str:
    """Return YAML that `parse_yaml` reads back as `tree`, keys in their order; text that looks like a number is quoted.

    >>> dump_yaml({"name": "08", "lr": 1e-05})
    "name: '08'\\nlr: 1.0e-05\\n"
    """
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False)


class _Dumper(yaml.SafeDumper):
    """Quotes what is text here and a value to `_tag`."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write equal parts out."""
        return True


def _quoted(dumper: _Dumper, text: str) -> yaml.Node:
    return dumper.represent_scalar(f"{TAG}str", text, None if _tag(text) == f"{TAG}str" else "'")


_Dumper.add_representer(str, _quoted)


def _near_files(path: Path) -> str:
    there = sorted(p.name for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    return f"in {path.parent} there are: {', '.join(there) or 'no configs'}"


class _RefusedError(Exception):
    """A text that is YAML and cannot be taken at its word."""

    def __init__(self, problem: str, line: int) -> None:
        super().__init__(problem)
        self.line = line


class _Loader(yaml.SafeLoader):
    """Scans and composes; scalars get their tag by `_tag`, and depth is bounded before Python's stack is."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        """One node with all below it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if self.depth >= MOST_DEPTH:
            raise _RefusedError(f"is nested deeper than {MOST_DEPTH} levels; a config is not", _line(event))
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        """Return the tag of an untagged node."""
        if kind is not yaml.ScalarNode:
            return super().resolve(kind, value, implicit)  # type: ignore[no-untyped-call]
        return _tag(value) if implicit[0] else f"{TAG}str"


def _tag(text: str) -> str:
    """Return the tag of a plain scalar."""
    if not text:
        return f"{TAG}null"
    if text in WORDS:
        return f"{TAG}{'null' if WORDS[text] is None else 'bool'}"
    if any(pattern.match(text) for pattern, _ in ODD_SCALARS):
        return ODD
    if INTEGER.match(text):
        return f"{TAG}int"
    return f"{TAG}float" if DECIMAL.match(text) else f"{TAG}str"


class _Builder:
    """Turns nodes into values; counts them, aliases as often as they are used."""

    def __init__(self, source: str) -> None:
        self._source, self._count = source, 0
        self._open: list[yaml.Node] = []

    def value(self, node: yaml.Node, key: str = "") -> Any:
        """Return the value of a node; `key` is what a message calls it."""
        self._count += 1
        if self._count > MOST_VALUES:
            raise _RefusedError(f"holds more than {MOST_VALUES} values, an alias counted at every use", _line(node))
        if any(node is one for one in self._open):
            raise _RefusedError(f"{key}: is an alias inside of what it stands for", _line(node))
        if isinstance(node, yaml.ScalarNode):
            return _scalar(node, key)
        self._open.append(node)
        try:
            return self._mapping(node, key) if isinstance(node, yaml.MappingNode) else self._sequence(node, key)
        finally:
            self._open.pop()

    def _sequence(self, node: yaml.Node, key: str) -> list[Any]:
        if node.tag != f"{TAG}seq":
            raise _RefusedError(f"{key}: the tag {node.tag} is not read here. Leave it out", _line(node))
        return [self.value(item, f"{key}[{at}]") for at, item in enumerate(node.value)]

    def _mapping(self, node: yaml.MappingNode, key: str) -> Located:
        if node.tag != f"{TAG}map":
            raise _RefusedError(f"{key}: the tag {node.tag} is not read here. Leave it out", _line(node))
        values: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for name_node, value_node in node.value:
            name, line = _name(name_node), _line(name_node)
            dotted = f"{key}.{name}" if key else name
            if name in lines:
                first = lines[name]
                raise _RefusedError(f"{dotted}: is there twice, in line {first} too. Remove one of them", line)
            lines[name] = line
            values[name] = self.value(value_node, dotted)
        where = "--set" if self._source.startswith("--set ") else Path(self._source).name
        return Located(values, {name: f"{where}, line {line}" for name, line in lines.items()})


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _name(node: yaml.Node) -> str:
    """Return the key that a node is."""
    if isinstance(node, yaml.ScalarNode) and node.value == "<<" and node.tag == f"{TAG}str":
        raise _RefusedError("<<: merge keys are not read here. Write the keys, or use `extends`", _line(node))
    if not isinstance(node, yaml.ScalarNode) or node.tag != f"{TAG}str":
        shown = node.value[:40] if isinstance(node, yaml.ScalarNode) else "a list or mapping"
        raise _RefusedError(f"key {shown}: is not a word. Write it in quotes if it is meant as text", _line(node))
    return str(node.value)


def _scalar(node: yaml.ScalarNode, key: str) -> Any:
    text, told = str(node.value), f"{key}={str(node.value)[:60]}" if key else str(node.value)[:60]
    if node.tag == ODD:
        problem = next(problem for pattern, problem in ODD_SCALARS if pattern.match(text))
        raise _RefusedError(f"{told}: {problem}. Write a decimal number, or quotes around text", _line(node))
    if node.tag == f"{TAG}str":
        return text
    if node.tag == f"{TAG}null":
        if not text:
            raise _RefusedError(f"{key or 'the value'}: is empty. Write null if no value is meant", _line(node))
        return None
    if node.tag == f"{TAG}bool":
        return WORDS[text]
    if node.tag == f"{TAG}int" and INTEGER.match(text) and len(text) < 40:
        return int(text)
    if node.tag in (f"{TAG}int", f"{TAG}float") and DECIMAL.match(text):
        return _finite(float(text), told, _line(node))
    raise _RefusedError(f"{told}: the tag {node.tag} is not read here. Leave it out", _line(node))


def _finite(value: float, told: str, line: int) -> float:
    if abs(value) == float("inf"):
        raise _RefusedError(f"{told}: is too large for a number. Write a smaller one", line)
    return value
