"""Which rank plays which hospital.

With a rank for each hospital they are in the order of the config, and rank 0 is the aggregator's. Both stay true where
hospitals are pinned to the nodes that have their shards, because it is the ranks that are numbered anew, in the order
of the hospitals that their nodes belong to. With fewer ranks hospitals are dealt out by their declared weights, so that
no rank trains much longer than the others. The order of the fold is that of the config whatever the placement is.
"""

import heapq
import json
import socket
from collections.abc import Sequence

from pydantic import TypeAdapter

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.transport.base import Wire
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks
from fedhpc.transport.messages import Name, parsed

HOST: TypeAdapter[str] = TypeAdapter(Name)


def place_sites(config: RunConfig, transport: Wire) -> Wire:
    """`transport` with its ranks in the order that the pins ask for; itself where there are none.

    Raises:
        InputError: at every rank, where the nodes do not fit the pins.
        PayloadError: at this rank, where rank 0 has placed a hospital here that is pinned to another node.
    """
    pins = [site.node for site in config.data.sites]
    if not any(pins):
        return transport
    mine = json.dumps(socket.gethostname()).encode()
    hosts = [
        parsed(payload, HOST, f"rank {rank}, control")
        for rank, payload in enumerate(transport.gather([mine], "control"))
    ]
    aggregator = config.federation.aggregator_rank == "dedicated" and transport.size > 1
    places = [None, *pins] if aggregator else pins
    order = broadcast_json(transport, lambda: rank_order(hosts, places))
    placed = transport.reordered(order.index(transport.rank))
    run_on_all_ranks(placed, lambda: _check_place(places[placed.rank]))
    return placed


def _check_place(pin: str | None) -> None:
    """See that this rank is on the node of the hospital that it plays, whatever rank 0 has said.

    On another node somebody else may be root, and read the shard where it lies on a shared disk.

    Raises:
        InputError: it is on another.
    """
    host = socket.gethostname()
    if pin is not None and _short(pin) != _short(host):
        raise InputError(
            f"data.sites: a hospital is pinned to {pin}, and rank 0 has placed it on {host}. No shard was opened. Ask "
            "who runs the aggregator",
            code="ranks.placement",
        )


def rank_order(hosts: Sequence[str], pins: Sequence[str | None]) -> list[int]:
    """Return which of the present ranks comes first, second ..., so that place i is on the node `pins[i]`.

    Args:
        hosts: of each present rank.
        pins: the node of each place; None: any that is left.

    >>> rank_order(["n1", "n2", "n3"], ["n3", None, "n1.site.org"])
    [2, 1, 0]
    >>> rank_order(["n1"], ["n1", "n1"])
    [0]

    Raises:
        InputError: more than one rank and not one for each place, or a node without a rank left for its hospital.
    """
    wanted = [pin and _short(pin) for pin in pins]
    free = {rank: _short(host) for rank, host in enumerate(hosts)}
    if len(hosts) == 1:
        elsewhere = sorted({pin for pin in wanted if pin and pin != free[0]})
        if elsewhere:
            raise InputError(_lacking(elsewhere, hosts), code="ranks.placement")
        return [0]
    if len(hosts) != len(pins):
        raise InputError(
            f"data.sites: hospitals are pinned to nodes, and there are {len(hosts)} ranks for {len(pins)} of them: "
            "start one rank for each hospital (and one for a dedicated aggregator), or take the pins away",
            code="ranks.placement",
        )
    chosen: dict[int, int] = {}
    for place in sorted(range(len(pins)), key=lambda place: wanted[place] is None):
        fitting = [rank for rank, host in free.items() if wanted[place] in (None, host)]
        if not fitting:
            raise InputError(_lacking([str(wanted[place])], hosts), code="ranks.placement")
        chosen[place] = fitting[0]
        del free[fitting[0]]
    return [chosen[place] for place in range(len(pins))]


def deal_sites(weights: Sequence[int | None], ranks: int, dedicated: bool) -> list[tuple[int, ...]]:
    """Return which sites each rank plays, by index in site order; none for a dedicated aggregator.

    The heaviest site that is left goes to the rank with the least weight so far (longest processing time first; Graham
    1969, "Bounds on Multiprocessing Timing Anomalies", section 5: at most 4/3 of the best largest load). Where that is
    not better than consecutive blocks of equal counts, or a site declares no weight, it is those blocks. Ranks are
    ordered by their first site.

    Args:
        weights: the declared weight of each site, by index.
        ranks: how many there are, at least 1.
        dedicated: whether rank 0 plays no site where there are several ranks.

    >>> deal_sites([1200, 900, 600, 300], 2, dedicated=False)
    [(0, 3), (1, 2)]
    >>> deal_sites([None] * 5, 2, dedicated=False), deal_sites([7, 5], 3, dedicated=True)
    ([(0, 1, 2), (3, 4)], [(), (0,), (1,)])
    """
    if dedicated and ranks > 1:
        return [(), *deal_sites(weights, ranks - 1, dedicated=False)]
    blocks = _consecutive(len(weights), ranks)
    known = [weight for weight in weights if weight is not None]
    if len(known) < len(weights):
        return blocks
    dealt = _longest_first(known, ranks)
    return dealt if _largest(dealt, known) < _largest(blocks, known) else blocks


def _consecutive(sites: int, ranks: int) -> list[tuple[int, ...]]:
    share, more = divmod(sites, ranks)
    starts = [rank * share + min(rank, more) for rank in range(ranks + 1)]
    return [tuple(range(starts[rank], starts[rank + 1])) for rank in range(ranks)]


def _longest_first(weights: Sequence[int], ranks: int) -> list[tuple[int, ...]]:
    loads: list[tuple[int, int, list[int]]] = [(0, rank, []) for rank in range(ranks)]
    for site in sorted(range(len(weights)), key=lambda site: -weights[site]):
        load, rank, sites = heapq.heappop(loads)
        heapq.heappush(loads, (load + weights[site], rank, [*sites, site]))
    return sorted((tuple(sorted(sites)) for _, _, sites in loads), key=lambda sites: (not sites, sites))


def _largest(dealt: Sequence[Sequence[int]], weights: Sequence[int]) -> int:
    return max(sum(weights[site] for site in sites) for sites in dealt)


def _short(host: str) -> str:
    return host.partition(".")[0]


def _lacking(nodes: Sequence[str], hosts: Sequence[str]) -> str:
    return (
        f"data.sites: a hospital is pinned to {', '.join(nodes)}, and no rank is left for it there; ranks are on "
        f"{', '.join(hosts)}: sbatch --nodelist={','.join(nodes)},... --ntasks-per-node, or correct the pin"
    )
