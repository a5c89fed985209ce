"""The project's own benchmarks (`run.py bench ...`): each gives a ratio to something run beside it.

What a benchmark needs is imported when it runs, so that `run.py --help` stays quick.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fedhpc.errors import InputError


def add_benchmarks(bench: argparse.ArgumentParser) -> None:
    """One sub-verb for each benchmark, each with `--json`."""
    kinds = bench.add_subparsers(required=True, metavar="KIND")
    dp = kinds.add_parser("dp", help="time and memory of a private step: plain SGD, Opacus's modes and ours")
    dp.add_argument("--models", nargs="+", metavar="MODEL", help="default: densenet_small conv4 head")
    dp.add_argument("--ways", nargs="+", metavar="WAY", help="default: all; plain SGD is always among them")
    dp.add_argument("--batch", type=int, default=64, help="images a step")
    dp.add_argument("--image-size", type=int, default=64, help="pixels a side")
    dp.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    dp.add_argument("--threads", type=int, default=1)
    dp.add_argument("--seconds", type=float, default=20, help="how long to time each model")
    dp.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    dp.set_defaults(verb=_dp)
    codec = kinds.add_parser("codec", help="bytes, seconds and memory of selecting and coding an update")
    codec.add_argument("--size", type=int, default=112_500_000, help="entries of the Gaussian update")
    codec.add_argument("--density", type=float, default=0.1)
    codec.add_argument("--value-bits", type=int, choices=(32, 16, 8, 7, 6, 5, 4, 3), default=4)
    codec.add_argument("--threads", type=int, default=1)
    codec.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    codec.set_defaults(verb=_codec)
    wire = kinds.add_parser("wire", help="AUC by density and value bits, less that of dense float32: many whole runs")
    wire.add_argument("config", type=Path)
    wire.add_argument("-o", "--out", type=Path, required=True, help="where the runs are kept; finished ones are reused")
    wire.add_argument("--densities", nargs="+", type=float, default=[1.0, 0.1, 0.01], help="both ways")
    wire.add_argument("--bits", nargs="+", type=int, default=[32, 8, 5, 4, 3], help="of a value")
    wire.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    wire.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config key")
    wire.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    wire.set_defaults(verb=_wire)
    splits = kinds.add_parser("splits", help="AUC over many random splits and draws of the noise, by public reference")
    splits.add_argument("config", type=Path, help="with model.features")
    splits.add_argument("images", type=Path, help="class folders, as for `prepare images`")
    splits.add_argument(
        "-o", "--out", type=Path, required=True, help="where the runs are kept; finished ones are reused"
    )
    splits.add_argument("--splits", type=int, default=20)
    splits.add_argument("--draws", type=int, default=3, help="private runs on each split")
    splits.add_argument("--reference", type=int, default=200, help="public images")
    splits.add_argument("--size", type=int, default=224, help="pixels a side")
    splits.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config key")
    splits.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    splits.set_defaults(verb=_splits)


def _dp(options: argparse.Namespace) -> int:
    from fedhpc.bench import dp

    place = dp.Place(options.device, options.threads, options.batch, options.image_size)
    models, ways = options.models or dp.DEFAULT_MODELS, options.ways or dp.WAYS
    return _print(dp.run(models, ways, place, options.seconds), dp.table, options.json)


def _print(result: dict[str, Any], table: Callable[[dict[str, Any]], str], as_json: bool) -> int:
    print(json.dumps(result, allow_nan=False) if as_json else table(result))
    return 0


def _codec(options: argparse.Namespace) -> int:
    if options.size < 1 or not 0 < options.density <= 1 or options.threads < 1:
        raise InputError(
            f"--size {options.size} --density {options.density} --threads {options.threads}: sizes and threads are at "
            "least 1, densities above 0 and at most 1"
        )
    from fedhpc.bench.codec import Job, bench, report

    return _print(bench(Job(options.size, options.density, options.value_bits, options.threads)), report, options.json)


def _wire(options: argparse.Namespace) -> int:
    from fedhpc.bench import wire

    grid = wire.BenchmarkGrid(options.config, options.set, options.densities, options.bits, options.seeds)
    return _print(wire.run(grid, options.out), wire.text, options.json)


def _splits(options: argparse.Namespace) -> int:
    from fedhpc.bench import splits

    job = splits.Experiment(
        config=options.config,
        images=options.images,
        splits=options.splits,
        draws=options.draws,
        reference=options.reference,
        size=options.size,
        sets=options.set,
    )
    return _print(splits.run(job, options.out), splits.text, options.json)
