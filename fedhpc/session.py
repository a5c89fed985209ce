"""What the ranks must agree on before they train: config, run directory, shards, task, weights.

Every step that can fail on one rank is done `together`: all ranks learn of all problems and end with the same message.
"""

import json
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from fedhpc.config import RunConfig
from fedhpc.config_file import load_config
from fedhpc.console import Console
from fedhpc.errors import InputError, ShardError
from fedhpc.exchange.comm import Transport
from fedhpc.federation import placement
from fedhpc.models import Backbone, Task, build_model, load_backbone
from fedhpc.rundir import RunDirectory
from fedhpc.runtime import prepare, resolved
from fedhpc.site.hospital import Hospital, Workplace
from fedhpc.site.privacy import plan_privacy
from fedhpc.site.samples import FeatureSamples, ImageSamples, PooledSamples, Samples
from fedhpc.site.shard import Shard
from fedhpc.site.training import Bench

POOLED = "pooled"
T = TypeVar("T")


@dataclass(frozen=True)
class Session:
    """One run at one rank, ready to train.

    Attributes:
        config: resolved, the same at all ranks.
        sites: this rank's hospitals in site order.
        learners: who trains here: the hospitals, or at rank 0 of a centralised run all of them pooled.
        weights: public weight of every site, by index.
        facts: of every site: name, rank, host, device, weight; only at rank 0.
    """

    config: RunConfig
    transport: Transport
    directory: RunDirectory
    console: Console
    place: Workplace
    task: Task
    sites: tuple[Hospital, ...]
    learners: tuple[Hospital, ...]
    weights: tuple[int, ...]
    facts: tuple[Mapping[str, Any], ...]


def together(transport: Transport, work: Callable[[], T]) -> T:
    """Do `work` at every rank; if it raises InputError at any, raise one at all, with every distinct message.

    A rank that failed alone would leave the others waiting for ever.
    """
    result, problem = None, ""
    try:
        result = work()
    except InputError as error:
        problem = str(error)
    told = [payload.decode() for payload in transport.gather([problem.encode()])]
    problems = transport.broadcast("\n".join(dict.fromkeys(filter(None, told))).encode() if told else None)
    if problems:
        raise InputError(problems.decode())
    return result  # type: ignore[return-value]


def from_rank_0(transport: Transport, make: Callable[[], T]) -> T:
    """What `make` gives at rank 0, as JSON to all."""
    text = together(transport, lambda: json.dumps(make()) if transport.rank == 0 else "")
    value: T = json.loads(transport.broadcast(text.encode() if transport.rank == 0 else None))
    return value


def agree_on_config(
    transport: Transport, source: tuple[Path, list[str]], run_dir: Path | None
) -> tuple[RunConfig, RunDirectory]:
    """Load at every rank, settle threads and run directory at rank 0; the config of a run that is resumed must fit.

    Raises:
        InputError: bad config, too many ranks, or a run directory of another config.
    """
    config = together(transport, lambda: load_config(*source))
    directory = RunDirectory(run_dir or Path("runs") / config.name)
    plain = from_rank_0(transport, lambda: _settled(config, directory, transport).model_dump(mode="json"))
    return RunConfig.model_validate(plain), directory


def _settled(config: RunConfig, directory: RunDirectory, transport: Transport) -> RunConfig:
    _check_ranks(config, transport.size)
    earlier = directory.read_config()
    if earlier is None:
        config = resolved(config, transport)
        directory.write_config(config)
        return config
    if config.runtime.threads == "auto":
        config = config.model_copy(
            update={"runtime": config.runtime.model_copy(update={"threads": earlier.runtime.threads})}
        )
    changed = _differences(earlier.model_dump(mode="json"), config.model_dump(mode="json"))
    if changed:
        raise InputError(
            f"{directory.path}: holds a run of another config; different: {', '.join(changed)}. Go on with its own "
            "config, or start in a new --run-dir"
        )
    return config


def _check_ranks(config: RunConfig, ranks: int) -> None:
    dedicated = config.federation.aggregator == "dedicated"
    most = len(config.data.sites) + dedicated
    if config.mode != "centralised" and ranks > most:
        raise InputError(f"{ranks} ranks for {len(config.data.sites)} sites: use at most {most} (mpirun -n {most})")


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    found = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key} ({a!r} there, {b!r} here)")
    return found


