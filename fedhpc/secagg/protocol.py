"""Secure aggregation: the aggregator learns the sum of the sites' integer vectors and nothing else about any of them.

Bonawitz et al. 2017, "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS), Figure 4, with the
parts that it underlines for the malicious model. Five messages of each site in a round, each answered by one that the
aggregator sends to all:

    keys       two public X25519 keys of this round, one for encryption, one for masks, signed   -> the roster U1
    shares     Shamir shares of the site's mask key and of its self-mask seed, one of each        -> all of them, U2
               to every site, encrypted to it
    masked     x_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)  over U2,           -> who sent one, U3
               modulo 2^(8 width); b_i is the self-mask seed, s_ij what i and j have agreed on
    confirmed  its signature of (roster, U2, U3) as it has received them                          -> all of them, U4
    revealed   of each survivor its share of b, of each site that dropped out its share of        (the sum)
               the mask key: with `threshold` of them the aggregator takes the masks off the sum

Formal guarantee (their Theorems 6.3 and 6.5). Let c be `SumTerms.colluding`, and 2 threshold > sites + c. What the
aggregator and c sites see of the others in a round is at most one sum: that of the vectors of at least threshold - c of
them, all whose masked vector the honest sites have signed for. X25519, HKDF-SHA-256, AES-256-CTR, AES-256-GCM and
ECDSA on P-256 are taken to be secure. It says nothing about what that sum reveals: that is for the noise in it.

    malicious           where every key in `Signatories` is that of the site that it names (certificates, whose CA
                        does not work for the aggregator): aggregator and colluding sites may send what they like.
    honest-but-curious  where the keys have come through the aggregator unvouched for: then it could hand out its own.

Why the condition: a site reveals one of its two shares of another, never both. An aggregator that tells one group of
honest sites that v survived and another that it dropped out needs threshold - c of each; they are sites - c together.
Why the message `confirmed`: with differing lists, of which each is long enough, the aggregator could still get the sum
of fewer than threshold sites, with less noise than is accounted.
A malicious aggregator can still end a round, leave out sites up to the threshold, and falsify the model.
"""

import hashlib
import os
import struct
from collections.abc import Collection, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from fedhpc.errors import PayloadError
from fedhpc.secagg import shamir
from fedhpc.secagg.masks import KEY_BYTES, NO_NONCE, MaskKey, PublicKeys, SiteKey, SumTerms, agree, context, pair_seed
from fedhpc.secagg.messages import (
    CONFIRMED,
    ENTRY,
    HEADER,
    KEYS,
    MASKED,
    REVEALED,
    SHARES,
    bodies_of,
    broadcast_of,
    frame,
    split_broadcast,
)
from fedhpc.secagg.signatures import SIGNATURE_BYTES, SignedMessage, SigningSite
from fedhpc.secagg.vectors import Mask, packed, summed
from fedhpc.util.arrays import I64

TAG_BYTES = 16
SEALED_BYTES = 2 * shamir.SHARE_BYTES + TAG_BYTES
ADVERTISED_BYTES = 2 * KEY_BYTES + SIGNATURE_BYTES


