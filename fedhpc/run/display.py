"""What the user sees, on rank 0 only: a header, a live bar, one line a round, a closing table."""

import logging
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

from fedhpc.aggregation.base import Flag
from fedhpc.config.schedule import efforts_of
from fedhpc.config.schema import RunConfig
from fedhpc.errors import FileError
from fedhpc.privacy.plan import PrivacyPlan, bound_note
from fedhpc.records.metrics import shown_metrics
from fedhpc.records.summary import GIVEN_AWAY
from fedhpc.util.log import AGGREGATOR
from fedhpc.util.output import stop_printing
from fedhpc.util.text import clock, data_size, fitted, fixed, printable, wrapped

LOG = logging.getLogger(__name__)
MB = 1e6
INSECURE = "INSECURE: privacy.noise_seed is set, the guarantee is void"


class Console:
    """Prints at rank 0; at other ranks it says nothing. The bar appears only where a person looks at a terminal.

    Where standard output cannot be written, a run goes on without it. With `is_all`, as in a dry run, what is printed
    is all that is done, and that is a FileError.
    """

    def __init__(self, speaks: bool, out: TextIO | None = None, *, is_all: bool = False) -> None:
        self._out, self._is_all = out or sys.stdout, is_all
        self._speaks = speaks
        self._live = speaks and seen_by_a_person(self._out)
        self._bar: Any = None
        self._title = ""

    def say(self, text: str) -> None:
        """One line or several."""
        if self._speaks:
            LOG.info("%s", text, extra={"site": AGGREGATOR})
            try:
                self._clear()
                print(printable(text), file=self._out, flush=True)
            except BrokenPipeError:
                # `| head` has seen enough: the run goes on, its results are files.
                self._speaks = self._live = False
                stop_printing()
            except FileError as error:
                # A full disk under the output of a batch job: every line is in the log of the aggregator, too.
                self._speaks = self._live = False
                if self._is_all:
                    raise
                LOG.warning("%s The run goes on; what it would print is in its logs", error)

    def start_round(self, round: int, rounds: int, round_s: float | None) -> None:
        """Begin the bar of a round; `round_s` is the mean so far, for the time that the whole run still needs."""
        left = "" if round_s is None else f", about {clock(round_s * (rounds - round))} left"
        self._title = f"round {round + 1}/{rounds}{left}"

    def step(self, done: int, total: int) -> None:
        """One optimiser step of a site at this rank is done."""
        if not self._live:
            return
        if self._bar is None or done == 1:
            self._clear()
            # mpirun may give its ranks a terminal without a size, where tqdm would draw nothing.
            size = shutil.get_terminal_size()
            shape = {"ncols": min(100, size.columns), "nrows": size.lines}
            self._bar = tqdm(total=total, desc=self._title, unit="step", leave=False, file=self._out, **shape)
        self._bar.update()

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def seen_by_a_person(out: TextIO) -> bool:
    """Whether `out` ends at a terminal. `mpirun` may give its ranks one of its own: then ask where *it* writes."""
    if not out.isatty():
        return False
    launcher = _launcher()
    return launcher is None or os.path.realpath(f"/proc/{launcher}/fd/1").startswith(("/dev/pts/", "/dev/tty"))


def _launcher() -> int | None:
    """Return the nearest ancestor that is an MPI launcher; None outside one."""
    pid = os.getppid()
    while pid > 1:
        try:
            name = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8").strip()
            parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[1])
        except OSError:
            return None
        if name.startswith(("mpirun", "mpiexec", "prte", "orterun", "hydra")):
            return pid
        pid = parent
    return None


def round_line(record: Mapping[str, Any], rounds: int) -> str:
    """One round, one line."""
    parts = [
        f"round {record['round']:>3}/{rounds}",
        *([f"val AUC {fixed(record['auc_val'])}"] if record["auc_val"] is not None else []),
        *(
            [f"up {data_size(record['bytes_up'])}", f"down {data_size(record['bytes_down'])}"]
            if record["bytes_up"]
            else []
        ),
        *([f"epsilon {fixed(record['epsilon'])}"] if record["epsilon"] is not None else []),
        f"{record['seconds']['total']:.1f} s",
        *([f"late {', '.join(record['late'])}"] if record.get("late") else []),
        *([f"without {', '.join(missing)}"] if (missing := [*record["absent"], *record["dropped"]]) else []),
    ]
    return "  ".join(parts)


