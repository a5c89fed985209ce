"""How many threads a rank should compute with: the cores that it may use, shared with the other ranks of its node.

A launcher may bind each rank to cores of its own, or let all ranks of a node use the same; a batch job or a container
may limit the CPU time below what its cores give (cgroup v1 and v2). PyTorch looks at neither.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Cores:
    """What one rank may use (public).

    Attributes:
        host: its node.
        numbers: the cores that it may run on.
        limit: how many cores' time its control group allows, together with all else in that group; None: no limit.
    """

    host: str
    numbers: tuple[int, ...]
    limit: float | None = None


def cores_of_this_process(host: str, cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> Cores:
    """Return what the kernel allows this process."""
    return Cores(host, tuple(sorted(os.sched_getaffinity(0))), _cpu_limit(cgroups, own))


def threads_for(ranks: Sequence[Cores]) -> int:
    """Return the threads of each rank, at least 1: as many as every rank can have without taking another's core.

    A core that several ranks may use is shared equally. A limit is taken to be that of all ranks of the node together.

    >>> node = tuple(range(4))
    >>> threads_for([Cores("a", node)] * 2), threads_for([Cores("a", (0, 1)), Cores("a", (2, 3))])
    (2, 2)
    >>> threads_for([Cores("a", node)] * 8), threads_for([Cores("a", node, limit=2.0)])
    (1, 2)
    """
    return max(1, min(int(_share(rank, [one for one in ranks if one.host == rank.host]) + 1e-9) for rank in ranks))


def _share(rank: Cores, node: Sequence[Cores]) -> float:
    own = sum(1 / sum(core in other.numbers for other in node) for core in rank.numbers)
    return own if rank.limit is None else min(own, rank.limit / len(node))


def node_text(ranks: Sequence[Cores]) -> str:
    """Return what the ranks of the first rank's node share, for the line that a run prints.

    >>> node_text([Cores("a", (0, 1))] * 4), node_text([Cores("a", (0, 1, 2), limit=1.5)])
    ('4 ranks on 2 cores', '1 rank on 3 cores, limited to 1.5')
    """
    node = [one for one in ranks if one.host == ranks[0].host]
    cores, limit = len({core for one in node for core in one.numbers}), node[0].limit
    ends = "" if limit is None or limit >= cores else f", limited to {limit:g}"
    return f"{len(node)} rank{'s'[: len(node) > 1]} on {cores} core{'s'[: cores > 1]}{ends}"


def _cpu_limit(cgroups: Path, own: Path) -> float | None:
    """Return the tightest limit of this process's groups and of all above them."""
    found = []
    for line in _lines(own):
        _, controllers, place = line.split(":", 2)
        below = place.lstrip("/")
        if not controllers:
            found += [_quota(*_words(group / "cpu.max", 2)) for group in _upwards(cgroups / below, cgroups)]
        elif "cpu" in controllers.split(","):
            root = cgroups / "cpu"
            for group in _upwards(root / below, root):
                quota, period = _words(group / "cpu.cfs_quota_us", 1), _words(group / "cpu.cfs_period_us", 1)
                found.append(_quota(*quota, *period))
    return min((one for one in found if one is not None), default=None)


def _upwards(group: Path, root: Path) -> list[Path]:
    """A group and all above it, up to the root; in a container the group's own name may not be there."""
    return [one for one in (group, *group.parents) if one == root or root in one.parents]


def _quota(quota: str = "max", period: str = "") -> float | None:
    """CPU seconds a second; "max" and -1 stand for no limit."""
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _words(path: Path, count: int) -> list[str]:
    return [word for line in _lines(path)[:1] for word in line.split()][:count]


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").splitlines()
    except OSError:
        return []
