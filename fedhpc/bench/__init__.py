"""The project's own benchmarks (`run.py bench ...`): each gives a ratio to something run beside it.

What a benchmark needs is imported when it runs, so that `run.py --help` stays quick.
"""

import argparse
import json
from collections.abc import Callable
from typing import Any


def add_benchmarks(bench: argparse.ArgumentParser) -> None:
    """One sub-verb for each benchmark, each with `--json`."""
    kinds = bench.add_subparsers(required=True, metavar="WHAT")
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


def _dp(options: argparse.Namespace) -> int:
    from fedhpc.bench import dp

    place = dp.Place(options.device, options.threads, options.batch, options.image_size)
    models, ways = options.models or dp.DEFAULT_MODELS, options.ways or dp.WAYS
    return _print(dp.run(models, ways, place, options.seconds), dp.table, options.json)


def _print(result: dict[str, Any], table: Callable[[dict[str, Any]], str], as_json: bool) -> int:
    print(json.dumps(result, allow_nan=False) if as_json else table(result))
    return 0
