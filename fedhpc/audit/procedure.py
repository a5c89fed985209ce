"""`run.py audit`: open the site, measure and attack, write, conclude."""

import contextlib
import json
import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from fedhpc.audit.bounds import auditing
from fedhpc.audit.contact_rows import Row
from fedhpc.audit.findings import WITH_DP, Finding, Result, cells_to_tell
from fedhpc.audit.inversion import Effort, rows
from fedhpc.audit.laws import judged, laws_of
from fedhpc.audit.membership import WholeRun, real_training, released_model, whole_run
from fedhpc.audit.negative_controls import Trials, one_step, sampling, two_sites
from fedhpc.audit.observation import Claim
from fedhpc.audit.report import (
    as_json,
    inversion_sheet,
    page,
    png,
    public_part,
    terminal_table,
    told_part,
    write_bytes,
)
from fedhpc.audit.target import Subject, Target, find_target, open_subject
from fedhpc.config.schema import RunConfig
from fedhpc.errors import with_code
from fedhpc.records.run_directory import RunDirectory
from fedhpc.util.files import READABLE
from fedhpc.util.progress import at_work
from fedhpc.util.text import wrapped

LOG = logging.getLogger(__name__)

PASSED, FAILED = 0, 1
T = TypeVar("T")


@dataclass(frozen=True)
class Options:
    """What the user asked for: a run directory or a config (with overrides), a site, how much, and where to write.

    `real_patients`: whether the site's patients are trained on, which is charged, or canaries alone.
    """

    path: Path
    overrides: list[str]
    site: str | None
    quick: bool
    seed: int
    out: Path | None
    json: bool
    real_patients: bool = True


@dataclass(frozen=True)
class Plan:
    """How much is done. `trials` are of one step, `pairs` of two sites, `rounds` of one round with subsampling."""

    trials: Trials
    pairs: Trials
    rounds: Trials
    whole_run: WholeRun
    real_canaries: int
    effort: Effort


def plan_of(quick: bool, seed: int, rounds: int) -> Plan:
    """Of a linear head under a minute on two cores; `quick`: half of it, with fewer canaries, rounds and iterations."""
    if quick:
        return Plan(
            trials=Trials(40, 500, seed),
            pairs=Trials(20, 500, seed),
            rounds=Trials(4, 1000, seed),
            whole_run=WholeRun(1, 2000, min(rounds, 5), seed),
            real_canaries=500,
            effort=Effort(20, 5.0, seed),
        )
    return Plan(
        trials=Trials(100, 500, seed),
        pairs=Trials(40, 500, seed),
        rounds=Trials(8, 1000, seed),
        whole_run=WholeRun(2, 4000, rounds, seed),
        real_canaries=500,
        effort=Effort(200, 20.0, seed),
    )


def audit(options: Options) -> int:
    """Run the audit; the exit status.

    Raises:
        InputError: nothing that can be audited, or a library that is missing.
        PrivacyError: the site ledger does not allow the trainings on the site's patients.
    """
    auditing()
    target = find_target(options.path, options.overrides)
    plan = plan_of(options.quick, options.seed, target.config.training.rounds)
    start = time.monotonic()
    with open_subject(target, options.site) as subject:
        # What a network of the user's prints is not for standard output, which belongs to `--json`.
        with contextlib.redirect_stdout(sys.stderr):
            results, pictures = _attack(subject, plan, options)
        settings = {
            **asdict(plan),
            "quick": options.quick,
            "real_patients": options.real_patients,
            "charged_rounds": subject.charges.rounds,
            "seconds": round(time.monotonic() - start, 1),
        }
        content = as_json(subject, results, settings)
        _write(target, options, Outcome(content, results, pictures))
        if not options.json:
            print(f"\n{wrapped(_conclusion(subject, options.real_patients))}\n\n{content['verdict']}")
    return PASSED if content["passed"] else FAILED


