"""Secure aggregation: the aggregator learns the sum of the sites' integer vectors and nothing else about any of them.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS), Figure 4. Four
messages of each site in a round, each answered by one that the aggregator sends to all:

    keys       two public X25519 keys of this round: one for encryption, one for masks           -> the roster U1
    shares     Shamir shares of the site's mask key and of its self-mask seed, one of each        -> all of them, U2
               to every site, encrypted to it
    masked     x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)  over U2,           -> who sent one, U3
               modulo 2^(8 width); b_i is the self-mask seed, s_ij what i and j have agreed on
    revealed   of each survivor its share of b, of each site that dropped out its share of        (the sum)
               the mask key: with `threshold` of them the aggregator takes the masks off the sum

Formal guarantee (their Theorem 6.3): what an honest-but-curious aggregator and fewer than `threshold` sites that tell
it all they know see of the others is the sum of the others' vectors, where X25519, HKDF-SHA-256, AES-256-CTR and
AES-256-GCM are taken to be secure. It says nothing about what that sum reveals: that is for the noise in it.

Not in the guarantee: an aggregator that departs from the protocol. It could hand out keys of its own until the keys are
authenticated (TLS with site certificates). One lie is refused here all the same: an honest site answers a round once,
so it never reveals both shares of one site; two different lists of survivors therefore gain nothing while
2 threshold > sites + colluding sites.
"""

import os
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedhpc.errors import PayloadError
from fedhpc.exchange import shamir
from fedhpc.exchange.sum_wire import (
    ENTRY,
    HEADER,
    KEYS,
    MASKED,
    REVEALED,
    SHARES,
    U64,
    bodies_of,
    broadcast_of,
    frame,
    from_bytes,
    signed,
    split_broadcast,
    to_bytes,
)
from fedhpc.exchange.update import AGGREGATOR, I64

KEY_BYTES, TAG_BYTES = 32, 16
SEALED_BYTES = 2 * shamir.SHARE_BYTES + TAG_BYTES
NO_NONCE = bytes(16)
"""Every key here is drawn or derived for one use in one round, so the nonce has nothing to tell apart."""


@dataclass(frozen=True)
class SumTerms:
    """What all have agreed on (public).

    Attributes:
        sites: how many there are; they are numbered 0 .. sites - 1.
        threshold: how many must stay to the end of a round. No honest site answers for fewer.
        size: d, the length of the vectors.
        width_bytes: the sum is modulo 2^(8 width_bytes), 1 to 8.
    """

    sites: int
    threshold: int
    size: int
    width_bytes: int

    def __post_init__(self) -> None:
        if not 2 <= self.threshold <= self.sites < AGGREGATOR or self.size < 1 or not 1 <= self.width_bytes <= 8:
            raise ValueError(f"{self}: allowed are 2 <= threshold <= sites < {AGGREGATOR}, size >= 1, width 1 to 8")


@dataclass(frozen=True)
class PublicKeys:
    """A site's two keys of one round, 32 bytes each (public)."""

    sealing: bytes
    masking: bytes

    @classmethod
    def parse(cls, body: bytes) -> "PublicKeys":
        """From the body of a `keys` message."""
        return cls(body[:KEY_BYTES], body[KEY_BYTES:])


