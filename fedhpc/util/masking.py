"""Mask in messages what this process has read from its environment.

A config may name environment variables (`$NAME` in `data.shards`). Who writes a config need not own the account that
reads it, so what a variable holds is used at the site, and other ranks are told `$NAME` in its place. As CI systems
mask the values of secrets in all that a job prints, whoever reads a variable hides its value here, and all that leaves
the process as text passes `masked`. What is hidden belongs to the process, as its environment does.
"""

import os
import re
from collections.abc import Collection
from pathlib import Path

NAMED = re.compile(r"\$(\w+|\{[^}]*\})", re.ASCII)
"""What `os.path.expandvars` takes for a variable."""
LEAST_LETTERS = 4
"""Shorter values are masked as whole parts of paths only: elsewhere they would be found in other words."""

_HIDDEN: dict[str, str] = {}


def variables_of(template: str) -> list[str]:
    """Return the names of the environment variables in a template, in order.

    >>> variables_of("$DISK/${PART}/{site}.h5"), variables_of("/data/{site}.h5")
    (['DISK', 'PART'], [])
    """
    return [name.strip("{}") for name in NAMED.findall(template)]


def hide(text: str, shown: str) -> None:
    """From now on `masked` puts `shown` in the place of `text`, however a path or a `repr` spells it."""
    path = Path(text)
    if path.name in ("", ".."):
        return  # no place of its own
    # Not `resolve`, which ends with an error at a link to itself.
    for spelled in (text, str(path), os.path.realpath(path), repr(text)[1:-1]):
        _HIDDEN[spelled] = shown


def expanded(template: str, public: Collection[str] = ()) -> str:
    """Return a template with the values of its environment variables, which are hidden from now on.

    Args:
        template: a path with `$NAME` in it.
        public: values that everybody knows, such as the site's name: hidden as parts of the path only.
    """
    for found in NAMED.finditer(template):
        name, beginning = found[0], template[: found.end()]
        value, path = (os.path.expandvars(text) for text in (name, beginning))
        if value == name:
            continue  # not set
        hide(path, beginning)
        if len(path) < LEAST_LETTERS:
            hide(os.path.expandvars(template), template)
        if len(value) >= LEAST_LETTERS and value not in public:
            hide(value, name)
    return os.path.expandvars(template)


def masked(text: str) -> str:
    """Return a text with what is hidden replaced, the longest first.

    >>> os.environ["DISK_OF_ANNA"] = "/disks/anna-7"
    >>> path = expanded("$DISK_OF_ANNA/{site}.h5")
    >>> path, masked(f"{path}: no such file")
    ('/disks/anna-7/{site}.h5', '$DISK_OF_ANNA/{site}.h5: no such file')
    """
    longest = sorted(_HIDDEN, key=len, reverse=True)
    return re.sub("|".join(map(_pattern, longest)), lambda found: _HIDDEN[found[0]], text) if longest else text


def _pattern(spelled: str) -> str:
    found = re.escape(spelled)
    if len(spelled) >= LEAST_LETTERS:
        return found
    return r"(?<![\w./])" + found + (r"(?!\w)" if "/" in spelled else "(?=/)")
