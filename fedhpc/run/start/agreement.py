"""What ranks agree on first: the config and the run directory."""

import json
import logging
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from fedhpc.config.loader import load_config, pinned
from fedhpc.config.schema import RunConfig
from fedhpc.errors import ConfigError, InputError
from fedhpc.records.run_directory import RunDirectory
from fedhpc.transport.base import Transport
from fedhpc.transport.collectives import broadcast_json, run_on_all_ranks
from fedhpc.transport.messages import parsed
from fedhpc.util.cores import Cores, cores_of_this_process, threads_for
from fedhpc.util.text import WIDTH, as_written

LOG = logging.getLogger(__name__)

T = TypeVar("T")
CORES = TypeAdapter(Cores)
FREE: Any = {"data": {"sites": {"__all__": {"node"}}}, "runtime": {"patience_s"}, "faults": True, "tracking": True}
"""A hospital may have moved to another node since, or be missing. Each round records which sites it is made of."""
CHOOSERS = {"aggregation.": "rule", "server.": "optimizer", "algorithm.": "name"}
"""Sections of several kinds, and the key that says of which kind one is; each kind has keys of its own."""


@dataclass(frozen=True)
class Source:
    """What a run is started from: a config or its file with overrides, and where it is kept (None: runs/<name>)."""

    config: Path | RunConfig
    overrides: list[str]
    run_dir: Path | None
    take_over: bool = False

    def load(self) -> RunConfig:
        """Return the config, with the digest of the source of its model.

        Raises:
            ConfigError: with every problem of the file.
            InputError: the run directory holds rounds of this config, which only earlier versions allowed.
        """
        if isinstance(self.config, RunConfig):
            return pinned(self.config)
        try:
            return load_config(self.config, self.overrides)
        except ConfigError as error:
            begun = self._begun_before(self.config)
            if begun is None:
                raise
            raise InputError(
                f"{error}\n{begun}: its rounds were made by an earlier version, which allowed that; this one does not "
                "go on with them. `report`, `predict`, `evaluate` and `audit` read the run as it is; to train, correct "
                "the config and start in a new --run-dir",
                code="resume.config-refused",
            ) from None

    def _begun_before(self, path: Path) -> Path | None:
        """Return the run directory that holds rounds of a config which is now refused; None where there is none."""
        try:
            config = load_config(path, self.overrides, recorded=True)
        except ConfigError:
            return None
        directory = self.directory(config)
        return directory.path if directory.has_rounds() else None

    def directory(self, config: RunConfig) -> RunDirectory:
        """Return where the run of the loaded config is kept."""
        return RunDirectory(self.run_dir or Path("runs") / config.name)


def join_timeout_s(source: Source) -> float | None:
    """Return how long to wait for ranks before the first round; None: for ever, or the config cannot be read."""
    try:
        return source.load().faults.join_timeout_s
    except InputError:
        return None


def check_start(transport: Transport, source: Source) -> None:
    """Check config and number of ranks at every rank, before anything that takes seconds is imported.

    Raises:
        InputError: at every rank, with the problems of all.
    """
    run_on_all_ranks(transport, lambda: check_ranks(source.load(), transport.size))


def gathered_cores(transport: Transport) -> list[Cores]:
    """Return what every rank may use of its node's cores, in rank order, at rank 0; an empty list elsewhere.

    Raises:
        PayloadError: a rank's message is none of that.
    """
    mine = json.dumps(asdict(cores_of_this_process(socket.gethostname()))).encode()
    payloads = transport.gather([mine], "control")
    return [parsed(payload, CORES, f"rank {rank}, control") for rank, payload in enumerate(payloads)]


def agree_on_config(transport: Transport, source: Source, cores: Sequence[Cores]) -> tuple[RunConfig, RunDirectory]:
    """Load at every rank, lock the run directory and settle threads at rank 0. Nothing but the lock is written yet.

    The caller releases `RunDirectory.lock`. `cores` are from `gathered_cores`.

    Raises:
        InputError: bad config, too many ranks, a run directory that is in use or of another config, or a rank that
            read another config than rank 0: a hospital runs under the terms that it has read itself.
    """
    config = run_on_all_ranks(transport, lambda: source.load())
    directory = source.directory(config)
    try:
        plain = broadcast_json(
            transport, lambda: _settled(config, directory, cores, source.take_over).model_dump(mode="json")
        )
        agreed = RunConfig.model_validate(plain)
        run_on_all_ranks(transport, lambda: _refuse_other(config, agreed, transport.rank))
        # Each rank executes the source that it has read itself.
        agreed = agreed.model_copy(update={"model": config.model})
    except BaseException:
        directory.lock.release()
        raise
    return agreed, directory


def _refuse_other(own: RunConfig, agreed: RunConfig, rank: int) -> None:
    there, here = (one.identity(exclude=_settled_by_rank_0(own)) for one in (agreed, own))
    changed = _differences(there, here)
    if changed:
        raise InputError(
            f"rank {rank} has read another config than rank 0: {', '.join(changed)}; give all ranks the same file",
            code="config.ranks-differ",
        )


