"""The source file of a user's own model (`model.build`): where it lies, what it holds, and its digest.

The digest is part of the config: two configs are the same where function and source are, wherever the file lies.
Nothing here executes the file; `fedhpc.models.own` does.
"""

import ast
import hashlib
import re
import warnings
from importlib import metadata
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from fedhpc.config.model import Model
from fedhpc.errors import ConfigError

COPY = "model_source.py"
"""The name of the copy in a run directory."""
LARGEST_BYTES = 1_000_000
BINDS_BY_TEXT = frozenset(("globals", "vars", "locals", "exec", "eval", "setattr", "__dict__", "__getattr__"))
"""Words of a source that may bind a name which it does not hold as a word."""


def place_of(build: str) -> tuple[str, str]:
    """Return (file or module, function) of a `model.build`.

    >>> place_of("models/my_models.py:make"), place_of("package.module:make")
    (('models/my_models.py', 'make'), ('package.module', 'make'))
    """
    place, _, function = build.rpartition(":")
    return place, function


def is_file(build: str) -> bool:
    """Return whether a `model.build` names a file, not a module of an installed package."""
    return place_of(build)[0].endswith(".py")


def located(tree: dict[str, Any], folder: Path) -> None:
    """Make every relative file of a `model.build` in a config tree absolute: it is relative to the config's folder.

    The values of a sweep's grid and its baselines are config trees too.
    """
    for key, value in tree.items():
        if key in ("build", "model.build"):
            tree[key] = (
                [_absolute(one, folder) for one in value] if isinstance(value, list) else _absolute(value, folder)
            )
        elif isinstance(value, dict) and key != "args":
            located(value, folder)


def _absolute(build: object, folder: Path) -> object:
    if not isinstance(build, str) or not is_file(build):
        return build
    place, function = place_of(build)
    return f"{folder / place}:{function}"


def source_path(build: str) -> Path:
    """Return the file that a `model.build` stands for; a package is looked up but not imported.

    Raises:
        ConfigError: there is none.
    """
    place, _ = place_of(build)
    if not place:
        raise ConfigError(
            f"model.build={build}: names no function. Write `my_models.py:make` or `package.module:make`",
            code="model.source-missing",
        )
    if is_file(build):
        if not Path(place).is_file():
            raise ConfigError(
                f"model.build={build}: no such file. Give a path relative to the config, or absolute",
                code="model.source-missing",
            )
        return Path(place)
    found, where = None, None
    for depth in range(1, place.count(".") + 2):
        found = PathFinder.find_spec(".".join(place.split(".")[:depth]), where)
        where = found.submodule_search_locations if found else None
        if found is None:
            break
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise ConfigError(
            f"model.build={build}: no module {place} with its source is installed. Install the package at every "
            "site, or give a file: `my_models.py:make`",
            code="model.source-missing",
        )
    return Path(found.origin)


def read_source(build: str) -> bytes:
    """Return the source that a `model.build` stands for.

    Raises:
        ConfigError: it cannot be read, or is larger than LARGEST_BYTES.
    """
    path = source_path(build)
    try:
        with path.open("rb") as file:
            content = file.read(LARGEST_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"model.build={build}: cannot be read ({error.strerror}). Change its mode",
            code="model.source-missing",
        ) from None
    if len(content) > LARGEST_BYTES:
        raise ConfigError(
            f"model.build={build}: is larger than {LARGEST_BYTES} bytes. Give a file of Python source",
            code="model.source-missing",
        )
    return content


def digest_of(source: bytes) -> str:
    """SHA-256, 64 hex digits."""
    return hashlib.sha256(source).hexdigest()


def check_source(source: bytes, model: Model) -> None:
    """Check that a source is the one that a config was read with.

    Raises:
        ConfigError: it is another.
    """
    found = digest_of(source)
    if model.source_sha256 not in (None, found):
        raise ConfigError(
            f"model.build={model.build}: the source has SHA-256 {found}, the config was read with one of "
            f"{model.source_sha256}. It was changed since: restore it, or start again",
            code="model.source-changed",
        )


def check_text(source: bytes, build: str) -> None:
    """Check what can be told of a source without executing it: that it compiles, and may have the function.

    Raises:
        ConfigError: it does not compile, or nothing in it can give the function its name.
    """
    place, name = place_of(build)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they are shown where it is executed
            tree = ast.parse(source, place)
            compile(tree, place, "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f" (line {error.lineno})" if isinstance(error, SyntaxError) and error.lineno else ""
        told = f"{type(error).__name__}: {error.msg if isinstance(error, SyntaxError) else error}{line}"
        raise ConfigError(
            f"model.build={place}: cannot be loaded: {told}. Correct it there", code="model.source-fails"
        ) from None
    words = set(re.findall(r"\w+", source.decode(errors="replace")))
    starred = any(isinstance(one, ast.ImportFrom) and one.names[0].name == "*" for one in ast.walk(tree))
    if name not in words and not starred and not words & BINDS_BY_TEXT:
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = sorted(one.name for one in tree.body if isinstance(one, kinds))
        raise ConfigError(
            f"model.build={build}: {place} has no function {name}. Name one that it has: {', '.join(found) or 'none'}",
            code="model.source-fails",
        )


def pins(build: str) -> dict[str, str]:
    """Return the keys of `model` that say which source a `model.build` is: digest, and of a package module and version.

    Raises:
        ConfigError: there is no such source, or `check_text` refuses it.
    """
    source = read_source(build)
    check_text(source, build)
    found = {"source_sha256": digest_of(source)}
    if is_file(build):
        return found
    module, _ = place_of(build)
    owners = metadata.packages_distributions().get(module.partition(".")[0], [])
    versions = ", ".join(f"{owner} {metadata.version(owner)}" for owner in sorted(set(owners)))
    return {**found, "source_module": module, **({"source_version": versions} if versions else {})}


def pins_for(model: object) -> tuple[dict[str, str], list[str]]:
    """Return what a config's `model` section must be given to say which source it is, and what is wrong with that.

    A digest that the section has already is a promise: another file is refused. In a run directory the source is a
    copy; of which module it was is kept.
    """
    build = model.get("build") if isinstance(model, dict) else None
    if not isinstance(model, dict) or not isinstance(build, str):
        return {}, []
    try:
        found = pins(build)
    except ConfigError as error:
        return {}, [str(error)]
    wanted = model.get("source_sha256")
    if wanted not in (None, found["source_sha256"]):
        return {}, [
            f"model.source_sha256={wanted}: {place_of(build)[0]} is another file now, its SHA-256 is "
            f"{found['source_sha256']}. Restore the file, or remove the key to take the new one"
        ]
    return {key: value for key, value in found.items() if model.get(key) is None}, []
