"""`run.py bench harmonise CONFIG`: what each chain of `harmonise` does to hospitals and to the model trained on them.

On several built-in cohorts, each with patients, division and noise of its own: how well a classifier tells two
hospitals apart by their images, which share of the features' variance lies between hospitals, and the test AUC of runs
with and without privacy. Test AUC is measured exactly (`evaluation.epsilon: null`): all patients are synthetic.
"""

import contextlib
import io
import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.domain_shift import draw, reference_steps, shift, usual_chains
from data_prep.phantom import Cohort, write_site
from data_prep.phantom.public import write_reference
from fedhpc.api import load_config, train
from fedhpc.bench.accounts import charged_to
from fedhpc.config.harmonise import Chain
from fedhpc.config.schema import RunConfig
from fedhpc.errors import InputError
from fedhpc.models.backbones import NAMES, public_backbone
from fedhpc.util.progress import at_work
from fedhpc.util.text import fitted

REFERENCE, FREQUENCIES = 200, 5
COMPARED = 400
"""Images of each hospital that a classifier tells hospitals apart by."""


@dataclass(frozen=True)
class Experiment:
    """What is run.

    Attributes:
        config: a config with `data.phantom` and a public backbone.
        seeds: of the cohorts and of the noise.
        epsilons: of the runs; None: without privacy.
        sets: overrides for all runs.
    """

    config: Path
    seeds: Sequence[int]
    epsilons: Sequence[float | None]
    sets: Sequence[str]


def run(experiment: Experiment, out: Path) -> dict[str, Any]:
    """Do all runs that are not done yet, and give a row a chain.

    Raises:
        InputError: a config that does not fit, or a run that failed.
    """
    config = load_config(experiment.config, list(experiment.sets))
    if config.data.phantom is None or config.model.backbone not in NAMES:
        raise InputError(
            f"{experiment.config}: `bench harmonise` needs data.phantom and a public backbone ({', '.join(NAMES)}). "
            "Take configs/smoke.yaml",
            code="command-line",
        )
    found: dict[str, list[dict[str, Any]]] = {}
    for seed in experiment.seeds:
        mine = _cohort(config, seed, out)
        for name, chain in _chains(mine, out).items():
            with at_work(f"cohort {seed}, {name}"):
                found.setdefault(name, []).append(_figures(experiment, mine.replace(_harmonise(chain)), name, out))
            print(f"cohort {seed}: {name} done", file=sys.stderr, flush=True)
    rows = [_row(experiment, name, figures) for name, figures in found.items()]
    return {"config": str(experiment.config), "seeds": list(experiment.seeds), "rows": rows}


def _cohort(config: RunConfig, seed: int, out: Path) -> RunConfig:
    """Return the config of one cohort, whose shards are made where they are not there."""
    phantom = config.data.phantom
    assert phantom is not None  # `run` has refused the others
    folder = out / f"cohort{seed}"
    mine = config.replace(
        {
            "seed": seed,
            "data.phantom.seed": phantom.seed + seed,
            "data.shards": f"{folder}/{{site}}.h5",
            "data.public_reference": str(out / "reference.h5"),
            "evaluation.epsilon": None,
            "runtime.threads": 1,
        }
    )
    cohort = Cohort(phantom.seed + seed, phantom.images, phantom.image_size, phantom.difficulty)
    for site in config.site_names:
        if not (folder / f"{site}.h5").exists():
            folder.mkdir(parents=True, exist_ok=True)
            write_site(cohort, site, folder / f"{site}.h5")
    if not (out / "reference.h5").exists():
        write_reference(out / "reference.h5", REFERENCE, phantom.image_size)
    return mine


def _chains(config: RunConfig, out: Path) -> dict[str, Chain]:
    drawn = draw([config.data.shard_path(config.site_names[0])], 1)
    return usual_chains(drawn[0].pixel_range, reference_steps(out / "reference.h5", FREQUENCIES))


def _harmonise(chain: Chain) -> dict[str, Any]:
    return {"harmonise": [step.model_dump(mode="json") for step in chain]}


def _figures(experiment: Experiment, config: RunConfig, name: str, out: Path) -> dict[str, Any]:
    """Return what one chain gives on one cohort; kept, so that a benchmark goes on where it was stopped."""
    key = f"{name.replace(', ', '-').replace(' ', '-')}-{config.digest()[:8]}"
    folder = out / f"cohort{config.seed}" / key
    kept = folder / "shift.json"
    if not kept.exists():
        drawn = draw([config.data.shard_path(site) for site in config.site_names], COMPARED, config.seed)
        one = shift(drawn, config.harmonise, public_backbone(str(config.model.backbone)))
        folder.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps({"site_auc": one.auc, "share": one.share, "ms": one.ms_per_image}))
    figures: dict[str, Any] = json.loads(kept.read_text())
    for epsilon in experiment.epsilons:
        privacy = {"privacy": {"off": True}} if epsilon is None else {"privacy.epsilon": epsilon}
        figures[f"auc {_name(epsilon)}"] = _auc(config.replace(privacy), folder / f"epsilon-{_name(epsilon)}", out)
    return figures


def _auc(config: RunConfig, directory: Path, out: Path) -> float:
    if not (directory / "summary.json").exists():
        with charged_to(out / "accounts"), contextlib.redirect_stdout(io.StringIO()):
            train(config, directory)
    auc: float = json.loads((directory / "summary.json").read_text(encoding="utf-8"))["auc"]
    return auc


def _name(epsilon: float | None) -> str:
    return "none" if epsilon is None else f"{epsilon:g}"


def _row(experiment: Experiment, name: str, figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    columns = ("site_auc", "share", *(f"auc {_name(epsilon)}" for epsilon in experiment.epsilons), "ms")
    values = {column: [one[column] for one in figures if one[column] is not None] for column in columns}
    return {
        "harmonise": name,
        **{column: statistics.fmean(found) if found else None for column, found in values.items()},
        **{f"{column} sd": statistics.stdev(found) for column, found in values.items() if len(found) > 1},
    }


def text(result: Mapping[str, Any]) -> str:
    """For a person: means over cohorts, with the standard deviation of one."""
    rows = result["rows"]
    aucs = [key for key in rows[0] if key.startswith("auc ") and not key.endswith(" sd")]
    head = ("harmonise", "site AUC", "between", *(f"AUC, epsilon {key[4:]}" for key in aucs), "ms")
    return fitted([head, *(_line(row, ("site_auc", "share", *aucs)) for row in rows)])


def _line(row: Mapping[str, Any], columns: Sequence[str]) -> tuple[str, ...]:
    def cell(column: str) -> str:
        spread = row.get(f"{column} sd")
        shown = "-" if row[column] is None else f"{row[column]:.3f}"
        return shown if spread is None else f"{shown} ({spread:.3f})"

    return (row["harmonise"], *map(cell, columns), f"{row['ms']:.2f}")
