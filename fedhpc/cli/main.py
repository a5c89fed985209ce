"""The commands of `run.py`. Exit statuses: see STATUSES."""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedhpc.bench import add_benchmarks
from fedhpc.cli.budget import add_budget
from fedhpc.cli.pki import add_egress, add_pki
from fedhpc.cli.preflight import add_preflight
from fedhpc.cli.sweep import add_report, add_sweep
from fedhpc.errors import FileError, InputError, Stopped, inside
from fedhpc.run.preemption import StopRequest
from fedhpc.util.files import write_text
from fedhpc.util.output import stop_printing
from fedhpc.util.startup import Startup

FINISHED, FAILED, BAD_INPUT, RESUMABLE, INTERRUPTED = 0, 1, 2, 75, 130
STATUSES = """exit status:
  0    finished, or ended by the privacy budget
  1    failed; the message names the site, the rank and the cause
  2    bad input: nothing was lost; correct what the message names
  75   stopped early and saved: by --stop-after, SIGUSR1, or SIGTERM during the
       rounds; the same command goes on
  130  Ctrl-C: the rounds that were finished are kept, the same command goes on
  143  SIGTERM before the first round
mpirun and srun may report another status than their ranks: 1 or 143 for 75 and
130, and mpirun 0 for a failed run where a daemon was lost or under --with-ft
ulfm. `train --status FILE` writes the run's own; believe that one.
FEDHPC_WAIT_NOTICE_S (default 60): after so many seconds rank 0 says on stderr
which rank it is waiting for.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run the verb, return the exit status."""
    options = _parsed(arguments)
    try:
        _clear_status(options)
        status: int = options.verb(options)
    except InputError as error:
        if _speaks():
            # What a hospital runs by itself may tell it everything; the console of a run is rank 0's.
            said = str(error) if getattr(options, "shared", False) else inside(error)
            print(f"error: {said}", file=sys.stderr)
        status = BAD_INPUT
    except (KeyboardInterrupt, Stopped) as stop:
        status = stopped_by(stop)
    except BrokenPipeError:
        # Whoever read the output (`| head`) has seen enough; what a verb makes is in files.
        stop_printing()
        status = FINISHED
    if getattr(options, "status", None) and (_speaks() or status == FAILED):
        # Launchers lose it: as the first rank ends with 75, srun ends the others and says 143.
        _write_status(options.status, status)
    return status


def _clear_status(options: argparse.Namespace) -> None:
    """Remove the status that an earlier run wrote: a run that is killed must not seem to have ended as that one did."""
    path: Path | None = getattr(options, "status", None)
    if path is None or not _speaks():
        return
    if not path.parent.is_dir() or not os.access(path.parent, os.W_OK) or path.is_dir():
        options.status = None
        raise InputError(f"--status {path}: cannot be written there. Give a file in a folder that you may write to")
    path.unlink(missing_ok=True)


