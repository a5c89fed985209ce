"""Open a session: the secure channel, this rank's shards, the agreed network, the hospitals."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from fedhpc.config.schema import RunConfig
from fedhpc.errors import FileError, ShardError, inside
from fedhpc.models.backbones import Backbone
from fedhpc.models.device import Device, prepare
from fedhpc.models.origin import Ancestor
from fedhpc.models.saved import load_backbone
from fedhpc.models.task import Task
from fedhpc.models.vector import parameter_count
from fedhpc.privacy.ledger import SiteAccount
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.display import Console
from fedhpc.run.rounds.preemption import StopRequest
from fedhpc.run.session import POOLED, Session
from fedhpc.run.start.built_in_cohort import make_missing
from fedhpc.run.start.initial_model import check_backbone, check_initial, runs_before, start_from
from fedhpc.run.start.membership import Membership
from fedhpc.run.start.network import agreed_network, check_before_cohort, check_local_layers
from fedhpc.run.start.public_features import MapPlace, agreed_map
from fedhpc.run.start.secure_channel import open_secure_channel, sites_by_rank
from fedhpc.run.start.site_facts import agreed_facts, check_agreed, facts_of, gathered_facts
from fedhpc.run.start.site_ledgers import open_accounts
from fedhpc.run.start.site_speeds import with_schedule
from fedhpc.run.start.site_work import agreed_plans, measured_cost, place_of, run_plan
from fedhpc.run.start.sum_identities import agreed_identities, told_noise
from fedhpc.site.context import SiteContext
from fedhpc.site.data.open_site import OpenSite, open_site_of_run
from fedhpc.site.data.pixel_blocks import image_blocks
from fedhpc.site.data.resident import free_bytes, resident
from fedhpc.site.data.samples import PooledSamples, Samples
from fedhpc.site.data.shard import Shard
from fedhpc.site.hospital import Hospital
from fedhpc.site.training.local_sgd import OnStep
from fedhpc.site.training.pace import Bench
from fedhpc.site.training.secure_contribution import IntegerGrid, plan_grid
from fedhpc.transport.base import Transport
from fedhpc.transport.channel import Channel, Note
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks
from fedhpc.util.log import LogFile


def open_session(members: Membership, directory: RunDirectory, console: Console, notice: StopRequest) -> Session:
    """Open the secure channel and this rank's shards, agree on task and weights, and build the network.

    Raises:
        InputError: at every rank, with the problems of all.
    """
    opened = _opened(members, directory, console)
    transport, weights = opened.transport, opened.weights
    network = _network(members.config, opened.task, transport, opened.device)
    members = _scheduled(members, directory, opened, network)
    config, shards = members.config, [site.shard for site in opened.sites]
    plans = agreed_plans(config, transport)
    place = SiteContext(config, network.model, opened.device, run_plan(plans), _on_step(config, console, notice))
    _set_parameters(config, directory, opened, network)
    before = runs_before(config, directory, network.before, transport)
    grid = run_on_all_ranks(transport, lambda: _grid(config, place, weights))
    samples = _samples(opened, network.backbone, directory)
    sites = tuple(
        Hospital(config.site_names[i], i, weights[i], mine, place_of(config.site_names[i], place, plans))
        for i, mine in zip(opened.indices, samples, strict=True)
    )
    learners = _learners(config, sites, samples, sum(weights), place)
    for one in (*sites, *learners):
        one.keep_log(directory.log(one.name, transport.rank))
    return Session(
        config=config,
        declared=members.declared,
        transport=transport,
        directory=directory,
        console=console,
        place=place,
        task=opened.task,
        sites=sites,
        learners=learners,
        weights=weights,
        facts=opened.facts,
        synthetic=opened.synthetic,
        grid=grid,
        notice=notice,
        identities={}
        if grid is None
        else agreed_identities(config, transport, opened.indices, told_noise(place.plan, grid)),
        shard_digests=_shard_digests(sites, learners, shards),
        accounts=opened.accounts,
        absent=members.absent,
        plans=plans,
        before=before,
    )


@dataclass(frozen=True)
class _Opened:
    """What this rank has opened, and what all ranks have agreed on by it.

    Attributes:
        transport: between the ranks, encrypted where the config says so.
        indices, sites: of this rank, in site order; their shards are private.
        accounts: on the site ledgers of these sites; none without privacy.
        device: that this rank computes on.
        facts: of every site; only at rank 0.
        task, weights: of the run: the same at every rank.
        synthetic: whether no patient of any site exists: the same at every rank.
    """

    transport: Transport
    indices: Sequence[int]
    sites: Sequence[OpenSite]
    accounts: tuple[SiteAccount, ...]
    device: Device
    facts: tuple[Mapping[str, Any], ...]
    task: Task
    weights: tuple[int, ...]
    synthetic: bool = False


def _opened(members: Membership, directory: RunDirectory, console: Console) -> _Opened:
    config = members.config
    transport = open_secure_channel(config, directory, members.wire, console)
    indices = sites_by_rank(config, transport.size)[transport.rank]
    check_initial(config, directory, transport)
    run_on_all_ranks(transport, lambda: check_before_cohort(config, [config.site_names[i] for i in indices]))
    make_missing(config, transport, indices, console)
    sites = run_on_all_ranks(transport, lambda: _open_sites(config, indices, directory, transport.rank))
    shards = [site.shard for site in sites]
    accounts = open_accounts(config, directory, transport, shards)
    if config.exchange.search:
        run_on_all_ranks(transport, lambda: _search_for(config, directory, transport, shards))
    device = run_on_all_ranks(transport, lambda: prepare(config.runtime, transport.local_rank))
    own = [facts_of(config, shard, transport, device) for shard in shards]
    facts = gathered_facts(config, transport, own)
    common = broadcast_json(transport, lambda: agreed_facts(facts))
    run_on_all_ranks(transport, lambda: check_agreed(common, own))
    task = Task(tuple(common["classes"]), tuple(common["image_shape"]), config.task)
    weights = tuple(common["weights"])
    return _Opened(transport, indices, sites, accounts, device, facts, task, weights, bool(common["synthetic"]))


def _search_for(config: RunConfig, directory: RunDirectory, transport: Channel, shards: Sequence[Shard]) -> None:
    """Have all payloads of this rank's sites searched for pixels of their images."""
    for shard in shards:
        log = directory.log(shard.site, transport.rank)
        with _shard_problems_kept(log):
            transport.search_for(shard.site, image_blocks(shard), _note_of(config, log))


