"""`run.py bench KIND` of hospitals that differ, lag, lie or share what they earned: whole runs and their AUC."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedhpc.cli.common import Parser, add_json, add_kept_runs, add_set, epsilon_or_none, positive, print_table
from fedhpc.errors import InputError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

LEGACY = (
    "{run} bench legacy configs/legacy_scanner.yaml -o runs/legacy",
    "{run} bench legacy c.yaml -o runs/legacy --seeds 0 --held-out 500",
)
STRESS = (
    "{run} bench stress configs/fedavg.yaml -o runs/stress",
    "{run} bench stress c.yaml -o runs/stress --cases clean sign_flip",
)
CONTRIBUTION = (
    "{run} bench contribution --draws 100",
    "{run} bench contribution --draws 10 --epsilons 4 --json",
)
SCHEDULE = (
    "{run} bench schedule configs/smoke_network.yaml -o runs/slow",
    "{run} bench schedule c.yaml -o runs/slow --site site1 --factor 4",
)
ALGORITHMS = (
    "{run} bench algorithms configs/network.yaml -o runs/a --skew 0.3 1",
    "{run} bench algorithms c.yaml --images images -o runs/a --folds 5",
)


def add_hospitals(kinds: "_SubParsersAction[Parser]") -> None:
    """Add the kinds that compare what helps where hospitals differ."""
    for add in (_add_legacy, _add_stress, _add_contribution, _add_schedule, _add_algorithms):
        add(kinds)


def _add_legacy(kinds: "_SubParsersAction[Parser]") -> None:
    legacy = kinds.add_parser("legacy", help="hospitals alone, with the federation, and personalised: many runs")
    legacy.describe(
        "Train a config on several synthetic cohorts; test every hospital's models on new patients.", LEGACY
    )
    legacy.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml) with personalisation")
    add_kept_runs(legacy)
    legacy.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one cohort for each")
    legacy.add_argument("--held-out", type=positive, default=2000, metavar="N", help="new test images of each site")
    add_set(legacy)
    add_json(legacy)
    legacy.set_defaults(action=_legacy)


def _legacy(options: argparse.Namespace) -> int:
    from fedhpc.bench import legacy

    experiment = legacy.Experiment(options.config, options.seeds, options.held_out, options.set)
    return print_table(legacy.run(experiment, options.out), legacy.text, options.json)


def _add_stress(kinds: "_SubParsersAction[Parser]") -> None:
    stress = kinds.add_parser("stress", help="AUC by corrupted or hostile site and aggregation rule: many whole runs")
    stress.describe("Train a config with each stress case under each aggregation rule, and compare the AUC.", STRESS)
    stress.add_argument("config", type=Path, metavar="CONFIG", help="a config of a federated run (.yaml)")
    add_kept_runs(stress)
    stress.add_argument(
        "--cases",
        nargs="+",
        metavar="CASE",
        help="of stress.case, clean, or late_ before a case of updates: from round 5 on (default: all)",
    )
    stress.add_argument(
        "--rules", nargs="+", metavar="RULE", help="names, or YAML: '{rule: mda, mixing: true}' (default: six)"
    )
    stress.add_argument("--epsilons", nargs="+", default=["none", "1"], metavar="E", help="numbers, or none")
    stress.add_argument("--site", default="site2", metavar="SITE", help="the bad one")
    stress.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help="of the noise, a run for each")
    add_set(stress)
    add_json(stress)
    stress.set_defaults(action=_stress)


def _stress(options: argparse.Namespace) -> int:
    from fedhpc.bench import stress

    matrix = stress.Matrix(
        config=options.config,
        sets=options.set,
        cases=options.cases or stress.CASES,
        rules=options.rules or stress.RULES,
        epsilons=options.epsilons,
        site=options.site,
        seeds=options.seeds,
    )
    return print_table(stress.run(matrix, options.out), stress.text, options.json)


def _add_contribution(kinds: "_SubParsersAction[Parser]") -> None:
    planted = kinds.add_parser("contribution", help="how often hospitals with a known contribution are ranked right")
    planted.describe(
        "Rank planted hospitals (flipped labels, free riders, ...) over many draws of the noise.", CONTRIBUTION
    )
    planted.add_argument("--draws", type=positive, default=100, metavar="N", help="runs of each case")
    planted.add_argument(
        "--epsilons", nargs="+", type=float, default=[8.0, 1.0], metavar="E", help="one run without privacy is added"
    )
    add_json(planted)
    planted.set_defaults(action=_contribution)


def _contribution(options: argparse.Namespace) -> int:
    from fedhpc.bench import planted

    return print_table(planted.study(options.draws, (None, *options.epsilons)), planted.text, options.json)


def _add_schedule(kinds: "_SubParsersAction[Parser]") -> None:
    slow = kinds.add_parser("schedule", help="pace and AUC with a slow hospital, waited or planned for")
    slow.describe("Time and train a config with no slow hospital, and with one, waited or planned for.", SCHEDULE)
    slow.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml) that declares weights")
    add_kept_runs(slow)
    slow.add_argument("--site", default="site3", metavar="SITE", help="which is slow")
    slow.add_argument("--factor", type=float, default=10.0, metavar="X", help="how many times")
    slow.add_argument(
        "--epsilons",
        nargs="+",
        type=epsilon_or_none,
        default=[None, 1.0],
        metavar="E",
        help="or none (default: none 1)",
    )
    slow.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="one run for each")
    add_set(slow)
    add_json(slow)
    slow.set_defaults(action=_schedule)


def _schedule(options: argparse.Namespace) -> int:
    from fedhpc.bench import schedule

    experiment = schedule.Experiment(
        config=options.config,
        sets=options.set,
        site=options.site,
        factor=options.factor,
        epsilons=options.epsilons,
        seeds=options.seeds,
    )
    return print_table(schedule.run(experiment, options.out), schedule.text, options.json)


def _add_algorithms(kinds: "_SubParsersAction[Parser]") -> None:
    algorithms = kinds.add_parser("algorithms", help="federated algorithms on hospitals that differ: many whole runs")
    algorithms.describe("Train by each algorithm on skewed hospitals; AUC, worst site, rounds, MB, time.", ALGORITHMS)
    algorithms.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="configs (.yaml) without privacy")
    add_kept_runs(algorithms)
    algorithms.add_argument(
        "--images", type=Path, metavar="DIR", help="class folders, for configs without data.phantom"
    )
    algorithms.add_argument(
        "--skew", nargs="+", type=float, default=[0.3, 1.0], metavar="A", help="small: classes differ more"
    )
    algorithms.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one run for each")
    algorithms.add_argument("--folds", type=int, default=0, metavar="K", help="K test folds in the place of seeds")
    algorithms.add_argument("--algorithms", nargs="+", metavar="NAME", help="rows; FedAvg is always one (default: all)")
    algorithms.add_argument(
        "--also", nargs="+", action="append", default=[], metavar="NAME KEY=VALUE", help="a row of your own"
    )
    algorithms.add_argument("--first-only", action="store_true", help="one candidate of each algorithm; no choice")
    algorithms.add_argument("--target", type=float, default=0.93, metavar="AUC", help="for rounds and MB")
    add_set(algorithms)
    add_json(algorithms)
    algorithms.set_defaults(action=_algorithms)


def _algorithms(options: argparse.Namespace) -> int:
    from fedhpc.bench import algorithms
    from fedhpc.bench.divided_data import Division

    if min(options.skew) <= 0 or not 0 < options.target < 1 or options.folds == 1 or options.folds < 0:
        raise InputError(
            f"--skew {min(options.skew):g} --target {options.target:g} --folds {options.folds}: skews are above 0, a "
            "target is between 0 and 1, folds are 2 or more",
            code="command-line",
        )
    seeds = range(options.folds) if options.folds else options.seeds
    names = options.algorithms or list(algorithms.CANDIDATES)
    comparison = algorithms.Comparison(
        configs=options.configs,
        images=options.images,
        divisions={skew: [Division(skew, seed, options.folds) for seed in seeds] for skew in options.skew},
        rows=algorithms.rows_of(names, options.also, first_only=options.first_only),
        target=options.target,
        sets=options.set,
    )
    return print_table(algorithms.run(comparison, options.out), algorithms.text, options.json)
