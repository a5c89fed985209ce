"""The secure channel of a run: who sits at which rank, the handshakes with them, and each one's egress log.

The handshakes are written down too, as hello, in the clear: from here on nothing leaves a hospital that is not in its
log. Before it, while the ranks agree on the config, there is no run directory to log to and no shard is open.
"""

from collections.abc import Mapping, Sequence

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.display import Console
from fedhpc.run.start.placement import deal_sites
from fedhpc.transport import pki
from fedhpc.transport.base import Transport
from fedhpc.transport.channel import Channel, Sessions
from fedhpc.transport.collectives import run_on_all_ranks
from fedhpc.transport.egress_log import EgressLog
from fedhpc.transport.framing import carved, frame_header
from fedhpc.transport.tls import AGGREGATOR_NAME, TlsError, TlsSession
from fedhpc.util.text import wrapped


def sites_by_rank(config: RunConfig, ranks: int) -> list[tuple[int, ...]]:
    """Return the indices of the sites that each rank plays; a centralised run is rank 0's alone.

    Under a secure sum they are dealt by number, whatever they weigh: by weight the aggregator's process could get more
    sites than `privacy.colluding_sites`, which nothing protects from it.
    """
    by_weight = config.privacy.trust != "sites"
    weights = [site.weight if by_weight else None for site in config.data.sites]
    if config.mode == "centralised":
        return [tuple(range(len(weights))), *[()] * (ranks - 1)]
    return deal_sites(weights, ranks, config.federation.aggregator_rank == "dedicated")


def open_secure_channel(config: RunConfig, directory: RunDirectory, wire: Transport, console: Console) -> Channel:
    """The channel of a run: TLS sessions where `exchange.tls` is on and hospitals sit at other ranks, logs in any case.

    Raises:
        InputError: at every rank, naming every site whose certificate, key or peer is not as it must be.
    """
    blocks, order = sites_by_rank(config, wire.size), config.site_names
    placed = [tuple(order[i] for i in block) for block in blocks]
    wire.deliver_by_site(rank_of_each(blocks))
    logs = {name: EgressLog(directory.egress(name), AGGREGATOR_NAME) for name in placed[wire.rank]}
    aggregator = None if wire.rank else EgressLog(directory.aggregator_egress, "all sites")
    plain = Channel(wire, logs, aggregator, order=order)
    return Channel(wire, logs, aggregator, _sessions(config, placed, plain, console), order)


def rank_of_each(blocks: Sequence[Sequence[int]]) -> list[int]:
    """Return the rank of each site, by index.

    >>> rank_of_each([(0, 3), (1, 2)])
    [0, 1, 1, 0]
    """
    places = {site: rank for rank, block in enumerate(blocks) for site in block}
    return [places[site] for site in range(len(places))]


def wire_line(config: RunConfig, ranks: int) -> str:
    """Return what the header says about the way between the hospitals and rank 0."""
    if not any(sites_by_rank(config, ranks)[1:]):
        return "wire: all hospitals are in rank 0's process, nothing of theirs crosses a wire"
    if config.exchange.tls:
        return "wire: TLS 1.3 between every hospital and rank 0, certificates of both ends checked"
    return "wire: NOT ENCRYPTED (exchange.tls is off): only for a network that you trust"


def _sessions(
    config: RunConfig, placed: Sequence[tuple[str, ...]], plain: Channel, console: Console
) -> Sessions | None:
    away = [names for names in placed[1:] if names]
    if not away or not config.exchange.tls:
        return None
    run_on_all_ranks(plain, lambda: None if plain.rank else make_demo(config, console))
    everybody = tuple(name for name in config.site_names if name not in placed[0])
    here = everybody if plain.rank == 0 else placed[plain.rank]
    by_site = run_on_all_ranks(plain, lambda: _started(config, here, server=plain.rank == 0))
    _shake_hands(by_site, everybody, plain)
    return Sessions(everybody, tuple(names[0] for names in away), by_site)


def make_demo(config: RunConfig, console: Console) -> None:
    """Certificates for the built-in cohort on first use; those of real hospitals are made by a person."""
    folder = config.exchange.pki_folder(config.data, AGGREGATOR_NAME)
    if config.data.phantom is None:
        return
    if (folder / "ca.key").exists():
        for name in config.site_names:
            if not (folder / f"{name}.pem").exists():
                pki.issue(folder, name)
        return
    try:
        pki.init(folder, config.site_names)
    except InputError:
        if not (folder / "ca.pem").exists():
            raise
        return  # another run on these shards has just made them, or they were given to this rank without the CA's key
    text = (
        f"DEMO CERTIFICATES made in {folder} for the built-in cohort: the keys of all sites and of the CA lie in one "
        "folder. For real hospitals: `run.py pki init`"
    )
    console.say(wrapped(text))


def _started(config: RunConfig, names: Sequence[str], *, server: bool) -> dict[str, TlsSession]:
    """A session for each of `names`, before the first byte."""
    own = [AGGREGATOR_NAME] if server else names
    contexts, problems = [], []
    for name in own:
        try:
            folder = config.exchange.pki_folder(config.data, name)
            contexts.append(pki.credentials(folder, name).context(server=server))
        except TlsError as error:
            problems.append(error)
    if problems:
        raise TlsError(
            "\n".join(
                [
                    *map(str, problems),
                    "REMEDY: copy the files there with their modes (cp -p), from where `python run.py pki init CONFIG` "
                    "made them; on a network that you trust, --set exchange.tls=off does without",
                ]
            ),
            code=problems[0].code,
        )
    if server:
        return {name: TlsSession(contexts[0], name, server=True) for name in names}
    return {
        name: TlsSession(context, AGGREGATOR_NAME, server=False) for name, context in zip(names, contexts, strict=True)
    }


def _shake_hands(by_site: Mapping[str, TlsSession], everybody: Sequence[str], plain: Channel) -> None:
    """TLS 1.3 in one round trip: hello up, hello and certificate down, certificate up. Then all know whether all did.

    Raises:
        InputError: at every rank, naming every site that was refused or that refused the aggregator.
    """
    at_rank_0 = plain.rank == 0
    hellos = plain.gather([] if at_rank_0 else _advanced(by_site, [b""] * len(by_site)), "hello")
    answers = run_on_all_ranks(plain, lambda: _advanced(by_site, hellos) if at_rank_0 else [])
    told = plain.broadcast(frame_header(answers) + b"".join(answers) if at_rank_0 else None, "hello")
    mine = [answer for name, answer in zip(everybody, carved([told], 1), strict=True) if name in by_site]
    proofs = plain.gather(run_on_all_ranks(plain, lambda: [] if at_rank_0 else _advanced(by_site, mine)), "hello")
    run_on_all_ranks(plain, lambda: _advanced(by_site, proofs) if at_rank_0 else [])


def _advanced(by_site: Mapping[str, TlsSession], received: Sequence[bytes]) -> list[bytes]:
    """Return what each session answers to what its other end said."""
    answers, problems = [], []
    for (name, session), said in zip(by_site.items(), received, strict=True):
        try:
            answers.append(session.handshake(said))
        except TlsError as error:
            problems.append((name, error))
    if problems:
        text = "\n".join(f"site {name}: {error}" for name, error in problems)
        raise TlsError(text, code=problems[0][1].code)
    return answers