class MaskedSite:
    """One site in one round: its secrets, and the four messages that it sends, each once and in this order."""

    def __init__(self, terms: SumTerms, site: int, round: int) -> None:
        self._terms, self._site, self._round = terms, site, round
        self._sealing, self._masking = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = os.urandom(shamir.SECRET_BYTES)
        self._roster: dict[int, PublicKeys] = {}
        self._held: dict[int, tuple[bytes, bytes]] = {}
        self._next = KEYS

    def advertise(self) -> bytes:
        """The `keys` message."""
        self._advance(KEYS)
        keys = self._sealing.public_key().public_bytes_raw() + self._masking.public_key().public_bytes_raw()
        return frame(KEYS, self._site, self._round, keys)

    def share(self, roster: bytes) -> bytes:
        """The `shares` message, in answer to the aggregator's list of all keys."""
        self._advance(SHARES)
        bodies = split_broadcast(KEYS, self._round, roster, 2 * KEY_BYTES)
        self._check_members(bodies, range(self._terms.sites), "keys")
        self._roster = {site: PublicKeys.parse(body) for site, body in bodies.items()}
        points = {site: site + 1 for site in self._roster}
        parts = [
            shamir.split(secret, points.values(), self._terms.threshold)
            for secret in (self._masking.private_bytes_raw(), self._seed)
        ]
        own = points[self._site]
        self._held[self._site] = (parts[0][own], parts[1][own])
        sealed = [self._sealed(site, parts[0][x] + parts[1][x]) for site, x in points.items() if site != self._site]
        return frame(SHARES, self._site, self._round, b"".join(sealed))

    def mask(self, shares: bytes, vector: I64) -> bytes:
        """The `masked` message, in answer to all sites' shares.

        Args:
            shares: what the aggregator sent.
            vector: int64[size] (private); what it stands for is its value modulo 2^(8 width_bytes).
        """
        self._advance(MASKED)
        bodies = split_broadcast(SHARES, self._round, shares, SEALED_BYTES * (len(self._roster) - 1))
        self._check_members(bodies, self._roster, "shares")
        self._held |= {site: self._opened(site, body) for site, body in bodies.items() if site != self._site}
        masked = vector.view(np.uint64) + expand(self._seed, self._terms)
        for peer in self._held:
            if peer != self._site:
                pair = pair_mask(self._masking, (self._site, peer), self._roster, (self._round, self._terms))
                masked = masked + pair if self._site < peer else masked - pair
        return frame(MASKED, self._site, self._round, to_bytes(masked, self._terms.width_bytes))

    def reveal(self, survivors: bytes) -> bytes:
        """The `revealed` message, in answer to the list of those whose masked vector has arrived; the secrets are gone.

        Of each site it holds one share of the self-mask *or* of the mask key, never both.
        """
        self._advance(REVEALED)
        stayed = split_broadcast(MASKED, self._round, survivors, 0)
        self._check_members(stayed, self._held, "masked vectors")
        chosen = [self._held[site][1 if site in stayed else 0] for site in sorted(self._held)]
        del self._sealing, self._masking, self._seed, self._held
        return frame(REVEALED, self._site, self._round, b"".join(chosen))

    def _advance(self, stage: int) -> None:
        if self._next != stage:
            raise ValueError(f"site {self._site}, round {self._round}: message {stage} asked for, {self._next} is next")
        self._next += 1

    def _check_members(self, members: Collection[int], allowed: Collection[int], what: str) -> None:
        if len(members) < self._terms.threshold or self._site not in members or not set(members) <= set(allowed):
            raise PayloadError(
                f"site {self._site}, round {self._round}: refuses a list of {what} of sites {sorted(members)}; "
                f"allowed: at least {self._terms.threshold}, this site among them, all of {sorted(allowed)}"
            )

    def _sealed(self, receiver: int, plain: bytes) -> bytes:
        return self._cipher(receiver, (self._site, receiver)).encrypt(NO_NONCE, plain, None)

    def _opened(self, sender: int, body: bytes) -> tuple[bytes, bytes]:
        """The two shares that `sender` has made for this site."""
        place = [site for site in sorted(self._roster) if site != sender].index(self._site)
        sealed = body[SEALED_BYTES * place : SEALED_BYTES * (place + 1)]
        try:
            plain = self._cipher(sender, (sender, self._site)).decrypt(NO_NONCE, sealed, None)
        except InvalidTag:
            raise PayloadError(
                f"round {self._round}: the shares of site {sender} for site {self._site} were changed on the way"
            ) from None
        return plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :]

    def _cipher(self, peer: int, direction: tuple[int, int]) -> AESGCM:
        keys = (self._roster[direction[0]].sealing, self._roster[direction[1]].sealing)
        return AESGCM(agree(self._sealing, self._roster[peer].sealing, context(b"seal", self._round, direction, keys)))


def context(purpose: bytes, round: int, pair: tuple[int, int], keys: tuple[bytes, bytes]) -> bytes:
    """What a derived key belongs to: purpose, round, the ordered pair of sites and their public keys."""
    return struct.pack("<8sIHH", purpose, round, *pair) + b"".join(keys)


def agree(own: X25519PrivateKey, other: bytes, info: bytes) -> bytes:
    """32 bytes that only the two holders of the keys know (X25519, then HKDF-SHA-256 over `info`)."""
    try:
        common = own.exchange(X25519PublicKey.from_public_bytes(other))
    except ValueError:
        raise PayloadError(f"secure sum: {other.hex()} is no public key that X25519 accepts") from None
    return HKDF(algorithm=SHA256(), length=32, salt=None, info=b"fedhpc secure sum" + info).derive(common)