def flag_lines(record: Mapping[str, Any]) -> list[str]:
    """Return the sites that the aggregation rule found far out in a round, a line each.

    >>> flag_lines({"flags": [{"site": "a", "reason": "norm", "detail": "norm 9, at most 3", "excluded": False}]})
    ['  a counts less (norm: norm 9, at most 3)']
    """
    return [f"  {Flag(**flag).line()}" for flag in record.get("flags", ())]


def header(config: RunConfig, sites: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """Return what is about to run: sites, devices, model, bytes a round, planned epsilon."""
    columns = ("site", "rank", "host", "device", "weight")
    rows = [columns, *(tuple(str(site[key]) for key in columns) for site in sites)]
    lines = [
        *([config.stress.notice] if config.stress else []),
        _privacy_line(config, facts),
        f"fedhpc {config.mode} run {config.name}: {config.training.rounds} rounds x {config.training.local_epochs} "
        f"local epochs, {facts['threads']} thread(s) a rank, {facts['precision']}",
        f"model {config.model.label}, {facts['parameters']:,} parameters trained"
        + (f" on features of {config.model.backbone}" if config.model.backbone else ""),
    ]
    if config.mode == "federated":
        lines.append(
            f"a round sends about {data_size(facts['sparse_up_bytes'])} up and "
            f"{data_size(facts['sparse_down_bytes'])} down over all sites; dense fp32 would be "
            f"{data_size(facts['dense_bytes'])} each way"
        )
        notice = config.aggregation.notice(tuple(int(site["weight"]) for site in sites))
        lines += [notice] if notice else []
    if config.schedule.policy == "plan":
        lines.append(schedule_line(config, facts.get("plans", {})))
    if config.schedule.policy == "deadline":
        lines.append(deadline_line(config))
    if facts.get("absent"):
        lines.append(
            f"WITHOUT {', '.join(facts['absent'])}: declared, but no part of this start; the mean is of the others"
        )
    lines.append(facts["wire"])
    lines.append(evaluation_line(config))
    return f"{wrapped(chr(10).join(lines))}\n{fitted(rows)}"


def _privacy_line(config: RunConfig, facts: Mapping[str, Any]) -> str:
    p = config.privacy
    if p.epsilon is None:
        return "PRIVACY OFF: updates may reveal patients (privacy: off)"
    insecure = "" if p.noise_seed is None else f"\n{INSECURE}"
    return (
        f"privacy: epsilon {p.epsilon:g}, delta {p.delta:g}, for every {p.unit}{insecure}\n"
        f"planned: epsilon {fixed(facts['planned_epsilon'])}, "
        f"noise multiplier {facts['noise_multiplier']:.3f}, sample rate {p.sample_rate:g}"
        f"{_feature_mean_line(facts)}"
        f"{_trust_line(config, facts) if p.trust == 'sites' else ''}"
        f"{'' if (note := bound_note(config)) is None else chr(10) + note}"
    )


def schedule_line(config: RunConfig, plans: Mapping[str, PrivacyPlan]) -> str:
    """Return which sites do less than all of their work, with what noise (public)."""
    parts = []
    for site, effort in efforts_of(config).items():
        plan = plans.get(site)
        noise = f", sample rate {plan.sample_rate:.4g}, noise multiplier {plan.noise_multiplier:.3f}" if plan else ""
        parts += [f"{site} does {effort:g} of its work{noise}"] if effort < 1 else []
    told = "; ".join(parts) or "all sites do all of their work"
    return f"schedule: planned work, fixed for the run: {told}"


def deadline_line(config: RunConfig) -> str:
    """When a round ends, with schedule.policy=deadline (public)."""
    schedule = config.schedule
    if schedule.replay is not None:
        return f"schedule: late updates enter the rounds that {schedule.replay} says, not those that the clock gives"
    return (
        f"schedule: a round ends {schedule.deadline_s:g} s after it began; a late update enters a later one, with its "
        "weight lowered. The bits of this run depend on its seconds: schedule.replay repeats them"
    )


def _feature_mean_line(facts: Mapping[str, Any]) -> str:
    noise = facts.get("feature_mean_noise")
    return "" if noise is None else f"; the mean of the features once, noise multiplier {noise:g}"


def _trust_line(config: RunConfig, facts: Mapping[str, Any]) -> str:
    p, n, trust = config.privacy, len(config.data.sites), facts["trust"]
    lines = [
        f"trust: the aggregator sees only the sum over the {n} sites; each adds 1/{config.honest_sites} of the noise "
        f"variance: {p.colluding_sites} may collude with it, {p.tolerated_dropouts} may drop out of a round",
    ]
    if trust.aggregator == "none":
        lines.append(f"REHEARSAL: {trust.why}: from that process nothing is hidden")
    elif trust.aggregator == "honest-but-curious":
        lines.append(f"PROTECTS ONLY from an aggregator that keeps to the protocol: {trust.why}")
    else:
        lines.append(f"protects from an aggregator that may send what it likes: {trust.why}")
    lines.append(f"if that fails: epsilon {trust.epsilon_if_unmasked:.2f}, by a site's own share of the noise alone")
    if config.private_evaluation:
        lines[-1] += ", for training patients; no bound for validation and test patients"
    return "\n" + "\n".join(lines)


def evaluation_line(config: RunConfig) -> str:
    """Return what is released of validation and test patients, for the header; without privacy nothing is promised."""
    e = config.evaluation
    if not config.private:
        return "evaluation: exact score histograms; validation as the rounds go, the test split once, at the end"
    if e.epsilon is None:
        return f"evaluation: NOT PRIVATE. {GIVEN_AWAY}"
    when = "at the end" if e.every is None else f"after every {e.every} rounds (half of it) and at the end"
    return (
        f"evaluation: epsilon {e.epsilon:g} for validation patients and for test patients (none of them trained on), "
        f"unit {config.privacy.unit}, Laplace noise; validation {when}, the test split once"
    )


def evaluation_lines(config: RunConfig, summary: Mapping[str, Any]) -> list[str]:
    """Return what must be known beside the closing table: what the metrics cost, what is missing and why."""
    lines = []
    if config.privacy.noise_seed is not None:
        lines.append(INSECURE)
    elif config.private_evaluation and summary["evaluation_epsilon"] is not None:
        lines.append(
            f"epsilon protects the training patients; of validation and test patients epsilon "
            f"{fixed(summary['evaluation_epsilon'])} was spent (evaluation.epsilon={config.evaluation.epsilon:g}). The "
            "metrics contain that noise, and so does the interval"
        )
    elif config.private:
        lines.append(f"epsilon protects the training patients only. {GIVEN_AWAY}")
    lines += findings_lines(summary)
    return lines + [f"{key}: {why}" for key, why in summary["reasons"].items()]


def findings_lines(found: Mapping[str, Any]) -> list[str]:
    """Each finding's own metrics, a line each; none where images are of one class.

    >>> findings_lines({"per_finding": {"nodule": {"auc": 0.9, "f1": 0.5, "sensitivity": 0.7}}})
    ['nodule: AUC 0.900, F1 0.500']
    """
    shown = {"auc": "AUC", "f1": "F1"}
    return [
        f"{name}: " + ", ".join(f"{head} {fixed(values[key])}" for key, head in shown.items())
        for name, values in found.get("per_finding", {}).items()
    ]


@dataclass(frozen=True)
class NamedSummary:
    """The `summary.json` of a run, and the name of its directory."""

    name: str
    summary: Mapping[str, Any]


def closing(runs: Sequence[NamedSummary]) -> str:
    """Return the result beside the baselines on the same data that lie next to it."""
    rows = [("run", "mode", "AUC", "95 % CI", *(metric.head for metric in shown_metrics()), "epsilon", "up/round")]
    for run in runs:
        s = run.summary
        ci = "-" if s["auc_ci95"] is None else f"{s['auc_ci95'][0]:.3f}-{s['auc_ci95'][1]:.3f}"
        up = data_size(s["bytes_up_per_round"]) if s["mode"] == "federated" else "-"
        others = (fixed(s.get(metric.key)) for metric in shown_metrics())
        cells = (
            fixed(s["auc"]),
            ci,
            *others,
            "void" if s.get("insecure_noise_seed") is not None else fixed(s["epsilon"]),
            up,
        )
        rows.append((run.name, s["mode"], *cells))
    return fitted(rows)
