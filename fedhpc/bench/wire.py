"""`run.py bench wire CONFIG`: what exchanging less costs in AUC, for each density and number of value bits.

Every cell is a whole run of the config for every seed, in a process of its own, just as `run.py train` does it. Cells
are compared with the dense float32 run of the same seed, so what the seed changes in both drops out. A run that is
finished in the output folder is not done again, and one that was broken off goes on.
"""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fedhpc.bench.one_run import summary_of_run
from fedhpc.config.loader import load_config
from fedhpc.report.egress import exchanged
from fedhpc.util.text import fitted


class Cell(NamedTuple):
    """One way to exchange: density up, number of value bits, density down (None: as up), rounds of warm-up."""

    density: float
    value_bits: int
    density_down: float | None = None
    warm_up_rounds: int = 0

    @property
    def name(self) -> str:
        """As in the names of folders."""
        down = "" if self.density_down is None else f"-down{self.density_down:g}"
        return f"density{self.density:g}{down}-bits{self.value_bits}" + (
            f"-warm{self.warm_up_rounds}" if self.warm_up_rounds else ""
        )


DENSE = Cell(1.0, 32)
Run = Mapping[str, Any]


@dataclass(frozen=True)
class BenchmarkGrid:
    """What to run: a config with overrides, in each way to exchange, from each seed."""

    config: Path
    sets: Sequence[str]
    densities: Sequence[float]
    value_bits: Sequence[int]
    seeds: Sequence[int]
    densities_down: Sequence[float | None] = (None,)
    warm_ups: Sequence[int] = (0,)

    def cells(self) -> list[Cell]:
        """The dense float32 one first, which the others are compared with."""
        ways = itertools.product(self.densities, self.value_bits, self.densities_down, self.warm_ups)
        others = (Cell(*way) for way in ways)
        return [DENSE, *(cell for cell in others if cell != DENSE)]

    def overrides(self, cell: Cell, seed: int) -> list[str]:
        """Return what to set for one run."""
        down = "null" if cell.density_down is None else cell.density_down
        own = (
            f"exchange.density={cell.density}",
            f"exchange.density_down={down}",
            f"exchange.value_bits={cell.value_bits}",
            f"exchange.warm_up_rounds={cell.warm_up_rounds}",
        )
        return [*self.sets, *own, f"seed={seed}"]


def run(grid: BenchmarkGrid, out: Path) -> dict[str, Any]:
    """Do all runs that are not done, and give a row a cell.

    Raises:
        InputError: a config that cannot be, before the first run; or a run that failed.
    """
    for cell, seed in itertools.product(grid.cells(), grid.seeds):
        load_config(grid.config, grid.overrides(cell, seed))
    found = {}
    for seed, cell in itertools.product(grid.seeds, grid.cells()):
        found[cell, seed] = _trained(grid, cell, seed, out)
    dense = [found[DENSE, seed] for seed in grid.seeds]
    rows = [_row(cell, [found[cell, seed] for seed in grid.seeds], dense) for cell in grid.cells()]
    return {"config": str(grid.config), "set": list(grid.sets), "seeds": list(grid.seeds), "rows": rows}


def _trained(grid: BenchmarkGrid, cell: Cell, seed: int, out: Path) -> dict[str, Any]:
    """Return what one run came to: AUC, and the bytes of its egress logs as shares of dense float32."""
    directory = out / f"{cell.name}-seed{seed}"
    summary = summary_of_run(grid.config, directory, grid.overrides(cell, seed))
    rounds = exchanged(directory)
    dense_bytes = summary["dense_bytes_per_round"] * len(rounds)
    shares = {f"share_{way}": sum(one[f"bytes_{way}"] for one in rounds) / dense_bytes for way in ("up", "down")}
    most = max(one[f"bytes_{way}"] for one in rounds for way in ("up", "down")) / summary["dense_bytes_per_round"]
    return {"auc": summary["auc"], **shares, "share_most": most}


def _row(cell: Cell, runs: Sequence[Run], dense: Sequence[Run]) -> dict[str, Any]:
    """One cell over its seeds: means, and the paired differences from dense with their standard error."""
    less = [one["auc"] - other["auc"] for one, other in zip(runs, dense, strict=True)]
    error = statistics.stdev(less) / math.sqrt(len(less)) if len(less) > 1 else None
    means = {key: statistics.fmean(one[key] for one in runs) for key in ("auc", "share_up", "share_down", "share_most")}
    differences = {"less_dense": statistics.fmean(less), "less_dense_error": error, "each_less_dense": less}
    return {**cell._asdict(), **means, **differences}


def text(result: Mapping[str, Any]) -> str:
    """For a person."""
    head = ("density", "down", "warm", "bits", "AUC", "less dense fp32", "of each seed", "bytes up", "down", "most")
    return fitted([head, *(_line(row) for row in result["rows"])])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    error = row["less_dense_error"]
    less = f"{row['less_dense']:+.4f}" + ("" if error is None else f" ± {error:.4f}")
    each = " ".join(f"{one:+.4f}" for one in row["each_less_dense"])
    shares = [f"{row[key]:.2%}" for key in ("share_up", "share_down", "share_most")]
    down = row["density"] if row["density_down"] is None else row["density_down"]
    way = (f"{row['density']:g}", f"{down:g}", f"{row['warm_up_rounds']}", f"{row['value_bits']}")
    return (*way, f"{row['auc']:.4f}", less, each, *shares)
