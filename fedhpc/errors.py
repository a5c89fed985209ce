"""The errors that a user can cause and can mend.

Every message names the value, the place (file, key, site, round), what is allowed and what to do next. The command line
prints it without a traceback and exits with status 2.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Bad input: a config, a shard, a run directory or a command line that fedhpc cannot accept."""


class FileError(InputError):
    """A file or folder that cannot be read or written; raised by `fedhpc.util.files` only."""


class ConfigError(InputError):
    """A config that breaks one or more rules; the message lists all of them at once."""


class ShardError(InputError):
    """A shard that breaks the shard format, or is not this site's own."""


class PrivacyError(InputError):
    """A privacy guarantee that cannot be given: raised before the step that would break it."""


class PayloadError(Exception):
    """An update that must not go through the door, or bytes that came through it and are not what they claim to be."""


class SiteError(Exception):
    """A failure inside one hospital, with the site, the rank and the round at which it happened."""


class Interrupted(Exception):
    """Told to stop (`fedhpc.preemption`): the round that was begun is left, and will be done again."""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put `place` before the message of a PayloadError that is raised inside."""
    try:
        yield
    except PayloadError as error:
        raise PayloadError(f"{place}: {error}") from None
