"""Keys of the masks and sealed shares of a secure sum: key agreement and key derivation. No protocol, no vectors.

X25519, then HKDF-SHA-256 over what the key belongs to. Every key is drawn or derived for one use in one round.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedhpc.compression.update import AGGREGATOR
from fedhpc.errors import PayloadError

KEY_BYTES = 32
NO_NONCE = bytes(16)
"""Every key here is drawn or derived for one use in one round, so the nonce has nothing to tell apart."""


def most_dropouts(sites: int, colluding: int) -> int:
    """Return the largest number of dropouts for which 2 threshold > sites + colluding; -1 or less where none is.

    >>> most_dropouts(10, 1), most_dropouts(4, 1), most_dropouts(4, 0), most_dropouts(2, 2)
    (4, 1, 1, -1)
    """
    return (sites - colluding - 1) // 2


@dataclass(frozen=True)
class SumTerms:
    """What all have agreed on (public).

    2 threshold > sites + colluding: else two groups of `threshold` sites need share no honest site, and an aggregator
    that sends each another list of survivors gets both secrets of one site, and with them its vector.

    Attributes:
        sites: how many there are; they are numbered 0 .. sites - 1.
        threshold: how many must stay to the end of a round. No honest site answers for fewer.
        size: d, the length of the vectors.
        width_bytes: the sum is modulo 2^(8 width_bytes), 1 to 8.
        colluding: how many sites may tell the aggregator all they know and answer as it likes.

    Raises:
        ValueError: where one of these conditions does not hold.
    """

    sites: int
    threshold: int
    size: int
    width_bytes: int
    colluding: int = 0

    def __post_init__(self) -> None:
        if not 2 <= self.threshold <= self.sites < AGGREGATOR or self.size < 1 or not 1 <= self.width_bytes <= 8:
            raise ValueError(f"{self}: allowed are 2 <= threshold <= sites < {AGGREGATOR}, size >= 1, width 1 to 8")
        if self.colluding < 0 or 2 * self.threshold <= self.sites + self.colluding:
            least = self.sites - most_dropouts(self.sites, self.colluding)
            raise ValueError(
                f"{self}: 2 x threshold must be above sites + colluding, or two lists of survivors reveal one site's "
                f"vector; the smallest threshold allowed is {least}"
            )


@dataclass(frozen=True)
class PublicKeys:
    """A site's two keys of one round, 32 bytes each (public)."""

    sealing: bytes
    masking: bytes

    @classmethod
    def parse(cls, body: bytes) -> "PublicKeys":
        """Read the two keys at the beginning of the body of a `keys` message."""
        return cls(body[:KEY_BYTES], body[KEY_BYTES : 2 * KEY_BYTES])


@dataclass(frozen=True)
class SiteKey:
    """One of a site's two public keys of a round, 32 bytes."""

    site: int
    key: bytes


def context(purpose: bytes, round: int, first: SiteKey, second: SiteKey) -> bytes:
    """Return what a derived key belongs to: purpose, round, the ordered pair of sites and their public keys."""
    return struct.pack("<8sIHH", purpose, round, first.site, second.site) + first.key + second.key


def agree(own: X25519PrivateKey, other: bytes, info: bytes) -> bytes:
    """32 bytes that only the two holders of the keys know (X25519, then HKDF-SHA-256 over `info`)."""
    try:
        common = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise PayloadError(f"secure sum: {other.hex()} is no public key that X25519 accepts", code="secagg") from None
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"fedhpc secure sum" + info).derive(common)


@dataclass(frozen=True)
class MaskKey:
    """The private mask key of a site in one round (secret)."""

    site: int
    key: X25519PrivateKey = field(repr=False)


def pair_seed(own: MaskKey, peer: int, roster: Mapping[int, PublicKeys], round: int) -> bytes:
    """Return s_ij of two sites, 32 bytes: the same from the key of either (secret)."""
    low, high = (SiteKey(site, roster[site].masking) for site in sorted((own.site, peer)))
    return agree(own.key, roster[peer].masking, context(b"mask", round, low, high))
