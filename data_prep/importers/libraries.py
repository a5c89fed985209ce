"""The optional libraries that read archives: a missing one is named with the command that installs it."""

import importlib.util

from fedhpc.errors import ShardError

INSTALL = "pip install 'fedhpc[data]'"


def require(*names: str) -> None:
    """Refuse to go on without some libraries.

    Raises:
        ShardError: one is not installed.
    """
    missing = [name for name in names if importlib.util.find_spec(name) is None]
    if missing:
        raise ShardError(
            f"{', '.join(missing)}: not installed, and needed to read this format. Install with: {INSTALL}",
            code="prepare.library",
        )