def pair_mask(
    own: X25519PrivateKey, pair: tuple[int, int], roster: Mapping[int, PublicKeys], at: tuple[int, SumTerms]
) -> U64:
    """PRG(s_ij) of `pair` = (holder of `own`, the other), uint64[size]: the same from either side."""
    low, high = sorted(pair)
    info = context(b"mask", at[0], (low, high), (roster[low].masking, roster[high].masking))
    return expand(agree(own, roster[pair[1]].masking, info), at[1])


def expand(seed: bytes, terms: SumTerms) -> U64:
    """PRG: 32 bytes -> uint64[size], uniform in [0, 2^(8 width_bytes)), by AES-256 in counter mode."""
    stream = Cipher(AES(seed), CTR(NO_NONCE)).encryptor().update(bytes(terms.size * terms.width_bytes))
    return from_bytes(stream, terms.width_bytes)


class SumOffice:
    """The aggregator in one round: it hands the sites' messages on, and takes the masks off the sum."""

    def __init__(self, terms: SumTerms, round: int) -> None:
        self.terms, self.round = terms, round
        self._got: dict[int, dict[int, bytes]] = {}

    def answer(self, kind: int, payloads: Sequence[bytes]) -> bytes:
        """What all sites are to be sent when each has sent its message of this kind, or an empty payload for none.

        Of the masked vectors only the senders' numbers: who survived.

        Raises:
            PayloadError: a message that is not what it must be, or fewer than `threshold` of them.
        """
        got = bodies_of(kind, self.round, payloads, self._body_bytes(kind))
        if len(got) < self.terms.threshold:
            raise PayloadError(
                f"round {self.round}: messages {kind} of sites {sorted(got)}; at least {self.terms.threshold} needed"
            )
        self._got[kind] = got
        return broadcast_of(kind, self.round, dict.fromkeys(got, b"") if kind == MASKED else got)

    def _body_bytes(self, kind: int) -> int:
        return {
            KEYS: 2 * KEY_BYTES,
            SHARES: SEALED_BYTES * (len(self._got.get(KEYS, ())) - 1),
            MASKED: self.terms.size * self.terms.width_bytes,
            REVEALED: shamir.SHARE_BYTES * len(self._got.get(SHARES, ())),
        }[kind]

    def total(self) -> I64:
        """The sum of the survivors' vectors, after `answer` has had all four kinds.

        Returns:
            int64[size]: modulo 2^(8 width_bytes), the number nearest to 0.

        Raises:
            PayloadError: where what was revealed does not fit the keys.
        """
        masked = self._got[MASKED]
        total = np.zeros(self.terms.size, np.uint64)
        for place, site in enumerate(self._got[SHARES]):
            secret = self._secret(site, place)
            if site in masked:
                total = total + from_bytes(masked[site], self.terms.width_bytes) - expand(secret, self.terms)
            else:
                total = total - self._left_over(site, secret, masked)
        return signed(total, self.terms.width_bytes)

    def _secret(self, site: int, place: int) -> bytes:
        """The self-mask seed of a survivor, the mask key of a site that dropped out."""
        part = slice(shamir.SHARE_BYTES * place, shamir.SHARE_BYTES * (place + 1))
        shares = {holder + 1: body[part] for holder, body in self._got[REVEALED].items()}
        try:
            return shamir.combine(shares)
        except ValueError as error:
            raise PayloadError(f"round {self.round}: secret of site {site}: {error}") from None

    def _left_over(self, site: int, secret: bytes, survivors: Iterable[int]) -> U64:
        """The pairwise masks that the survivors put on for a `site` which dropped out before it put on its own."""
        roster = {one: PublicKeys.parse(body) for one, body in self._got[KEYS].items()}
        own = X25519PrivateKey.from_private_bytes(secret)
        if own.public_key().public_bytes_raw() != roster[site].masking:
            raise PayloadError(
                f"round {self.round}: the shares of the mask key of site {site} do not fit its public key"
            )
        left = np.zeros(self.terms.size, np.uint64)
        for peer in survivors:
            pair = pair_mask(own, (site, peer), roster, (self.round, self.terms))
            left = left + pair if peer < site else left - pair
        return left


def round_bytes(terms: SumTerms) -> tuple[int, int]:
    """What a round takes where nobody drops out: (up of each site, down to each site), without the model's way down."""
    n, sealed = terms.sites, SEALED_BYTES * (terms.sites - 1)
    up = 2 * KEY_BYTES + sealed + terms.size * terms.width_bytes + n * shamir.SHARE_BYTES
    down = n * (2 * KEY_BYTES + sealed + 3 * ENTRY.size)
    return up + 4 * HEADER.size, down + 3 * HEADER.size