@contextmanager
def _shard_problems_kept(log: LogFile) -> Iterator[None]:
    """Write all that is known of a ShardError to the site's own log; the others learn its kind only."""
    try:
        yield
    except ShardError as error:
        log.write("ERROR", inside(error))
        raise


def _note_of(config: RunConfig, log: LogFile) -> Note | None:
    """Return what notes a find of the search, where a find must change nothing that others see; else None.

    Masked vectors of a secure sum can be steered by nobody.
    """
    if not config.private or config.privacy.trust == "sites":
        return None
    return partial(_noted, log)


def _noted(log: LogFile, text: str) -> None:
    # What cannot be written is dropped: an error would end this rank, and tell others of the find.
    with suppress(FileError):
        log.write("WARNING", text)


@dataclass(frozen=True)
class _Network:
    """The agreed network, and the backbone whose features it takes (None: it takes images), on this rank's device.

    `before`: the runs that the backbone is of; none of a public one.
    """

    model: nn.Module
    backbone: Backbone | None
    input_shape: tuple[int, ...]
    before: tuple[Ancestor, ...] = ()


def _network(config: RunConfig, task: Task, transport: Transport, device: Device) -> _Network:
    name = config.model.backbone
    backbone = run_on_all_ranks(transport, lambda: load_backbone(name) if name else None)
    before = run_on_all_ranks(transport, lambda: check_backbone(config))
    model = agreed_network(config, task, backbone, transport).to(device.device)
    if backbone is None:
        return _Network(model, None, task.image_shape)
    return _Network(model, backbone.to(device.device), (backbone.dim,), before)