def open_session(config: RunConfig, directory: RunDirectory, transport: Transport, console: Console) -> Session:
    """Make missing phantom shards, open and check this rank's own, agree on task and weights, build the network.

    Raises:
        InputError: at every rank, with the problems of all.
    """
    indices = my_sites(config, transport)
    together(transport, lambda: make_phantoms(config, [config.site_names[i] for i in indices], console))
    shards = together(transport, lambda: _open_shards(config, indices))
    bench = together(transport, lambda: prepare(config.runtime, transport.local_rank))
    hello = [_facts(config, shard, transport, bench) for shard in shards]
    gathered = transport.gather([json.dumps(fact).encode() for fact in hello])
    facts = tuple(json.loads(payload) for payload in gathered)
    common = from_rank_0(transport, lambda: _agreement(facts))
    task = Task(tuple(common["classes"]), tuple(common["image_shape"]))
    backbone = together(transport, lambda: load_backbone(config.model.backbone) if config.model.backbone else None)
    place = together(transport, lambda: _workplace(config, task, backbone, bench, console))
    samples = [_samples(config, shard, backbone, bench) for shard in shards]
    weights = tuple(common["weights"])
    sites = tuple(
        Hospital(config.site_names[i], i, weights[i], mine, place) for i, mine in zip(indices, samples, strict=True)
    )
    learners = _learners(config, sites, samples, sum(weights), place)
    return Session(config, transport, directory, console, place, task, sites, learners, weights, facts)


def my_sites(config: RunConfig, transport: Transport) -> range:
    """The indices of the sites that this rank plays; a centralised run is rank 0's alone."""
    count = len(config.data.sites)
    if config.mode == "centralised":
        return range(count) if transport.rank == 0 else range(0)
    return placement(count, transport.size, config.federation.aggregator == "dedicated")[transport.rank]


def make_phantoms(config: RunConfig, sites: Sequence[str], console: Console) -> None:
    """Make the shards of these sites that are missing, where the config has them from the built-in cohort."""
    wanted = config.data.phantom
    missing = [name for name in sites if not config.data.shard_path(name).exists()]
    if wanted is None or not missing:
        return
    from data_prep.phantom import Cohort, write_site

    console.say(f"making the built-in cohort of {wanted.images} images ({wanted.image_size} x {wanted.image_size}) ...")
    cohort = Cohort(seed=wanted.seed, images=wanted.images, image_size=wanted.image_size, difficulty=wanted.difficulty)
    for name in missing:
        write_site(cohort, name, config.data.shard_path(name))


def _open_shards(config: RunConfig, indices: Sequence[int]) -> list[Shard]:
    shards, problems = [], []
    for i in indices:
        name = config.site_names[i]
        try:
            shard = Shard.open(config.data.shard_path(name), name, in_memory=config.data.in_memory)
            empty = [split for split in ("val", "test") if not len(shard.indices(split))]
            if empty:
                raise ShardError(
                    f"{config.data.shard_path(name)}: split {' and '.join(empty)} is empty; a run needs it"
                )
            shards.append(shard)
        except ShardError as error:
            problems.append(str(error))
    if problems:
        raise ShardError("\n".join(problems))
    return shards


def _facts(config: RunConfig, shard: Shard, transport: Transport, bench: Bench) -> dict[str, Any]:
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
                f"shards differ in {key}: {first['site']} has {first[key]}, {'; '.join(other)}; remake them alike"
            )
    return {"classes": first["classes"], "image_shape": first["image_shape"], "weights": [f["weight"] for f in facts]}


def _workplace(config: RunConfig, task: Task, backbone: Backbone | None, bench: Bench, console: Console) -> Workplace:
    model = build_model(config, task, backbone).to(bench.device)
    plan = plan_privacy(config) if config.private else None
    return Workplace(config, model, bench, plan, console.step)


def _samples(config: RunConfig, shard: Shard, backbone: Backbone | None, bench: Bench) -> Samples:
    if backbone is None:
        return ImageSamples(shard)
    cache = config.data.shard_path(shard.site).parent
    return FeatureSamples(shard, backbone.to(bench.device), cache)


def _learners(
    config: RunConfig, sites: tuple[Hospital, ...], samples: Sequence[Samples], weight: int, place: Workplace
) -> tuple[Hospital, ...]:
    if config.mode != "centralised" or not sites:
        return sites
    return (Hospital(POOLED, 0, weight, PooledSamples(samples), place),)


def open_ledgers(session: Session) -> None:
    """Read back what the learners have spent in this run; nothing to do without privacy."""
    if session.config.private:
        together(session.transport, lambda: _keep_ledgers(session))


def _keep_ledgers(session: Session) -> None:
    for learner in session.learners:
        learner.keep_ledger(session.directory.ledger(learner.name))