def shortened(subject: Subject) -> Subject:
    """With one local epoch a round."""
    epochs = subject.config.training.epochs_begun
    config = subject.config.replace({"training.local_epochs": 1})
    plan = replace(subject.plan, steps_per_round=subject.plan.steps_per_round // epochs)
    return replace(subject, config=config, plan=plan)


def _attack(subject: Subject, plan: Plan, options: Options) -> tuple[list[Result], list[Row]]:
    """Pictures first; then the laws; then what adversaries make of it. No site's update is seen with trust=sites."""
    quick, real = options.quick, options.real_patients
    trained = shortened(subject) if quick else subject
    seen = subject.config.privacy.trust == "aggregator"
    if seen and real:
        subject.charges.check(trained.plan)
    with at_work("audit") as begins:
        pictures = list(_told(begins, "inversion", rows(trained, plan.effort))) if seen and real else []
        results: list[Result] = [finding for row in pictures for finding in row.findings()]
        results += _told(begins, "laws", _laws(subject, plan.effort.seed, options))
        if seen:
            results += _told(begins, "one step", one_step(subject, plan.trials))
            results += _told(begins, "two sites", two_sites(subject, plan.pairs))
            results += _told(begins, "one round", sampling(trained, plan.rounds))
            rounds = _counted(begins, plan.whole_run)
            results += whole_run(trained, plan.whole_run, lambda: next(rounds, None))
        if seen and real:
            results += _told(begins, "real training", real_training(trained, plan.real_canaries, plan.effort.seed))
        results += released_model(subject) if real else []
    return [*results, noise_source(subject.config)], pictures


def _laws(subject: Subject, seed: int, options: Options) -> Iterator[Result]:
    real = options.real_patients
    return judged(subject, seed, options.quick) if real else laws_of(Claim.of(subject, seed), options.quick)


def _told(begins: Callable[[str], None], name: str, parts: Iterable[T]) -> Iterator[T]:
    """`parts`, while the progress line says how many of them are done."""
    begins(name)
    for done, part in enumerate(parts, 1):
        yield part
        begins(f"{name}, {done} done")


def _counted(begins: Callable[[str], None], size: WholeRun) -> Iterator[None]:
    total = size.runs * size.rounds
    for done in range(1, total + 1):
        begins(f"whole run, round {done} of {total}")
        yield


def noise_source(config: RunConfig) -> Finding:
    """A noise seed in the config is known to everybody who has the config, and the noise with it."""
    seeds = float(config.privacy.noise_seed is not None)
    return Finding("noise of the run", WITH_DP, "seeds in the config", seeds, seeds, 0.0, "allowed", "claim")


@dataclass(frozen=True)
class Outcome:
    """An audit's content for `audit.json`, its results, and the rows of its contact sheet (all private)."""

    content: dict[str, Any]
    results: list[Result]
    pictures: list[Row]


def _write(target: Target, options: Options, made: Outcome) -> None:
    """Numbers and pictures into the site's own folder, the verdicts alone outside of it. Then table and verdict."""
    content, results, pictures = made.content, made.results, made.pictures
    site = content["site"]
    outside = options.out or target.directory / "audit"
    private = options.out / "sites" / site if options.out else RunDirectory(target.directory).site(site) / "audit"
    sheet = inversion_sheet(pictures) if pictures else None
    write_bytes(private / "audit.json", as_text(content))
    write_bytes(private / "audit.html", page(content, results, sheet).encode())
    write_bytes(outside / f"{site}.json", as_text(public_part(content)), mode=READABLE)
    if sheet is not None:
        write_bytes(private / "inversion.png", png(sheet))
    for result in results:
        if not result.passed:
            attack, setting, *figures, verdict = cells_to_tell(result)
            said = f"{attack}, {setting}: {verdict}; {', '.join(filter(None, figures))}"
            LOG.error("%s", with_code(f"audit: {said}", "audit.failed"))
    if options.json:
        print(json.dumps(told_part(content), allow_nan=False))
        return
    print(terminal_table(results))
    print(f"\nprivate, figures and pictures of patients: {private}/audit.json, audit.html, inversion.png")
    print(f"verdicts alone, may leave the site: {outside / f'{site}.json'}")


def _conclusion(subject: Subject, real_patients: bool) -> str:
    """Return what the audit cost the site's patients, and what it kept back."""
    if not real_patients:
        return "canaries alone: no patient was trained on, nothing was charged"
    kept = "figures measured on patients without noise are in the site's folder only: no epsilon bounds them"
    rounds = subject.charges.rounds
    if not rounds:
        return f"no patient was trained on with noise, nothing was charged; {kept}"
    folder = subject.charges.account.ledger.folder
    return f"charged to the site ledger {folder}: {rounds} rounds of training on its patients\n{kept}"


def as_text(content: dict[str, Any]) -> bytes:
    """An indented JSON file."""
    return f"{json.dumps(content, indent=2, allow_nan=False)}\n".encode()
