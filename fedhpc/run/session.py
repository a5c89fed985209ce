"""What the ranks must have before they train: shards, task, weights, network, public map, ledgers."""

import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError, PrivacyError, ShardError, inside
from fedhpc.models.device import Device, prepare
from fedhpc.models.saved import load_backbone
from fedhpc.models.task import Task
from fedhpc.models.vector import parameter_count
from fedhpc.privacy.ledger import SiteAccount
from fedhpc.privacy.plan import PrivacyPlan
from fedhpc.records.checkpoint import saved_rounds
from fedhpc.records.run_directory import RunDirectory
from fedhpc.run.display import Console
from fedhpc.run.initial_model import check_backbone, start_from
from fedhpc.run.membership import Membership
from fedhpc.run.network import agreed_network, check_local_layers
from fedhpc.run.preemption import StopRequest
from fedhpc.run.public_features import Place as MapPlace
from fedhpc.run.public_features import agreed_map, make_reference
from fedhpc.run.recorded_heads import Recorded, check_recorded, recorded_heads
from fedhpc.run.secure_channel import open_secure_channel, sites_by_rank
from fedhpc.run.site_facts import read_facts
from fedhpc.run.site_speeds import with_schedule
from fedhpc.run.site_work import agreed_plans, measured_cost, place_of, run_plan
from fedhpc.run.sum_identities import TrustModel, agreed_identities, trust_model
from fedhpc.secagg.signatures import SigningSite
from fedhpc.site.account import open_account, permit_exact_evaluation, permit_without_privacy
from fedhpc.site.context import SiteContext
from fedhpc.site.data.open_site import OpenSite, open_site_of_run
from fedhpc.site.data.pixel_blocks import image_blocks
from fedhpc.site.data.resident import free_bytes, resident
from fedhpc.site.data.samples import PooledSamples, Samples
from fedhpc.site.data.shard import Shard
from fedhpc.site.hospital import Hospital
from fedhpc.site.training.local_sgd import OnStep
from fedhpc.site.training.secure_contribution import IntegerGrid, plan_grid
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks
from fedhpc.transport.messages import said
from fedhpc.util.progress import Beat

POOLED = "pooled"


@dataclass(frozen=True)
class Session:
    """One run at one rank, ready to train.

    Attributes:
        config: resolved, of the sites that take part; the same at all ranks.
        declared: resolved, of all sites: what the run directory keeps.
        sites: this rank's hospitals in site order.
        learners: who trains here: the hospitals, or at rank 0 of a centralised run all of them pooled.
        weights: public weight of every site, by index.
        facts: of every site: name, rank, host, device, weight; only at rank 0.
        grid: of the integers of a secure sum; None where privacy.trust asks for none.
        notice: whether this rank has been told to stop.
        identities: of this rank's sites by index, in a secure sum; else empty.
        shard_digests: of the shards that each learner of this rank trains on (private).
        accounts: on the site ledgers, of this rank's sites; none without privacy.
        absent: the sites that are declared and take no part in this start, in site order.
        plans: the noise of each site, by name in site order; none without privacy.
    """

    config: RunConfig
    declared: RunConfig
    transport: Transport
    directory: RunDirectory
    console: Console
    place: SiteContext
    task: Task
    sites: tuple[Hospital, ...]
    learners: tuple[Hospital, ...]
    weights: tuple[int, ...]
    facts: tuple[Mapping[str, Any], ...]
    grid: IntegerGrid | None
    notice: StopRequest = field(default_factory=StopRequest)
    identities: Mapping[int, SigningSite] = field(default_factory=dict)
    shard_digests: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    accounts: tuple[SiteAccount, ...] = ()
    absent: tuple[str, ...] = ()
    plans: Mapping[str, PrivacyPlan] = field(default_factory=dict)


