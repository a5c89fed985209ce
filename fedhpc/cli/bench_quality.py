"""`run.py bench KIND` that trains and measures AUC: of features, images, exchange and privacy."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedhpc.cli.common import (
    Parser,
    add_json,
    add_kept_runs,
    add_set,
    epsilon_or_none,
    positive,
    print_result,
    print_table,
)

if TYPE_CHECKING:
    from argparse import _SubParsersAction

WIRE = (
    "{run} bench wire configs/network.yaml -o runs/wire",
    "{run} bench wire configs/network.yaml -o runs/wire --bits 32 4",
)
SPARSE = ("{run} bench sparse --seeds 0", "{run} bench sparse --seeds 0 1 2 3 4 --json")
SPLITS = (
    "{run} bench splits configs/fedavg.yaml images -o runs/splits",
    "{run} bench splits a.yaml b.yaml images -o runs/splits --splits 3",
)
EARLY = (
    "{run} bench early configs/fedavg.yaml -o runs/early --seeds 0 1 2",
    "{run} bench early c.yaml -o runs/early --seeds 0 --held-out 1000",
)
HARMONISE = (
    "{run} bench harmonise configs/smoke.yaml -o runs/harmonise",
    "{run} bench harmonise c.yaml -o runs/h --seeds 0 1 --epsilons none",
)


def add_quality(kinds: "_SubParsersAction[Parser]") -> None:
    """Add the kinds that train and measure AUC."""
    for add in (_add_wire, _add_sparse, _add_splits, _add_early, _add_harmonise):
        add(kinds)


def _add_wire(kinds: "_SubParsersAction[Parser]") -> None:
    wire = kinds.add_parser("wire", help="AUC by density and value bits, less that of dense float32: many whole runs")
    wire.describe("Train a config at each density and number of value bits, and compare the AUC.", WIRE)
    wire.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml)")
    add_kept_runs(wire)
    wire.add_argument(
        "--densities", nargs="+", type=float, default=[1.0, 0.1, 0.01], metavar="SHARE", help="up, and down too"
    )
    wire.add_argument("--down", nargs="+", type=float, metavar="SHARE", help="densities down (default: as up)")
    wire.add_argument("--warm-up", nargs="+", type=int, default=[0], metavar="N", help="rounds of warm-up")
    wire.add_argument("--bits", nargs="+", type=int, default=[32, 8, 5, 4, 3], metavar="N", help="of a value")
    wire.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one run for each")
    add_set(wire)
    add_json(wire)
    wire.set_defaults(action=_wire)


def _wire(options: argparse.Namespace) -> int:
    from fedhpc.bench import wire

    ways = (options.densities, options.bits, options.seeds, options.down or (None,), options.warm_up)
    grid = wire.BenchmarkGrid(options.config, options.set, *ways)
    return print_table(wire.run(grid, options.out), wire.text, options.json)


def _add_sparse(kinds: "_SubParsersAction[Parser]") -> None:
    sparse = kinds.add_parser("sparse", help="AUC of the first rounds by how much is sent, on a task of seconds")
    sparse.describe("Train a small network in several ways to exchange, at equal rounds.", SPARSE)
    sparse.add_argument("--rounds", type=positive, default=10, metavar="N", help="at least 2; measured half-way too")
    sparse.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one run for each")
    add_json(sparse)
    sparse.set_defaults(action=_sparse)


def _sparse(options: argparse.Namespace) -> int:
    from fedhpc.bench.sparse_rounds import measure, text

    found = measure(options.rounds, options.seeds)
    print_result(found, text(found), as_json=options.json)
    return 0


def _add_splits(kinds: "_SubParsersAction[Parser]") -> None:
    splits = kinds.add_parser("splits", help="AUC over many random splits and draws of the noise, by public reference")
    splits.describe("Train on many random splits of one folder of images, with and without noise.", SPLITS)
    splits.add_argument(
        "configs", type=Path, nargs="+", metavar="CONFIG", help="one or more configs (.yaml) with model.features"
    )
    splits.add_argument("images", type=Path, metavar="IMAGES", help="class folders, as for `prepare images`")
    add_kept_runs(splits)
    splits.add_argument("--splits", type=int, default=20, metavar="N", help="random splits")
    splits.add_argument("--draws", type=int, default=3, metavar="N", help="private runs on each split")
    splits.add_argument("--reference", type=int, default=200, metavar="N", help="public images")
    splits.add_argument("--size", type=int, default=224, metavar="PIXELS", help="pixels a side")
    splits.add_argument(
        "--epsilons", type=float, nargs="+", default=[], metavar="E", help="in the place of each config's own"
    )
    add_set(splits)
    add_json(splits)
    splits.set_defaults(action=_splits)


def _splits(options: argparse.Namespace) -> int:
    from fedhpc.bench import splits

    job = splits.Experiment(
        configs=options.configs,
        images=options.images,
        splits=options.splits,
        draws=options.draws,
        reference=options.reference,
        size=options.size,
        epsilons=options.epsilons,
        sets=options.set,
    )
    return print_table(splits.run(job, options.out), splits.text, options.json)


def _add_early(kinds: "_SubParsersAction[Parser]") -> None:
    early = kinds.add_parser("early", help="early-stage sensitivity against centralised, on new patients: several runs")
    early.describe(
        "Train a config federated and centralised; compare both on new synthetic patients, paired by patient.", EARLY
    )
    early.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml) of federated runs")
    add_kept_runs(early)
    early.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one run of each kind each")
    early.add_argument("--held-out", type=positive, default=8000, metavar="N", help="new images, of all sites together")
    early.add_argument(
        "--centralised", nargs="+", default=[], metavar="KEY=VALUE", help="further keys of the centralised runs"
    )
    add_set(early)
    add_json(early)
    early.set_defaults(action=_early)


def _early(options: argparse.Namespace) -> int:
    from fedhpc.bench import early

    experiment = early.Experiment(options.config, options.set, options.centralised, options.seeds, options.held_out)
    return print_table(early.run(experiment, options.out), early.text, options.json)


def _add_harmonise(kinds: "_SubParsersAction[Parser]") -> None:
    chains = kinds.add_parser("harmonise", help="each chain of steps: hospitals told apart, test AUC: many runs")
    chains.describe(
        "Compare chains of `harmonise` on synthetic cohorts: domain shift, test AUC with and without privacy.",
        HARMONISE,
    )
    chains.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml) with data.phantom")
    add_kept_runs(chains)
    chains.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one cohort for each")
    chains.add_argument(
        "--epsilons",
        nargs="+",
        type=epsilon_or_none,
        default=[None, 1.0],
        metavar="E",
        help="or none (default: none 1)",
    )
    add_set(chains)
    add_json(chains)
    chains.set_defaults(action=_harmonise)


def _harmonise(options: argparse.Namespace) -> int:
    from fedhpc.bench import harmonising

    experiment = harmonising.Experiment(options.config, options.seeds, options.epsilons, options.set)
    return print_table(harmonising.run(experiment, options.out), harmonising.text, options.json)
