"""The errors that a user can cause and can correct.

Every message names the value, the place (file, key, site, round), what is allowed and what to do next. The command line
prints it without a traceback and exits with status 2.

`str(error)` is public: it goes to all ranks and to the console of rank 0. What concerns a site's data (pseudonyms,
labels, rows, names and values in its files) is in `error.private`, which goes to the site's own log, or to the terminal
of a command that the hospital runs by itself.
"""

import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parents[1]


class InputError(Exception):
    """Bad input: a config, a shard, a run directory or a command line that fedhpc cannot accept."""


class FileError(InputError):
    """A file or folder that cannot be read or written; raised by `fedhpc.util.files` only."""


class ConfigError(InputError):
    """A config that breaks one or more rules; the message lists all of them at once."""


class ShardError(InputError):
    """A shard that breaks the shard format, or is not this site's own.

    Args:
        public: site, kinds of problem and their number.
        private: the whole message for the hospital itself; empty where `public` says everything.
    """

    def __init__(self, public: str, *, private: str = "") -> None:
        super().__init__(public)
        self.private = private


class PrivacyError(InputError):
    """A privacy guarantee that cannot be given: raised before the step that would break it."""


class PayloadError(Exception):
    """An update that must not be sent, or bytes that were received and are not what they claim to be."""


class ExchangeError(PayloadError):
    """A message that MPI could not deliver, since another rank has ended: only under fault-tolerant launchers."""


class SiteError(Exception):
    """A failure inside one hospital, with the site and the round at which it happened.

    Args:
        public: what all ranks may know.
        private: for the site's own log: the cause in its own words, with the traceback.
        site: whose log that is.
    """

    def __init__(self, public: str, *, private: str = "", site: str = "") -> None:
        super().__init__(public)
        self.private, self.site = private, site


class Stopped(BaseException):
    """A signal came before the first round of this start: there is nothing to save. `status` is the exit status."""

    def __init__(self, by: str, status: int) -> None:
        super().__init__(f"stopped by {by} before the first round of this start; the same command starts again")
        self.status = status


class Interrupted(Exception):
    """Told to stop (`fedhpc.run.preemption`): the round that was begun is left, and will be done again."""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put `place` before the message of a PayloadError that is raised inside."""
    try:
        yield
    except PayloadError as error:
        raise PayloadError(f"{place}: {error}") from None


def inside(error: BaseException) -> str:
    """Return all that is known of an error, for the hospital itself: its private part, where it has one."""
    return str(getattr(error, "private", "") or error)


def public_cause(error: BaseException) -> str:
    """Return what may be told of an error to all: the message of our own, of any other its type and place only.

    A message of HDF5, numpy or PyTorch may quote values, names and shapes of a site's data.

    >>> public_cause(ShardError("2 labels are wrong", private="label 7 of patient p3")), public_cause(ValueError("p3"))
    ('2 labels are wrong', 'ValueError')
    """
    if isinstance(error, InputError | PayloadError | SiteError):
        return str(error)
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename).is_relative_to(TOP)]
    if not frames:
        return type(error).__name__
    last = frames[-1]
    return f"{type(error).__name__} at {Path(last.filename).relative_to(TOP)}:{last.lineno}"


def site_failure(site: str, what: str, error: BaseException) -> SiteError:
    """Return the error to raise for `error`, which happened inside `site`; `what`: "round 3: training failed"."""
    private = "".join(traceback.format_exception(error))
    if inside(error) != str(error):
        private += inside(error)
    hint = "" if isinstance(error, InputError | PayloadError | SiteError) else f" (details in sites/{site}/log.txt)"
    return SiteError(f"site {site}, {what}: {public_cause(error)}{hint}", private=private, site=site)


@contextmanager
def in_round(round: int) -> Iterator[None]:
    """Put the round's number before the message of a SiteError that is raised inside."""
    try:
        yield
    except SiteError as error:
        raise SiteError(f"round {round}: {error}", private=error.private, site=error.site) from error
