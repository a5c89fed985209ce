"""`run.py bench KIND` that measures time, memory or bytes."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fedhpc.cli.common import Parser, add_json, add_output_file, positive, print_result, print_table
from fedhpc.errors import InputError

if TYPE_CHECKING:
    from argparse import _SubParsersAction

DP = ("{run} bench dp --models densenet_small --seconds 5", "{run} bench dp --ways fedhpc ew --json")
GPU = ("{run} bench gpu --json", "{run} bench gpu --models resnet50 --parts limits steps")
CODEC = ("{run} bench codec --size 1000000", "{run} bench codec --density 0.01 --value-bits 8 --json")
IMPORT = ("{run} bench import -o bench", "{run} bench import -o bench --files 2000 --json")
ROUND = (
    "{run} bench round -o bench --workloads tiny",
    "{run} bench round -o bench --check",
)
GATHER = (
    "{run} bench gather --sites 4 64 --size 1000000",
    "mpirun -n 2 {run} bench gather --sites 4 16 64 --densities 0.1 --json",
)
SECAGG = (
    "{run} bench secagg --sizes 7000000 --threads 1 2 --repeats 5",
    "{run} bench secagg --sizes 11000000 112500000 --width 3 --json",
)


def add_speed(kinds: "_SubParsersAction[Parser]") -> None:
    """Add the kinds that measure time, memory or bytes."""
    for add in (_add_dp, _add_gpu, _add_codec, _add_import, _add_round, _add_gather, _add_secagg):
        add(kinds)


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


def _dp(options: argparse.Namespace) -> int:
    from fedhpc.bench import dp
    from fedhpc.bench.dp_steps import Place

    place = Place(options.device, options.threads, options.batch, options.image_size)
    models, ways = options.models or dp.DEFAULT_MODELS, options.ways or dp.WAYS
    return print_table(dp.run(models, ways, place, options.seconds), dp.table, options.json)


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
    also = "also write the result there (.json), after every row"
    add_output_file(gpu, "-o", "--out", suffix=".json", text=also, metavar="FILE")
    add_json(gpu)
    gpu.set_defaults(action=_gpu)


def _gpu(options: argparse.Namespace) -> int:
    from fedhpc.bench import gpu

    parts = options.parts or gpu.PARTS
    names = ("models", "device", "batch", "image_size", "steps", "parameters", "hospitals", "opacus", "minutes", "out")
    job = gpu.Job(parts=parts, **{name: getattr(options, name) for name in names})
    return print_table(gpu.run(job), gpu.table, options.json)


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
        return print_table(payload(job), payload_line, options.json)
    return print_table(bench(job), report, options.json)


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
    whole.describe("Train the same work as plain processes and as runs that take turns, a round each; ratios.", ROUND)
    whole.add_argument("-o", "--out", type=Path, required=True, metavar="DIR", help="for shards and runs; is made anew")
    whole.add_argument("--workloads", nargs="+", metavar="NAME", help="tiny, small, large (default: small large)")
    whole.add_argument("--ways", nargs="+", metavar="WAY", help="beside the floor (default: plain sparse full private)")
    whole.add_argument("--ranks", nargs="+", type=positive, default=[4], metavar="N", help="processes of a run")
    whole.add_argument("--repeats", type=positive, default=3, metavar="N", help="of everything")
    whole.add_argument("--rounds", type=positive, metavar="N", help="at least 2 (default: the workload's)")
    whole.add_argument("--parts", nargs="+", choices=("rounds", "memory"), help="what is measured (default: both)")
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
    parts = options.parts or round.PARTS
    plan = round.Plan(workloads, ways, options.ranks, options.repeats, options.rounds, parts)
    result = round.measure(plan, options.out.resolve())
    if options.record:
        round_report.record(result)
    warnings = [] if recorded is None else round_report.worse(result, recorded)
    shown = round_report.markdown(result) if options.markdown else round_report.text(result)
    told = {**result, "rows": round_report.rows_of(result), "warnings": warnings}
    print_result(told, "\n".join([shown, *(f"warning: {line}" for line in warnings)]), as_json=options.json)
    return 0


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
    secagg.add_argument("--threads", nargs="+", type=positive, default=[1], metavar="N", help="of each, a row each")
    secagg.add_argument("--sites", type=positive, default=4, metavar="M", help="at least 3")
    secagg.add_argument("--width", type=int, choices=range(1, 9), default=3, metavar="BYTES", help="of an integer")
    secagg.add_argument("--repeats", type=positive, default=1, metavar="N", help="the least seconds are reported")
    secagg.add_argument("--round-s", type=float, metavar="S", help="seconds of a round of training, for the share")
    add_json(secagg)
    secagg.set_defaults(action=_secagg)


def _secagg(options: argparse.Namespace) -> int:
    from fedhpc.bench.secure_sum import SumBenchmark, measure, text

    what = (options.sizes, options.threads, options.sites, options.width, options.repeats, options.round_s)
    found = measure(SumBenchmark(*what))
    print_result(found, text(found), as_json=options.json)
    return 0