def open_session(members: Membership, directory: RunDirectory, console: Console, notice: StopRequest) -> Session:
    """Open the secure channel and this rank's shards, agree on task and weights, and build the network.

    Raises:
        InputError: at every rank, with the problems of all.
    """
    config = members.config
    transport = open_secure_channel(config, directory, members.wire, console)
    indices = my_sites(config, transport)
    _make_missing(config, transport, indices, console)
    opened = run_on_all_ranks(transport, lambda: _open_sites(config, indices, directory, transport.rank))
    shards = [site.shard for site in opened]
    accounts = _accounts(config, directory, transport, shards)
    if config.exchange.search:
        for shard in shards:
            transport.search_for(shard.site, image_blocks(shard))
    bench = run_on_all_ranks(transport, lambda: prepare(config.runtime, transport.local_rank))
    facts = _gathered_facts(config, transport, shards, bench)
    common = broadcast_json(transport, lambda: _agreement(facts))
    run_on_all_ranks(transport, lambda: _check_agreement(common, [_facts(config, s, transport, bench) for s in shards]))
    task = Task(tuple(common["classes"]), tuple(common["image_shape"]), config.task)
    backbone = run_on_all_ranks(
        transport, lambda: load_backbone(config.model.backbone) if config.model.backbone else None
    )
    run_on_all_ranks(transport, lambda: check_backbone(config))
    model = agreed_network(config, task, backbone, transport).to(bench.device)
    shape = task.image_shape if backbone is None else (backbone.dim,)
    weighed = dict(zip(config.site_names, common["weights"], strict=True))
    members = with_schedule(
        members, directory, transport, weighed, lambda site: measured_cost(site, model, shape, config, bench)
    )
    config = members.config
    plans = agreed_plans(config, transport)
    place = SiteContext(config, model, bench, run_plan(plans), _on_step(config, console, notice))
    if backbone is not None and config.model.features is not None:
        where = MapPlace(shards, directory, transport, task.image_shape[-1])
        found = agreed_map(config, backbone.to(bench.device), where)
        found.load_into(place.model)
    start_from(config, directory, task, place.model, transport)
    run_on_all_ranks(transport, lambda: check_local_layers(config, place.model))
    weights = tuple(common["weights"])
    grid = run_on_all_ranks(transport, lambda: _grid(config, place, weights))
    on_device = None if backbone is None else backbone.to(bench.device)
    free = free_bytes(bench.device, transport.local_size) // max(1, len(opened))
    samples = [resident(site.samples(on_device), bench.device, free) for site in opened]
    sites = tuple(
        Hospital(config.site_names[i], i, weights[i], mine, place_of(config.site_names[i], place, plans))
        for i, mine in zip(indices, samples, strict=True)
    )
    learners = _learners(config, sites, samples, sum(weights), place)
    for one in (*sites, *learners):
        one.keep_log(directory.log(one.name, transport.rank))
    identities = {} if grid is None else agreed_identities(config, transport, indices)
    run = (config, members.declared, transport, directory, console, place, task)
    made = (*run, sites, learners, weights, facts, grid, notice)
    return Session(*made, identities, _shard_digests(sites, learners, shards), accounts, members.absent, plans)


def _make_missing(config: RunConfig, transport: Transport, indices: Sequence[int], console: Console) -> None:
    """Make what is missing of the built-in cohort: this rank's shards, and at rank 0 the public reference."""
    run_on_all_ranks(transport, lambda: make_phantoms(config, [config.site_names[i] for i in indices], console))
    run_on_all_ranks(transport, lambda: make_reference(config, console) if transport.rank == 0 else None)


def _gathered_facts(
    config: RunConfig, transport: Transport, shards: Sequence[Shard], bench: Device
) -> tuple[Mapping[str, Any], ...]:
    """What each site says of itself (public), in site order; only at rank 0."""
    hello = [_facts(config, shard, transport, bench) for shard in shards]
    gathered = transport.gather([json.dumps(fact).encode() for fact in hello], "hello")
    return tuple(read_facts(config, transport.size, gathered)) if gathered else ()


def _shard_digests(
    sites: Sequence[Hospital], learners: Sequence[Hospital], shards: Sequence[Shard]
) -> dict[str, tuple[str, ...]]:
    """The digests of the shards that each learner trains on: its own, or of the pooled one those of all."""
    alone = {site.name: (shard.digest,) for site, shard in zip(sites, shards, strict=True)}
    pooled = {one.name: tuple(shard.digest for shard in shards) for one in learners if one.name == POOLED}
    return {**alone, **pooled}


def _on_step(config: RunConfig, console: Console, notice: StopRequest) -> OnStep:
    """A secure sum is one step, which cannot be left in the middle; all other training can."""
    return console.step if config.privacy.trust == "sites" else notice.watched(console.step, config.runtime.patience_s)


def session_trust(session: Session) -> TrustModel | None:
    """Return against whom the secure sum of this session protects; None where privacy.trust asks for none."""
    if session.grid is None or session.place.plan is None:
        return None
    return trust_model(session.config, session.place.plan, session.transport.size)


def my_sites(config: RunConfig, transport: Transport) -> tuple[int, ...]:
    """The indices of the sites that this rank plays; a centralised run is rank 0's alone."""
    return sites_by_rank(config, transport.size)[transport.rank]


def make_phantoms(config: RunConfig, sites: Sequence[str], console: Console) -> None:
    """Make the shards of these sites that are missing, where the config has them from the built-in cohort."""
    wanted = config.data.phantom
    missing = [name for name in sites if not config.data.shard_path(name).exists()]
    if wanted is None or not missing:
        return
    from data_prep.phantom import Cohort, write_site

    cohort = Cohort(seed=wanted.seed, images=wanted.images, image_size=wanted.image_size, difficulty=wanted.difficulty)
    unknown = sorted(set(missing) - set(cohort.sites))
    if unknown:
        raise InputError(
            f"data.phantom: {', '.join(unknown)}: no such hospital in the built-in cohort, and there is no shard; its "
            f"hospitals are {', '.join(cohort.sites)}. Name these in data.sites, or remove data.phantom",
            code="config",
        )
    console.say(f"making the built-in cohort of {wanted.images} images ({wanted.image_size} x {wanted.image_size}) ...")
    # Each site reports on itself as it is drawn; where this process draws several, also on all of them.
    sizes, beat = {name: cohort.sites[name].images for name in missing}, Beat("built-in cohort")
    for number, name in enumerate(missing, 1):
        write_site(cohort, name, config.data.shard_path(name))
        share = sum(sizes[one] for one in missing[:number]) / sum(sizes.values())
        beat.at(share * wanted.images, wanted.images)