def _write_status(path: Path, status: int) -> None:
    try:
        write_text(path, f"{status}\n")
    except FileError as error:
        print(f"WARNING: --status: {error}", file=sys.stderr)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options; argparse gives up an optional directory that comes after an option, so it is put in place here."""
    top = parser()
    options, rest = top.parse_known_args(arguments)
    if len(rest) == 1 and not rest[0].startswith("-") and getattr(options, "directory", ...) is None:
        options.directory = Path(rest[0])
    elif rest:
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    return options


def _speaks() -> bool:
    """Whether this process prints the message that all ranks share: rank 0, or the only one."""
    # Not what a launcher has put into the environment: a plain Python inside an allocation inherits that.
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is None or not mpi.Is_initialized() or mpi.Is_finalized():
        return True
    return bool(mpi.COMM_WORLD.Get_rank() == 0)


def stopped_by(stop: BaseException) -> int:
    """Say in one line what has ended this process; return its exit status."""
    status, said = INTERRUPTED, "stopped by Ctrl-C; what was finished is kept, and the same command goes on from there"
    if isinstance(stop, Stopped):
        status, said = stop.status, str(stop)
    if _speaks():
        print(said, file=sys.stderr, flush=True)
    return status


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="run.py",
        description="Federated learning for diagnostic imaging as a batch job.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = top.add_subparsers(required=True, metavar="VERB")
    _add_prepare(verbs.add_parser("prepare", help="write shards, or check them"))
    train = verbs.add_parser("train", help="train as the config says; under mpirun or srun, one hospital a rank")
    train.add_argument("config", type=Path)
    train.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config key")
    train.add_argument("--run-dir", type=Path, help="default: runs/<name>")
    train.add_argument("--stop-after", type=_positive, metavar="N", help="stop after N more rounds with exit status 75")
    train.add_argument(
        "--init-from", type=Path, metavar="RUN", help="start from a finished run's model: sets model.init_from"
    )
    train.add_argument(
        "--take-over", action="store_true", help="use a run directory that a failed node has left locked"
    )
    train.add_argument("--status", type=Path, metavar="FILE", help="write the exit status there, too")
    train.set_defaults(verb=_train, shared=True)
    add_preflight(verbs.add_parser("preflight", help="the checks of every run alone; --report: what to send for help"))
    world = verbs.add_parser("world", help="how many ranks MPI sees, from each of them: does this launcher fit it?")
    world.set_defaults(verb=_world)
    evaluate = verbs.add_parser("evaluate", help="a finished model on a shard that it never saw")
    evaluate.add_argument("run", type=Path, help="a run directory, or a model.pt")
    evaluate.add_argument("--shard", type=Path, required=True)
    evaluate.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    evaluate.set_defaults(verb=_evaluate)
    privacy = verbs.add_parser("privacy", help="what configs will cost, what a run or a shard's patients have spent")
    privacy.add_argument("targets", type=Path, nargs="+", metavar="CONFIG|RUN|SHARD", help="several: configs only")
    privacy.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a config key")
    privacy.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    privacy.set_defaults(verb=_privacy)
    add_budget(verbs.add_parser("budget", help="the hospital's own cap on what its patients spend over all runs"))
    add_pki(verbs.add_parser("pki", help="the certificates of the hospitals and of rank 0"))
    add_egress(verbs.add_parser("egress", help="what left each hospital in a run, and why no image is among it"))
    _add_audit(verbs.add_parser("audit", help="attack what a site has sent, and see that broken privacy is noticed"))
    add_sweep(verbs.add_parser("sweep", help="many configs as one SLURM array, or a few at a time on this machine"))
    add_report(verbs.add_parser("report", help="one page about a sweep, or about several runs"))
    add_benchmarks(verbs.add_parser("bench", help="the project's own benchmarks, with ratios"))
    return top


def _add_audit(audit: argparse.ArgumentParser) -> None:
    audit.add_argument("target", type=Path, metavar="RUN|CONFIG", help="a run directory, or a config")
    audit.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of a config")
    audit.add_argument("--site", metavar="NAME", help="default: the config's first")
    audit.add_argument("--quick", action="store_true", help="fewer trials, shorter training: about a minute")
    audit.add_argument("--seed", type=int, default=0, help="of coins and searches; noise is the system's")
    audit.add_argument(
        "--no-real-patients", action="store_true", help="canaries alone; default: also patients, at the site's expense"
    )
    audit.add_argument("--out", type=Path, metavar="DIR", help="default: RUN/audit, pictures in RUN/sites/NAME/audit")
    audit.add_argument("--json", action="store_true", help="one JSON object and nothing else")
    audit.set_defaults(verb=_audit)


def _add_prepare(prepare: argparse.ArgumentParser) -> None:
    kinds = prepare.add_subparsers(required=True, metavar="KIND")
    phantom = kinds.add_parser("phantom", help="the built-in cohort of four hospitals")
    phantom.add_argument("-o", "--out", type=Path, required=True)
    phantom.add_argument("--images", type=int, default=8000)
    phantom.add_argument("--size", type=int, default=64, help="pixels a side")
    phantom.add_argument("--seed", type=int, default=0)
    phantom.add_argument("--difficulty", type=float, help="0 easy to 1 impossible; default: as the study's")
    phantom.set_defaults(verb=_prepare_phantom)
    _add_prepare_images(kinds)
    check = kinds.add_parser("check", help="what is in each shard, and whether it can be used")
    check.add_argument("shards", type=Path, nargs="+")
    check.add_argument("--png", type=Path, help="write a contact sheet")
    check.set_defaults(verb=_prepare_check)


def _add_prepare_images(kinds: Any) -> None:
    images = kinds.add_parser(
        "images",
        help="class folders of images, one shard a hospital",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Import a folder that holds one folder of images per class. Prints what was\n"
        "found, taken and left out and why, writes one shard a hospital and\n"
        "OUT/train.yaml, a config to begin with.",
        epilog="example:\n  python run.py prepare images brain_mri --sites 4 --skew 0.5 --size 224 \\\n"
        "      --modality MR --patient-regex '^(P[0-9]+)_' --reference 200 \\\n"
        "      -o data/brain_mri\n\n"
        "Shards, contact sheets and file lists are as private as the images. A --seed\n"
        "that others know lets them test whether a guessed patient id is in a shard.",
    )
    images.add_argument("source", type=Path, help="the folder of class folders")
    images.add_argument("-o", "--out", type=Path, required=True, help="a folder; with --sites 1 also one .h5 file")
    images.add_argument("--sites", type=int, default=4, help="hospitals; default: 4")
    images.add_argument("--skew", type=float, help="Dirichlet alpha of the label skew; none: alike")
    images.add_argument("--size", type=int, default=64, help="pixels a side; default: 64")
    images.add_argument("--seed", type=int, default=0, help="of splits and pseudonyms; default: 0")
    images.add_argument(
        "--modality", type=str.upper, default="OT", metavar="MR|CT|...", help="of all images, as DICOM says it"
    )
    images.add_argument("--patient-csv", type=Path, help="a table with the columns file,patient")
    images.add_argument("--patient-regex", help="its group is the patient, in the file name")
    images.add_argument("--all-test", action="store_true", help="no training split")
    images.add_argument(
        "--val-share", type=float, help="of the patients in the validation split; default: 0.1, 0 with --split-folders"
    )
    images.add_argument("--fold", type=_fold, metavar="K/N", help="cross-validation: part K of N is the test split")
    images.add_argument(
        "--reference", type=int, default=0, metavar="N", help="set N patients aside for good, unlabelled: reference.h5"
    )
    for name, text in (
        ("--split-folders", "the top folders are splits (Training, Testing, ...), the classes lie in them"),
        ("--follow-links", "walk into links to folders; links to files are always followed"),
        ("--repair-nan", "give NaN and infinite pixels the smallest or largest finite value of their image"),
        ("--skip-unreadable", "leave out images that cannot be read; default: refuse the import"),
        ("--replace", "remove the shards of another import from OUT; ledgers stay"),
        ("--list-files", "write what became of every file to OUT/files.csv: as private as the images"),
    ):
        images.add_argument(name, action="store_true", help=text)
    images.set_defaults(verb=_prepare_images)


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def _fold(text: str) -> tuple[int, int]:
    number, slash, folds = text.partition("/")
    if not (slash and number.isdecimal() and folds.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} must read K/N, for example 1/5")
    return int(number), int(folds)


def _train(options: argparse.Namespace) -> int:
    # Before all that takes seconds to import: until then a signal ends this process.
    notice = StopRequest()
    notice.listen()
    startup = Startup()
    from fedhpc.transport.mpi import abort_at_exit, connect

    transport = connect()
    startup.mark("MPI")
    try:
        return _train_on(transport, (notice, startup), options)
    except FileError as error:
        # Raised at this rank alone, in a round: the others wait for it.
        _report_failure(error, transport.rank)
        abort_at_exit(BAD_INPUT)
        return BAD_INPUT
    except InputError:
        raise
    except (KeyboardInterrupt, Stopped) as stop:
        status = stopped_by(stop)
        if transport.size > 1:
            abort_at_exit(status)
        return status
    except BaseException as error:
        _report_failure(error, transport.rank)
        abort_at_exit(FAILED)
        return FAILED


def _train_on(transport: Any, watch: tuple[StopRequest, Startup], options: argparse.Namespace) -> int:
    from fedhpc.run.agreement import Source, check_start

    started = [] if options.init_from is None else [f"model.init_from={json.dumps(str(options.init_from))}"]
    source = Source(options.config, [*options.set, *started], options.run_dir, options.take_over)
    check_start(transport, source)
    from fedhpc.run.train import Work, train

    stopped = train(Work(source, options.stop_after), transport, *watch)
    return RESUMABLE if stopped == "preempted" else FINISHED


def _world(options: argparse.Namespace) -> int:
    from fedhpc.transport.mpi import world_size

    print(world_size(), flush=True)
    return FINISHED


def _report_failure(error: BaseException, rank: int) -> None:
    """One line for the user, naming site and cause; the traceback only where the cause is not a known one."""
    from fedhpc.errors import PayloadError, SiteError

    print(f"error: rank {rank}: {error or type(error).__name__}", file=sys.stderr, flush=True)
    if not isinstance(error, SiteError | PayloadError | FileError | MemoryError):
        traceback.print_exception(error)


def _prepare_phantom(options: argparse.Namespace) -> int:
    from data_prep.phantom import Cohort, site_names, write_site
    from data_prep.target import writing

    chosen = {} if options.difficulty is None else {"difficulty": options.difficulty}
    cohort = Cohort(seed=options.seed, images=options.images, image_size=options.size, **chosen)
    with writing(options.out, options.images * options.size**2):
        for site in site_names(cohort):
            path = options.out / f"{site}.h5"
            write_site(cohort, site, path)
            print(path)
    return FINISHED


def _prepare_images(options: argparse.Namespace) -> int:
    from dataclasses import fields

    from data_prep.image_job import ImageImport
    from data_prep.images import import_images
    from data_prep.names import shown
    from data_prep.starter import write_starter

    job = ImageImport(**{field.name: getattr(options, field.name) for field in fields(ImageImport)})
    try:
        paths = import_images(job)
    except (KeyboardInterrupt, SystemExit) as stop:
        by, status = ("Ctrl-C", INTERRUPTED) if isinstance(stop, KeyboardInterrupt) else ("SIGTERM", 143)
        print(f"stopped by {by}: nothing was written to {shown(job.out)}", file=sys.stderr)
        return status
    for path in paths:
        print(shown(path))
    print(write_starter(job))
    return FINISHED


def _prepare_check(options: argparse.Namespace) -> int:
    from data_prep.check import check
    from data_prep.target import writing

    with writing(options.png or Path(), 0):
        return FINISHED if check(options.shards, options.png) else BAD_INPUT


def _privacy(options: argparse.Namespace) -> int:
    from fedhpc.cli.privacy_report import report

    found = report(options.targets, options.set)
    print(json.dumps(found.facts, allow_nan=False) if options.json else found.text)
    return FINISHED


def _evaluate(options: argparse.Namespace) -> int:
    from fedhpc.run.evaluate import evaluate, evaluation_text
    from fedhpc.util.text import wrapped

    result = evaluate(options.run, options.shard)
    if options.json:
        print(json.dumps(result, allow_nan=False))
    else:
        print(wrapped(evaluation_text(result)))
    return FINISHED


def _audit(options: argparse.Namespace) -> int:
    from fedhpc.audit.procedure import Options, audit

    asked = Options(
        path=options.target,
        overrides=options.set,
        site=options.site,
        quick=options.quick,
        seed=options.seed,
        out=options.out,
        json=options.json,
        real_patients=not options.no_real_patients,
    )
    return audit(asked)
