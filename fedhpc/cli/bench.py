"""`run.py bench KIND`: the project's own benchmarks; `--help` lists them."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedhpc.cli.common import Parser, add_json, add_kinds, add_set, positive, print_result
from fedhpc.errors import InputError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

HELP = "the project's own benchmarks, with ratios"
EXAMPLES = ("{run} bench codec --size 1000000", "{run} bench dp --models head --json")
DP = ("{run} bench dp --models densenet_small --seconds 5", "{run} bench dp --ways fedhpc ew --json")
GPU = ("{run} bench gpu --json", "{run} bench gpu --models resnet50 --parts limits steps")
CODEC = ("{run} bench codec --size 1000000", "{run} bench codec --density 0.01 --value-bits 8 --json")
IMPORT = ("{run} bench import -o bench", "{run} bench import -o bench --files 2000 --json")
ROUND = (
    "{run} bench round -o bench --workloads tiny",
    "{run} bench round -o bench --check",
)
HARMONISE = (
    "{run} bench harmonise configs/smoke.yaml -o runs/harmonise",
    "{run} bench harmonise c.yaml -o runs/h --seeds 0 1 --epsilons none",
)
WIRE = (
    "{run} bench wire configs/network.yaml -o runs/wire",
    "{run} bench wire configs/network.yaml -o runs/wire --bits 32 4",
)
SPLITS = (
    "{run} bench splits configs/fedavg.yaml images -o runs/splits",
    "{run} bench splits a.yaml b.yaml images -o runs/splits --splits 3",
)
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

GATHER = (
    "{run} bench gather --sites 4 64 --size 1000000",
    "mpirun -n 2 {run} bench gather --sites 4 16 64 --densities 0.1 --json",
)
SPARSE = ("{run} bench sparse --seeds 0", "{run} bench sparse --seeds 0 1 2 3 4 --json")
SECAGG = (
    "{run} bench secagg --sizes 1000000",
    "{run} bench secagg --sizes 11000000 112500000 --width 3 --json",
)


def add_arguments(parser: Parser) -> None:
    """Add one kind for each benchmark."""
    parser.describe("Measure this program beside something comparable, in the same process or run.", EXAMPLES)
    kinds = add_kinds(parser)
    _add_dp(kinds)
    _add_gpu(kinds)
    _add_codec(kinds)
    _add_import(kinds)
    _add_round(kinds)
    _add_harmonise(kinds)
    _add_wire(kinds)
    _add_splits(kinds)
    _add_legacy(kinds)
    _add_contribution(kinds)
    _add_stress(kinds)
    _add_algorithms(kinds)
    _add_schedule(kinds)
    _add_gather(kinds)
    _add_secagg(kinds)
    _add_sparse(kinds)


def run(options: argparse.Namespace) -> int:
    """Run the benchmark."""
    status: int = options.action(options)
    return status


def _add_dp(kinds: "_SubParsersAction[Parser]") -> None:
    dp = kinds.add_parser("dp", help="time and memory of a private step: plain SGD, Opacus's modes and ours")
    dp.describe("Time and memory of a private training step, as ratios to plain SGD.", DP)
    dp.add_argument("--models", nargs="+", metavar="MODEL", help="(default: densenet_small conv4 head)")
    dp.add_argument("--ways", nargs="+", metavar="WAY", help="plain SGD is always among them (default: all)")
    dp.add_argument("--batch", type=int, default=64, metavar="N", help="images a step")
    dp.add_argument("--image-size", type=int, default=64, metavar="PIXELS", help="pixels a side")
    dp.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where the steps run")
    dp.add_argument("--threads", type=int, default=1, metavar="N", help="of PyTorch")
    dp.add_argument("--seconds", type=float, default=20, metavar="S", help="how long to time each model")
    add_json(dp)
    dp.set_defaults(action=_dp)


def _add_gpu(kinds: "_SubParsersAction[Parser]") -> None:
    gpu = kinds.add_parser("gpu", help="training on a GPU beside a bare loop, Opacus and the arithmetic limit")
    gpu.describe("Samples a second on a device, plain and private, by precision; coder, data, hospitals.", GPU)
    gpu.add_argument("--models", nargs="+", default=["densenet121", "resnet50"], metavar="MODEL", help="shipped ones")
    gpu.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="auto: a GPU where there is one")
    gpu.add_argument("--batch", type=positive, default=64, metavar="N", help="images a step")
    gpu.add_argument("--image-size", type=positive, default=224, metavar="PIXELS", help="pixels a side")
    gpu.add_argument("--steps", type=positive, default=16, metavar="N", help="timed steps of a row")
    gpu.add_argument("--parameters", type=positive, default=112_500_000, metavar="N", help="of the update to encode")
    gpu.add_argument("--hospitals", nargs="+", type=positive, default=[1, 4], metavar="N", help="on the device at once")
    gpu.add_argument("--opacus", nargs="*", default=["hooks", "functorch", "ghost"], metavar="MODE", help="to compare")
    gpu.add_argument(
        "--parts", nargs="+", metavar="PART", help="of limits steps data coder hospitals compile (default: all)"
    )
    gpu.add_argument("--minutes", type=float, default=7.0, metavar="M", help="no row begins later")
    gpu.add_argument("-o", "--out", type=Path, metavar="FILE", help="also write the result there, after every row")
    add_json(gpu)
    gpu.set_defaults(action=_gpu)


def _add_codec(kinds: "_SubParsersAction[Parser]") -> None:
    codec = kinds.add_parser("codec", help="bytes, seconds and memory of selecting and coding an update")
    codec.describe("Select and encode a Gaussian update; bytes beside the entropy, seconds beside top-k alone.", CODEC)
    codec.add_argument("--size", type=int, default=112_500_000, metavar="N", help="entries of the Gaussian update")
    codec.add_argument("--density", type=float, default=0.1, metavar="SHARE", help="share of the entries that is sent")
    codec.add_argument("--value-bits", type=int, choices=(32, 16, 8, 7, 6, 5, 4, 3), default=4, help="of a sent value")
    codec.add_argument("--threads", type=int, default=1, metavar="N", help="of the codec")
    codec.add_argument("--bytes-only", action="store_true", help="encode once, and time nothing")
    add_json(codec)
    codec.set_defaults(action=_codec)


def _add_import(kinds: "_SubParsersAction[Parser]") -> None:
    importing = kinds.add_parser("import", help="CPU time and memory of importing DICOM files, beside bare reading")
    importing.describe("Generate DICOM files, read them by pydicom and numpy alone, and import them.", IMPORT)
    importing.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="for files and shards")
    importing.add_argument("--files", type=positive, default=10_000, metavar="N", help="how many")
    importing.add_argument("--size", type=positive, default=256, metavar="PIXELS", help="pixels a side")
    add_json(importing)
    importing.set_defaults(action=_import)


def _import(options: argparse.Namespace) -> int:
    from fedhpc.bench.importing import ImportBenchmark, bench_text, measure

    found = measure(ImportBenchmark(options.files, options.size, options.out))
    print_result(found, bench_text(found), as_json=options.json)
    return 0


def _add_round(kinds: "_SubParsersAction[Parser]") -> None:
    whole = kinds.add_parser("round", help="whole runs beside plain forked processes: time, CPU time, memory")
    whole.describe("Train the same work as plain processes and as runs, in turn; ratios to the plain ones.", ROUND)
    whole.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="for shards and runs; is made anew")
    whole.add_argument("--workloads", nargs="+", metavar="NAME", help="tiny, small, large (default: small large)")
    whole.add_argument("--ways", nargs="+", metavar="WAY", help="beside the floor (default: plain sparse full private)")
    whole.add_argument("--ranks", nargs="+", type=positive, default=[4], metavar="N", help="processes of a run")
    whole.add_argument("--repeats", type=positive, default=3, metavar="N", help="of everything")
    whole.add_argument("--rounds", type=positive, metavar="N", help="at least 2 (default: the workload's)")
    whole.add_argument("--markdown", action="store_true", help="tables for a page")
    whole.add_argument("--record", action="store_true", help="keep the ratios, for --check")
    whole.add_argument("--check", action="store_true", help="warn where a ratio is above the recorded one beyond noise")
    add_json(whole)
    whole.set_defaults(action=_round)


def _round(options: argparse.Namespace) -> int:
    from fedhpc.bench import round, round_report, round_work

    workloads = options.workloads or ["small", "large"]
    ways = options.ways or ["plain", "sparse", "full", "private"]
    for option, given, known in (("workloads", workloads, round_work.WORKLOADS), ("ways", ways, round_work.WAYS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise InputError(
                f"--{option} {' '.join(unknown)}: there is no such. Give some of: {', '.join(known)}",
                code="command-line",
            )
    recorded = round_report.read_recorded() if options.check else None
    result = round.measure(
        round.Plan(workloads, ways, options.ranks, options.repeats, options.rounds), options.out.resolve()
    )
    if options.record:
        round_report.record(result)
    warnings = [] if recorded is None else round_report.worse(result, recorded)
    shown = round_report.markdown(result) if options.markdown else round_report.text(result)
    told = {**result, "rows": round_report.rows_of(result), "warnings": warnings}
    print_result(told, "\n".join([shown, *(f"warning: {line}" for line in warnings)]), as_json=options.json)
    return 0


def _add_harmonise(kinds: "_SubParsersAction[Parser]") -> None:
    chains = kinds.add_parser("harmonise", help="each chain of steps: hospitals told apart, test AUC: many runs")
    chains.describe(
        "Compare chains of `harmonise` on synthetic cohorts: domain shift, test AUC with and without privacy.",
        HARMONISE,
    )
    chains.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml) with data.phantom")
    chains.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="where runs are kept; finished ones are reused"
    )
    chains.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one cohort for each")
    chains.add_argument(
        "--epsilons", nargs="+", type=_epsilon, default=[None, 1.0], metavar="E", help="or none (default: none 1)"
    )
    add_set(chains)
    add_json(chains)
    chains.set_defaults(action=_harmonise)


def _harmonise(options: argparse.Namespace) -> int:
    from fedhpc.bench import harmonising

    experiment = harmonising.Experiment(options.config, options.seeds, options.epsilons, options.set)
    return _print(harmonising.run(experiment, options.out), harmonising.text, options.json)


def _add_wire(kinds: "_SubParsersAction[Parser]") -> None:
    wire = kinds.add_parser("wire", help="AUC by density and value bits, less that of dense float32: many whole runs")
    wire.describe("Train a config at each density and number of value bits, and compare the AUC.", WIRE)
    wire.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml)")
    wire.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="where runs are kept; finished ones are reused"
    )
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


def _add_splits(kinds: "_SubParsersAction[Parser]") -> None:
    splits = kinds.add_parser("splits", help="AUC over many random splits and draws of the noise, by public reference")
    splits.describe("Train on many random splits of one folder of images, with and without noise.", SPLITS)
    splits.add_argument(
        "configs", type=Path, nargs="+", metavar="CONFIG", help="one or more configs (.yaml) with model.features"
    )
    splits.add_argument("images", type=Path, metavar="IMAGES", help="class folders, as for `prepare images`")
    splits.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="where runs are kept; finished ones are reused"
    )
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


def _add_legacy(kinds: "_SubParsersAction[Parser]") -> None:
    legacy = kinds.add_parser("legacy", help="hospitals alone, with the federation, and personalised: many runs")
    legacy.describe(
        "Train a config on several synthetic cohorts; test every hospital's models on new patients.", LEGACY
    )
    legacy.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml) with personalisation")
    legacy.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="where runs are kept; finished ones are reused"
    )
    legacy.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], metavar="N", help="one cohort for each")
    legacy.add_argument("--held-out", type=positive, default=2000, metavar="N", help="new test images of each site")
    add_set(legacy)
    add_json(legacy)
    legacy.set_defaults(action=_legacy)


def _legacy(options: argparse.Namespace) -> int:
    from fedhpc.bench import legacy

    experiment = legacy.Experiment(options.config, options.seeds, options.held_out, options.set)
    return _print(legacy.run(experiment, options.out), legacy.text, options.json)


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


def _add_schedule(kinds: "_SubParsersAction[Parser]") -> None:
    slow = kinds.add_parser("schedule", help="pace and AUC with a slow hospital, waited or planned for")
    slow.describe("Time and train a config with no slow hospital, and with one, waited or planned for.", SCHEDULE)
    slow.add_argument("config", type=Path, metavar="CONFIG", help="a config (.yaml) that declares weights")
    slow.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="where runs are kept; finished ones are reused"
    )
    slow.add_argument("--site", default="site3", metavar="SITE", help="which is slow")
    slow.add_argument("--factor", type=float, default=10.0, metavar="X", help="how many times")
    slow.add_argument(
        "--epsilons", nargs="+", type=_epsilon, default=[None, 1.0], metavar="E", help="or none (default: none 1)"
    )
    slow.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="N", help="one run for each")
    add_set(slow)
    add_json(slow)
    slow.set_defaults(action=_schedule)


def _epsilon(text: str) -> float | None:
    """Read a number, or none for a run without privacy."""
    return None if text == "none" else float(text)


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
    return _print(schedule.run(experiment, options.out), schedule.text, options.json)


def _contribution(options: argparse.Namespace) -> int:
    from fedhpc.bench import planted

    return _print(planted.study(options.draws, (None, *options.epsilons)), planted.text, options.json)


def _add_stress(kinds: "_SubParsersAction[Parser]") -> None:
    stress = kinds.add_parser("stress", help="AUC by corrupted or hostile site and aggregation rule: many whole runs")
    stress.describe("Train a config with each stress case under each aggregation rule, and compare the AUC.", STRESS)
    stress.add_argument("config", type=Path, metavar="CONFIG", help="a config of a federated run (.yaml)")
    stress.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="where runs are kept; finished ones are reused"
    )
    stress.add_argument("--cases", nargs="+", metavar="CASE", help="of stress.case, or clean (default: all)")
    stress.add_argument(
        "--rules", nargs="+", metavar="RULE", help="names, or YAML: '{rule: mda, mixing: true}' (default: six)"
    )
    stress.add_argument("--epsilons", nargs="+", default=["none", "1"], metavar="E", help="numbers, or none")
    stress.add_argument("--site", default="site2", metavar="SITE", help="the bad one")
    stress.add_argument("--seeds", nargs="+", type=int, default=[1], metavar="N", help="of the noise, a run for each")
    add_set(stress)
    add_json(stress)
    stress.set_defaults(action=_stress)


def _add_algorithms(kinds: "_SubParsersAction[Parser]") -> None:
    algorithms = kinds.add_parser("algorithms", help="federated algorithms on hospitals that differ: many whole runs")
    algorithms.describe("Train by each algorithm on skewed hospitals; AUC, worst site, rounds, MB, time.", ALGORITHMS)
    algorithms.add_argument("configs", type=Path, nargs="+", metavar="CONFIG", help="configs (.yaml) without privacy")
    algorithms.add_argument(
        "-o", "--out", type=Path, required=True, metavar="DIR", help="where runs are kept; finished ones are reused"
    )
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


def _dp(options: argparse.Namespace) -> int:
    from fedhpc.bench import dp

    place = dp.Place(options.device, options.threads, options.batch, options.image_size)
    models, ways = options.models or dp.DEFAULT_MODELS, options.ways or dp.WAYS
    return _print(dp.run(models, ways, place, options.seconds), dp.table, options.json)


def _gpu(options: argparse.Namespace) -> int:
    from fedhpc.bench import gpu

    parts = options.parts or gpu.PARTS
    names = ("models", "device", "batch", "image_size", "steps", "parameters", "hospitals", "opacus", "minutes", "out")
    job = gpu.Job(parts=parts, **{name: getattr(options, name) for name in names})
    return _print(gpu.run(job), gpu.table, options.json)


def _print(result: dict[str, Any], table: Callable[[dict[str, Any]], str], as_json: bool) -> int:
    print_result(result, "" if as_json else table(result), as_json=as_json)
    return 0


def _codec(options: argparse.Namespace) -> int:
    if options.size < 1 or not 0 < options.density <= 1 or options.threads < 1:
        raise InputError(
            f"--size {options.size} --density {options.density} --threads {options.threads}: sizes and threads are at "
            "least 1, densities above 0 and at most 1",
            code="command-line",
        )
    from fedhpc.bench.codec import Job, bench, payload, payload_line, report

    job = Job(options.size, options.density, options.value_bits, options.threads)
    if options.bytes_only:
        return _print(payload(job), payload_line, options.json)
    return _print(bench(job), report, options.json)


def _wire(options: argparse.Namespace) -> int:
    from fedhpc.bench import wire

    ways = (options.densities, options.bits, options.seeds, options.down or (None,), options.warm_up)
    grid = wire.BenchmarkGrid(options.config, options.set, *ways)
    return _print(wire.run(grid, options.out), wire.text, options.json)


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
    return _print(splits.run(job, options.out), splits.text, options.json)


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
    return _print(stress.run(matrix, options.out), stress.text, options.json)


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
    return _print(algorithms.run(comparison, options.out), algorithms.text, options.json)


def _add_gather(kinds: "_SubParsersAction[Parser]") -> None:
    gather = kinds.add_parser("gather", help="rank 0's time and memory a round, by the number of hospitals")
    gather.describe("Gather and fold synthetic updates of many hospitals, alone or under mpirun.", GATHER)
    gather.add_argument("--sites", nargs="+", type=positive, default=[4, 16, 64], metavar="M", help="hospitals")
    gather.add_argument("--densities", nargs="+", type=float, default=[0.1, 0.01], metavar="SHARE", help="both ways")
    gather.add_argument("--size", type=positive, default=28_000_000, metavar="N", help="entries of an update")
    gather.add_argument("--value-bits", type=int, choices=(32, 16, 8, 7, 6, 5, 4, 3), default=4, help="of a value")
    gather.add_argument("--rounds", type=positive, default=2, metavar="N", help="the quickest is reported")
    gather.add_argument("--predict", type=positive, default=1024, metavar="M", help="what the fitted line is asked")
    add_json(gather)
    gather.set_defaults(action=_gather)


def _gather(options: argparse.Namespace) -> int:
    from fedhpc.bench.gather import GatherBenchmark, measure, text
    from fedhpc.transport.mpi import connect

    what = (options.sites, options.densities, options.size, options.value_bits, options.rounds, options.predict)
    found = measure(GatherBenchmark(*what), connect())
    if found:
        print_result(found, text(found), as_json=options.json)
    return 0


def _add_secagg(kinds: "_SubParsersAction[Parser]") -> None:
    secagg = kinds.add_parser("secagg", help="time and memory of a secure sum with one site that drops out")
    secagg.describe("Mask, sum and unmask integer vectors of several sites, of which one drops out.", SECAGG)
    secagg.add_argument("--sizes", nargs="+", type=positive, default=[11_000_000], metavar="N", help="of a vector")
    secagg.add_argument("--sites", type=positive, default=4, metavar="M", help="at least 3")
    secagg.add_argument("--width", type=int, choices=range(1, 9), default=3, metavar="BYTES", help="of an integer")
    secagg.add_argument("--round-s", type=float, metavar="S", help="seconds of a round of training, for the share")
    add_json(secagg)
    secagg.set_defaults(action=_secagg)


def _secagg(options: argparse.Namespace) -> int:
    from fedhpc.bench.secure_sum import SumBenchmark, measure, text

    found = measure(SumBenchmark(options.sizes, options.sites, options.width, options.round_s))
    print_result(found, text(found), as_json=options.json)
    return 0


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