class MaskedSite:
    """One site in one round: its secrets, and the five messages that it sends, each once and in this order.

    `threads` of them mask its vector, which changes no bit.
    """

    def __init__(self, terms: SumTerms, identity: SigningSite, round: int, threads: int = 1) -> None:
        self._terms, self._identity, self._round, self._threads = terms, identity, round, threads
        self._site, self._name = identity.site, identity.signatories.names[identity.site]
        self._sealing, self._masking = X25519PrivateKey.generate(), X25519PrivateKey.generate()
        self._seed = os.urandom(shamir.SECRET_BYTES)
        self._roster: dict[int, PublicKeys] = {}
        self._roster_digest = b""
        self._held: dict[int, tuple[bytes, bytes]] = {}
        self._stayed: tuple[int, ...] = ()
        self._next = KEYS

    def advertise(self) -> bytes:
        """Return the `keys` message."""
        self._advance(KEYS)
        keys = self._sealing.public_key().public_bytes_raw() + self._masking.public_key().public_bytes_raw()
        return frame(KEYS, self._site, self._round, keys + self._identity.sign(self._round, KEYS, keys))

    def share(self, roster: bytes) -> bytes:
        """Return the `shares` message, in answer to the aggregator's list of all keys.

        Raises:
            PayloadError: naming the site whose keys it has not signed itself.
        """
        self._advance(SHARES)
        bodies = split_broadcast(KEYS, self._round, roster, ADVERTISED_BYTES)
        self._check_members(bodies, range(self._terms.sites), "keys")
        for site, body in bodies.items():
            self._check_signed(site, SignedMessage(KEYS, body[: 2 * KEY_BYTES], body[2 * KEY_BYTES :]))
        self._roster = {site: PublicKeys.parse(body) for site, body in bodies.items()}
        self._check_own_keys()
        self._roster_digest = hashlib.sha256(roster).digest()
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
        """Return the `masked` message, in answer to all sites' shares.

        Args:
            shares: what the aggregator sent.
            vector: int64[size] (private); what it stands for is its value modulo 2^(8 width_bytes).
        """
        self._advance(MASKED)
        bodies = split_broadcast(SHARES, self._round, shares, SEALED_BYTES * (len(self._roster) - 1))
        self._check_members(bodies, self._roster, "shares")
        self._held |= {site: self._opened(site, body) for site, body in bodies.items() if site != self._site}
        own, masks = MaskKey(self._site, self._masking), [Mask(self._seed, added=True)]
        for peer in self._held:
            if peer != self._site:
                masks.append(Mask(pair_seed(own, peer, self._roster, self._round), added=self._site < peer))
        return frame(MASKED, self._site, self._round, packed(vector, masks, self._terms, self._threads))

    def confirm(self, survivors: bytes) -> bytes:
        """Return the `confirmed` message, in answer to the list of those whose masked vector has arrived."""
        self._advance(CONFIRMED)
        stayed = split_broadcast(MASKED, self._round, survivors, 0)
        self._check_members(stayed, self._held, "masked vectors")
        self._stayed = tuple(stayed)
        return frame(CONFIRMED, self._site, self._round, self._identity.sign(self._round, CONFIRMED, self._view()))

    def reveal(self, confirmed: bytes) -> bytes:
        """Return the `revealed` message, in answer to the survivors' signatures; the secrets are gone.

        Of each site it holds one share of the self-mask *or* of the mask key, never both.

        Raises:
            PayloadError: naming the site that has not signed the list of survivors that this site has received.
        """
        self._advance(REVEALED)
        signatures = split_broadcast(CONFIRMED, self._round, confirmed, SIGNATURE_BYTES)
        self._check_members(signatures, self._stayed, "signatures of the survivors")
        for site, signature in signatures.items():
            self._check_signed(site, SignedMessage(CONFIRMED, self._view(), signature))
        chosen = [self._held[site][1 if site in self._stayed else 0] for site in sorted(self._held)]
        del self._sealing, self._masking, self._seed, self._held
        return frame(REVEALED, self._site, self._round, b"".join(chosen))

    def _view(self) -> bytes:
        """What this site has received of this round: digest of the roster, U2, U3."""
        shared = sorted(self._held)
        lists = struct.pack(f"<{1 + len(shared)}H", len(shared), *shared)
        return self._roster_digest + lists + struct.pack(f"<{len(self._stayed)}H", *self._stayed)

    def _check_signed(self, site: int, message: SignedMessage) -> None:
        self._identity.signatories.check(site, self._round, message)

    def _check_own_keys(self) -> None:
        own = PublicKeys(self._sealing.public_key().public_bytes_raw(), self._masking.public_key().public_bytes_raw())
        if self._roster[self._site] != own:
            raise PayloadError(
                f"site {self._name}, round {self._round + 1}: the aggregator lists "
                "other keys for this site than it has made in this round; the round is refused",
                code="secagg",
            )

    def _advance(self, stage: int) -> None:
        if self._next != stage:
            raise ValueError(
                f"site {self._site}, round {self._round + 1}: message {stage} asked for, {self._next} is next"
            )
        self._next += 1

    def _check_members(self, members: Collection[int], allowed: Collection[int], what: str) -> None:
        if len(members) < self._terms.threshold or self._site not in members or not set(members) <= set(allowed):
            raise PayloadError(
                f"site {self._name}, round {self._round + 1}: refuses a list of {what} of sites {sorted(members)}; "
                f"allowed: at least {self._terms.threshold}, this site among them, all of {sorted(allowed)}",
                code="secagg",
            )

    def _sealed(self, receiver: int, plain: bytes) -> bytes:
        return self._cipher(self._site, receiver).encrypt(NO_NONCE, plain, None)

    def _opened(self, sender: int, body: bytes) -> tuple[bytes, bytes]:
        """The two shares that `sender` has made for this site."""
        place = [site for site in sorted(self._roster) if site != sender].index(self._site)
        sealed = body[SEALED_BYTES * place : SEALED_BYTES * (place + 1)]
        try:
            plain = self._cipher(sender, self._site).decrypt(NO_NONCE, sealed, None)
        except InvalidTag:
            raise PayloadError(
                f"round {self._round + 1}: the shares of site {sender} for site {self._site} were changed on the way",
                code="secagg",
            ) from None
        return plain[: shamir.SHARE_BYTES], plain[shamir.SHARE_BYTES :]

    def _cipher(self, sender: int, receiver: int) -> AESGCM:
        peer = receiver if sender == self._site else sender
        first, second = (SiteKey(site, self._roster[site].sealing) for site in (sender, receiver))
        info = context(b"seal", self._round, first, second)
        return AESGCM(agree(self._sealing, self._roster[peer].sealing, info))


