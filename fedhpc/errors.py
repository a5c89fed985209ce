"""The errors that a user can cause and can correct.

Every message names the value, the place (file, key, site, round), what is allowed and what to do next. The command line
prints it without a traceback and exits with status 2.

`str(error)` is public: it goes to all ranks and to the console of rank 0. What concerns a site's data (pseudonyms,
labels, rows, names and values in its files) is in `error.private`, which goes to the site's own log, or to the terminal
of a command that the hospital runs by itself.

Every error has a `code` (`fedhpc.error_codes`): that of its class, or the one of its situation that it was raised with.
"""

import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

TOP = Path(__file__).resolve().parents[1]


class FedhpcError(Exception):
    """Every error of fedhpc's own.

    Args:
        public: the message for all ranks.
        code: of the situation (public); empty: that of the class.
    """

    code = "input"

    def __init__(self, public: str = "", *, code: str = "") -> None:
        super().__init__(public)
        if code:
            self.code = code


class InputError(FedhpcError):
    """Bad input: a config, a shard, a run directory or a command line that fedhpc cannot accept."""


class CodedText(NamedTuple):
    """The code and the message of one problem (public)."""

    code: str
    text: str


class RankErrors(InputError):
    """The problems of several ranks, each with its own code.

    Args:
        problems: the distinct ones of all ranks, in rank order; at least one.
    """

    def __init__(self, problems: Sequence[CodedText]) -> None:
        super().__init__("\n".join(problem.text for problem in problems), code=problems[0].code)
        self.problems = tuple(problems)


def is_of_one_rank(error: InputError, ranks: int) -> bool:
    """Return whether this rank alone has a problem, so that the others wait for it until they are ended.

    What all ranks have is raised by `fedhpc.transport.collectives.run_on_all_ranks`.
    """
    return ranks > 1 and not isinstance(error, RankErrors)


class FileError(InputError):
    """A file or folder that cannot be read or written; raised by `fedhpc.util.files` only."""

    code = "file"


class ConfigError(InputError):
    """A config that breaks one or more rules; the message lists all of them at once."""

    code = "config"


class ShardError(InputError):
    """A shard that breaks the shard format, or is not this site's own.

    Args:
        public: site, kinds of problem and their number.
        private: the whole message for the hospital itself; empty where `public` says everything.
        code: see `FedhpcError`.
    """

    code = "shard"

    def __init__(self, public: str, *, private: str = "", code: str = "") -> None:
        super().__init__(public, code=code)
        self.private = private


class PrivacyError(InputError):
    """A privacy guarantee that cannot be given: raised before the step that would break it."""

    code = "privacy"


class PayloadError(FedhpcError):
    """An update that must not be sent, or bytes that were received and are not what they claim to be."""

    code = "payload"


class ExchangeError(PayloadError):
    """A message that MPI could not deliver, since another rank has ended: only under fault-tolerant launchers."""

    code = "mpi.rank-ended"


class RankLostError(ExchangeError):
    """A rank has ended or does not answer, so that this start of the run cannot go on with all of its hospitals."""

    code = "mpi.rank-lost"


class SilentRankError(RankLostError):
    """A rank does not answer and is there still: the others cannot agree without it, as they do where one has ended."""


class SiteError(FedhpcError):
    """A failure inside one hospital, with the site and the round at which it happened.

    Args:
        public: what all ranks may know.
        private: for the site's own log: the cause in its own words, with the traceback.
        site: whose log that is.
        code: see `FedhpcError`.
    """

    code = "site"

    def __init__(self, public: str, *, private: str = "", site: str = "", code: str = "") -> None:
        super().__init__(public, code=code)
        self.private, self.site = private, site


class Stopped(BaseException):
    """A signal came before the first round of this start: there is nothing to save. `status` is the exit status."""

    def __init__(self, by: str, status: int) -> None:
        super().__init__(f"stopped by {by} before the first round of this start; the same command starts again")
        self.status = status


class Interrupted(Exception):
    """Told to stop (`fedhpc.run.rounds.preemption`): the round that was begun is left, and will be done again."""


@contextmanager
def at(place: str) -> Iterator[None]:
    """Put `place` before the message of a PayloadError that is raised inside."""
    try:
        yield
    except PayloadError as error:
        raise type(error)(f"{place}: {error}", code=error.code) from None


def inside(error: BaseException) -> str:
    """Return all that is known of an error, for the hospital itself: its private part, where it has one."""
    return str(getattr(error, "private", "") or error)


def code_of(error: BaseException) -> str:
    """Return the code of any error.

    >>> code_of(ShardError("a")), code_of(ShardError("a", code="shard.other")), code_of(ValueError("p3"))
    ('shard', 'shard.other', 'internal')
    """
    if isinstance(error, FedhpcError):
        return error.code
    return "memory" if isinstance(error, MemoryError) else "internal"


def with_code(text: str, code: str) -> str:
    """Return a message and its code, which stands on a line of its own after a message of several lines.

    >>> with_code("a.yaml: is missing", "config.unreadable")
    'a.yaml: is missing [config.unreadable]'
    """
    return text + ("\n" if "\n" in text else " ") + f"[{code}]"


def printed(error: BaseException, *, private: bool = False) -> str:
    """Return an error as it is printed, with its code.

    Args:
        error: of a type without a message, its type is printed; of one that is not fedhpc's own, type and place alone,
            since its words may quote a site's data (numpy's MemoryError tells how many images did not fit).
        private: print the hospital's own part too, where it has one.
    """
    if isinstance(error, RankErrors):
        return "\n".join(with_code(text, code) for code, text in error.problems)
    text = inside(error) if private else public_cause(error)
    return with_code(text or type(error).__name__, code_of(error))


def public_cause(error: BaseException) -> str:
    """Return what may be told of an error to all: the message of our own, of any other its type and place only.

    A message of HDF5, numpy or PyTorch may quote values, names and shapes of a site's data.

    >>> public_cause(ShardError("2 labels are wrong", private="label 7 of patient p3")), public_cause(ValueError("p3"))
    ('2 labels are wrong', 'ValueError')
    """
    if isinstance(error, FedhpcError):
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
    known, coded = isinstance(error, FedhpcError), isinstance(error, FedhpcError | MemoryError)
    hint = "" if known else f" (details in sites/{site}/log.txt)"
    public = f"site {site}, {what}: {public_cause(error)}{hint}"
    return SiteError(public, private=private, site=site, code=code_of(error) if coded else "site")


@contextmanager
def in_round(round: int) -> Iterator[None]:
    """Put the round's number before the message of a SiteError that is raised inside."""
    try:
        yield
    except SiteError as error:
        public = f"round {round}: {error}"
        raise SiteError(public, private=error.private, site=error.site, code=error.code) from error