def _open_sites(config: RunConfig, indices: Sequence[int], directory: RunDirectory, rank: int) -> list[OpenSite]:
    """Open this rank's shards. What is wrong with one goes to its site's own log, its kind to all ranks."""
    opened, problems = [], []
    for i in indices:
        name = config.site_names[i]
        try:
            opened.append(open_site_of_run(config, name))
        except ShardError as error:
            directory.log(name, rank).write("ERROR", inside(error))
            problems.append(error)
    if problems:
        raise ShardError("\n".join(map(str, problems)), code=problems[0].code)
    return opened


def _accounts(
    config: RunConfig, directory: RunDirectory, transport: Transport, shards: Sequence[Shard]
) -> tuple[SiteAccount, ...]:
    """Open the site ledgers of this rank's sites, and find in them what earlier runs have recorded of them.

    Raises:
        PrivacyError: at every rank, where any is not as it must be, or its hospital demands privacy of a run without.
    """
    run = directory.path.resolve().name
    if not config.private:
        run_on_all_ranks(transport, lambda: permit_without_privacy(config, shards, run))
        return ()
    accounts = tuple(run_on_all_ranks(transport, lambda: [open_account(config, shard) for shard in shards]))
    run_on_all_ranks(transport, lambda: permit_exact_evaluation(config, shards, accounts, run))
    found = broadcast_json(
        transport, lambda: [asdict(one) for one in recorded_heads(directory.path, config.site_names)]
    )
    run_on_all_ranks(transport, lambda: check_recorded(config, accounts, [Recorded(**one) for one in found]))
    return accounts


def _facts(config: RunConfig, shard: Shard, transport: Transport, bench: Device) -> dict[str, Any]:
    declared = {site.name: site.weight for site in config.data.sites}[shard.site]
    # With privacy on the config has declared a weight, so the true count is never put into a message.
    weight = declared if declared is not None else len(shard.indices("train"))
    return {
        "site": shard.site,
        "classes": shard.classes,
        "image_shape": shard.image_shape,
        "weight": weight,
        "rank": transport.rank,
        "host": socket.gethostname(),
        "device": str(bench.device),
    }


def _agreement(facts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = facts[0]
    for key in ("classes", "image_shape"):
        other = [f"{f['site']} has {f[key]}" for f in facts if f[key] != first[key]]
        if other:
            raise InputError(
                f"shards differ in {key}: {first['site']} has {first[key]}, {'; '.join(other)}; remake them alike",
                code="shard.differ",
            )
    return {"classes": first["classes"], "image_shape": first["image_shape"], "weights": [f["weight"] for f in facts]}


def _check_agreement(common: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> None:
    """Refuse another task than that of a site's own shard, whatever the aggregator says.

    With fewer classes than a shard has, whether training fails would tell whether a patient is of a class.

    Raises:
        InputError: they differ.
    """
    for fact in own:
        wrong = [key for key in ("classes", "image_shape") if list(common[key]) != list(fact[key])]
        if wrong:
            raise InputError(
                f"site {fact['site']}: the aggregator's {' and '.join(wrong)} are not those of its shard. Do not train "
                "with it before that is explained",
                code="shard.differ",
            )


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


def open_ledgers(session: Session, heads: Mapping[str, str]) -> tuple[str, ...]:
    """Read back what the learners have spent; nothing to do without privacy.

    Args:
        session: this rank's.
        heads: of each learner's ledger, by the record of the round that the run goes on from; empty at its start.

    Returns:
        what the user must know before the first step, one line a shard; only at rank 0.

    Raises:
        PrivacyError: at every rank, where any ledger is not as it must be.
    """
    if not session.config.private:
        return ()
    run_on_all_ranks(session.transport, lambda: _keep_ledgers(session, heads))
    told = ["\n".join(learner.budget.forecast()).encode() for learner in session.learners]
    return tuple(said(payload) for payload in session.transport.gather(told, "hello") if payload)


def _keep_ledgers(session: Session, heads: Mapping[str, str]) -> None:
    for learner in session.learners:
        path, folder = session.directory.ledger(learner.name), session.directory.site(learner.name)
        trained = max(saved_rounds(folder, "residual") + saved_rounds(folder, "model"), default=0)
        if (trained or learner.name in heads) and not path.exists():
            raise PrivacyError(
                f"{path}: is missing beside a checkpoint of round {trained}: what was spent is not known; restore it "
                "from a backup, or start a new run: the site ledger still counts it",
                code="resume.ledger-missing",
            )
        mine = [account for account in session.accounts if learner.name in (account.site, POOLED)]
        learner.keep_ledger(path, session.directory.path.resolve().name, mine)
        if learner.name in heads:
            learner.budget.ledger.check_head(heads[learner.name])