def _scheduled(members: Membership, directory: RunDirectory, opened: _Opened, network: _Network) -> Membership:
    """Return who takes part, each site with its share of the work (`schedule`)."""
    config = members.config
    images = {site.shard.site: len(site.shard.indices("train")) for site in opened.sites}
    bench = Bench(network.model, network.input_shape, config, opened.device)
    weights = dict(zip(config.site_names, opened.weights, strict=True))
    return with_schedule(
        members, directory, opened.transport, weights, partial(measured_cost, images=images, bench=bench)
    )


def _set_parameters(config: RunConfig, directory: RunDirectory, opened: _Opened, network: _Network) -> None:
    """Give the network the agreed map of the features and the parameters that the run starts from."""
    transport, task = opened.transport, opened.task
    if network.backbone is not None and config.model.features is not None:
        shards = [site.shard for site in opened.sites]
        where = MapPlace(shards, directory, transport, task.image_shape[-1])
        agreed_map(config, network.backbone, where).load_into(network.model)
    start_from(config, directory, task, network.model, transport)
    run_on_all_ranks(transport, lambda: check_local_layers(config, network.model))


def _shard_digests(
    sites: Sequence[Hospital], learners: Sequence[Hospital], shards: Sequence[Shard]
) -> dict[str, tuple[str, ...]]:
    """Return the digests of the shards that each learner trains on: its own, or of the pooled one those of all."""
    alone = {site.name: (shard.digest,) for site, shard in zip(sites, shards, strict=True)}
    pooled = {one.name: tuple(shard.digest for shard in shards) for one in learners if one.name == POOLED}
    return {**alone, **pooled}


def _on_step(config: RunConfig, console: Console, notice: StopRequest) -> OnStep:
    """A secure sum is one step, which cannot be left in the middle; all other training can."""
    return console.step if config.privacy.trust == "sites" else notice.watched(console.step, config.runtime.patience_s)


def _open_sites(config: RunConfig, indices: Sequence[int], directory: RunDirectory, rank: int) -> list[OpenSite]:
    """Open this rank's shards. What is wrong with one goes to its site's own log, its kind to all ranks."""
    opened, problems = [], []
    for i in indices:
        name = config.site_names[i]
        try:
            with _shard_problems_kept(directory.log(name, rank)):
                opened.append(open_site_of_run(config, name))
        except ShardError as error:
            problems.append(error)
    if problems:
        raise ShardError("\n".join(map(str, problems)), code=problems[0].code)
    return opened


def _samples(opened: _Opened, backbone: Backbone | None, directory: RunDirectory) -> list[Samples]:
    """Return what each of this rank's sites trains on; features of a backbone are computed here where there are none.

    Raises:
        InputError: at every rank, where they cannot be kept beside a shard, or are damaged. The site's log has it all.
    """
    transport, device = opened.transport, opened.device.device

    def made() -> list[Samples]:
        free = free_bytes(device, transport.local_size)
        found = []
        for site in opened.sites:
            with _shard_problems_kept(directory.log(site.shard.site, transport.rank)):
                found.append(resident(site.samples(backbone), device, free // len(opened.sites)))
        return found

    return run_on_all_ranks(transport, made)


def _grid(config: RunConfig, place: SiteContext, weights: Sequence[int]) -> IntegerGrid | None:
    if config.privacy.trust != "sites" or place.plan is None:
        return None
    size, rounds = parameter_count(place.model), config.training.rounds
    return plan_grid(place.plan.noise_multiplier, size, weights, config.honest_sites, rounds)


def _learners(
    config: RunConfig, sites: tuple[Hospital, ...], samples: Sequence[Samples], weight: int, place: SiteContext
) -> tuple[Hospital, ...]:
    if config.mode != "centralised" or not sites:
        return sites
    return (Hospital(POOLED, 0, weight, PooledSamples(samples), place),)
