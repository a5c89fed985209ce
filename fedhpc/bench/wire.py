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
    """One way to exchange: density, and number of value bits."""

    density: float
    value_bits: int


DENSE = Cell(1.0, 32)
Run = Mapping[str, Any]


@dataclass(frozen=True)
class BenchmarkGrid:
    """What to run: a config with overrides, at each density, with each number of value bits, from each seed."""

    config: Path
    sets: Sequence[str]
    densities: Sequence[float]
    value_bits: Sequence[int]
    seeds: Sequence[int]

    def cells(self) -> list[Cell]:
        """The dense float32 one first, which the others are compared with."""
        others = (Cell(*cell) for cell in itertools.product(self.densities, self.value_bits))
        return [DENSE, *(cell for cell in others if cell != DENSE)]

    def overrides(self, cell: Cell, seed: int) -> list[str]:
        """What to set for one run; both ways have the same density."""
        density = f"exchange.density={cell.density}"
        own = (density, "exchange.density_down=null", f"exchange.value_bits={cell.value_bits}")
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
    """What one run came to: AUC, and the bytes of its egress logs as shares of dense float32."""
    directory = out / f"density{cell.density:g}-bits{cell.value_bits}-seed{seed}"
    summary = summary_of_run(grid.config, directory, grid.overrides(cell, seed))
    rounds = exchanged(directory)
    dense_bytes = summary["dense_bytes_per_round"] * len(rounds)
    shares = {f"share_{way}": sum(one[f"bytes_{way}"] for one in rounds) / dense_bytes for way in ("up", "down")}
    return {"auc": summary["auc"], **shares}


def _row(cell: Cell, runs: Sequence[Run], dense: Sequence[Run]) -> dict[str, Any]:
    """One cell over its seeds: means, and the paired differences from dense with their standard error."""
    less = [one["auc"] - other["auc"] for one, other in zip(runs, dense, strict=True)]
    error = statistics.stdev(less) / math.sqrt(len(less)) if len(less) > 1 else None
    means = {key: statistics.fmean(one[key] for one in runs) for key in ("auc", "share_up", "share_down")}
    differences = {"less_dense": statistics.fmean(less), "less_dense_error": error, "each_less_dense": less}
    return {"density": cell.density, "value_bits": cell.value_bits, **means, **differences}


def text(result: Mapping[str, Any]) -> str:
    """For a person."""
    head = ("density", "bits", "AUC", "less dense fp32", "of each seed", "bytes up", "down")
    return fitted([head, *(_line(row) for row in result["rows"])])


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    error = row["less_dense_error"]
    less = f"{row['less_dense']:+.4f}" + ("" if error is None else f" ± {error:.4f}")
    each = " ".join(f"{one:+.4f}" for one in row["each_less_dense"])
    shares = (f"{row['share_up']:.2%}", f"{row['share_down']:.2%}")
    return (f"{row['density']:g}", f"{row['value_bits']}", f"{row['auc']:.4f}", less, each, *shares)