class SumAggregator:
    """The aggregator in one round: it hands the sites' messages on, and takes the masks off the sum.

    `threads` of them do that, which changes no bit.
    """

    def __init__(self, terms: SumTerms, round: int, threads: int = 1) -> None:
        self.terms, self.round, self._threads = terms, round, threads
        self._got: dict[int, dict[int, bytes]] = {}
        self._masked: dict[int, memoryview] = {}

    def answer(self, kind: int, payloads: Sequence[bytes]) -> bytes:
        """What all sites are to be sent when each has sent its message of this kind, or an empty payload for none.

        Of the masked vectors only the senders' numbers: who survived.

        Raises:
            PayloadError: a message that is not what it must be, or fewer than `threshold` of them.
        """
        got = bodies_of(kind, self.round, payloads, self._body_bytes(kind))
        if len(got) < self.terms.threshold:
            raise PayloadError(
                f"round {self.round + 1}: messages {kind} of sites {sorted(got)}; "
                f"at least {self.terms.threshold} needed",
                code="secagg",
            )
        if kind == MASKED:
            self._masked = got
            return broadcast_of(kind, self.round, dict.fromkeys(got, b""))
        self._got[kind] = {site: bytes(body) for site, body in got.items()}
        return broadcast_of(kind, self.round, self._got[kind])

    def _body_bytes(self, kind: int) -> int:
        return {
            KEYS: ADVERTISED_BYTES,
            SHARES: SEALED_BYTES * (len(self._got.get(KEYS, ())) - 1),
            MASKED: self.terms.size * self.terms.width_bytes,
            CONFIRMED: SIGNATURE_BYTES,
            REVEALED: shamir.SHARE_BYTES * len(self._got.get(SHARES, ())),
        }[kind]

    def total(self) -> I64:
        """The sum of the survivors' vectors, after `answer` has had all five kinds.

        Returns:
            int64[size]: modulo 2^(8 width_bytes), the number nearest to 0.

        Raises:
            PayloadError: where what was revealed does not fit the keys.
        """
        masks: list[Mask] = []
        for place, site in enumerate(self._got[SHARES]):
            secret = self._secret(site, place)
            if site in self._masked:
                masks.append(Mask(secret, added=False))
            else:
                masks += self._left_over(site, secret)
        return summed(list(self._masked.values()), masks, self.terms, self._threads)

    def _secret(self, site: int, place: int) -> bytes:
        """The self-mask seed of a survivor, the mask key of a site that dropped out."""
        part = slice(shamir.SHARE_BYTES * place, shamir.SHARE_BYTES * (place + 1))
        shares = {holder + 1: body[part] for holder, body in self._got[REVEALED].items()}
        try:
            return shamir.combine(shares)
        except ValueError as error:
            raise PayloadError(f"round {self.round + 1}: secret of site {site}: {error}", code="secagg") from None

    def _left_over(self, site: int, secret: bytes) -> list[Mask]:
        """What takes off the pairwise masks that the survivors put on for a `site` which dropped out before it did."""
        roster = {one: PublicKeys.parse(body) for one, body in self._got[KEYS].items()}
        own = X25519PrivateKey.from_private_bytes(secret)
        if own.public_key().public_bytes_raw() != roster[site].masking:
            raise PayloadError(
                f"round {self.round + 1}: the shares of the mask key of site {site} do not fit its public key",
                code="secagg",
            )
        seeds = {peer: pair_seed(MaskKey(site, own), peer, roster, self.round) for peer in self._masked}
        # A survivor with a lower number has added it.
        return [Mask(seed, added=peer > site) for peer, seed in seeds.items()]


def round_bytes(terms: SumTerms) -> tuple[int, int]:
    """What a round takes where nobody drops out: (up of each site, down to each site), without the model's way down."""
    n, sealed = terms.sites, SEALED_BYTES * (terms.sites - 1)
    signed_bytes = ADVERTISED_BYTES + SIGNATURE_BYTES
    up = signed_bytes + sealed + terms.size * terms.width_bytes + n * shamir.SHARE_BYTES
    down = n * (signed_bytes + sealed + 4 * ENTRY.size)
    return up + 5 * HEADER.size, down + 4 * HEADER.size