def _settled_by_rank_0(own: RunConfig) -> dict[str, Any]:
    """Return what of the config stands for something that rank 0 settles."""
    planned = {"schedule": {"efforts"}} if own.schedule.efforts is None else {}
    return {"runtime": {"threads"}, **planned}


def _settled(config: RunConfig, directory: RunDirectory, cores: Sequence[Cores], take_over: bool) -> RunConfig:
    check_ranks(config, len(cores))
    note = directory.lock.acquire(take_over=take_over)
    if note:
        LOG.warning("%s: %s", directory.path, note)
    directory.refuse_links()
    if not directory.has_rounds():
        return resolved(config, cores)
    earlier = directory.read_config()
    if earlier is None:
        raise InputError(
            f"{directory.config}: is missing, and {directory.path} holds rounds of a run: under which config they were "
            "made is not known. Restore it from a backup, or start in a new --run-dir",
            code="resume.config-missing",
        )
    if config.runtime.threads == "auto":
        config = config.replace({"runtime.threads": earlier.runtime.threads})
    if config.schedule.policy == "plan" and config.schedule.efforts is None and earlier.schedule.policy == "plan":
        efforts = earlier.schedule.efforts
        config = config.replace({"schedule.efforts": None if efforts is None else dict(efforts)})
    _refuse_changes(config, earlier, directory)
    return config


def _refuse_changes(config: RunConfig, earlier: RunConfig, directory: RunDirectory) -> None:
    """A run goes on under its own config; a finished one also with more rounds or, for them, a larger epsilon."""
    there, here = (one.identity(exclude=FREE) for one in (earlier, config))
    changed = _differences(there, here)
    longer = [_difference(key, a, b) for key, a, b in _growth(earlier, config) if a != b]
    grows = all(b >= a for _, a, b in _growth(earlier, config))
    if directory.summary.exists() and grows:
        changed = [text for text in changed if text not in longer]
    if changed:
        raise InputError(
            f"{directory.path}: holds a run of another config; different:{_listed(changed)}Go on with its own "
            "config, or start in a new --run-dir. Of a finished run, training.rounds may grow, and privacy.epsilon",
            code="resume.other-config",
        )


def _growth(earlier: RunConfig, config: RunConfig) -> list[tuple[str, float, float]]:
    """(key, before, now) of what may grow when a finished run is continued."""
    found: list[tuple[str, float, float]] = [("training.rounds", earlier.training.rounds, config.training.rounds)]
    if earlier.privacy.epsilon is not None and config.privacy.epsilon is not None:
        found.append(("privacy.epsilon", earlier.privacy.epsilon, config.privacy.epsilon))
    return found


def resolved(config: RunConfig, cores: Sequence[Cores]) -> RunConfig:
    """`config` with `runtime.threads` as a number, by what every rank may use of its node's cores.

    The bits of a CPU result depend on the number of threads, so the number belongs to the config of a run.
    """
    if config.runtime.threads != "auto":
        return config
    return config.replace({"runtime.threads": threads_for(cores)})


def check_ranks(config: RunConfig, ranks: int) -> None:
    """Raises InputError where there are more ranks than hospitals to play, or too few to keep time for each."""
    dedicated = config.federation.aggregator_rank == "dedicated"
    present = len(config.data.sites) - len(set(config.faults.absent))
    most = present + dedicated
    if config.mode != "centralised" and ranks > most:
        raise InputError(
            f"{ranks} ranks for {present} sites: use at most {most} (mpirun -n {most}, --ntasks={most})",
            code="ranks.too-many",
        )
    if config.schedule.policy == "deadline" and config.schedule.replay is None and ranks < most:
        raise InputError(
            f"schedule.policy=deadline: {ranks} rank(s) for {present} sites: a rank that plays several cannot keep "
            f"time for each; start a rank for each site (mpirun -n {most}, --ntasks={most}), or set schedule.replay",
            code="ranks.too-few",
        )


def _differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return what differs, a text a key; of a section that is of another kind now, only keys that both kinds have."""
    chooser = CHOOSERS.get(prefix)
    is_other_kind = chooser is not None and old.get(chooser) != new.get(chooser)
    found = []
    for key in sorted({*old} & {*new} if is_other_kind else {*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += _differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(_difference(f"{prefix}{key}", a, b))
    return found


def _difference(key: str, there: object, here: object) -> str:
    return f"{key} ({as_written(there)} there, {as_written(here)} here)"


def _listed(differences: Sequence[str]) -> str:
    """In the sentence where they are short; else each on a line of its own."""
    if sum(map(len, differences)) < WIDTH:
        return f" {', '.join(differences)}. "
    return "".join(f"\n  {one}" for one in differences) + "\n"
