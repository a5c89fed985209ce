"""Messages of a site to rank 0 as checked values: whatever a payload claims, it is read within bounds.

Rank 0 trusts a site in nothing but what its TLS session proves: which site it is. So every message is checked against
that site's name, a strict schema and a size before anything is kept, and refused with the site's name otherwise.
"""

from collections.abc import Callable, Sequence
from typing import Annotated, TypeVar

from pydantic import Field, TypeAdapter, ValidationError

from fedhpc.errors import PayloadError
from fedhpc.util.text import printable

T = TypeVar("T")
JSON_BYTES = 2**18
"""The most that a JSON message may take."""

TEXT_BYTES = 2**16
"""The most of a text that is kept."""

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$")]
"""Of a host, a device or a package: nothing that HTML, a shell or a terminal would read otherwise."""
Text = Annotated[str, Field(max_length=2000)]
Count = Annotated[int, Field(ge=0, le=2**48)]


def parsed(payload: bytes, adapter: TypeAdapter[T], what: str) -> T:
    """Return the value that a JSON payload stands for.

    Args:
        payload: from another rank.
        adapter: of the strict type that it must have.
        what: sender and kind, for the error.

    Raises:
        PayloadError: a payload that is too long, no JSON, or not of the type. It repeats nothing of the payload.
    """
    if len(payload) > JSON_BYTES:
        raise PayloadError(f"{what}: {len(payload)} bytes, at most {JSON_BYTES} are allowed; refused unread")
    try:
        return adapter.validate_json(payload, strict=True)
    except ValidationError as error:
        places = sorted({".".join(map(str, problem["loc"]))[:60] or "the whole" for problem in error.errors()})
        raise PayloadError(f"{what}: is not what such a message must be, at {', '.join(places[:5])}") from None


def said(payload: bytes) -> str:
    r"""Return a text for people from another rank: at most TEXT_BYTES of it, without control characters.

    >>> said(b"no \x1b[31mshard"), said(b"\xff")
    ('no ?[31mshard', '\ufffd')
    """
    return printable(payload[:TEXT_BYTES].decode(errors="replace"))


def of_each(payloads: Sequence[bytes], names: Sequence[str], what: str, read: Callable[[str, bytes], T]) -> list[T]:
    """Return `read(name, payload)` for the one payload of each site, in site order.

    Raises:
        PayloadError: another number of payloads than sites, or by `read`.
    """
    if len(payloads) != len(names):
        raise PayloadError(
            f"{what}: {len(payloads)} messages came, one of each of {len(names)} sites was expected",
            code="payload.missing",
        )
    return [read(name, payload) for name, payload in zip(names, payloads, strict=True)]
