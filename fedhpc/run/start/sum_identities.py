"""How the sites of a secure sum learn each other's signing keys, and against whom that protects.

    each site -> rank 0 -> all sites: certificate, 32 fresh bytes          (`fedhpc.secagg.signatures.Introduction`)
    each site: check every certificate by its own CA, revocation list and clock, and by the name in the config
    each signature: about this config, and about the noise that the site shares (`told_noise`)

Rank 0 only relays: what it changes is refused by the sites, before the first round or by the first signature. Where
`exchange.tls` is on and hospitals are at other ranks, keys without a certificate are refused by every site. Elsewhere
(one process, or TLS off) each site signs with a key of this session that nobody vouches for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedhpc.config.schema import RunConfig
from fedhpc.privacy.plan import PrivacyPlan, epsilon_if_unmasked
from fedhpc.run.start.secure_channel import sites_by_rank
from fedhpc.secagg.signatures import (
    Introduction,
    OwnIdentity,
    PublicKey,
    SigningSite,
    bare_key,
    certified,
    certified_key,
    signatories_of,
    uncertified,
)
from fedhpc.site.training.secure_contribution import IntegerGrid
from fedhpc.transport import pki
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.transport.framing import carved, frame_header
from fedhpc.transport.tls import AGGREGATOR_NAME, TlsError

LEVELS = ("none", "honest-but-curious", "malicious")


def certificates_needed(config: RunConfig, ranks: int) -> bool:
    """Return whether the sites sign with their certificates: TLS is on and some hospital is not in rank 0's process."""
    return config.exchange.tls and any(sites_by_rank(config, ranks)[1:])


def told_noise(plan: PrivacyPlan | None, grid: IntegerGrid) -> bytes:
    """Return what a site was told of the noise of the secure sums, for its signatures: the same at honest sites.

    An aggregator that tells one site of more noise than the others would let it charge for noise that nobody adds.
    """
    return repr((plan, grid)).encode()


def agreed_identities(
    config: RunConfig, transport: Transport, indices: Sequence[int], noise: bytes
) -> dict[int, SigningSite]:
    """Introduce this rank's sites to all others; return them by index, each with the keys that it has checked itself.

    `noise` is what this rank was told (`told_noise`); others accept signatures only where they were told the same.

    Raises:
        InputError: at every rank, naming each site whose certificate or key is refused.
    """
    own: dict[int, OwnIdentity] = run_on_all_ranks(
        transport, lambda: {i: _own(config, i, transport.size) for i in indices}
    )
    told = transport.gather([identity.introduction.pack() for identity in own.values()], "hello")
    relayed = transport.broadcast(frame_header(told) + b"".join(told) if transport.rank == 0 else None, "hello")
    return run_on_all_ranks(
        transport, lambda: check_identities(config, own, list(carved([relayed], 1)), transport.size, noise)
    )


def _own(config: RunConfig, index: int, ranks: int) -> OwnIdentity:
    name = config.site_names[index]
    if not certificates_needed(config, ranks):
        return uncertified(name)
    return certified(name, pki.credentials(config.exchange.pki_folder(config.data, name), name))


def check_identities(
    config: RunConfig, own: Mapping[int, OwnIdentity], relayed: Sequence[bytes], ranks: int, noise: bytes
) -> dict[int, SigningSite]:
    """Return this rank's sites by index, after each has checked what the aggregator `relayed` of all sites, in order.

    Raises:
        TlsError: naming the site whose certificate or key is refused.
    """
    names = config.site_names
    if len(relayed) != len(names):
        raise TlsError(
            f"{len(relayed)} introductions of {len(names)} sites came from the aggregator", code="payload.missing"
        )
    everybody = [Introduction.parse(name, payload) for name, payload in zip(names, relayed, strict=True)]
    checked = {}
    for index, identity in own.items():
        if everybody[index] != identity.introduction:
            raise TlsError(
                f"site {names[index]}: the aggregator has changed its certificate or nonce on the way",
                code="tls.refused",
            )
        keys = [_key(config, one, names[index], ranks) for one in everybody]
        run = config.digest().encode() + b" " + noise
        checked[index] = SigningSite(index, identity.key, signatories_of(run, everybody, keys))
    return checked


def _key(config: RunConfig, introduction: Introduction, checker: str, ranks: int) -> PublicKey:
    if not certificates_needed(config, ranks):
        return bare_key(introduction)
    try:
        return certified_key(introduction, pki.credentials(config.exchange.pki_folder(config.data, checker), checker))
    except TlsError as error:
        raise TlsError(f"site {checker} refuses a signing key: {error}", code=error.code) from None


@dataclass(frozen=True)
class TrustModel:
    """Against whom `privacy.trust: sites` protects in a run (public).

    Attributes:
        aggregator: one of LEVELS: "malicious" where it may send what it likes, "honest-but-curious" where it must keep
            to the protocol, "none" where it sees the sites' own memory.
        why: what the level rests on, or what is missing for a higher one.
        epsilon_if_unmasked: of one site's vector seen alone, should the assumption fail.
    """

    aggregator: str
    why: str
    epsilon_if_unmasked: float

    def facts(self, rounds: Sequence[str]) -> dict[str, Any]:
        """For `summary.json`: the weakest of the levels of all `rounds`, since a run may go on over other ranks."""
        weakest = min((*rounds, self.aggregator), key=LEVELS.index)
        return {
            "protects_from_aggregator": weakest,
            "protection_rests_on": self.why if weakest == self.aggregator else "an earlier start of this run: its log",
            "epsilon_if_unmasked": self.epsilon_if_unmasked,
        }


def trust_model(config: RunConfig, plan: PrivacyPlan, ranks: int) -> TrustModel:
    """Return against whom this run protects, over so many ranks; as rank 0's process sees it."""
    placed = sites_by_rank(config, ranks)
    epsilon = epsilon_if_unmasked(config, plan)
    colluding = config.privacy.colluding_sites or 0
    if len(placed[0]) > colluding:
        why = f"{len(placed[0])} sites run in the aggregator's own process, privacy.colluding_sites={colluding}"
        return TrustModel("none", why, epsilon)
    if not certificates_needed(config, ranks):
        why = "exchange.tls=off: the sites' keys come through the aggregator and nobody vouches for them"
        return TrustModel("honest-but-curious", why, epsilon)
    folder = config.exchange.pki_folder(config.data, AGGREGATOR_NAME)
    if (folder / "ca.key").exists():
        why = f"the CA's key lies beside the aggregator's ({folder / 'ca.key'}): who holds it can sign as any site"
        return TrustModel("honest-but-curious", why, epsilon)
    why = "round keys and survivors are signed with the sites' certificates; the CA's key is not at the aggregator"
    return TrustModel("malicious", why, epsilon)
